//! Schedule of the presence checks of one participant. Webhooks get lost, and some SFUs are not configured to send any.

use std::time::Duration;

use super::{LeaveId, UnixMillis, deterministic_jitter, retry_delay};

/// Delay of the first check after the delegation: most participants have connected by then.
const FIRST_CHECK_DELAY: Duration = Duration::from_secs(1);
/// Delay of a check that settles a doubt or confirms an absence: a participant who reconnects is absent for a moment.
const RECHECK_DELAY: Duration = Duration::from_secs(2);
/// Absences in a row that count as a disconnect.
const ABSENCES_TO_CONFIRM: u32 = 2;

/// The default has no checks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PresenceSchedule {
    /// Time between two checks of a participant who is present; `None` checks only after a doubt.
    interval: Option<Duration>,
    next_at: Option<UnixMillis>,
    in_flight: bool,
    failures: u32,
    absences: u32,
}

impl PresenceSchedule {
    pub(super) fn new(interval: Option<Duration>, now: UnixMillis) -> Self {
        Self {
            interval,
            next_at: Some(now + FIRST_CHECK_DELAY),
            ..Self::default()
        }
    }

    /// As [`Self::new`], with the first check at once, for a leave that was restored.
    pub(super) fn immediate(interval: Option<Duration>, now: UnixMillis) -> Self {
        Self {
            next_at: Some(now),
            ..Self::new(interval, now)
        }
    }

    /// Time of the next check; `None` while one is running.
    pub(super) fn next_check(&self) -> Option<UnixMillis> {
        self.next_at.filter(|_| !self.in_flight)
    }

    /// Marks a check as running if one is due, and returns whether it is.
    pub(super) fn start_if_due(&mut self, now: UnixMillis) -> bool {
        let due = self.next_check().is_some_and(|at| now >= at);
        if due {
            self.in_flight = true;
            self.next_at = None;
        }
        due
    }

    /// Records that the participant is known to be connected.
    pub(super) fn mark_present(&mut self, now: UnixMillis, id: LeaveId) {
        self.failures = 0;
        self.absences = 0;
        // up to a tenth less, so that the checks of many leaves spread
        self.next_at = self.interval.map(|interval| {
            now + (interval - interval / 100 * (deterministic_jitter(id, now) % 11))
        });
    }

    /// Records that a check found the participant.
    pub(super) fn record_present(&mut self, now: UnixMillis, id: LeaveId) {
        self.in_flight = false;
        self.mark_present(now, id);
    }

    /// Records that a check did not find the participant, and returns whether that is certain now.
    pub(super) fn record_absent(&mut self, now: UnixMillis) -> bool {
        self.in_flight = false;
        self.failures = 0;
        self.absences += 1;
        self.next_at = Some(now + RECHECK_DELAY);
        self.absences >= ABSENCES_TO_CONFIRM
    }

    /// Records a check without a usable result.
    pub(super) fn record_failure(&mut self, now: UnixMillis, id: LeaveId) {
        self.in_flight = false;
        self.failures = self.failures.saturating_add(1);
        self.check_by(now + retry_delay(self.failures, id, now));
    }

    /// Schedules a check after an event that suggests a disconnect.
    pub(super) fn recheck_soon(&mut self, now: UnixMillis) {
        self.check_by(now + RECHECK_DELAY);
    }

    pub(super) fn stop(&mut self) {
        self.next_at = None;
    }

    fn check_by(&mut self, at: UnixMillis) {
        self.next_at = Some(self.next_at.map_or(at, |earlier| earlier.min(at)));
    }
}
