//! Metrics and log lines of checks and removals. With thousands of participants a line for each check would be a flood: lines are
//! throttled.

use std::fmt::Display;
use std::time::{Duration, Instant};

use log::{info, warn};

use super::table::{CheckTask, ParticipantQuotaExceeded};
use crate::livekit::id::ParticipantKey;
use crate::util::log_throttle::{LogThrottle, ProblemLog};
use crate::util::metrics;

/// Shortest time between two lines about the same problem.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Shortest lag that is logged, however short the check interval is.
const MIN_REPORTED_LAG: Duration = Duration::from_secs(5);

/// Counts and logs what happens to participants.
#[derive(Debug)]
pub(super) struct MembershipReporter {
    check_interval: Duration,
    /// Calls to the homeserver.
    pub(super) membership_checks: CallReporter,
    /// Calls to the SFU.
    pub(super) presence_checks: CallReporter,
    lag_problem: ProblemLog,
    removed_throttle: LogThrottle,
    removal_failed_throttle: LogThrottle,
    not_tracked_throttle: LogThrottle,
}

impl MembershipReporter {
    pub(super) fn new(check_interval: Duration) -> Self {
        Self {
            check_interval,
            membership_checks: CallReporter::new(
                "membership check failed",
                "membership checks succeed again",
            ),
            presence_checks: CallReporter::new(
                "participant presence check failed",
                "participant presence checks succeed again",
            ),
            lag_problem: ProblemLog::with_interval(LOG_INTERVAL),
            removed_throttle: LogThrottle::default(),
            removal_failed_throttle: LogThrottle::default(),
            not_tracked_throttle: LogThrottle::with_interval(LOG_INTERVAL),
        }
    }

    /// Logs if the checks of `participants` lag behind by more than an interval.
    pub(super) fn record_lag(&self, lag: Duration, participants: usize) {
        let (limit, now) = (self.check_interval.max(MIN_REPORTED_LAG), Instant::now());
        if lag > limit {
            self.lag_problem.failed(now, |_| {
                warn!(
                    participants,
                    lag_seconds = lag.as_secs(),
                    interval_seconds = self.check_interval.as_secs(),
                    cause = "the homeserver or the SFU is too slow for so many participants (LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS)";
                    "membership checks lag behind"
                );
            });
        } else if lag < limit / 2 {
            self.lag_problem.recovered(now, || {
                info!(participants; "membership checks caught up");
            });
        }
    }

    pub(super) fn log_removed(&self, task: &CheckTask) {
        metrics::count_participant_event("removed");
        let (member, key) = (&task.member, &task.key);
        // debug level has a line for each participant, info level one a second with the number
        let count = self.removed_throttle.count(Instant::now());
        let level = count.map_or(log::Level::Debug, |_| log::Level::Info);
        log::log!(
            level,
            user:% = member.user_id,
            matrix_room = member.room_id.as_str(),
            room:% = key.room,
            identity:% = key.identity,
            count,
            cause = "user is not in the Matrix room";
            "participant removed"
        );
    }

    pub(super) fn log_removal_failed(&self, task: &CheckTask, error: &impl Display) {
        metrics::count_participant_event("removal_failed");
        let (member, key) = (&task.member, &task.key);
        self.removal_failed_throttle.log(|count| {
            warn!(
                user:% = member.user_id,
                matrix_room = member.room_id.as_str(),
                room:% = key.room,
                identity:% = key.identity,
                count,
                cause:% = error;
                "participant removal failed"
            );
        });
    }

    /// Logs a connected participant who is not checked because a quota is used up.
    pub(super) fn log_not_tracked(&self, key: &ParticipantKey, error: &ParticipantQuotaExceeded) {
        metrics::count_participant_event("not_tracked");
        self.not_tracked_throttle.log(|count| {
            warn!(
                room:% = key.room,
                identity:% = key.identity,
                count,
                cause:% = error;
                "participant not tracked"
            );
        });
    }

    pub(super) fn count_discovered(&self) {
        metrics::count_participant_event("discovered");
    }
}

/// Counts and logs failures of one kind of call.
#[derive(Debug)]
pub(super) struct CallReporter {
    problem: ProblemLog,
    failure_event: &'static str,
    recovery_event: &'static str,
}

impl CallReporter {
    fn new(failure_event: &'static str, recovery_event: &'static str) -> Self {
        Self {
            problem: ProblemLog::with_interval(LOG_INTERVAL),
            failure_event,
            recovery_event,
        }
    }

    pub(super) fn record<T, E: Display>(&self, result: &Result<T, E>) {
        let now = Instant::now();
        match result {
            Ok(_) => self
                .problem
                .recovered(now, || info!("{}", self.recovery_event)),
            Err(error) => {
                metrics::count_participant_event("check_failed");
                self.problem.failed(now, |count| {
                    warn!(count, cause:% = error; "{}", self.failure_event);
                });
            }
        }
    }
}
