//! What an operator hears of the guests. There may be thousands of them: no line for each where all of them have the same trouble.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use super::table::{CheckTask, ParticipantQuotaExceeded};
use crate::livekit::id::ParticipantKey;
use crate::util::log_throttle::LogThrottle;
use crate::util::metrics;

/// Between two lines that say the same of somebody else's trouble.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// A delay that nobody need hear of, however short the interval is.
const MIN_REPORTED_LAG: Duration = Duration::from_secs(5);

/// Counts what happens, and writes what there is to say of it.
#[derive(Debug)]
pub(super) struct MembershipReporter {
    check_interval: Duration,
    homeserver_problem: ProblemTracker,
    sfu_problem: ProblemTracker,
    lag_problem: ProblemTracker,
    removed_throttle: LogThrottle,
    removal_failed_throttle: LogThrottle,
    untracked_throttle: LogThrottle,
}

impl MembershipReporter {
    /// Guests are to be looked at every `every`.
    pub(super) fn new(every: Duration) -> Self {
        Self {
            check_interval: every,
            homeserver_problem: ProblemTracker::default(),
            sfu_problem: ProblemTracker::default(),
            lag_problem: ProblemTracker::default(),
            removed_throttle: LogThrottle::default(),
            removal_failed_throttle: LogThrottle::default(),
            untracked_throttle: LogThrottle::with_interval(LOG_INTERVAL),
        }
    }

    /// The homeserver has been asked about a membership.
    pub(super) fn record_membership_check(&self, trouble: Option<String>) {
        match (trouble, Instant::now()) {
            (Some(cause), now) => {
                metrics::count_participant_event("look_failed");
                if let Some(count) = self.homeserver_problem.record_failure(now) {
                    warn!("memberships cannot be checked count={count} cause={cause:?}");
                }
            }
            (None, now) => {
                if self.homeserver_problem.record_recovery(now) {
                    info!("memberships can be checked again");
                }
            }
        }
    }

    /// The SFU has been asked whether somebody is there.
    pub(super) fn record_presence_check(&self, trouble: Option<String>) {
        match (trouble, Instant::now()) {
            (Some(cause), now) => {
                metrics::count_participant_event("look_failed");
                if let Some(count) = self.sfu_problem.record_failure(now) {
                    warn!("the SFU does not say who is in its calls count={count} cause={cause:?}");
                }
            }
            (None, now) => {
                if self.sfu_problem.record_recovery(now) {
                    info!("the SFU says again who is in its calls");
                }
            }
        }
    }

    /// How much too late it is for the next one.
    pub(super) fn record_lag(&self, lag: Duration, guests: usize) {
        let (most, now) = (self.check_interval.max(MIN_REPORTED_LAG), Instant::now());
        if lag > most {
            if self.lag_problem.record_failure(now).is_some() {
                let (lag, every) = (lag.as_secs(), self.check_interval.as_secs());
                warn!(
                    "guests are looked at {lag} s late, rather than every {every} s guests={guests}: the homeserver or the SFU is \
                     too slow for so many (LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS)"
                );
            }
        } else if lag < most / 2 && self.lag_problem.record_recovery(now) {
            info!("guests are looked at in time again guests={guests}");
        }
    }

    /// Somebody was put out.
    pub(super) fn log_removed(&self, task: &CheckTask) {
        metrics::count_participant_event("removed");
        let told = self.removed_throttle.count(Instant::now());
        let (user, matrix_room) = (
            task.participant.user_id.as_str(),
            task.participant.room_id.as_str(),
        );
        let (room, identity) = (&task.key.room, task.key.identity.as_str());
        match told {
            Some(count) => info!(
                "removed user={user:?} matrix_room={matrix_room:?} room={room} identity={identity:?} count={count}: not in the Matrix room any more"
            ),
            None => debug!("removed user={user:?} matrix_room={matrix_room:?} room={room}"),
        }
    }

    /// Somebody is in a call for whom there is no place here.
    pub(super) fn log_untracked(&self, key: &ParticipantKey, error: &ParticipantQuotaExceeded) {
        metrics::count_participant_event("not_kept");
        if let Some(count) = self.untracked_throttle.count(Instant::now()) {
            let (room, cause) = (&key.room, error.to_string());
            warn!("in a call and not looked at room={room} count={count} cause={cause:?}");
        }
    }

    /// Somebody could not be put out.
    pub(super) fn log_removal_failed(&self, task: &CheckTask, cause: &str) {
        metrics::count_participant_event("not_removed");
        let (user, matrix_room) = (
            task.participant.user_id.as_str(),
            task.participant.room_id.as_str(),
        );
        let room = &task.key.room;
        if let Some(count) = self.removal_failed_throttle.count(Instant::now()) {
            warn!(
                "not removed user={user:?} matrix_room={matrix_room:?} room={room} count={count} cause={cause:?}"
            );
        }
    }
}

/// Something that lasts, or comes and goes.
#[derive(Debug)]
struct ProblemTracker {
    active: AtomicBool,
    failure_throttle: LogThrottle,
    recovery_throttle: LogThrottle,
}

impl Default for ProblemTracker {
    fn default() -> Self {
        Self {
            active: AtomicBool::new(false),
            failure_throttle: LogThrottle::with_interval(LOG_INTERVAL),
            recovery_throttle: LogThrottle::with_interval(LOG_INTERVAL),
        }
    }
}

impl ProblemTracker {
    /// It is there. How often it was since the last line, if it is time for another.
    fn record_failure(&self, now: Instant) -> Option<u64> {
        self.active.store(true, Ordering::Relaxed);
        self.failure_throttle.count(now)
    }

    /// It is not there. Whether that is worth a line.
    fn record_recovery(&self, now: Instant) -> bool {
        self.active.swap(false, Ordering::Relaxed) && self.recovery_throttle.count(now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_that_comes_and_goes_is_no_flood() {
        let (trouble, now) = (ProblemTracker::default(), Instant::now());
        assert!(!trouble.record_recovery(now), "there was none");
        let lines = |now: Instant| {
            let lines = (0..100).map(|_| {
                usize::from(trouble.record_failure(now).is_some())
                    + usize::from(trouble.record_recovery(now))
            });
            lines.sum::<usize>()
        };
        assert_eq!(lines(now), 2);
        assert_eq!(lines(now + LOG_INTERVAL / 2), 0);
        assert_eq!(lines(now + LOG_INTERVAL), 2);
    }

    #[test]
    fn trouble_that_lasts_is_told_again_with_its_number() {
        let (trouble, now) = (ProblemTracker::default(), Instant::now());
        assert_eq!(trouble.record_failure(now), Some(1));
        assert_eq!(trouble.record_failure(now), None);
        assert_eq!(trouble.record_failure(now + LOG_INTERVAL), Some(2));
        assert!(
            trouble.record_recovery(now + LOG_INTERVAL)
                && !trouble.record_recovery(now + LOG_INTERVAL)
        );
    }
}
