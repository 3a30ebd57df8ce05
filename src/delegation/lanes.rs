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
/// Calls under way in all to servers that have not answered last time, or were never asked.
const UNPROVEN: usize = 6;
/// Calls under way to one server that answers, reached one by one with every answer.
const PER_SERVER: usize = 10;
/// Calls under way to one server if the oldest of them has been for longer than [`SLOW`].
const PER_SLOW_SERVER: usize = 3;
const SLOW: Duration = Duration::from_secs(1);
/// Calls under way to one server that has told us to slow down: a restart, and a send that does not wait for it.
const PER_LIMITED_SERVER: usize = 2;
/// The pause that a server is left when it says that we are too fast, but not when to come back; and the longest that is believed.
const SLOW_DOWN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
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

/// The calls to one server.
#[derive(Debug, Default)]
struct Lane {
    sends: VecDeque<u64>,
    /// By the time at which they are too late.
    restarts: BTreeSet<(Time, u64)>,
    /// When each call under way began, the oldest first, and whether the server was unproven then.
    began: Vec<(Time, bool)>,
    restarting: usize,
    /// Answers in a row.
    answered: usize,
    not_before: Option<Time>,
    /// Time from one restart to the next, and when that next one may be.
    gap: Duration,
    next: Option<Time>,
}

impl Lane {
    /// Whether nothing would be lost with it.
    fn is_idle(&self, now: Time) -> bool {
        self.sends.is_empty()
            && self.restarts.is_empty()
            && self.began.is_empty()
            && self.not_before.is_none_or(|at| at <= now)
            && self.gap.is_zero()
    }

    fn places(&self, now: Time) -> usize {
        let slow = self
            .began
            .first()
            .is_some_and(|(began, _)| now.since(*began) > SLOW);
        let most = if !self.gap.is_zero() {
            PER_LIMITED_SERVER
        } else if slow {
            PER_SLOW_SERVER
        } else {
            PER_SERVER
        };
        most.min(self.answered + 1)
    }

    fn deed(&self, now: Time, restarts: bool) -> Option<Deed> {
        if self.began.len() >= self.places(now) || self.not_before.is_some_and(|at| now < at) {
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
        self.gap = if self.gap.is_zero() {
            wait
        } else {
            self.gap * 5 / 4
        }
        .clamp(MIN_GAP, MAX_GAP);
    }

    fn speed_up(&mut self) {
        self.gap -= self.gap / 64;
        if self.gap < MIN_GAP {
            self.gap = Duration::ZERO;
        }
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
    unproven: usize,
}

impl Lanes {
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
        let unproven = lane.answered == 0;
        if unproven && self.unproven >= UNPROVEN {
            return None;
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
            lane.began.push((now, unproven));
            self.busy += 1;
            if deed == Deed::Restart {
                lane.restarting += 1;
                self.restarting += 1;
                lane.next = Some(now + lane.gap);
            }
            self.unproven += usize::from(unproven);
            return Some(job);
        }
    }

    /// Takes note of what came of a call that began at `began`. Whether the server says that we are too fast.
    pub(super) fn ended(
        &mut self,
        server: &ServerName,
        deed: Deed,
        outcome: &Outcome,
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
        if let Some(index) = lane.began.iter().position(|(at, _)| *at == began) {
            let (_, unproven) = lane.began.remove(index);
            self.unproven = self.unproven.saturating_sub(usize::from(unproven));
        }
        match outcome {
            Outcome::SlowDown(after) => {
                lane.answered += 1;
                lane.slow_down(*after, began, now);
            }
            Outcome::NotNow(after) => {
                lane.not_before = lane.not_before.max(Some(now + (*after).min(SLOW_DOWN.1)));
            }
            Outcome::Failed(_) => lane.answered = 0,
            Outcome::Done | Outcome::Gone | Outcome::Finalised | Outcome::Denied(_) => {
                lane.answered += 1;
                lane.speed_up();
            }
        }
        if self.lanes.len() > MAX_LANES {
            self.lanes.retain(|_, lane| !lane.is_idle(now));
        }
        matches!(outcome, Outcome::SlowDown(_))
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
