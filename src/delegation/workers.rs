//! Those who wait for homeservers, the SFU and the journal, so that the thread with the leaves need not.

use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, panic, process, thread};

use log::{error, info, warn};

use super::DelegationContext;
use super::leave::{LeaveEvent, UnixMillis};
use super::scheduler::{FinishedCall, SchedulerMessage};
use super::store::{FencingToken, Ownership};
use crate::livekit::id::ParticipantKey;
use crate::livekit::room_service::ParticipantPresence;
use crate::matrix::delayed_event::{DelayedEventAction, DelayedEventOutcome};
use crate::matrix::id::{DelayId, UserId};

/// When to ask a journal again that cannot tell whether a leave is still ours.
const OWNERSHIP_RETRY_DELAY: Duration = Duration::from_secs(1);
/// From one look at the journal for leaves without a keeper to the next.
const ADOPT_INTERVAL: Duration = Duration::from_secs(1);
/// Leaves that are taken up at once.
const ADOPT_BATCH: usize = 500;

/// What is to be waited for.
#[derive(Debug)]
pub(super) enum BlockingTask {
    /// A homeserver, about a leave that is ours.
    Call {
        serial: u64,
        key: ParticipantKey,
        fence: FencingToken,
        deed: DelayedEventAction,
        user: UserId,
        /// How long it may take.
        patience: Duration,
        delay: DelayId,
        /// When this was asked for.
        began: UnixMillis,
    },
    /// The SFU, about a participant.
    CheckPresence { serial: u64, key: ParticipantKey },
    /// The journal, about a leave that something has happened to and that another one of us may keep.
    Claim {
        key: ParticipantKey,
        /// Under which it is ours, by all that we know.
        fence: Option<FencingToken>,
        told: PendingEvent,
    },
}

/// Does one task after the other until there are no more.
pub(super) fn run_worker(
    shared: &DelegationContext,
    tasks: &Mutex<Receiver<BlockingTask>>,
    news: &SyncSender<SchedulerMessage>,
) {
    loop {
        let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(task) = task else {
            return;
        };
        let done = panic::catch_unwind(panic::AssertUnwindSafe(|| run_task(shared, task)));
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

fn run_task(shared: &DelegationContext, task: BlockingTask) -> SchedulerMessage {
    match task {
        BlockingTask::Call {
            serial,
            key,
            fence,
            deed,
            user,
            patience,
            delay,
            began,
        } => {
            let outcome = match shared.store.check_ownership(&key, fence) {
                Ok(Ownership::Owned) => {
                    let deadline = Instant::now() + patience;
                    let wires = shared.clients.get();
                    Some(wires.delayed_events.perform(deed, &user, &delay, deadline))
                }
                Ok(Ownership::Lost) => None,
                Err(_) => Some(DelayedEventOutcome::NotAttempted(OWNERSHIP_RETRY_DELAY)),
            };
            SchedulerMessage::CallFinished(FinishedCall {
                serial,
                server: user.server().clone(),
                action: deed,
                outcome,
                started_at: began,
            })
        }
        BlockingTask::CheckPresence { serial, key } => {
            let wires = shared.clients.get();
            let answer = wires.room_service.get_participant(&key);
            let presence = answer.map_err(|error| error.to_string());
            SchedulerMessage::PresenceChecked(serial, presence)
        }
        BlockingTask::Claim { key, fence, told } => {
            let held = match fence {
                Some(fence) => shared.store.check_ownership(&key, fence),
                None => Ok(Ownership::Lost),
            };
            let taken = held.and_then(|held| match held {
                Ownership::Owned => Ok(ClaimOutcome::AlreadyOwned),
                Ownership::Lost => shared.store.claim(&key).map(|taken| match taken {
                    Some((fence, record)) => ClaimOutcome::Claimed(fence, record),
                    None => ClaimOutcome::NotFound,
                }),
            });
            SchedulerMessage::ClaimFinished(key, fence, taken, told)
        }
    }
}

/// Something that has happened to a leave.
#[derive(Debug)]
pub(super) struct PendingEvent {
    pub(super) event: LeaveEvent,
    pub(super) reason: String,
    /// For the leave that it was about, if any, once it is taken in; gone without a word if it could not be.
    pub(super) reply: SyncSender<Option<(ParticipantKey, FencingToken)>>,
}

/// Whose a leave is that something has happened to.
#[derive(Debug)]
pub(super) enum ClaimOutcome {
    /// Ours, as before.
    AlreadyOwned,
    /// Ours, from now on.
    Claimed(FencingToken, String),
    /// Nobody's.
    NotFound,
}

/// What the SFU said, or why it said nothing.
pub(super) type PresenceResult = Result<ParticipantPresence, String>;

/// Starts to look into the journal for leaves that nobody keeps: all of them at first, later those of others who died.
pub(super) fn spawn_adopter(
    shared: Arc<DelegationContext>,
    news: SyncSender<SchedulerMessage>,
) -> io::Result<()> {
    let adopt = move || {
        let mut well = true;
        loop {
            let adopted = shared
                .store
                .check_lease()
                .and_then(|()| shared.store.adopt(ADOPT_BATCH));
            let more = match adopted {
                Ok(leaves) => {
                    if !well {
                        info!("journal: well again");
                    }
                    well = true;
                    let more = leaves.len() >= ADOPT_BATCH;
                    for (key, fence, record) in leaves {
                        if news
                            .send(SchedulerMessage::Adopted(key, fence, record))
                            .is_err()
                        {
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
                thread::sleep(ADOPT_INTERVAL);
            }
        }
    };
    let named = thread::Builder::new().name("adopter".into());
    named.spawn(adopt).map(drop)
}
