//! Who is called next: fair among homeservers, sends before restarts, and no faster than a server allows.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::leave::UnixMillis;
use crate::matrix::delayed_event::{DelayedEventAction, DelayedEventOutcome};
use crate::matrix::id::ServerName;

/// Calls under way in all.
pub(super) const MAX_CONCURRENT_CALLS: usize = 24;
/// Restarts under way in all: the other places are for sends.
const MAX_CONCURRENT_RESTARTS: usize = 14;
/// Calls under way in all to servers that did not answer last time, and to such as were never asked, who need not stand in line
/// with the former.
const MAX_CALLS_TO_FAILING_SERVERS: usize = 6;
const MAX_CALLS_TO_UNKNOWN_SERVERS: usize = 8;
/// For one call, and for one to a server that was never asked: many of those that hang would keep the others waiting. Whoever
/// takes longer is tried again with all the time, among those that did not answer. It is more than a connection may take, for who
/// had less than that has not failed to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_CALL_TIMEOUT: Duration = Duration::from_secs(6);
/// Calls under way to one server that answers, reached one by one with every answer.
const MAX_PER_SERVER: usize = 10;
/// Calls under way to one server if the oldest of them has been for longer than [`SLOW`].
const MAX_PER_SLOW_SERVER: usize = 3;
const SLOW_AFTER: Duration = Duration::from_secs(1);
/// Calls under way to one server that has told us to slow down: a restart, and a send that does not wait for it.
const MAX_PER_RATE_LIMITED_SERVER: usize = 2;
/// The pause that a server is left when it says that we are too fast, but not when to come back; and the longest that is believed.
const RATE_LIMIT_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The shortest pause before a call that could not be made is tried again.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(100);
/// The longest time that is left between two restarts on one server, however often it says that we are too fast.
const MAX_PACING_INTERVAL: Duration = Duration::from_secs(5);
/// Servers that are remembered without having calls.
const MAX_IDLE_SERVERS: usize = 4096;
/// Gaps shorter than this are none.
const MIN_PACING_INTERVAL: Duration = Duration::from_millis(20);

/// A call that may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueuedAction {
    pub(super) serial: u64,
    pub(super) action: DelayedEventAction,
}

/// What is known of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServerHealth {
    Unknown,
    Failing,
    /// It has answered so many times in a row.
    Healthy(usize),
}

/// A call under way.
#[derive(Debug)]
struct RunningCall {
    started_at: UnixMillis,
    /// As the server was known then.
    health_at_start: ServerHealth,
}

/// The calls to one server.
#[derive(Debug)]
struct ServerCallQueue {
    sends: VecDeque<u64>,
    /// By the time at which they are too late.
    restarts: BTreeSet<(UnixMillis, u64)>,
    /// The oldest first.
    in_flight: Vec<RunningCall>,
    restarts_in_flight: usize,
    health: ServerHealth,
    not_before: Option<UnixMillis>,
    /// Time from one restart to the next, and when that next one may be.
    pacing_interval: Duration,
    next_restart_at: Option<UnixMillis>,
    /// When the server last made us slower, and what it then said.
    last_rate_limit: Option<(UnixMillis, Duration)>,
}

impl Default for ServerCallQueue {
    fn default() -> Self {
        Self {
            sends: VecDeque::new(),
            restarts: BTreeSet::new(),
            in_flight: Vec::new(),
            restarts_in_flight: 0,
            health: ServerHealth::Unknown,
            not_before: None,
            pacing_interval: Duration::ZERO,
            next_restart_at: None,
            last_rate_limit: None,
        }
    }
}

impl ServerCallQueue {
    /// Whether nothing would be lost with it.
    fn is_idle(&self, now: UnixMillis) -> bool {
        self.sends.is_empty()
            && self.restarts.is_empty()
            && self.in_flight.is_empty()
            && self.not_before.is_none_or(|at| at <= now)
            && self.pacing_interval.is_zero()
    }

    fn max_in_flight(&self, now: UnixMillis) -> usize {
        let ServerHealth::Healthy(times) = self.health else {
            return 1;
        };
        let oldest = self.in_flight.first();
        let slow = oldest.is_some_and(|call| now.duration_since(call.started_at) > SLOW_AFTER);
        let most = if !self.pacing_interval.is_zero() {
            MAX_PER_RATE_LIMITED_SERVER
        } else if slow {
            MAX_PER_SLOW_SERVER
        } else {
            MAX_PER_SERVER
        };
        most.min(times + 1)
    }

    fn next_action(&self, now: UnixMillis, restarts: bool) -> Option<DelayedEventAction> {
        if self.in_flight.len() >= self.max_in_flight(now)
            || self.not_before.is_some_and(|at| now < at)
        {
            return None;
        }
        if !self.sends.is_empty() {
            return Some(DelayedEventAction::Send);
        }
        let limited = !self.pacing_interval.is_zero();
        let paced = limited
            && (self.restarts_in_flight > 0 || self.next_restart_at.is_some_and(|at| now < at));
        (restarts && !paced && !self.restarts.is_empty()).then_some(DelayedEventAction::Restart)
    }

    /// When something that waits may begin, if time is all that it waits for.
    fn next_start_at(&self) -> Option<UnixMillis> {
        let restart = || self.not_before.max(self.next_restart_at);
        match (self.sends.is_empty(), self.restarts.is_empty()) {
            (true, true) => None,
            (false, true) => self.not_before,
            (false, false) => self.not_before.or_else(restart),
            (true, false) => restart(),
        }
    }

    fn slow_down(&mut self, after: Option<Duration>, began: UnixMillis, now: UnixMillis) {
        let wait = after.unwrap_or(RATE_LIMIT_PAUSE.0).min(RATE_LIMIT_PAUSE.1);
        // the server has reckoned from when it was asked
        let until = (began + wait).max(now) + MIN_PACING_INTERVAL;
        self.not_before = self.not_before.max(Some(until));
        // those that were under way together are refused together, which says no more than one of them would
        if self.last_rate_limit.is_some_and(|(at, _)| began <= at) {
            return;
        }
        let said = wait.clamp(MIN_PACING_INTERVAL, MAX_PACING_INTERVAL);
        let paced = !self.pacing_interval.is_zero();
        self.pacing_interval = if paced {
            self.pacing_interval * 5 / 4
        } else {
            said
        }
        .min(MAX_PACING_INTERVAL);
        let longest = self
            .last_rate_limit
            .filter(|_| paced)
            .map_or(said, |(_, s)| s.max(said));
        self.last_rate_limit = Some((now, longest));
    }

    /// Soon back to the pace that the server has named, which is that of its limit, and then slowly beyond it.
    fn speed_up(&mut self) {
        let beyond = self
            .last_rate_limit
            .is_none_or(|(_, said)| self.pacing_interval <= said);
        self.pacing_interval -= self.pacing_interval / if beyond { 64 } else { 8 };
        if self.pacing_interval < MIN_PACING_INTERVAL {
            self.pacing_interval = Duration::ZERO;
        }
    }

    fn record_success(&mut self) {
        self.health = match self.health {
            ServerHealth::Healthy(times) => ServerHealth::Healthy(times.saturating_add(1)),
            ServerHealth::Unknown | ServerHealth::Failing => ServerHealth::Healthy(1),
        };
    }
}

/// The calls to all servers.
#[derive(Debug, Default)]
pub(super) struct CallQueue {
    servers: HashMap<ServerName, ServerCallQueue>,
    /// Servers with calls that wait, each in its turn.
    round_robin: VecDeque<ServerName>,
    in_flight: usize,
    restarts_in_flight: usize,
    failing_in_flight: usize,
    unknown_in_flight: usize,
}

impl CallQueue {
    /// How long a call to this server may take.
    pub(super) fn call_timeout(&self, server: &ServerName) -> Duration {
        let lane = self.servers.get(server);
        match lane.is_none_or(|lane| lane.health == ServerHealth::Unknown) {
            true => FIRST_CALL_TIMEOUT,
            false => CALL_TIMEOUT,
        }
    }

    /// Has a call wait for its turn; a restart is too late at `by`.
    pub(super) fn push(&mut self, server: &ServerName, job: QueuedAction, by: UnixMillis) {
        let lane = self.servers.entry(server.clone()).or_default();
        if lane.sends.is_empty() && lane.restarts.is_empty() {
            self.round_robin.push_back(server.clone());
        }
        match job.action {
            DelayedEventAction::Send => lane.sends.push_back(job.serial),
            DelayedEventAction::Restart => {
                lane.restarts.insert((by, job.serial));
            }
        }
    }

    /// Begins the next call that is still wanted and may begin at `now`.
    pub(super) fn start_next(
        &mut self,
        now: UnixMillis,
        wanted: impl Fn(QueuedAction) -> bool,
    ) -> Option<(ServerName, QueuedAction)> {
        for deed in [DelayedEventAction::Send, DelayedEventAction::Restart] {
            for _ in 0..self.round_robin.len() {
                if self.in_flight >= MAX_CONCURRENT_CALLS {
                    return None;
                }
                let server = self.round_robin.pop_front()?;
                let job = self.start_from_server(&server, deed, now, &wanted);
                let lane = self.servers.get(&server);
                if lane.is_some_and(|lane| !lane.sends.is_empty() || !lane.restarts.is_empty()) {
                    self.round_robin.push_back(server.clone());
                }
                if let Some(job) = job {
                    return Some((server, job));
                }
            }
        }
        None
    }

    fn start_from_server(
        &mut self,
        server: &ServerName,
        turn: DelayedEventAction,
        now: UnixMillis,
        wanted: impl Fn(QueuedAction) -> bool,
    ) -> Option<QueuedAction> {
        let lane = self.servers.get_mut(server)?;
        let repute = lane.health;
        match repute {
            ServerHealth::Failing if self.failing_in_flight >= MAX_CALLS_TO_FAILING_SERVERS => {
                return None;
            }
            ServerHealth::Unknown if self.unknown_in_flight >= MAX_CALLS_TO_UNKNOWN_SERVERS => {
                return None;
            }
            _ => {}
        }
        loop {
            let deed = lane.next_action(now, self.restarts_in_flight < MAX_CONCURRENT_RESTARTS)?;
            if deed != turn {
                return None;
            }
            let serial = match deed {
                DelayedEventAction::Send => lane.sends.pop_front()?,
                DelayedEventAction::Restart => lane.restarts.pop_first()?.1,
            };
            let job = QueuedAction {
                serial,
                action: deed,
            };
            if !wanted(job) {
                continue;
            }
            lane.in_flight.push(RunningCall {
                started_at: now,
                health_at_start: repute,
            });
            self.in_flight += 1;
            if deed == DelayedEventAction::Restart {
                lane.restarts_in_flight += 1;
                self.restarts_in_flight += 1;
                lane.next_restart_at = Some(now + lane.pacing_interval);
            }
            self.failing_in_flight += usize::from(repute == ServerHealth::Failing);
            self.unknown_in_flight += usize::from(repute == ServerHealth::Unknown);
            return Some(job);
        }
    }

    /// Takes note of what came of a call that began at `began`; none if it was not made. Whether the server says that we are too fast.
    pub(super) fn finish_call(
        &mut self,
        server: &ServerName,
        deed: DelayedEventAction,
        outcome: Option<&DelayedEventOutcome>,
        began: UnixMillis,
        now: UnixMillis,
    ) -> bool {
        self.in_flight = self.in_flight.saturating_sub(1);
        let restart = usize::from(deed == DelayedEventAction::Restart);
        self.restarts_in_flight = self.restarts_in_flight.saturating_sub(restart);
        let Some(lane) = self.servers.get_mut(server) else {
            return false;
        };
        lane.restarts_in_flight = lane.restarts_in_flight.saturating_sub(restart);
        if let Some(index) = lane
            .in_flight
            .iter()
            .position(|call| call.started_at == began)
        {
            match lane.in_flight.remove(index).health_at_start {
                ServerHealth::Failing => {
                    self.failing_in_flight = self.failing_in_flight.saturating_sub(1)
                }
                ServerHealth::Unknown => {
                    self.unknown_in_flight = self.unknown_in_flight.saturating_sub(1)
                }
                ServerHealth::Healthy(_) => {}
            }
        }
        match outcome {
            None => {}
            Some(DelayedEventOutcome::RateLimited(after)) => {
                lane.record_success();
                lane.slow_down(*after, began, now);
            }
            Some(DelayedEventOutcome::NotAttempted(after)) => {
                let until = now + (*after).clamp(MIN_RETRY_DELAY, RATE_LIMIT_PAUSE.1);
                lane.not_before = lane.not_before.max(Some(until));
            }
            Some(DelayedEventOutcome::Failed(_)) => lane.health = ServerHealth::Failing,
            Some(
                DelayedEventOutcome::Done
                | DelayedEventOutcome::NotFound
                | DelayedEventOutcome::Finalised
                | DelayedEventOutcome::Rejected(_),
            ) => {
                lane.record_success();
                lane.speed_up();
            }
        }
        if self.servers.len() > MAX_IDLE_SERVERS {
            self.servers.retain(|_, lane| !lane.is_idle(now));
        }
        matches!(outcome, Some(DelayedEventOutcome::RateLimited(_)))
    }

    /// When to ask for the next call, if none ends before.
    pub(super) fn next_start_at(&self, now: UnixMillis) -> Option<UnixMillis> {
        if self.in_flight >= MAX_CONCURRENT_CALLS {
            return None;
        }
        let lanes = self
            .round_robin
            .iter()
            .filter_map(|name| self.servers.get(name));
        lanes
            .filter_map(ServerCallQueue::next_start_at)
            .filter(|at| *at > now)
            .min()
    }
}
