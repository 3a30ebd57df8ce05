//! Threads that wait for homeservers, the SFU and the store on behalf of the scheduler.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{io, thread};

use log::{debug, error};

use super::DelegationContext;
use super::leave::{LeaveEvent, UnixMillis};
use super::scheduler::SchedulerMessage;
use super::store::{self, FencingToken, Ownership};
use crate::livekit::id::ParticipantKey;
use crate::matrix::delayed_event::{DelayedEventAction, DelayedEventOutcome};
use crate::matrix::id::{DelayId, UserId};
use crate::util::sync::{lock, spawn};

/// Pause before a call whose leave's ownership the store could not confirm is tried again.
const OWNERSHIP_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Time between two searches of the store for leaves without an owner.
const ADOPT_INTERVAL: Duration = Duration::from_secs(1);
/// Leaves adopted in one search.
const ADOPT_BATCH: usize = 500;

/// A call to a homeserver about a leave. It returns to the scheduler with its outcome.
#[derive(Debug)]
pub(super) struct DelayedEventCall {
    pub(super) serial: u64,
    pub(super) action: DelayedEventAction,
    pub(super) key: ParticipantKey,
    pub(super) fence: FencingToken,
    pub(super) user: UserId,
    pub(super) delay_id: DelayId,
    pub(super) timeout: Duration,
    pub(super) started_at: UnixMillis,
}

/// An event of a leave that another replica may own.
#[derive(Debug)]
pub(super) struct PendingEvent {
    pub(super) key: ParticipantKey,
    /// Token under which this replica owns the leave, as far as it knows.
    pub(super) fence: Option<FencingToken>,
    pub(super) event: LeaveEvent,
    pub(super) reason: String,
    /// Takes the leave's token once the event is handled; dropped if it cannot be handled.
    pub(super) reply: WebhookReply,
}

pub(super) type WebhookReply = SyncSender<Option<(ParticipantKey, FencingToken)>>;

/// Result of [`BlockingTask::Claim`].
#[derive(Debug)]
pub(super) enum ClaimOutcome {
    AlreadyOwned,
    /// This replica owns the leave from now on; its record.
    Claimed(FencingToken, String),
    NotFound,
}

/// Work that blocks.
#[derive(Debug)]
pub(super) enum BlockingTask {
    Call(DelayedEventCall),
    CheckPresence { serial: u64, key: ParticipantKey },
    Claim(PendingEvent),
}

/// Threads that carry out tasks, started when they are needed: never more than tasks run at once.
pub(super) struct LeaveWorkerPool {
    context: Arc<DelegationContext>,
    scheduler: SyncSender<SchedulerMessage>,
    task_sender: SyncSender<BlockingTask>,
    tasks: Arc<Mutex<Receiver<BlockingTask>>>,
    running_tasks: usize,
    threads: usize,
}

impl LeaveWorkerPool {
    /// A pool for at most `max_tasks` at once.
    pub(super) fn new(
        context: Arc<DelegationContext>,
        scheduler: SyncSender<SchedulerMessage>,
        max_tasks: usize,
    ) -> Self {
        let (task_sender, tasks) = sync_channel(max_tasks);
        Self {
            context,
            scheduler,
            task_sender,
            tasks: Arc::new(Mutex::new(tasks)),
            running_tasks: 0,
            threads: 0,
        }
    }

    /// Starts a task, whose result is sent to the scheduler.
    pub(super) fn submit(&mut self, task: BlockingTask) {
        self.running_tasks += 1;
        if self.running_tasks > self.threads {
            let (context, scheduler) = (Arc::clone(&self.context), self.scheduler.clone());
            let tasks = Arc::clone(&self.tasks);
            match spawn("leave-worker", move || {
                run_tasks(&context, &tasks, &scheduler);
            }) {
                Ok(_) => self.threads += 1,
                Err(error) => error!(cause:% = error; "leave worker not started"),
            }
        }
        // never blocks, as the channel has room for all tasks
        let _ = self.task_sender.send(task);
    }

    /// Counts a task as finished, after its result arrived.
    pub(super) fn finish_task(&mut self) {
        self.running_tasks -= 1;
    }
}

fn run_tasks(
    context: &DelegationContext,
    tasks: &Mutex<Receiver<BlockingTask>>,
    scheduler: &SyncSender<SchedulerMessage>,
) {
    loop {
        let task = lock(tasks).recv();
        let result = match task {
            Ok(BlockingTask::Call(call)) => {
                let outcome = make_call(context, &call);
                SchedulerMessage::CallFinished(call, outcome)
            }
            Ok(BlockingTask::CheckPresence { serial, key }) => {
                let room_service = &context.clients.get().room_service;
                let presence = room_service.get_participant(&key);
                SchedulerMessage::PresenceChecked(serial, presence)
            }
            Ok(BlockingTask::Claim(pending)) => {
                let outcome = claim(context, &pending);
                SchedulerMessage::ClaimFinished(pending, outcome)
            }
            Err(_) => return,
        };
        if scheduler.send(result).is_err() {
            return;
        }
    }
}

/// Makes a call unless another replica owns the leave (`None`).
fn make_call(context: &DelegationContext, call: &DelayedEventCall) -> Option<DelayedEventOutcome> {
    match context.store.check_ownership(&call.key, call.fence) {
        Ok(Ownership::Owned) => {
            let clients = context.clients.get();
            let deadline = Instant::now() + call.timeout;
            let client = &clients.delayed_events;
            Some(client.perform(call.action, &call.user, &call.delay_id, deadline))
        }
        Ok(Ownership::Lost) => None,
        Err(_) => Some(DelayedEventOutcome::NotAttempted(OWNERSHIP_RETRY_DELAY)),
    }
}

fn claim(
    context: &DelegationContext,
    pending: &PendingEvent,
) -> Result<ClaimOutcome, store::Error> {
    let (store, key) = (&context.store, &pending.key);
    if let Some(fence) = pending.fence
        && store.check_ownership(key, fence)? == Ownership::Owned
    {
        return Ok(ClaimOutcome::AlreadyOwned);
    }
    Ok(match store.claim(key)? {
        Some((fence, record)) => ClaimOutcome::Claimed(fence, record),
        None => ClaimOutcome::NotFound,
    })
}

/// Starts the thread that adopts leaves without an owner: all of them at the start, later those of replicas that died.
pub(super) fn spawn_adopter(
    context: Arc<DelegationContext>,
    scheduler: SyncSender<SchedulerMessage>,
) -> io::Result<()> {
    let adopt_forever = move || {
        loop {
            let adopted = context.store.adopt(ADOPT_BATCH).unwrap_or_else(|error| {
                // the store logs its own problems, once
                debug!(cause:% = error; "no leaves adopted");
                Vec::new()
            });
            let more = adopted.len() >= ADOPT_BATCH;
            for (key, fence, record) in adopted {
                let message = SchedulerMessage::Adopted(key, fence, record);
                if scheduler.send(message).is_err() {
                    return;
                }
            }
            if !more {
                thread::sleep(ADOPT_INTERVAL);
            }
        }
    };
    spawn("leave-adopter", adopt_forever).map(drop)
}
