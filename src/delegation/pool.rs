//! Those who wait for homeservers, the SFU and the journal, so that the thread with the leaves need not.

use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, panic, process, thread};

use log::{error, info, warn};

use super::Shared;
use super::keeper::{Called, News};
use crate::journal::{Fence, Hold};
use crate::leave::{Event, Key, Time};
use crate::livekit::room_service::Presence;
use crate::matrix::delayed_event::{Deed, DelayId, Outcome};
use crate::matrix::id::UserId;

/// When to ask a journal again that cannot tell whether a leave is still ours.
const UNSURE: Duration = Duration::from_secs(1);
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
        /// How long it may take.
        patience: Duration,
        delay: DelayId,
        /// When this was asked for.
        began: Time,
    },
    /// The SFU, about a participant.
    LookUp { serial: u64, key: Key },
    /// The journal, about a leave that something has happened to and that another one of us may keep.
    Take {
        key: Key,
        /// Under which it is ours, by all that we know.
        fence: Option<Fence>,
        told: Told,
    },
}

/// Does one task after the other until there are no more.
pub(super) fn work(shared: &Shared, tasks: &Mutex<Receiver<Task>>, news: &SyncSender<News>) {
    loop {
        let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(task) = task else {
            return;
        };
        let done = panic::catch_unwind(panic::AssertUnwindSafe(|| done(shared, task)));
        let Ok(done) = done else {
            // the keeper would wait for ever for what has become of it
            error!("a call for a leave has failed");
            process::exit(1);
        };
        if news.send(done).is_err() {
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
            patience,
            delay,
            began,
        } => {
            let outcome = match shared.journal.hold(&key, fence) {
                Ok(Hold::Ours) => {
                    let deadline = Instant::now() + patience;
                    let wires = shared.wires.get();
                    Some(wires.events.call(deed, &user, &delay, deadline))
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
            let wires = shared.wires.get();
            let answer = wires.rooms.get_participant(&key.room, &key.identity);
            let presence = answer.map_err(|error| error.to_string());
            News::LookedUp(serial, presence)
        }
        Task::Take { key, fence, told } => {
            let held = match fence {
                Some(fence) => shared.journal.hold(&key, fence),
                None => Ok(Hold::Lost),
            };
            let taken = held.and_then(|held| match held {
                Hold::Ours => Ok(Taken::Kept),
                Hold::Lost => shared.journal.take(&key).map(|taken| match taken {
                    Some((fence, record)) => Taken::Over(fence, record),
                    None => Taken::Nothing,
                }),
            });
            News::Took(key, fence, taken, told)
        }
    }
}

/// Something that has happened to a leave.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) event: Event,
    pub(super) reason: String,
    /// For the leave that it was about, if any, once it is taken in; gone without a word if it could not be.
    pub(super) done: SyncSender<Option<(Key, Fence)>>,
}

/// Whose a leave is that something has happened to.
#[derive(Debug)]
pub(super) enum Taken {
    /// Ours, as before.
    Kept,
    /// Ours, from now on.
    Over(Fence, String),
    /// Nobody's.
    Nothing,
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
