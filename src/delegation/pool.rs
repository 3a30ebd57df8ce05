//! Those who wait for homeservers, the SFU and the journal, so that the thread with the leaves need not.

use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use log::{info, warn};

use super::Shared;
use super::keeper::{Called, News};
use crate::journal::{Fence, Hold};
use crate::leave::{Event, Key, Time};
use crate::livekit::room_service::Presence;
use crate::matrix::delayed_event::{Deed, DelayId, Outcome};
use crate::matrix::id::UserId;

/// For one call in all.
const CALL: Duration = Duration::from_secs(10);
/// When to ask a journal again that cannot tell whether a leave is still ours.
const UNSURE: Duration = Duration::from_secs(1);
/// How often the journal is asked again, a second later each time, for a leave that something has happened to.
const TAKE_AGAIN: usize = 2;
/// From one look at the journal for leaves without a keeper to the next.
const ADOPT_EVERY: Duration = Duration::from_secs(1);
/// Leaves that are taken up at once.
const ADOPT_MOST: usize = 500;

/// What is to be waited for.
#[derive(Debug)]
pub(super) enum Task {
    /// A homeserver, about a leave that is ours.
    Call {
        serial: u64,
        key: Key,
        fence: Fence,
        deed: Deed,
        user: UserId,
        delay: DelayId,
        /// When this was asked for.
        began: Time,
    },
    /// The SFU, about a participant.
    LookUp { serial: u64, key: Key },
    /// The journal, about a leave that something has happened to and that is not known here.
    Take { key: Key, event: Event },
}

/// Does one task after the other until there are no more.
pub(super) fn work(shared: &Shared, tasks: &Mutex<Receiver<Task>>, news: &SyncSender<News>) {
    loop {
        let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(task) = task else {
            return;
        };
        if news.send(done(shared, task)).is_err() {
            return;
        }
    }
}

fn done(shared: &Shared, task: Task) -> News {
    match task {
        Task::Call {
            serial,
            key,
            fence,
            deed,
            user,
            delay,
            began,
        } => {
            let outcome = match shared.journal.hold(&key, fence) {
                Ok(Hold::Ours) => {
                    let deadline = Instant::now() + CALL;
                    Some(shared.events.call(deed, &user, &delay, deadline))
                }
                Ok(Hold::Lost) => None,
                Err(_) => Some(Outcome::NotNow(UNSURE)),
            };
            News::Called(Called {
                serial,
                server: user.server().clone(),
                deed,
                outcome,
                began,
            })
        }
        Task::LookUp { serial, key } => {
            let answer = shared.rooms.get_participant(&key.room, &key.identity);
            let presence = answer.map_err(|error| error.to_string());
            News::LookedUp(serial, presence)
        }
        Task::Take { key, event } => {
            let mut taken = shared.journal.take(&key);
            for _ in 0..TAKE_AGAIN {
                if taken.is_ok() {
                    break;
                }
                thread::sleep(UNSURE);
                taken = shared.journal.take(&key);
            }
            let taken = taken.unwrap_or_else(|error| {
                warn!("journal cause={:?}", error.to_string());
                None
            });
            News::Took(key, taken, event)
        }
    }
}

/// What the SFU said, or why it said nothing.
pub(super) type Answer = Result<Presence, String>;

/// Starts to look into the journal for leaves that nobody keeps: all of them at first, later those of others who died.
pub(super) fn adopt_forever(shared: Arc<Shared>, news: SyncSender<News>) -> io::Result<()> {
    let adopt = move || {
        let mut well = true;
        loop {
            let adopted = shared
                .journal
                .renew()
                .and_then(|()| shared.journal.adopt(ADOPT_MOST));
            let more = match adopted {
                Ok(leaves) => {
                    if !well {
                        info!("journal: well again");
                    }
                    well = true;
                    let more = leaves.len() >= ADOPT_MOST;
                    for (key, fence, record) in leaves {
                        if news.send(News::Adopted(key, fence, record)).is_err() {
                            return;
                        }
                    }
                    more
                }
                Err(error) => {
                    if well {
                        warn!("journal cause={:?}", error.to_string());
                    }
                    well = false;
                    false
                }
            };
            if !more {
                thread::sleep(ADOPT_EVERY);
            }
        }
    };
    let named = thread::Builder::new().name("adopter".into());
    named.spawn(adopt).map(drop)
}
