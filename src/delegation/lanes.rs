//! Who is called next: fair among homeservers, sends before restarts, and no faster than a server allows.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use crate::leave::Time;
use crate::matrix::delayed_event::{Deed, Outcome};
use crate::matrix::id::ServerName;

/// Calls under way in all.
pub(super) const PLACES: usize = 24;
/// Restarts under way in all: the other places are for sends.
const RESTARTS: usize = 14;
/// Calls under way in all to servers that did not answer last time, and to such as were never asked, who need not stand in line
/// with the former.
const FAILING: usize = 6;
const UNKNOWN: usize = 8;
/// For one call, and for one to a server that was never asked: many of those that hang would keep the others waiting. Whoever
/// takes longer is tried again with all the time, among those that did not answer. It is more than a connection may take, for who
/// had less than that has not failed to answer.
const CALL: Duration = Duration::from_secs(10);
const FIRST_CALL: Duration = Duration::from_secs(6);
/// Calls under way to one server that answers, reached one by one with every answer.
const PER_SERVER: usize = 10;
/// Calls under way to one server if the oldest of them has been for longer than [`SLOW`].
const PER_SLOW_SERVER: usize = 3;
const SLOW: Duration = Duration::from_secs(1);
/// Calls under way to one server that has told us to slow down: a restart, and a send that does not wait for it.
const PER_LIMITED_SERVER: usize = 2;
/// The pause that a server is left when it says that we are too fast, but not when to come back; and the longest that is believed.
const SLOW_DOWN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The shortest pause before a call that could not be made is tried again.
const NOT_NOW: Duration = Duration::from_millis(100);
/// The longest time that is left between two restarts on one server, however often it says that we are too fast.
const MAX_GAP: Duration = Duration::from_secs(5);
/// Servers that are remembered without having calls.
const MAX_LANES: usize = 4096;
/// Gaps shorter than this are none.
const MIN_GAP: Duration = Duration::from_millis(20);

/// A call that may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) serial: u64,
    pub(super) deed: Deed,
}

/// What is known of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repute {
    Unknown,
    Failing,
    /// It has answered so many times in a row.
    Answers(usize),
}

/// A call under way.
#[derive(Debug)]
struct UnderWay {
    began: Time,
    /// As the server was known then.
    repute: Repute,
}

/// The calls to one server.
#[derive(Debug)]
struct Lane {
    sends: VecDeque<u64>,
    /// By the time at which they are too late.
    restarts: BTreeSet<(Time, u64)>,
    /// The oldest first.
    under_way: Vec<UnderWay>,
    restarting: usize,
    repute: Repute,
    not_before: Option<Time>,
    /// Time from one restart to the next, and when that next one may be.
    gap: Duration,
    next: Option<Time>,
    /// When the server last made us slower, and what it then said.
    slowed: Option<(Time, Duration)>,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            sends: VecDeque::new(),
            restarts: BTreeSet::new(),
            under_way: Vec::new(),
            restarting: 0,
            repute: Repute::Unknown,
            not_before: None,
            gap: Duration::ZERO,
            next: None,
            slowed: None,
        }
    }
}

impl Lane {
    /// Whether nothing would be lost with it.
    fn is_idle(&self, now: Time) -> bool {
        self.sends.is_empty()
            && self.restarts.is_empty()
            && self.under_way.is_empty()
            && self.not_before.is_none_or(|at| at <= now)
            && self.gap.is_zero()
    }

    fn places(&self, now: Time) -> usize {
        let Repute::Answers(times) = self.repute else {
            return 1;
        };
        let oldest = self.under_way.first();
        let slow = oldest.is_some_and(|call| now.since(call.began) > SLOW);
        let most = if !self.gap.is_zero() {
            PER_LIMITED_SERVER
        } else if slow {
            PER_SLOW_SERVER
        } else {
            PER_SERVER
        };
        most.min(times + 1)
    }

    fn deed(&self, now: Time, restarts: bool) -> Option<Deed> {
        if self.under_way.len() >= self.places(now) || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        if !self.sends.is_empty() {
            return Some(Deed::Send);
        }
        let limited = !self.gap.is_zero();
        let paced = limited && (self.restarting > 0 || self.next.is_some_and(|at| now < at));
        (restarts && !paced && !self.restarts.is_empty()).then_some(Deed::Restart)
    }

    /// When something that waits may begin, if time is all that it waits for.
    fn opens(&self) -> Option<Time> {
        let restart = || self.not_before.max(self.next);
        match (self.sends.is_empty(), self.restarts.is_empty()) {
            (true, true) => None,
            (false, true) => self.not_before,
            (false, false) => self.not_before.or_else(restart),
            (true, false) => restart(),
        }
    }

    fn slow_down(&mut self, after: Option<Duration>, began: Time, now: Time) {
        let wait = after.unwrap_or(SLOW_DOWN.0).min(SLOW_DOWN.1);
        // the server has reckoned from when it was asked
        let until = (began + wait).max(now) + MIN_GAP;
        self.not_before = self.not_before.max(Some(until));
        // those that were under way together are refused together, which says no more than one of them would
        if self.slowed.is_some_and(|(at, _)| began <= at) {
            return;
        }
        let said = wait.clamp(MIN_GAP, MAX_GAP);
        let paced = !self.gap.is_zero();
        self.gap = if paced { self.gap * 5 / 4 } else { said }.min(MAX_GAP);
        let longest = self
            .slowed
            .filter(|_| paced)
            .map_or(said, |(_, s)| s.max(said));
        self.slowed = Some((now, longest));
    }

    /// Soon back to the pace that the server has named, which is that of its limit, and then slowly beyond it.
    fn speed_up(&mut self) {
        let beyond = self.slowed.is_none_or(|(_, said)| self.gap <= said);
        self.gap -= self.gap / if beyond { 64 } else { 8 };
        if self.gap < MIN_GAP {
            self.gap = Duration::ZERO;
        }
    }

    fn answered(&mut self) {
        self.repute = match self.repute {
            Repute::Answers(times) => Repute::Answers(times.saturating_add(1)),
            Repute::Unknown | Repute::Failing => Repute::Answers(1),
        };
    }
}

/// The calls to all servers.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: HashMap<ServerName, Lane>,
    /// Servers with calls that wait, each in its turn.
    turns: VecDeque<ServerName>,
    busy: usize,
    restarting: usize,
    failing: usize,
    unknown: usize,
}

impl Lanes {
    /// How long a call to this server may take.
    pub(super) fn patience(&self, server: &ServerName) -> Duration {
        let lane = self.lanes.get(server);
        match lane.is_none_or(|lane| lane.repute == Repute::Unknown) {
            true => FIRST_CALL,
            false => CALL,
        }
    }

    /// Has a call wait for its turn; a restart is too late at `by`.
    pub(super) fn push(&mut self, server: &ServerName, job: Job, by: Time) {
        let lane = self.lanes.entry(server.clone()).or_default();
        if lane.sends.is_empty() && lane.restarts.is_empty() {
            self.turns.push_back(server.clone());
        }
        match job.deed {
            Deed::Send => lane.sends.push_back(job.serial),
            Deed::Restart => {
                lane.restarts.insert((by, job.serial));
            }
        }
    }

    /// Begins the next call that is still wanted and may begin at `now`.
    pub(super) fn next(
        &mut self,
        now: Time,
        wanted: impl Fn(Job) -> bool,
    ) -> Option<(ServerName, Job)> {
        for deed in [Deed::Send, Deed::Restart] {
            for _ in 0..self.turns.len() {
                if self.busy >= PLACES {
                    return None;
                }
                let server = self.turns.pop_front()?;
                let job = self.take(&server, deed, now, &wanted);
                let lane = self.lanes.get(&server);
                if lane.is_some_and(|lane| !lane.sends.is_empty() || !lane.restarts.is_empty()) {
                    self.turns.push_back(server.clone());
                }
                if let Some(job) = job {
                    return Some((server, job));
                }
            }
        }
        None
    }

    fn take(
        &mut self,
        server: &ServerName,
        turn: Deed,
        now: Time,
        wanted: impl Fn(Job) -> bool,
    ) -> Option<Job> {
        let lane = self.lanes.get_mut(server)?;
        let repute = lane.repute;
        match repute {
            Repute::Failing if self.failing >= FAILING => return None,
            Repute::Unknown if self.unknown >= UNKNOWN => return None,
            _ => {}
        }
        loop {
            let deed = lane.deed(now, self.restarting < RESTARTS)?;
            if deed != turn {
                return None;
            }
            let serial = match deed {
                Deed::Send => lane.sends.pop_front()?,
                Deed::Restart => lane.restarts.pop_first()?.1,
            };
            let job = Job { serial, deed };
            if !wanted(job) {
                continue;
            }
            lane.under_way.push(UnderWay { began: now, repute });
            self.busy += 1;
            if deed == Deed::Restart {
                lane.restarting += 1;
                self.restarting += 1;
                lane.next = Some(now + lane.gap);
            }
            self.failing += usize::from(repute == Repute::Failing);
            self.unknown += usize::from(repute == Repute::Unknown);
            return Some(job);
        }
    }

    /// Takes note of what came of a call that began at `began`; none if it was not made. Whether the server says that we are too fast.
    pub(super) fn ended(
        &mut self,
        server: &ServerName,
        deed: Deed,
        outcome: Option<&Outcome>,
        began: Time,
        now: Time,
    ) -> bool {
        self.busy = self.busy.saturating_sub(1);
        let restart = usize::from(deed == Deed::Restart);
        self.restarting = self.restarting.saturating_sub(restart);
        let Some(lane) = self.lanes.get_mut(server) else {
            return false;
        };
        lane.restarting = lane.restarting.saturating_sub(restart);
        if let Some(index) = lane.under_way.iter().position(|call| call.began == began) {
            match lane.under_way.remove(index).repute {
                Repute::Failing => self.failing = self.failing.saturating_sub(1),
                Repute::Unknown => self.unknown = self.unknown.saturating_sub(1),
                Repute::Answers(_) => {}
            }
        }
        match outcome {
            None => {}
            Some(Outcome::SlowDown(after)) => {
                lane.answered();
                lane.slow_down(*after, began, now);
            }
            Some(Outcome::NotNow(after)) => {
                let until = now + (*after).clamp(NOT_NOW, SLOW_DOWN.1);
                lane.not_before = lane.not_before.max(Some(until));
            }
            Some(Outcome::Failed(_)) => lane.repute = Repute::Failing,
            Some(Outcome::Done | Outcome::Gone | Outcome::Finalised | Outcome::Denied(_)) => {
                lane.answered();
                lane.speed_up();
            }
        }
        if self.lanes.len() > MAX_LANES {
            self.lanes.retain(|_, lane| !lane.is_idle(now));
        }
        matches!(outcome, Some(Outcome::SlowDown(_)))
    }

    /// When to ask for the next call, if none ends before.
    pub(super) fn opens(&self, now: Time) -> Option<Time> {
        if self.busy >= PLACES {
            return None;
        }
        let lanes = self.turns.iter().filter_map(|name| self.lanes.get(name));
        lanes.filter_map(Lane::opens).filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests;
