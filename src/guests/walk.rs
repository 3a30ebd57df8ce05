//! Walks through the SFU's rooms for guests whom nobody here remembers: those of the time before a restart, those whom another one of
//! us has let in, and those of whose coming no webhook told. What their token carries says who they are.
//!
//! Several of us look at everybody then. That costs questions, of which each has some, and no more: to remove somebody twice is no
//! error, and whoever is removed is so for all.

use std::thread;
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use super::Shared;
use crate::alias;
use crate::journal::Key;
use crate::livekit::room_service::{Error, Participant, RoomService};
use crate::livekit::sealed::Sealed;
use crate::livekit::token::RoomName;
use crate::random;

/// From one walk to the next. Webhooks tell sooner of nearly everybody, so this is for who they forgot; it is a question for each
/// room: with 500 of them less than one a second.
const EVERY: Duration = Duration::from_secs(600);
/// After a walk on which the SFU did not answer; it doubles up to [`LONGEST`].
const AGAIN: Duration = Duration::from_secs(1);
/// See [`AGAIN`].
const LONGEST: Duration = Duration::from_secs(60);
/// Between two questions, so that they are no more than 20 a second.
const PAUSE: Duration = Duration::from_millis(50);
/// Rooms of one walk; where there are more, each walk begins somewhere else.
const MAX_ROOMS: usize = 2_000;
/// For a walk in all, however slow the SFU is.
const MAX_TIME: Duration = Duration::from_secs(300);
/// Questions without an answer, one after the other, that end a walk. One may be about a room too large to be listed.
const MAX_FAILED: usize = 3;

/// What a walk has come to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Walked {
    rooms: usize,
    /// Guests whom nobody here knew.
    found: usize,
    /// Rooms that were not seen.
    missed: usize,
}

/// Walks for ever.
pub(super) fn walk_forever(shared: &Shared) {
    let mut ailing = None;
    loop {
        let wires = shared.wires.get();
        let found = |key: &Key, sealed: &Sealed| shared.found(&wires, key, sealed);
        let wait = match walk(&wires.rooms, found) {
            Ok(walked) => {
                tell(&walked);
                ailing = None;
                EVERY
            }
            Err(error) => {
                if ailing.is_none() {
                    let cause = error.to_string();
                    warn!("guests from before a restart cannot be looked for cause={cause:?}");
                }
                *ailing.insert(later(ailing))
            }
        };
        thread::sleep(wait);
    }
}

/// How long to wait after one more walk that failed, and the one before it.
fn later(before: Option<Duration>) -> Duration {
    before.map_or(AGAIN, |wait| (wait * 2).min(LONGEST))
}

fn tell(walked: &Walked) {
    let Walked {
        rooms,
        found,
        missed,
    } = walked;
    match (found, missed) {
        (0, 0) => debug!("walked rooms={rooms} found=0"),
        (_, 0) => info!("walked rooms={rooms} found={found}"),
        _ => warn!("walked rooms={rooms} found={found} missed={missed}"),
    }
}

/// Walks once. `found` takes in somebody who carries something, and says whether that made a guest known.
fn walk(sfu: &RoomService, mut found: impl FnMut(&Key, &Sealed) -> bool) -> Result<Walked, Error> {
    let end = Instant::now() + MAX_TIME;
    let mut rooms = sfu.list_rooms(&[])?;
    rooms.retain(alias::may_be_ours);
    let all = rooms.len();
    let (mut walked, mut failed) = (Walked::default(), 0);
    for room in some(rooms) {
        if Instant::now() >= end {
            break;
        }
        thread::sleep(PAUSE);
        let participants = match sfu.list_participants(&room) {
            Ok(participants) => participants,
            Err(error) => {
                failed += 1;
                if failed >= MAX_FAILED {
                    return Err(error);
                }
                debug!("not listed room={room} cause={:?}", error.to_string());
                continue;
            }
        };
        (walked.rooms, failed) = (walked.rooms + 1, 0);
        for Participant { identity, sealed } in participants {
            let room = room.clone();
            let is_found = |sealed: &Sealed| found(&Key { room, identity }, sealed);
            walked.found += usize::from(sealed.as_ref().is_some_and(is_found));
        }
    }
    walked.missed = all - walked.rooms;
    Ok(walked)
}

/// As many rooms as there is time for, any of them.
fn some(mut rooms: Vec<RoomName>) -> Vec<RoomName> {
    if rooms.len() > MAX_ROOMS {
        let last = u32::try_from(rooms.len() - 1).unwrap_or(u32::MAX);
        let first = usize::try_from(random::up_to(last)).unwrap_or(0);
        rooms.rotate_left(first);
        rooms.truncate(MAX_ROOMS);
    }
    rooms
}

#[cfg(test)]
mod tests;
