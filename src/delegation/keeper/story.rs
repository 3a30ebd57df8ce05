//! What becomes of leaves, for the log and for whoever counts.

use std::time::Duration;

use log::{debug, info, warn};

use super::Kept;
use crate::delegation::pool::Answer;
use crate::leave::{Key, Leave, Why};
use crate::livekit::room_service::Presence;
use crate::matrix::delayed_event::{Deed, Outcome};
use crate::matrix::id::ServerName;
use crate::metrics;

pub(super) fn adopted(leave: &Leave) {
    metrics::leave("adopted");
    let key = leave.key();
    info!(
        "adopted leave={:08x} user={:?} room={:?} identity={:?} state={}",
        leave.id(),
        leave.order().user.as_str(),
        key.room.as_str(),
        key.identity.as_str(),
        leave.standing()
    );
}

/// Its time had passed before we came back.
pub(super) fn dropped(key: &Key) {
    let (room, identity) = (key.room.as_str(), key.identity.as_str());
    info!("dropped room={room:?} identity={identity:?} cause=\"its time has passed\"");
}

/// Somebody else keeps it now.
pub(super) fn lost(kept: &Kept) {
    metrics::leave("lost");
    let id = kept.leave.id();
    info!("lost leave={id:08x} cause=\"another one of us keeps it\"");
}

pub(super) fn looked_up(answer: Answer, kept: Option<&Kept>) -> Option<Presence> {
    if let (Err(cause), Some(kept)) = (&answer, kept) {
        let id = kept.leave.id();
        debug!("not looked up leave={id:08x} cause={cause:?}");
    }
    answer.ok()
}

/// A call about it has ended, after `took`.
pub(super) fn called(kept: &mut Kept, deed: Deed, outcome: &Outcome, took: Duration) {
    let (name, event) = match deed {
        Deed::Restart => ("restart", "restarted"),
        Deed::Send => ("send", "sent"),
    };
    match outcome {
        Outcome::Done => metrics::leave(event),
        Outcome::SlowDown(_) | Outcome::NotNow(_) | Outcome::Failed(_) => metrics::leave("retried"),
        Outcome::Gone | Outcome::Finalised | Outcome::Denied(_) => {}
    }
    let (id, server, ms) = (kept.leave.id(), kept.leave.server(), took.as_millis());
    match outcome {
        Outcome::Failed(cause) => {
            // said once, until it comes off
            let level = match kept.trouble {
                None => log::Level::Info,
                Some(_) => log::Level::Debug,
            };
            log::log!(
                level,
                "retrying leave={id:08x} call={name} server={server} ms={ms} cause={cause:?}"
            );
            kept.trouble = Some(cause.clone());
        }
        Outcome::Done if deed == Deed::Restart => {
            debug!("restarted leave={id:08x} server={server} ms={ms}");
            kept.trouble = None;
        }
        other => {
            let outcome = format!("{other:?}");
            debug!("called leave={id:08x} call={name} server={server} ms={ms} outcome={outcome:?}");
        }
    }
}

/// It has ended in the state `before`.
pub(super) fn ended(kept: &Kept, why: Why, before: &str) {
    let (id, server) = (kept.leave.id(), kept.leave.server());
    match why {
        Why::Sent => info!("sent leave={id:08x} server={server}"),
        Why::Gone if before == "disconnected" => {
            info!("sent leave={id:08x} server={server} cause=\"it had been already\"");
        }
        Why::Gone => {
            metrics::leave("given_up");
            let cause = "the homeserver does not have it any more";
            info!("gave up leave={id:08x} server={server} cause={cause:?}");
        }
        Why::Aborted => info!("ended leave={id:08x} cause=\"nobody was there to leave\""),
        Why::Expired => {
            metrics::leave("given_up");
            let last = kept.trouble.as_deref().unwrap_or("no time was left");
            let cause = format!("the homeserver's own timer is over; {last}");
            warn!("gave up leave={id:08x} server={server} state={before} cause={cause:?}");
        }
        Why::Denied(status) => {
            metrics::leave("given_up");
            let cause = "the homeserver wants to know who asks";
            warn!(
                "gave up leave={id:08x} server={server} state={before} status={status} cause={cause:?}"
            );
        }
        Why::Replaced => info!("ended leave={id:08x} cause=\"another one takes its place\""),
    }
}

/// Tells the administrator what a homeserver would have to allow.
pub(super) fn slowed_down(server: &ServerName, leaves: u64, rate: f64, needed: u64) {
    let burst = (leaves * 2).max(10);
    let advice = format!(
        "it limits how often delayed events may be restarted; in Synapse set rc_delayed_event_mgmt to per_second: {needed} and \
         burst_count: {burst}"
    );
    warn!(
        "slowed down server={server} leaves={leaves} restarts_per_second={rate:.1} cause={advice:?}"
    );
}
