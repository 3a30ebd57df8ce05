//! Reconciliation with the SFU: finds connected participants that are not tracked, by their sealed attributes. These are participants
//! from before a restart, of another replica, or whose `participant_joined` webhook was lost.
//!
//! Several replicas check the same participants. That costs calls, which each replica bounds; to remove a participant twice is no
//! error.

#[cfg(test)]
mod tests;

use std::thread;
use std::time::{Duration, Instant};

use log::{debug, warn};

use super::MembershipInner;
use crate::livekit::id::{ParticipantKey, RoomName};
use crate::livekit::room_service::{Error, ParticipantInfo, RoomServiceClient};
use crate::livekit::sealed_attribute::SealedAttribute;
use crate::matrix::livekit_names;
use crate::util::backoff::Backoff;
use crate::util::random;

/// Time from one run to the next. With 500 rooms less than one call a second. Nearly all participants are found sooner, by webhooks.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(600);
/// Delay after a failed run.
const RETRY: Backoff = Backoff::doubling(Duration::from_secs(1), Duration::from_secs(60));
/// Pause between two calls: bounds the SFU's load to 20 calls a second.
const REQUEST_PAUSE: Duration = Duration::from_millis(50);
/// Most rooms of one run. If there are more, each run starts at a random room.
const MAX_ROOMS: usize = 2_000;
/// Longest run, if the SFU is slow.
const MAX_DURATION: Duration = Duration::from_secs(300);
/// Failed calls in a row that end a run. A single one can be about a room too large to be listed.
const MAX_CONSECUTIVE_FAILURES: usize = 3;

/// The result of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct ReconcileSummary {
    /// Rooms whose participants were listed.
    rooms: usize,
    /// Participants that were not tracked before.
    discovered: usize,
    /// Rooms that were not listed.
    skipped: usize,
}

/// Reconciles in an endless loop.
pub(super) fn run(membership: &MembershipInner) {
    let mut failures = 0;
    loop {
        let clients = membership.clients.get();
        let record = |key: &ParticipantKey, attribute: &SealedAttribute| {
            membership.record_discovered(&clients, key, attribute)
        };
        let wait = match reconcile(&clients.room_service, record) {
            Ok(summary) => {
                log_summary(&summary);
                failures = 0;
                RECONCILE_INTERVAL
            }
            Err(error) => {
                if failures == 0 {
                    warn!(cause:% = error; "reconciliation with the SFU failed");
                }
                failures += 1;
                RETRY.delay(failures)
            }
        };
        thread::sleep(wait);
    }
}

fn log_summary(summary: &ReconcileSummary) {
    let level = match (summary.discovered, summary.skipped) {
        (0, 0) => log::Level::Debug,
        (_, 0) => log::Level::Info,
        _ => log::Level::Warn,
    };
    log::log!(
        level,
        rooms = summary.rooms,
        discovered = summary.discovered,
        skipped_rooms = summary.skipped;
        "reconciled with the SFU"
    );
}

/// Lists the participants of all rooms with a derived name. `record` handles a sealed attribute, and returns whether its participant
/// was not tracked before.
fn reconcile(
    sfu: &RoomServiceClient,
    mut record: impl FnMut(&ParticipantKey, &SealedAttribute) -> bool,
) -> Result<ReconcileSummary, Error> {
    let deadline = Instant::now() + MAX_DURATION;
    let mut rooms = sfu.list_rooms()?;
    // the SFU may have rooms of other applications
    rooms.retain(livekit_names::has_derived_format);
    let all = rooms.len();
    let (mut summary, mut failures) = (ReconcileSummary::default(), 0);
    for room in sample_rooms(rooms) {
        if Instant::now() >= deadline {
            break;
        }
        thread::sleep(REQUEST_PAUSE);
        let participants = match sfu.list_participants(&room) {
            Ok(participants) => participants,
            Err(error) => {
                debug!(room:% = room, cause:% = error; "room not reconciled");
                failures += 1;
                if failures == MAX_CONSECUTIVE_FAILURES {
                    return Err(error);
                }
                continue;
            }
        };
        summary.rooms += 1;
        failures = 0;
        for ParticipantInfo {
            identity,
            sealed_attribute,
        } in participants
        {
            let room = room.clone();
            let is_new = sealed_attribute
                .is_some_and(|attribute| record(&ParticipantKey { room, identity }, &attribute));
            summary.discovered += usize::from(is_new);
        }
    }
    summary.skipped = all - summary.rooms;
    Ok(summary)
}

/// At most [`MAX_ROOMS`] consecutive rooms, from a random one on.
fn sample_rooms(mut rooms: Vec<RoomName>) -> Vec<RoomName> {
    if rooms.len() > MAX_ROOMS {
        let last = u32::try_from(rooms.len() - 1).unwrap_or(u32::MAX);
        let first = usize::try_from(random::up_to(last)).unwrap_or(0);
        rooms.rotate_left(first);
        rooms.truncate(MAX_ROOMS);
    }
    rooms
}
