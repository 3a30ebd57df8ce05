//! What an operator hears of the guests. There may be thousands of them: no line for each where all of them have the same trouble.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use super::table::{Task, TooMany};
use crate::journal::Key;
use crate::metrics;
use crate::tally::Tally;

/// Between two lines that say the same of somebody else's trouble.
const REMINDER: Duration = Duration::from_secs(60);
/// A delay that nobody need hear of, however short the interval is.
const UNREMARKABLE: Duration = Duration::from_secs(5);

/// Counts what happens, and writes what there is to say of it.
#[derive(Debug)]
pub(super) struct Report {
    every: Duration,
    memberships: Trouble,
    sfu: Trouble,
    late: Trouble,
    removed: Tally,
    not_removed: Tally,
    not_kept: Tally,
}

impl Report {
    /// Guests are to be looked at every `every`.
    pub(super) fn new(every: Duration) -> Self {
        Self {
            every,
            memberships: Trouble::default(),
            sfu: Trouble::default(),
            late: Trouble::default(),
            removed: Tally::default(),
            not_removed: Tally::default(),
            not_kept: Tally::every(REMINDER),
        }
    }

    /// The homeserver has been asked about a membership.
    pub(super) fn membership(&self, trouble: Option<String>) {
        match (trouble, Instant::now()) {
            (Some(cause), now) => {
                metrics::guest("look_failed");
                if let Some(count) = self.memberships.begins(now) {
                    warn!("memberships cannot be checked count={count} cause={cause:?}");
                }
            }
            (None, now) => {
                if self.memberships.ends(now) {
                    info!("memberships can be checked again");
                }
            }
        }
    }

    /// The SFU has been asked whether somebody is there.
    pub(super) fn presence(&self, trouble: Option<String>) {
        match (trouble, Instant::now()) {
            (Some(cause), now) => {
                metrics::guest("look_failed");
                if let Some(count) = self.sfu.begins(now) {
                    warn!("the SFU does not say who is in its calls count={count} cause={cause:?}");
                }
            }
            (None, now) => {
                if self.sfu.ends(now) {
                    info!("the SFU says again who is in its calls");
                }
            }
        }
    }

    /// How much too late it is for the next one.
    pub(super) fn lag(&self, lag: Duration, guests: usize) {
        let (most, now) = (self.every.max(UNREMARKABLE), Instant::now());
        if lag > most {
            if self.late.begins(now).is_some() {
                let (lag, every) = (lag.as_secs(), self.every.as_secs());
                warn!(
                    "guests are looked at {lag} s late, rather than every {every} s guests={guests}: the homeserver or the SFU is \
                     too slow for so many (LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS)"
                );
            }
        } else if lag < most / 2 && self.late.ends(now) {
            info!("guests are looked at in time again guests={guests}");
        }
    }

    /// Somebody was put out.
    pub(super) fn removed(&self, task: &Task) {
        metrics::guest("removed");
        let told = self.removed.count(Instant::now());
        let (user, matrix_room) = (task.guest.user.as_str(), task.guest.room.as_str());
        let (room, identity) = (&task.key.room, task.key.identity.as_str());
        match told {
            Some(count) => info!(
                "removed user={user:?} matrix_room={matrix_room:?} room={room} identity={identity:?} count={count}: not in the Matrix room any more"
            ),
            None => debug!("removed user={user:?} matrix_room={matrix_room:?} room={room}"),
        }
    }

    /// Somebody is in a call for whom there is no place here.
    pub(super) fn not_kept(&self, key: &Key, error: &TooMany) {
        metrics::guest("not_kept");
        if let Some(count) = self.not_kept.count(Instant::now()) {
            let (room, cause) = (&key.room, error.to_string());
            warn!("in a call and not looked at room={room} count={count} cause={cause:?}");
        }
    }

    /// Somebody could not be put out.
    pub(super) fn not_removed(&self, task: &Task, cause: &str) {
        metrics::guest("not_removed");
        let (user, matrix_room) = (task.guest.user.as_str(), task.guest.room.as_str());
        let room = &task.key.room;
        if let Some(count) = self.not_removed.count(Instant::now()) {
            warn!(
                "not removed user={user:?} matrix_room={matrix_room:?} room={room} count={count} cause={cause:?}"
            );
        }
    }
}

/// Something that lasts, or comes and goes.
#[derive(Debug)]
struct Trouble {
    lasts: AtomicBool,
    began: Tally,
    ended: Tally,
}

impl Default for Trouble {
    fn default() -> Self {
        Self {
            lasts: AtomicBool::new(false),
            began: Tally::every(REMINDER),
            ended: Tally::every(REMINDER),
        }
    }
}

impl Trouble {
    /// It is there. How often it was since the last line, if it is time for another.
    fn begins(&self, now: Instant) -> Option<u64> {
        self.lasts.store(true, Ordering::Relaxed);
        self.began.count(now)
    }

    /// It is not there. Whether that is worth a line.
    fn ends(&self, now: Instant) -> bool {
        self.lasts.swap(false, Ordering::Relaxed) && self.ended.count(now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_that_comes_and_goes_is_no_flood() {
        let (trouble, now) = (Trouble::default(), Instant::now());
        assert!(!trouble.ends(now), "there was none");
        let lines = |now: Instant| {
            let lines = (0..100).map(|_| {
                usize::from(trouble.begins(now).is_some()) + usize::from(trouble.ends(now))
            });
            lines.sum::<usize>()
        };
        assert_eq!(lines(now), 2);
        assert_eq!(lines(now + REMINDER / 2), 0);
        assert_eq!(lines(now + REMINDER), 2);
    }

    #[test]
    fn trouble_that_lasts_is_told_again_with_its_number() {
        let (trouble, now) = (Trouble::default(), Instant::now());
        assert_eq!(trouble.begins(now), Some(1));
        assert_eq!(trouble.begins(now), None);
        assert_eq!(trouble.begins(now + REMINDER), Some(2));
        assert!(trouble.ends(now + REMINDER) && !trouble.ends(now + REMINDER));
    }
}
