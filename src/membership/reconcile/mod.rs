//! Walks through the SFU's rooms for guests whom nobody here remembers: those of the time before a restart, those whom another one of
//! us has let in, and those of whose coming no webhook told. What their token carries says who they are.
//!
//! Several of us look at everybody then. That costs questions, of which each has some, and no more: to remove somebody twice is no
//! error, and whoever is removed is so for all.

#[cfg(test)]
mod tests;

use std::thread;
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use super::MembershipInner;
use crate::livekit::id::{ParticipantKey, RoomName};
use crate::livekit::room_service::{Error, ParticipantInfo, RoomServiceClient};
use crate::livekit::sealed_attribute::SealedAttribute;
use crate::matrix::livekit_names;
use crate::util::random;

/// From one walk to the next. Webhooks tell sooner of nearly everybody, so this is for who they forgot; it is a question for each
/// room: with 500 of them less than one a second.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(600);
/// After a walk on which the SFU did not answer; it doubles up to [`LONGEST`].
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// See [`AGAIN`].
const MAX_RETRY: Duration = Duration::from_secs(60);
/// Between two questions, so that they are no more than 20 a second.
const REQUEST_PAUSE: Duration = Duration::from_millis(50);
/// Rooms of one walk; where there are more, each walk begins somewhere else.
const MAX_ROOMS: usize = 2_000;
/// For a walk in all, however slow the SFU is.
const MAX_DURATION: Duration = Duration::from_secs(300);
/// Questions without an answer, one after the other, that end a walk. One may be about a room too large to be listed.
const MAX_CONSECUTIVE_FAILURES: usize = 3;

/// What a walk has come to.
#[derive(Debug, Default, PartialEq, Eq)]
struct ReconcileSummary {
    rooms: usize,
    /// Guests whom nobody here knew.
    discovered: usize,
    /// Rooms that were not seen.
    skipped: usize,
}

/// Walks for ever.
pub(super) fn run_reconciler(shared: &MembershipInner) {
    let mut ailing = None;
    loop {
        let wires = shared.clients.get();
        let found = |key: &ParticipantKey, sealed: &SealedAttribute| {
            shared.record_discovered(&wires, key, sealed)
        };
        let wait = match reconcile(&wires.room_service, found) {
            Ok(walked) => {
                log_summary(&walked);
                ailing = None;
                RECONCILE_INTERVAL
            }
            Err(error) => {
                if ailing.is_none() {
                    let cause = error.to_string();
                    warn!("guests from before a restart cannot be looked for cause={cause:?}");
                }
                *ailing.insert(next_retry(ailing))
            }
        };
        thread::sleep(wait);
    }
}

/// How long to wait after one more walk that failed, and the one before it.
fn next_retry(before: Option<Duration>) -> Duration {
    before.map_or(FIRST_RETRY, |wait| (wait * 2).min(MAX_RETRY))
}

fn log_summary(walked: &ReconcileSummary) {
    let ReconcileSummary {
        rooms,
        discovered: found,
        skipped: missed,
    } = walked;
    match (found, missed) {
        (0, 0) => debug!("walked rooms={rooms} found=0"),
        (_, 0) => info!("walked rooms={rooms} found={found}"),
        _ => warn!("walked rooms={rooms} found={found} missed={missed}"),
    }
}

/// Walks once. `found` takes in somebody who carries something, and says whether that made a guest known.
fn reconcile(
    sfu: &RoomServiceClient,
    mut found: impl FnMut(&ParticipantKey, &SealedAttribute) -> bool,
) -> Result<ReconcileSummary, Error> {
    let end = Instant::now() + MAX_DURATION;
    let mut rooms = sfu.list_rooms()?;
    rooms.retain(livekit_names::has_derived_format);
    let all = rooms.len();
    let (mut walked, mut failed) = (ReconcileSummary::default(), 0);
    for room in sample_rooms(rooms) {
        if Instant::now() >= end {
            break;
        }
        thread::sleep(REQUEST_PAUSE);
        let participants = match sfu.list_participants(&room) {
            Ok(participants) => participants,
            Err(error) => {
                failed += 1;
                if failed >= MAX_CONSECUTIVE_FAILURES {
                    return Err(error);
                }
                debug!("not listed room={room} cause={:?}", error.to_string());
                continue;
            }
        };
        (walked.rooms, failed) = (walked.rooms + 1, 0);
        for ParticipantInfo {
            identity,
            sealed_attribute: sealed,
        } in participants
        {
            let room = room.clone();
            let is_found =
                |sealed: &SealedAttribute| found(&ParticipantKey { room, identity }, sealed);
            walked.discovered += usize::from(sealed.as_ref().is_some_and(is_found));
        }
    }
    walked.skipped = all - walked.rooms;
    Ok(walked)
}

/// As many rooms as there is time for, any of them.
fn sample_rooms(mut rooms: Vec<RoomName>) -> Vec<RoomName> {
    if rooms.len() > MAX_ROOMS {
        let last = u32::try_from(rooms.len() - 1).unwrap_or(u32::MAX);
        let first = usize::try_from(random::up_to(last)).unwrap_or(0);
        rooms.rotate_left(first);
        rooms.truncate(MAX_ROOMS);
    }
    rooms
}
