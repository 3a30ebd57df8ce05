//! The one thread that owns all leaves and their timers.

mod calls;
mod telemetry;
mod webhooks;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::{io, panic, process, thread};

use log::{error, info, warn};

use super::DelegationContext;
use super::call_queue::{CallQueue, MAX_CONCURRENT_CALLS, QueuedAction};
use super::leave::{Leave, LeaveAction, LeaveEndReason, LeaveEvent, UnixMillis};
use super::store;
use super::store::{FencingToken, Ownership};
use super::workers::{BlockingTask, ClaimOutcome, PendingEvent, PresenceResult};
use crate::livekit::id::ParticipantKey;
use crate::livekit::webhook::WebhookEvent;
use crate::matrix::delayed_event::{DelayedEventAction, DelayedEventOutcome};
use crate::matrix::id::ServerName;

/// Questions to the SFU under way.
const MAX_CONCURRENT_PRESENCE_CHECKS: usize = 4;
/// Questions to the journal under way, and how many may wait; the SFU is told to come again with more.
const MAX_CONCURRENT_CLAIMS: usize = 4;
const MAX_QUEUED_CLAIMS: usize = 1000;
/// Servers whose administrator is not told the same again; so many are strangers'.
const MAX_ADVISED_SERVERS: usize = 1024;
/// Threads that wait for others, started as they are needed.
const MAX_CALL_THREADS: usize =
    MAX_CONCURRENT_CALLS + MAX_CONCURRENT_PRESENCE_CHECKS + MAX_CONCURRENT_CLAIMS;
/// What the thread is told.
#[derive(Debug)]
pub(super) enum SchedulerMessage {
    Delegated(Box<Leave>, FencingToken),
    Adopted(ParticipantKey, FencingToken, String),
    WebhookReceived(
        Box<WebhookEvent>,
        SyncSender<Option<(ParticipantKey, FencingToken)>>,
    ),
    CallFinished(FinishedCall),
    PresenceChecked(u64, PresenceResult),
    ClaimFinished(
        ParticipantKey,
        Option<FencingToken>,
        Result<ClaimOutcome, store::Error>,
        PendingEvent,
    ),
    Stop(SyncSender<()>),
}

/// A call that has ended.
#[derive(Debug)]
pub(super) struct FinishedCall {
    pub(super) serial: u64,
    pub(super) server: ServerName,
    pub(super) action: DelayedEventAction,
    /// None if the leave is not ours any more, so that the call was not made.
    pub(super) outcome: Option<DelayedEventOutcome>,
    pub(super) started_at: UnixMillis,
}

/// A leave that is kept here.
#[derive(Debug)]
struct ScheduledLeave {
    leave: Leave,
    fence: FencingToken,
    wake_at: Option<UnixMillis>,
    /// The record in the journal.
    record_hash: u64,
    /// Why calls are made again, if they are.
    last_error: Option<String>,
}

pub(super) struct Scheduler {
    context: Arc<DelegationContext>,
    message_sender: SyncSender<SchedulerMessage>,
    leaves: HashMap<u64, ScheduledLeave>,
    serials_by_key: HashMap<ParticipantKey, u64>,
    last_serial: u64,
    timers: BinaryHeap<Reverse<(UnixMillis, u64)>>,
    call_queue: CallQueue,
    presence_check_queue: VecDeque<u64>,
    presence_checks_in_flight: usize,
    claim_queue: VecDeque<(ParticipantKey, Option<FencingToken>, PendingEvent)>,
    claims_in_flight: usize,
    task_sender: SyncSender<BlockingTask>,
    task_receiver: Arc<Mutex<Receiver<BlockingTask>>>,
    tasks_in_flight: usize,
    thread_count: usize,
    /// Restarts a second that administrators were told to allow.
    advised_limits: HashMap<ServerName, u64>,
    store_failing: bool,
}

impl Scheduler {
    /// Starts the thread.
    pub(super) fn start(
        shared: Arc<DelegationContext>,
        news: SyncSender<SchedulerMessage>,
        received: Receiver<SchedulerMessage>,
    ) -> io::Result<()> {
        let (tasks, todo) = sync_channel(MAX_CALL_THREADS);
        let mut keeper = Self {
            context: shared,
            message_sender: news,
            leaves: HashMap::new(),
            serials_by_key: HashMap::new(),
            last_serial: 0,
            timers: BinaryHeap::new(),
            call_queue: CallQueue::default(),
            presence_check_queue: VecDeque::new(),
            presence_checks_in_flight: 0,
            claim_queue: VecDeque::new(),
            claims_in_flight: 0,
            task_sender: tasks,
            task_receiver: Arc::new(Mutex::new(todo)),
            tasks_in_flight: 0,
            thread_count: 0,
            advised_limits: HashMap::new(),
            store_failing: false,
        };
        let keep = move || {
            let kept = panic::catch_unwind(panic::AssertUnwindSafe(|| keeper.run(&received)));
            if kept.is_err() {
                // nobody else has the leaves; whoever starts us anew finds them in the journal
                error!("the thread that keeps the leaves has failed");
                process::exit(1);
            }
        };
        let named = thread::Builder::new().name("leaves".into());
        named.spawn(keep).map(drop)
    }

    fn run(&mut self, received: &Receiver<SchedulerMessage>) {
        loop {
            let now = self.context.clock.now();
            self.fire_timers(now);
            self.dispatch(now);
            let next = self.timers.peek().map(|Reverse((at, _))| *at);
            let next = next
                .into_iter()
                .chain(self.call_queue.next_start_at(now))
                .min();
            let news = match next {
                Some(at) => received.recv_timeout(at.duration_since(self.context.clock.now())),
                None => received.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match news {
                Ok(SchedulerMessage::Stop(done)) => {
                    let _ = done.send(());
                    return;
                }
                Ok(news) => self.handle_message(news),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn handle_message(&mut self, news: SchedulerMessage) {
        let now = self.context.clock.now();
        match news {
            SchedulerMessage::Delegated(leave, fence) => self.add_leave(*leave, fence, now),
            SchedulerMessage::Adopted(key, fence, record) => {
                self.restore(key, fence, &record, now);
            }
            SchedulerMessage::WebhookReceived(webhook, done) => {
                self.handle_webhook(*webhook, done, now)
            }
            SchedulerMessage::CallFinished(called) => self.handle_finished_call(called, now),
            SchedulerMessage::PresenceChecked(serial, answer) => {
                self.tasks_in_flight -= 1;
                self.presence_checks_in_flight -= 1;
                let presence = telemetry::presence_or_report(answer, self.leaves.get(&serial));
                self.step(serial, &LeaveEvent::PresenceChecked(presence), "look", now);
            }
            SchedulerMessage::ClaimFinished(key, fence, taken, told) => {
                self.tasks_in_flight -= 1;
                self.claims_in_flight -= 1;
                self.handle_claim(key, fence, taken, told, now);
            }
            SchedulerMessage::Stop(_) => {}
        }
    }

    /// Brings the leaves whose time has come to do something.
    fn fire_timers(&mut self, now: UnixMillis) {
        while let Some(Reverse((at, serial))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            // any other is an older wish
            if let Some(kept) = self.leaves.get_mut(&serial)
                && kept.wake_at == Some(at)
            {
                kept.wake_at = None;
                self.step(serial, &LeaveEvent::Tick, "timer", now);
            }
        }
    }

    fn add_leave(&mut self, leave: Leave, fence: FencingToken, now: UnixMillis) {
        if let Some(earlier) = self.serials_by_key.get(leave.key()).copied() {
            match self.leaves.get(&earlier) {
                Some(kept) if kept.fence > fence => return,
                // the same leave, by way of the journal
                Some(kept) if kept.leave.id() == leave.id() => drop(self.leaves.remove(&earlier)),
                _ => self.step(earlier, &LeaveEvent::Replaced, "replaced", now),
            }
        }
        self.context
            .quota
            .insert(leave.key(), &leave.request().user);
        self.last_serial += 1;
        let serial = self.last_serial;
        self.serials_by_key.insert(leave.key().clone(), serial);
        let kept = ScheduledLeave {
            record_hash: hash_record(&leave.to_record().unwrap_or_default()),
            leave,
            fence,
            wake_at: None,
            last_error: None,
        };
        self.leaves.insert(serial, kept);
        self.step(serial, &LeaveEvent::Tick, "new", now);
    }

    fn restore(&mut self, key: ParticipantKey, fence: FencingToken, record: &str, now: UnixMillis) {
        let journal = &*self.context.store;
        match Leave::restore(key.clone(), record, self.context.check_interval, now) {
            Ok(Some(leave)) => {
                telemetry::report_adopted(&leave);
                self.add_leave(leave, fence, now);
            }
            Ok(None) => {
                telemetry::report_expired(&key);
                self.log_store_result(journal.remove(&key, fence).map(drop));
            }
            Err(bad) => {
                self.log_store_result(journal.quarantine(&key, fence, &bad.to_string()).map(drop));
            }
        }
    }

    /// Has a leave take in an event, and sees to what it wants.
    fn step(&mut self, serial: u64, event: &LeaveEvent, reason: &str, now: UnixMillis) {
        let Some(kept) = self.leaves.get_mut(&serial) else {
            return;
        };
        let before = kept.leave.state_name();
        let actions = kept.leave.step(event, now);
        let after = kept.leave.state_name();
        let id = kept.leave.id();
        if before != after && after != "ended" {
            info!("{after} leave={id:08x} reason={reason}");
        }
        for action in actions {
            match action {
                LeaveAction::Restart(by) => {
                    let job = QueuedAction {
                        serial,
                        action: DelayedEventAction::Restart,
                    };
                    self.call_queue.push(kept.leave.server(), job, by);
                }
                LeaveAction::Send => {
                    let job = QueuedAction {
                        serial,
                        action: DelayedEventAction::Send,
                    };
                    self.call_queue.push(kept.leave.server(), job, now);
                }
                LeaveAction::CheckPresence => self.presence_check_queue.push_back(serial),
                LeaveAction::WakeAt(at) => {
                    if kept.wake_at != Some(at) {
                        kept.wake_at = Some(at);
                        self.timers.push(Reverse((at, serial)));
                    }
                }
                LeaveAction::Finish(why) => {
                    self.finish(serial, why, before);
                    return;
                }
            }
        }
        self.save_record(serial);
    }

    /// Keeps the journal at what has become of a leave.
    fn save_record(&mut self, serial: u64) {
        let Some(kept) = self.leaves.get_mut(&serial) else {
            return;
        };
        let Some(record) = kept.leave.to_record() else {
            return;
        };
        let digest = hash_record(&record);
        if digest == kept.record_hash {
            return;
        }
        kept.record_hash = digest;
        let journal = &*self.context.store;
        match journal.update(kept.leave.key(), kept.fence, &record) {
            Ok(Ownership::Owned) => self.log_store_result(Ok(())),
            Ok(Ownership::Lost) => self.drop_lost(serial),
            Err(error) => self.log_store_result(Err(error)),
        }
    }

    fn finish(&mut self, serial: u64, why: LeaveEndReason, before: &str) {
        let Some(kept) = self.leaves.remove(&serial) else {
            return;
        };
        telemetry::report_ended(&kept, why, before);
        self.release_key(serial, &kept);
        if why != LeaveEndReason::Replaced {
            let removed = self.context.store.remove(kept.leave.key(), kept.fence);
            self.log_store_result(removed.map(drop));
        }
    }

    /// Somebody else keeps it now.
    fn drop_lost(&mut self, serial: u64) {
        if let Some(kept) = self.leaves.remove(&serial) {
            telemetry::report_lost(&kept);
            self.release_key(serial, &kept);
        }
    }

    fn release_key(&mut self, serial: u64, kept: &ScheduledLeave) {
        let key = kept.leave.key();
        if self.serials_by_key.get(key) == Some(&serial) {
            self.serials_by_key.remove(key);
            self.context.quota.remove(key);
        }
    }

    /// Says so once when the journal fails, and once when it is well again.
    fn log_store_result(&mut self, result: Result<(), store::Error>) {
        match result {
            Ok(()) => self.store_failing = false,
            Err(error) if !self.store_failing => {
                warn!("journal cause={:?}", error.to_string());
                self.store_failing = true;
            }
            Err(_) => {}
        }
    }
}

fn hash_record(record: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    record.hash(&mut hasher);
    hasher.finish()
}
