//! Queue of the calls to homeservers: fair between servers, sends before restarts, and no faster than a server allows.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::leave::UnixMillis;
use crate::matrix::delayed_event::{DelayedEventAction, DelayedEventOutcome};
use crate::matrix::id::ServerName;

/// Calls running in all.
pub(super) const MAX_CONCURRENT_CALLS: usize = 24;
/// Restarts running in all; the rest is reserved for sends.
const MAX_CONCURRENT_RESTARTS: usize = 14;
/// Calls running in all to servers whose last call failed.
const MAX_CALLS_TO_FAILING_SERVERS: usize = 6;
/// Calls running in all to servers that were never called, which do not have to wait for failing ones.
const MAX_CALLS_TO_UNKNOWN_SERVERS: usize = 8;
/// Time for one call; longer than the connection may take, so that an unresponsive server is measured by a timeout.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for a server that was never called: many that hang would delay the others. A slower server gets the full time in its next
/// call, as a failing one.
const FIRST_CALL_TIMEOUT: Duration = Duration::from_secs(6);
/// Calls running to one server that answers; the limit grows by one with each success.
const MAX_PER_SERVER: usize = 10;
/// Calls running to one server whose oldest running call is older than [`SLOW_AFTER`].
const MAX_PER_SLOW_SERVER: usize = 3;
const SLOW_AFTER: Duration = Duration::from_secs(1);
/// Calls running to one server that limits our rate: a restart, and a send that does not wait for it.
const MAX_PER_RATE_LIMITED_SERVER: usize = 2;
/// Pause after a 429 that names none, and the longest that is obeyed.
const DEFAULT_RATE_LIMIT_PAUSE: Duration = Duration::from_secs(1);
const MAX_RATE_LIMIT_PAUSE: Duration = Duration::from_secs(60);
/// Shortest pause before a call that could not be made is tried again.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Bounds of the time between two restarts on a server that limits our rate; below the lower one, restarts are not paced.
const MIN_PACING_INTERVAL: Duration = Duration::from_millis(20);
const MAX_PACING_INTERVAL: Duration = Duration::from_secs(5);
/// Servers remembered without calls.
const MAX_IDLE_SERVERS: usize = 4096;

/// A call of the leave with this serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueuedAction {
    pub(super) serial: u64,
    pub(super) action: DelayedEventAction,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum ServerHealth {
    #[default]
    Unknown,
    Failing,
    /// The last calls succeeded; their number.
    Healthy(usize),
}

#[derive(Debug)]
struct RunningCall {
    started_at: UnixMillis,
    health_at_start: ServerHealth,
}

/// Queued and running calls to one server.
#[derive(Debug, Default)]
struct ServerCallQueue {
    sends: VecDeque<u64>,
    /// By deadline.
    restarts: BTreeSet<(UnixMillis, u64)>,
    /// Oldest first.
    in_flight: Vec<RunningCall>,
    restarts_in_flight: usize,
    health: ServerHealth,
    not_before: Option<UnixMillis>,
    /// Time from one restart to the next, and when the next may start; zero if the server does not limit our rate.
    pacing_interval: Duration,
    next_restart_at: Option<UnixMillis>,
    /// When the pacing interval last grew, and the longest pause that the server named since it began to limit our rate.
    last_rate_limit: Option<(UnixMillis, Duration)>,
}

impl ServerCallQueue {
    fn has_queued(&self) -> bool {
        !self.sends.is_empty() || !self.restarts.is_empty()
    }

    fn is_paced(&self) -> bool {
        !self.pacing_interval.is_zero()
    }

    /// Whether nothing but the server's health would be lost with this entry.
    fn is_idle(&self, now: UnixMillis) -> bool {
        !self.has_queued()
            && self.in_flight.is_empty()
            && self.not_before.is_none_or(|at| at <= now)
            && !self.is_paced()
    }

    fn max_in_flight(&self, now: UnixMillis) -> usize {
        let ServerHealth::Healthy(successes) = self.health else {
            return 1;
        };
        let oldest = self.in_flight.first();
        let slow = oldest.is_some_and(|call| now.duration_since(call.started_at) > SLOW_AFTER);
        let limit = if self.is_paced() {
            MAX_PER_RATE_LIMITED_SERVER
        } else if slow {
            MAX_PER_SLOW_SERVER
        } else {
            MAX_PER_SERVER
        };
        limit.min(successes + 1)
    }

    fn next_action(&self, now: UnixMillis, restarts_allowed: bool) -> Option<DelayedEventAction> {
        if self.in_flight.len() >= self.max_in_flight(now)
            || self.not_before.is_some_and(|at| now < at)
        {
            return None;
        }
        if !self.sends.is_empty() {
            return Some(DelayedEventAction::Send);
        }
        let must_wait = self.is_paced()
            && (self.restarts_in_flight > 0 || self.next_restart_at.is_some_and(|at| now < at));
        (restarts_allowed && !must_wait && !self.restarts.is_empty())
            .then_some(DelayedEventAction::Restart)
    }

    /// When the first queued call may start, if it waits for nothing but time.
    fn earliest_start(&self) -> Option<UnixMillis> {
        let restart = || self.not_before.max(self.next_restart_at);
        match (self.sends.is_empty(), self.restarts.is_empty()) {
            (true, true) => None,
            (false, true) => self.not_before,
            (false, false) => self.not_before.or_else(restart),
            (true, false) => restart(),
        }
    }

    /// Handles a 429 that names a pause of `retry_after`.
    fn slow_down(
        &mut self,
        retry_after: Option<Duration>,
        started_at: UnixMillis,
        now: UnixMillis,
    ) {
        let pause = retry_after
            .unwrap_or(DEFAULT_RATE_LIMIT_PAUSE)
            .min(MAX_RATE_LIMIT_PAUSE);
        // the server counts the pause from when it read the request
        let until = (started_at + pause).max(now) + MIN_PACING_INTERVAL;
        self.not_before = self.not_before.max(Some(until));
        // calls that ran at the same time are refused together, which counts once
        if self.last_rate_limit.is_some_and(|(at, _)| started_at <= at) {
            return;
        }
        let named = pause.clamp(MIN_PACING_INTERVAL, MAX_PACING_INTERVAL);
        let (interval, longest) = match self.last_rate_limit {
            Some((_, longest)) if self.is_paced() => {
                (self.pacing_interval * 5 / 4, longest.max(named))
            }
            _ => (named, named),
        };
        self.pacing_interval = interval.min(MAX_PACING_INTERVAL);
        self.last_rate_limit = Some((now, longest));
    }

    /// Returns quickly to the pace that the server named, which is that of its limit, and then slowly goes beyond it.
    fn speed_up(&mut self) {
        let beyond = self
            .last_rate_limit
            .is_none_or(|(_, named)| self.pacing_interval <= named);
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

/// Calls to all homeservers.
#[derive(Debug, Default)]
pub(super) struct CallQueue {
    servers: HashMap<ServerName, ServerCallQueue>,
    /// Servers with queued calls, next one first.
    round_robin: VecDeque<ServerName>,
    in_flight: usize,
    restarts_in_flight: usize,
    failing_in_flight: usize,
    unknown_in_flight: usize,
    /// Number of servers above which idle ones are removed, if greater than [`MAX_IDLE_SERVERS`].
    prune_above: usize,
}

impl CallQueue {
    /// Time that a call to this server may take.
    pub(super) fn call_timeout(&self, server: &ServerName) -> Duration {
        let known = self.servers.get(server).map(|queue| queue.health);
        match known.unwrap_or(ServerHealth::Unknown) {
            ServerHealth::Unknown => FIRST_CALL_TIMEOUT,
            ServerHealth::Failing | ServerHealth::Healthy(_) => CALL_TIMEOUT,
        }
    }

    /// Queues a call. A restart has to be made before `deadline`.
    pub(super) fn push(&mut self, server: &ServerName, queued: QueuedAction, deadline: UnixMillis) {
        let queue = self.servers.entry(server.clone()).or_default();
        if !queue.has_queued() {
            self.round_robin.push_back(server.clone());
        }
        match queued.action {
            DelayedEventAction::Send => queue.sends.push_back(queued.serial),
            DelayedEventAction::Restart => {
                queue.restarts.insert((deadline, queued.serial));
            }
        }
    }

    /// Takes the next call that may start at `now`, and counts it as running. Calls that `is_needed` denies are dropped.
    pub(super) fn start_next(
        &mut self,
        now: UnixMillis,
        is_needed: impl Fn(QueuedAction) -> bool,
    ) -> Option<(ServerName, QueuedAction)> {
        for action in [DelayedEventAction::Send, DelayedEventAction::Restart] {
            for _ in 0..self.round_robin.len() {
                if self.in_flight >= MAX_CONCURRENT_CALLS {
                    return None;
                }
                let server = self.round_robin.pop_front()?;
                let started = self.start_from_server(&server, action, now, &is_needed);
                let queue = self.servers.get(&server);
                if queue.is_some_and(ServerCallQueue::has_queued) {
                    self.round_robin.push_back(server.clone());
                }
                if let Some(started) = started {
                    return Some((server, started));
                }
            }
        }
        None
    }

    fn start_from_server(
        &mut self,
        server: &ServerName,
        wanted: DelayedEventAction,
        now: UnixMillis,
        is_needed: impl Fn(QueuedAction) -> bool,
    ) -> Option<QueuedAction> {
        let queue = self.servers.get_mut(server)?;
        let health = queue.health;
        match health {
            ServerHealth::Failing if self.failing_in_flight >= MAX_CALLS_TO_FAILING_SERVERS => {
                return None;
            }
            ServerHealth::Unknown if self.unknown_in_flight >= MAX_CALLS_TO_UNKNOWN_SERVERS => {
                return None;
            }
            _ => {}
        }
        loop {
            let action =
                queue.next_action(now, self.restarts_in_flight < MAX_CONCURRENT_RESTARTS)?;
            if action != wanted {
                return None;
            }
            let serial = match action {
                DelayedEventAction::Send => queue.sends.pop_front()?,
                DelayedEventAction::Restart => queue.restarts.pop_first()?.1,
            };
            let queued = QueuedAction { serial, action };
            if !is_needed(queued) {
                continue;
            }
            queue.in_flight.push(RunningCall {
                started_at: now,
                health_at_start: health,
            });
            self.in_flight += 1;
            if action == DelayedEventAction::Restart {
                queue.restarts_in_flight += 1;
                self.restarts_in_flight += 1;
                queue.next_restart_at = Some(now + queue.pacing_interval);
            }
            self.failing_in_flight += usize::from(health == ServerHealth::Failing);
            self.unknown_in_flight += usize::from(health == ServerHealth::Unknown);
            return Some(queued);
        }
    }

    /// Counts a call that started at `started_at` as finished; `outcome` is `None` if it was not made after all. Returns whether the
    /// server limited our rate.
    pub(super) fn finish_call(
        &mut self,
        server: &ServerName,
        action: DelayedEventAction,
        outcome: Option<&DelayedEventOutcome>,
        started_at: UnixMillis,
        now: UnixMillis,
    ) -> bool {
        self.in_flight = self.in_flight.saturating_sub(1);
        let restart = usize::from(action == DelayedEventAction::Restart);
        self.restarts_in_flight = self.restarts_in_flight.saturating_sub(restart);
        let Some(queue) = self.servers.get_mut(server) else {
            return false;
        };
        queue.restarts_in_flight = queue.restarts_in_flight.saturating_sub(restart);
        let mut running = queue.in_flight.iter();
        if let Some(index) = running.position(|call| call.started_at == started_at) {
            let counter = match queue.in_flight.remove(index).health_at_start {
                ServerHealth::Failing => Some(&mut self.failing_in_flight),
                ServerHealth::Unknown => Some(&mut self.unknown_in_flight),
                ServerHealth::Healthy(_) => None,
            };
            if let Some(count) = counter {
                *count = count.saturating_sub(1);
            }
        }
        match outcome {
            None => {}
            Some(DelayedEventOutcome::RateLimited(retry_after)) => {
                queue.record_success();
                queue.slow_down(*retry_after, started_at, now);
            }
            Some(DelayedEventOutcome::NotAttempted(retry_after)) => {
                let pause = (*retry_after).clamp(MIN_RETRY_DELAY, MAX_RATE_LIMIT_PAUSE);
                queue.not_before = queue.not_before.max(Some(now + pause));
            }
            Some(DelayedEventOutcome::Failed(_)) => queue.health = ServerHealth::Failing,
            Some(
                DelayedEventOutcome::Done
                | DelayedEventOutcome::NotFound
                | DelayedEventOutcome::Finalised
                | DelayedEventOutcome::Rejected(_),
            ) => {
                queue.record_success();
                queue.speed_up();
            }
        }
        if self.servers.len() > self.prune_above.max(MAX_IDLE_SERVERS) {
            self.servers.retain(|_, queue| !queue.is_idle(now));
            // many servers in use are not searched again with every call
            self.prune_above = self.servers.len() * 2;
        }
        matches!(outcome, Some(DelayedEventOutcome::RateLimited(_)))
    }

    /// When the next queued call may start, if no running one finishes before.
    pub(super) fn next_start_at(&self, now: UnixMillis) -> Option<UnixMillis> {
        if self.in_flight >= MAX_CONCURRENT_CALLS {
            return None;
        }
        let queues = self
            .round_robin
            .iter()
            .filter_map(|server| self.servers.get(server));
        queues
            .filter_map(ServerCallQueue::earliest_start)
            .filter(|at| *at > now)
            .min()
    }
}
