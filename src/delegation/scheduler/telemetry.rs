//! What becomes of leaves, for the log and for whoever counts.

use std::time::Duration;

use log::{debug, info, warn};

use super::ScheduledLeave;
use crate::delegation::leave::{Leave, LeaveEndReason};
use crate::delegation::workers::PresenceResult;
use crate::livekit::id::ParticipantKey;
use crate::livekit::room_service::ParticipantPresence;
use crate::matrix::delayed_event::{DelayedEventAction, DelayedEventOutcome};
use crate::matrix::id::ServerName;
use crate::util::metrics;

pub(super) fn report_adopted(leave: &Leave) {
    metrics::count_delegated_leave_event("adopted");
    let key = leave.key();
    info!(
        "adopted leave={:08x} user={:?} room={:?} identity={:?} state={}",
        leave.id(),
        leave.request().user.as_str(),
        key.room.as_str(),
        key.identity.as_str(),
        leave.state_name()
    );
}

/// Its time had passed before we came back.
pub(super) fn report_expired(key: &ParticipantKey) {
    let (room, identity) = (key.room.as_str(), key.identity.as_str());
    info!("dropped room={room:?} identity={identity:?} cause=\"its time has passed\"");
}

/// Somebody else keeps it now.
pub(super) fn report_lost(kept: &ScheduledLeave) {
    metrics::count_delegated_leave_event("lost");
    let id = kept.leave.id();
    info!("lost leave={id:08x} cause=\"another one of us keeps it\"");
}

pub(super) fn presence_or_report(
    answer: PresenceResult,
    kept: Option<&ScheduledLeave>,
) -> Option<ParticipantPresence> {
    if let (Err(cause), Some(kept)) = (&answer, kept) {
        let id = kept.leave.id();
        debug!("not looked up leave={id:08x} cause={cause:?}");
    }
    answer.ok()
}

/// A call about it has ended, after `took`.
pub(super) fn report_call(
    kept: &mut ScheduledLeave,
    deed: DelayedEventAction,
    outcome: &DelayedEventOutcome,
    took: Duration,
) {
    let (name, event) = match deed {
        DelayedEventAction::Restart => ("restart", "restarted"),
        DelayedEventAction::Send => ("send", "sent"),
    };
    match outcome {
        DelayedEventOutcome::Done => metrics::count_delegated_leave_event(event),
        DelayedEventOutcome::RateLimited(_)
        | DelayedEventOutcome::NotAttempted(_)
        | DelayedEventOutcome::Failed(_) => metrics::count_delegated_leave_event("retried"),
        DelayedEventOutcome::NotFound
        | DelayedEventOutcome::Finalised
        | DelayedEventOutcome::Rejected(_) => {}
    }
    let (id, server, ms) = (kept.leave.id(), kept.leave.server(), took.as_millis());
    match outcome {
        DelayedEventOutcome::Failed(cause) => {
            // said once, until it comes off
            let level = match kept.last_error {
                None => log::Level::Info,
                Some(_) => log::Level::Debug,
            };
            log::log!(
                level,
                "retrying leave={id:08x} call={name} server={server} ms={ms} cause={cause:?}"
            );
            kept.last_error = Some(cause.clone());
        }
        DelayedEventOutcome::Done if deed == DelayedEventAction::Restart => {
            debug!("restarted leave={id:08x} server={server} ms={ms}");
            kept.last_error = None;
        }
        other => {
            let outcome = format!("{other:?}");
            debug!("called leave={id:08x} call={name} server={server} ms={ms} outcome={outcome:?}");
        }
    }
}

/// It has ended in the state `before`.
pub(super) fn report_ended(kept: &ScheduledLeave, why: LeaveEndReason, before: &str) {
    let (id, server) = (kept.leave.id(), kept.leave.server());
    match why {
        LeaveEndReason::Sent => info!("sent leave={id:08x} server={server}"),
        LeaveEndReason::AlreadyFinal if before == "disconnected" => {
            info!("sent leave={id:08x} server={server} cause=\"it had been already\"");
        }
        LeaveEndReason::AlreadyFinal => {
            metrics::count_delegated_leave_event("given_up");
            let cause = "the homeserver does not have it any more";
            info!("gave up leave={id:08x} server={server} cause={cause:?}");
        }
        LeaveEndReason::NeverConnected => {
            info!("ended leave={id:08x} cause=\"nobody was there to leave\"")
        }
        LeaveEndReason::Expired => {
            metrics::count_delegated_leave_event("given_up");
            let last = kept.last_error.as_deref().unwrap_or("no time was left");
            let cause = format!("the homeserver's own timer is over; {last}");
            warn!("gave up leave={id:08x} server={server} state={before} cause={cause:?}");
        }
        LeaveEndReason::Denied(status) => {
            metrics::count_delegated_leave_event("given_up");
            let cause = "the homeserver wants to know who asks";
            warn!(
                "gave up leave={id:08x} server={server} state={before} status={status} cause={cause:?}"
            );
        }
        LeaveEndReason::Replaced => {
            info!("ended leave={id:08x} cause=\"another one takes its place\"")
        }
    }
}

/// Tells the administrator what a homeserver would have to allow.
pub(super) fn report_rate_limited(server: &ServerName, leaves: u64, rate: f64, needed: u64) {
    let burst = (leaves * 2).max(10);
    let advice = format!(
        "it limits how often delayed events may be restarted; in Synapse set rc_delayed_event_mgmt to per_second: {needed} and \
         burst_count: {burst}"
    );
    warn!(
        "slowed down server={server} leaves={leaves} restarts_per_second={rate:.1} cause={advice:?}"
    );
}
