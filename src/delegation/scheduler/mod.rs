//! The thread that owns all leaves and their timers: it queues their calls, hands them to workers, and stores what changes.

mod telemetry;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};

use log::{debug, error};

use super::DelegationContext;
use super::call_queue::{CallQueue, MAX_CONCURRENT_CALLS, QueuedAction};
use super::leave::{Leave, LeaveAction, LeaveEndReason, LeaveEvent, UnixMillis};
use super::store::{self, FencingToken, Ownership};
use super::workers::{
    BlockingTask, ClaimOutcome, DelayedEventCall, LeaveWorkerPool, PendingEvent, WebhookReply,
};
use crate::livekit::id::ParticipantKey;
use crate::livekit::room_service::{self, ParticipantPresence};
use crate::livekit::webhook::{ConnectionChange, WebhookEvent};
use crate::matrix::delayed_event::{DelayedEventAction, DelayedEventOutcome};
use crate::matrix::id::ServerName;
use crate::util::bounded_map::BoundedMap;
use crate::util::sync::spawn;

/// Presence checks running at once.
const MAX_CONCURRENT_PRESENCE_CHECKS: usize = 4;
/// Claims running at once, and queued; the SFU has to repeat the webhooks beyond that.
const MAX_CONCURRENT_CLAIMS: usize = 4;
const MAX_QUEUED_CLAIMS: usize = 1000;
/// Servers remembered whose rate limit was reported; unlisted ones can be many.
const MAX_ADVISED_SERVERS: usize = 1024;
/// Tasks running at once.
const MAX_TASKS: usize =
    MAX_CONCURRENT_CALLS + MAX_CONCURRENT_PRESENCE_CHECKS + MAX_CONCURRENT_CLAIMS;

/// Message to the scheduler.
#[derive(Debug)]
pub(super) enum SchedulerMessage {
    Delegated(Box<Leave>, FencingToken),
    Adopted(ParticipantKey, FencingToken, String),
    WebhookReceived(Box<WebhookEvent>, WebhookReply),
    /// No outcome: the call was not made, as another replica owns the leave.
    CallFinished(DelayedEventCall, Option<DelayedEventOutcome>),
    PresenceChecked(u64, Result<ParticipantPresence, room_service::Error>),
    ClaimFinished(PendingEvent, Result<ClaimOutcome, store::Error>),
    Stop(SyncSender<()>),
}

#[derive(Debug)]
struct ScheduledLeave {
    leave: Leave,
    fence: FencingToken,
    wake_at: Option<UnixMillis>,
    /// Hash of the record that was stored last.
    record_hash: Option<u64>,
    /// Cause of the last failed call; `None` after one that succeeded.
    last_error: Option<String>,
}

pub(super) struct Scheduler {
    context: Arc<DelegationContext>,
    workers: LeaveWorkerPool,
    leaves: HashMap<u64, ScheduledLeave>,
    serials_by_key: HashMap<ParticipantKey, u64>,
    last_serial: u64,
    /// A leave's timer is valid if its time is the leave's `wake_at`.
    timers: BinaryHeap<Reverse<(UnixMillis, u64)>>,
    call_queue: CallQueue,
    presence_check_queue: VecDeque<u64>,
    presence_checks_in_flight: usize,
    claim_queue: VecDeque<PendingEvent>,
    claims_in_flight: usize,
    /// Restarts per second that administrators were advised to allow, and when.
    advised_limits: BoundedMap<ServerName, u64, UnixMillis>,
}

impl Scheduler {
    /// Starts the thread.
    pub(super) fn start(
        context: Arc<DelegationContext>,
        message_sender: SyncSender<SchedulerMessage>,
        messages: Receiver<SchedulerMessage>,
    ) -> io::Result<()> {
        let mut scheduler = Self {
            workers: LeaveWorkerPool::new(Arc::clone(&context), message_sender, MAX_TASKS),
            context,
            leaves: HashMap::new(),
            serials_by_key: HashMap::new(),
            last_serial: 0,
            timers: BinaryHeap::new(),
            call_queue: CallQueue::default(),
            presence_check_queue: VecDeque::new(),
            presence_checks_in_flight: 0,
            claim_queue: VecDeque::new(),
            claims_in_flight: 0,
            advised_limits: BoundedMap::new(MAX_ADVISED_SERVERS),
        };
        spawn("leave-scheduler", move || scheduler.run(&messages)).map(drop)
    }

    fn run(&mut self, messages: &Receiver<SchedulerMessage>) {
        loop {
            let now = self.context.clock.now();
            self.fire_timers(now);
            self.dispatch(now);
            let timer = self.timers.peek().map(|Reverse((at, _))| *at);
            let wake_times = timer.into_iter().chain(self.call_queue.next_start_at(now));
            let message = match wake_times.min() {
                Some(at) => messages.recv_timeout(at.duration_since(self.context.clock.now())),
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(message) => {
                    if self.handle_message(message).is_break() {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn handle_message(&mut self, message: SchedulerMessage) -> ControlFlow<()> {
        let now = self.context.clock.now();
        match message {
            SchedulerMessage::Delegated(leave, fence) => self.add_leave(*leave, fence, now),
            SchedulerMessage::Adopted(key, fence, record) => {
                self.restore(key, fence, &record, now);
            }
            SchedulerMessage::WebhookReceived(webhook, reply) => {
                self.handle_webhook(*webhook, reply, now);
            }
            SchedulerMessage::CallFinished(call, outcome) => {
                self.workers.finish_task();
                self.handle_finished_call(&call, outcome, now);
            }
            SchedulerMessage::PresenceChecked(serial, result) => {
                self.workers.finish_task();
                self.presence_checks_in_flight -= 1;
                if let (Err(error), Some(scheduled)) = (&result, self.leaves.get(&serial)) {
                    debug!(leave:% = scheduled.leave.id(), cause:% = error; "presence check failed");
                }
                let event = LeaveEvent::PresenceChecked(result.ok());
                self.step(serial, &event, "presence check", now);
            }
            SchedulerMessage::ClaimFinished(pending, outcome) => {
                self.workers.finish_task();
                self.claims_in_flight -= 1;
                self.handle_claim(pending, outcome, now);
            }
            SchedulerMessage::Stop(reply) => {
                let _ = reply.send(());
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn fire_timers(&mut self, now: UnixMillis) {
        while let Some(Reverse((at, serial))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            if let Some(scheduled) = self.leaves.get_mut(&serial)
                && scheduled.wake_at == Some(at)
            {
                scheduled.wake_at = None;
                self.step(serial, &LeaveEvent::Tick, "timer", now);
            }
        }
    }

    /// Hands everything that can start now to workers.
    fn dispatch(&mut self, now: UnixMillis) {
        while self.presence_checks_in_flight < MAX_CONCURRENT_PRESENCE_CHECKS
            && let Some(serial) = self.presence_check_queue.pop_front()
        {
            if let Some(scheduled) = self.leaves.get(&serial) {
                let key = scheduled.leave.key().clone();
                self.presence_checks_in_flight += 1;
                self.workers
                    .submit(BlockingTask::CheckPresence { serial, key });
            }
        }
        while self.claims_in_flight < MAX_CONCURRENT_CLAIMS
            && let Some(pending) = self.claim_queue.pop_front()
        {
            self.claims_in_flight += 1;
            self.workers.submit(BlockingTask::Claim(pending));
        }
        while let Some(call) = self.next_call(now) {
            self.workers.submit(BlockingTask::Call(call));
        }
    }

    fn next_call(&mut self, now: UnixMillis) -> Option<DelayedEventCall> {
        let leaves = &self.leaves;
        let is_needed = |queued: QueuedAction| {
            let scheduled = leaves.get(&queued.serial);
            scheduled.is_some_and(|scheduled| scheduled.leave.needs_call(queued.action, now))
        };
        let (server, queued) = self.call_queue.start_next(now, is_needed)?;
        let ScheduledLeave { leave, fence, .. } = self.leaves.get(&queued.serial)?;
        Some(DelayedEventCall {
            serial: queued.serial,
            action: queued.action,
            key: leave.key().clone(),
            fence: *fence,
            user: leave.user().clone(),
            delay_id: leave.request().delay_id.clone(),
            timeout: self.call_queue.call_timeout(&server),
            started_at: now,
        })
    }

    fn add_leave(&mut self, leave: Leave, fence: FencingToken, now: UnixMillis) {
        if let Some(serial) = self.serials_by_key.get(leave.key()).copied() {
            match self.leaves.get(&serial) {
                Some(earlier) if earlier.fence > fence => return,
                // the same leave, delegated here and adopted from the store
                Some(earlier) if earlier.leave.id() == leave.id() => {
                    self.leaves.remove(&serial);
                }
                _ => self.step(serial, &LeaveEvent::Replaced, "replaced", now),
            }
        }
        self.context.quota.insert(leave.key(), leave.user());
        self.last_serial += 1;
        let serial = self.last_serial;
        self.serials_by_key.insert(leave.key().clone(), serial);
        let scheduled = ScheduledLeave {
            record_hash: leave.record_hash(),
            leave,
            fence,
            wake_at: None,
            last_error: None,
        };
        self.leaves.insert(serial, scheduled);
        self.step(serial, &LeaveEvent::Tick, "new", now);
    }

    fn restore(&mut self, key: ParticipantKey, fence: FencingToken, record: &str, now: UnixMillis) {
        match Leave::restore(key.clone(), record, self.context.check_interval, now) {
            Ok(Some(leave)) => {
                telemetry::report_adopted(&leave);
                self.add_leave(leave, fence, now);
            }
            Ok(None) => {
                telemetry::report_expired(&key);
                self.context.store.remove(&key, fence);
            }
            Err(error) => self
                .context
                .store
                .quarantine(&key, fence, &error.to_string()),
        }
    }

    fn handle_webhook(&mut self, webhook: WebhookEvent, reply: WebhookReply, now: UnixMillis) {
        let (change, key, sid, reason) = match webhook {
            WebhookEvent::Participant {
                change,
                key,
                sid,
                disconnect_reason,
                ..
            } => (change, key, sid, disconnect_reason),
            WebhookEvent::RoomFinished(room) => {
                let serials = self.serials_by_key.iter();
                let serials = serials.filter(|(key, _)| key.room == room);
                for serial in serials.map(|(_, serial)| *serial).collect::<Vec<_>>() {
                    self.step(serial, &LeaveEvent::RoomFinished, "webhook", now);
                }
                let _ = reply.send(None);
                return;
            }
        };
        let reason = reason.unwrap_or_else(|| "webhook".into());
        let event = match change {
            ConnectionChange::Joined => LeaveEvent::Connected(sid),
            ConnectionChange::Left => {
                let replaced = matches!(&*reason, "DUPLICATE_IDENTITY" | "MIGRATION");
                LeaveEvent::Disconnected { sid, replaced }
            }
            ConnectionChange::Aborted => LeaveEvent::ConnectionAborted(sid),
        };
        let pending = PendingEvent {
            fence: self.fence_of(&key),
            key,
            event,
            reason,
            reply,
        };
        if pending.fence.is_some() && !self.context.store.is_shared() {
            self.apply_event(pending, now);
        } else if self.claim_queue.len() < MAX_QUEUED_CLAIMS {
            self.claim_queue.push_back(pending);
        }
    }

    fn handle_claim(
        &mut self,
        pending: PendingEvent,
        outcome: Result<ClaimOutcome, store::Error>,
        now: UnixMillis,
    ) {
        // without a reply, the SFU repeats the webhook
        let Ok(outcome) = outcome else {
            return;
        };
        if !matches!(outcome, ClaimOutcome::AlreadyOwned)
            && pending.fence.is_some()
            && self.fence_of(&pending.key) == pending.fence
            && let Some(serial) = self.serials_by_key.get(&pending.key)
        {
            self.drop_lost(*serial);
        }
        if let ClaimOutcome::Claimed(fence, record) = outcome {
            self.restore(pending.key.clone(), fence, &record, now);
        }
        self.apply_event(pending, now);
    }

    fn apply_event(&mut self, pending: PendingEvent, now: UnixMillis) {
        let PendingEvent {
            key,
            event,
            reason,
            reply,
            ..
        } = pending;
        let fence = self.fence_of(&key);
        if let Some(serial) = self.serials_by_key.get(&key) {
            self.step(*serial, &event, &reason, now);
        }
        // a handler that gave up has the SFU repeat the webhook
        let _ = reply.send(fence.map(|fence| (key, fence)));
    }

    fn fence_of(&self, key: &ParticipantKey) -> Option<FencingToken> {
        let serial = self.serials_by_key.get(key)?;
        self.leaves.get(serial).map(|scheduled| scheduled.fence)
    }

    fn handle_finished_call(
        &mut self,
        call: &DelayedEventCall,
        outcome: Option<DelayedEventOutcome>,
        now: UnixMillis,
    ) {
        let (serial, action, started_at) = (call.serial, call.action, call.started_at);
        let server = call.user.server();
        let rate_limited =
            self.call_queue
                .finish_call(server, action, outcome.as_ref(), started_at, now);
        let Some(outcome) = outcome else {
            self.drop_lost(serial);
            return;
        };
        if rate_limited {
            self.advise_rate_limit(server, now);
        }
        if let Some(scheduled) = self.leaves.get_mut(&serial) {
            telemetry::report_call(scheduled, action, &outcome, now.duration_since(started_at));
            match &outcome {
                DelayedEventOutcome::Failed(cause) => scheduled.last_error = Some(cause.clone()),
                DelayedEventOutcome::Done => scheduled.last_error = None,
                _ => {}
            }
        }
        let event = LeaveEvent::CallFinished {
            action,
            outcome,
            started_at,
        };
        self.step(serial, &event, "call", now);
    }

    /// Advises the administrator which rate limit a homeserver's leaves need, again when that has doubled.
    fn advise_rate_limit(&mut self, server: &ServerName, now: UnixMillis) {
        let (mut leaves, mut rate) = (0_u64, 0.0);
        for scheduled in self.leaves.values() {
            if scheduled.leave.server() == server {
                leaves += 1;
                rate += 1.0 / scheduled.leave.restart_interval().as_secs_f64();
            }
        }
        // as many again for participants who join and leave
        let needed = (rate * 2.0).ceil().max(2.0) as u64;
        let advised = self.advised_limits.get(server).copied();
        if needed >= advised.unwrap_or_default() * 2 {
            self.advised_limits.insert(server.clone(), needed, now);
            telemetry::report_rate_limited(server, leaves, rate, needed);
        }
    }

    /// Passes an event to a leave, and carries out the actions that follow.
    fn step(&mut self, serial: u64, event: &LeaveEvent, reason: &str, now: UnixMillis) {
        let Some(scheduled) = self.leaves.get_mut(&serial) else {
            return;
        };
        let leave = &mut scheduled.leave;
        let state_before = leave.state_name();
        let actions = leave.step(event, now);
        if ![state_before, "ended"].contains(&leave.state_name()) {
            telemetry::report_state(leave, reason);
        }
        let mut queue_call = |action, deadline| {
            let queued = QueuedAction { serial, action };
            self.call_queue.push(leave.server(), queued, deadline);
        };
        for action in actions {
            match action {
                LeaveAction::Restart(by) => queue_call(DelayedEventAction::Restart, by),
                LeaveAction::Send => queue_call(DelayedEventAction::Send, now),
                LeaveAction::CheckPresence => self.presence_check_queue.push_back(serial),
                LeaveAction::WakeAt(at) => {
                    if scheduled.wake_at != Some(at) {
                        scheduled.wake_at = Some(at);
                        self.timers.push(Reverse((at, serial)));
                    }
                }
                LeaveAction::Finish(end) => {
                    self.finish(serial, end, state_before);
                    return;
                }
            }
        }
        self.save_record(serial);
    }

    /// Stores a leave's record if it has changed.
    fn save_record(&mut self, serial: u64) {
        let Some(scheduled) = self.leaves.get_mut(&serial) else {
            return;
        };
        let hash = scheduled.leave.record_hash();
        if hash == scheduled.record_hash {
            return;
        }
        scheduled.record_hash = hash;
        let record = scheduled.leave.to_record().unwrap_or_default();
        let store = &self.context.store;
        match store.update(scheduled.leave.key(), scheduled.fence, &record) {
            Ok(Ownership::Owned) => {}
            Ok(Ownership::Lost) => self.drop_lost(serial),
            Err(error) => {
                error!(leave:% = scheduled.leave.id(), cause:% = error; "leave not stored")
            }
        }
    }

    fn finish(&mut self, serial: u64, reason: LeaveEndReason, state_before: &str) {
        let Some(scheduled) = self.leaves.remove(&serial) else {
            return;
        };
        telemetry::report_ended(&scheduled, reason, state_before);
        self.release_key(serial, &scheduled);
        if reason != LeaveEndReason::Replaced {
            let store = &self.context.store;
            store.remove(scheduled.leave.key(), scheduled.fence);
        }
    }

    /// Drops a leave that another replica owns now.
    fn drop_lost(&mut self, serial: u64) {
        if let Some(scheduled) = self.leaves.remove(&serial) {
            telemetry::report_lost(&scheduled);
            self.release_key(serial, &scheduled);
        }
    }

    fn release_key(&mut self, serial: u64, scheduled: &ScheduledLeave) {
        let key = scheduled.leave.key();
        if self.serials_by_key.get(key) == Some(&serial) {
            self.serials_by_key.remove(key);
            self.context.quota.remove(key);
        }
    }
}
