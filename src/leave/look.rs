//! When to ask the SFU whether a participant is there. Webhooks get lost, and some SFUs are not told to send any.

use std::time::Duration;

use super::Time;
use super::step::{pause, salted};

/// The first time to ask about somebody who is waited for: most have connected by then.
const FIRST: Duration = Duration::from_secs(1);
/// From one doubt to the look that settles it, and from a first absence to the one that confirms it: a participant who reconnects is
/// nowhere for a moment.
const CONFIRM: Duration = Duration::from_secs(2);
/// Absences in a row that count as one.
const CONFIRMED: u32 = 2;

/// The looks at one participant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Look {
    /// How often those who are present are looked for; none is only in doubt.
    check: Option<Duration>,
    at: Option<Time>,
    out: bool,
    unanswered: u32,
    absent: u32,
}

impl Look {
    pub(super) fn new(check: Option<Duration>, now: Time) -> Self {
        Self {
            check,
            at: Some(now + FIRST),
            ..Self::none()
        }
    }

    /// As [`Self::new`], for somebody who may have come or gone while nobody looked.
    pub(super) fn anew(check: Option<Duration>, now: Time) -> Self {
        Self {
            at: Some(now),
            ..Self::new(check, now)
        }
    }

    /// Nobody is looked for any more.
    pub(super) fn none() -> Self {
        Self {
            check: None,
            at: None,
            out: false,
            unanswered: 0,
            absent: 0,
        }
    }

    /// When to look next, unless a look is out.
    pub(super) fn at(&self) -> Option<Time> {
        self.at.filter(|_| !self.out)
    }

    /// Whether to look now, which is then done.
    pub(super) fn due(&mut self, now: Time) -> bool {
        let due = self.at().is_some_and(|at| now >= at);
        if due {
            self.out = true;
            self.at = None;
        }
        due
    }

    /// They are known to be there.
    pub(super) fn present(&mut self, now: Time, id: u32) {
        self.unanswered = 0;
        self.absent = 0;
        self.at = self
            .check
            .map(|check| now + (check - check / 100 * (salted(id, now) % 11)));
    }

    /// A look has found them.
    pub(super) fn answered(&mut self, now: Time, id: u32) {
        self.out = false;
        self.present(now, id);
    }

    /// A look has not found them. Whether that is certain now.
    pub(super) fn absent(&mut self, now: Time) -> bool {
        self.out = false;
        self.unanswered = 0;
        self.absent += 1;
        self.at = Some(now + CONFIRM);
        self.absent >= CONFIRMED
    }

    /// A look has brought nothing: ever longer until the next.
    pub(super) fn unanswered(&mut self, now: Time, id: u32) {
        self.out = false;
        self.unanswered = self.unanswered.saturating_add(1);
        let at = now + pause(self.unanswered, salted(id, now));
        self.at = Some(self.at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Something suggests that they may be gone.
    pub(super) fn doubt(&mut self, now: Time) {
        let at = now + CONFIRM;
        self.at = Some(self.at.map_or(at, |earlier| earlier.min(at)));
    }

    pub(super) fn stop(&mut self) {
        self.at = None;
    }
}
