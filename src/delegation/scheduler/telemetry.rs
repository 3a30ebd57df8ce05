//! Log lines and metrics of leaves.

use std::time::Duration;

use log::{Level, debug, info, log, warn};

use super::ScheduledLeave;
use crate::delegation::leave::{Leave, LeaveEndReason};
use crate::livekit::id::ParticipantKey;
use crate::matrix::delayed_event::{DelayedEventAction, DelayedEventOutcome};
use crate::matrix::id::ServerName;
use crate::util::metrics::count_delegated_leave_event;

pub(super) fn report_adopted(leave: &Leave) {
    count_delegated_leave_event("adopted");
    info!(
        leave:% = leave.id(),
        user:% = leave.user(),
        room:% = leave.key().room,
        identity:% = leave.key().identity,
        state = leave.state_name();
        "leave adopted"
    );
}

/// Reports a record in the store whose delay ended while no replica owned it.
pub(super) fn report_expired(key: &ParticipantKey) {
    info!(room:% = key.room, identity:% = key.identity; "expired leave dropped");
}

/// Reports that another replica owns the leave now.
pub(super) fn report_lost(scheduled: &ScheduledLeave) {
    count_delegated_leave_event("lost");
    info!(leave:% = scheduled.leave.id(); "leave taken over by another replica");
}

pub(super) fn report_state(leave: &Leave, reason: &str) {
    info!(leave:% = leave.id(), state = leave.state_name(), reason; "leave state changed");
}

/// Reports a finished call; it took `duration`, time in the worker's queue included.
pub(super) fn report_call(
    scheduled: &ScheduledLeave,
    action: DelayedEventAction,
    outcome: &DelayedEventOutcome,
    duration: Duration,
) {
    let (call, event) = match action {
        DelayedEventAction::Restart => ("restart", "restarted"),
        DelayedEventAction::Send => ("send", "sent"),
    };
    match outcome {
        DelayedEventOutcome::Done => count_delegated_leave_event(event),
        DelayedEventOutcome::RateLimited(_)
        | DelayedEventOutcome::NotAttempted(_)
        | DelayedEventOutcome::Failed(_) => count_delegated_leave_event("retried"),
        DelayedEventOutcome::NotFound
        | DelayedEventOutcome::Finalised
        | DelayedEventOutcome::Rejected(_) => {}
    }
    let (leave, server) = (scheduled.leave.id(), scheduled.leave.server());
    let ms = duration.as_millis();
    match outcome {
        DelayedEventOutcome::Failed(cause) => {
            // repeated failures are of no interest until a call succeeds
            let level = match scheduled.last_error {
                None => Level::Info,
                Some(_) => Level::Debug,
            };
            log!(level, leave:%, call, server:%, ms, cause; "leave call failed, retrying");
        }
        outcome => debug!(leave:%, call, server:%, ms, outcome:?; "leave call finished"),
    }
}

/// Reports a leave that ended in the state `state`.
pub(super) fn report_ended(scheduled: &ScheduledLeave, reason: LeaveEndReason, state: &str) {
    let (leave, server) = (scheduled.leave.id(), scheduled.leave.server());
    match reason {
        LeaveEndReason::Sent => info!(leave:%, server:%; "leave sent"),
        LeaveEndReason::AlreadyFinal if state == "disconnected" => {
            info!(leave:%, server:%, cause = "the homeserver had sent it already"; "leave sent");
        }
        LeaveEndReason::AlreadyFinal => {
            count_delegated_leave_event("abandoned");
            let cause = "the homeserver no longer has the delayed event";
            info!(leave:%, server:%, state, cause; "leave abandoned");
        }
        LeaveEndReason::NeverConnected => {
            info!(leave:%, cause = "the participant never connected"; "leave ended");
        }
        LeaveEndReason::Expired => {
            count_delegated_leave_event("abandoned");
            let last_error = scheduled.last_error.as_deref();
            let cause = "the delayed event has expired on the homeserver";
            warn!(leave:%, server:%, state, cause, last_error; "leave abandoned");
        }
        LeaveEndReason::Denied(status) => {
            count_delegated_leave_event("abandoned");
            let cause = "the homeserver requires authentication";
            warn!(leave:%, server:%, state, status, cause; "leave abandoned");
        }
        LeaveEndReason::Replaced => {
            info!(leave:%, cause = "a new delegation replaced it"; "leave ended");
        }
    }
}

/// Advises the administrator how to raise a homeserver's rate limit, which `leaves` with `rate` restarts per second exceed.
pub(super) fn report_rate_limited(server: &ServerName, leaves: u64, rate: f64, needed: u64) {
    let burst = (leaves * 2).max(10);
    let advice = format!(
        "in Synapse set rc_delayed_event_mgmt to per_second: {needed} and burst_count: {burst}"
    );
    warn!(
        server:%, leaves, restarts_per_second = rate, advice;
        "homeserver limits the rate of restarts"
    );
}
