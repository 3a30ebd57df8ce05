//! When to ask the SFU whether a participant is there. Webhooks get lost, and some SFUs are not told to send any.

use std::time::Duration;

use super::UnixMillis;
use super::transition::{deterministic_jitter, retry_backoff};

/// The first time to ask about somebody who is waited for: most have connected by then.
const FIRST_CHECK_DELAY: Duration = Duration::from_secs(1);
/// From one doubt to the look that settles it, and from a first absence to the one that confirms it: a participant who reconnects is
/// nowhere for a moment.
const RECHECK_DELAY: Duration = Duration::from_secs(2);
/// Absences in a row that count as one.
const ABSENCES_TO_CONFIRM: u32 = 2;

/// The looks at one participant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PresenceSchedule {
    /// How often those who are present are looked for; none is only in doubt.
    interval: Option<Duration>,
    next_at: Option<UnixMillis>,
    in_flight: bool,
    failures: u32,
    absences: u32,
}

impl PresenceSchedule {
    pub(super) fn new(check: Option<Duration>, now: UnixMillis) -> Self {
        Self {
            interval: check,
            next_at: Some(now + FIRST_CHECK_DELAY),
            ..Self::disabled()
        }
    }

    /// As [`Self::new`], for somebody who may have come or gone while nobody looked.
    pub(super) fn immediate(check: Option<Duration>, now: UnixMillis) -> Self {
        Self {
            next_at: Some(now),
            ..Self::new(check, now)
        }
    }

    /// Nobody is looked for any more.
    pub(super) fn disabled() -> Self {
        Self {
            interval: None,
            next_at: None,
            in_flight: false,
            failures: 0,
            absences: 0,
        }
    }

    /// When to look next, unless a look is out.
    pub(super) fn next_check(&self) -> Option<UnixMillis> {
        self.next_at.filter(|_| !self.in_flight)
    }

    /// Whether to look now, which is then done.
    pub(super) fn start_if_due(&mut self, now: UnixMillis) -> bool {
        let due = self.next_check().is_some_and(|at| now >= at);
        if due {
            self.in_flight = true;
            self.next_at = None;
        }
        due
    }

    /// They are known to be there.
    pub(super) fn mark_present(&mut self, now: UnixMillis, id: u32) {
        self.failures = 0;
        self.absences = 0;
        self.next_at = self
            .interval
            .map(|check| now + (check - check / 100 * (deterministic_jitter(id, now) % 11)));
    }

    /// A look has found them.
    pub(super) fn record_present(&mut self, now: UnixMillis, id: u32) {
        self.in_flight = false;
        self.mark_present(now, id);
    }

    /// A look has not found them. Whether that is certain now.
    pub(super) fn record_absent(&mut self, now: UnixMillis) -> bool {
        self.in_flight = false;
        self.failures = 0;
        self.absences += 1;
        self.next_at = Some(now + RECHECK_DELAY);
        self.absences >= ABSENCES_TO_CONFIRM
    }

    /// A look has brought nothing: ever longer until the next.
    pub(super) fn record_failure(&mut self, now: UnixMillis, id: u32) {
        self.in_flight = false;
        self.failures = self.failures.saturating_add(1);
        let at = now + retry_backoff(self.failures, deterministic_jitter(id, now));
        self.next_at = Some(self.next_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Something suggests that they may be gone.
    pub(super) fn recheck_soon(&mut self, now: UnixMillis) {
        let at = now + RECHECK_DELAY;
        self.next_at = Some(self.next_at.map_or(at, |earlier| earlier.min(at)));
    }

    pub(super) fn stop(&mut self) {
        self.next_at = None;
    }
}
