//! What is given to others to wait for, and what comes of it.

use std::thread;

use log::error;

use super::{
    FinishedCall, MAX_ADVISED_SERVERS, MAX_CONCURRENT_CLAIMS, MAX_CONCURRENT_PRESENCE_CHECKS,
    Scheduler, telemetry,
};
use crate::delegation::call_queue::QueuedAction;
use crate::delegation::leave::{LeaveEvent, UnixMillis};
use crate::delegation::workers;
use crate::delegation::workers::BlockingTask;
use crate::matrix::id::ServerName;

impl Scheduler {
    /// Gives everything that can be begun to somebody who waits for it.
    pub(super) fn dispatch(&mut self, now: UnixMillis) {
        while self.presence_checks_in_flight < MAX_CONCURRENT_PRESENCE_CHECKS
            && let Some(serial) = self.presence_check_queue.pop_front()
        {
            if let Some(kept) = self.leaves.get(&serial) {
                let key = kept.leave.key().clone();
                self.presence_checks_in_flight += 1;
                self.submit_task(BlockingTask::CheckPresence { serial, key });
            }
        }
        while self.claims_in_flight < MAX_CONCURRENT_CLAIMS
            && let Some((key, fence, told)) = self.claim_queue.pop_front()
        {
            self.claims_in_flight += 1;
            self.submit_task(BlockingTask::Claim { key, fence, told });
        }
        loop {
            let kept = &self.leaves;
            let wanted = |job: QueuedAction| {
                let kept = kept.get(&job.serial);
                kept.is_some_and(|kept| kept.leave.needs_call(job.action, now))
            };
            let Some((
                server,
                QueuedAction {
                    serial,
                    action: deed,
                },
            )) = self.call_queue.start_next(now, wanted)
            else {
                return;
            };
            let Some(kept) = self.leaves.get(&serial) else {
                return;
            };
            let task = BlockingTask::Call {
                serial,
                key: kept.leave.key().clone(),
                fence: kept.fence,
                deed,
                user: kept.leave.request().user.clone(),
                patience: self.call_queue.call_timeout(&server),
                delay: kept.leave.request().delay_id.clone(),
                began: now,
            };
            self.submit_task(task);
        }
    }

    /// There are never more tasks than threads, so that none waits.
    fn submit_task(&mut self, task: BlockingTask) {
        self.tasks_in_flight += 1;
        if self.tasks_in_flight > self.thread_count {
            let (shared, news) = (self.context.clone(), self.message_sender.clone());
            let todo = self.task_receiver.clone();
            let named = thread::Builder::new().name("leaves-call".into());
            match named.spawn(move || workers::run_worker(&shared, &todo, &news)) {
                Ok(_) => self.thread_count += 1,
                Err(error) => error!("no thread for a call: {error}"),
            }
        }
        // the channel has room for as many as there can be
        let _ = self.task_sender.send(task);
    }

    pub(super) fn handle_finished_call(&mut self, called: FinishedCall, now: UnixMillis) {
        self.tasks_in_flight -= 1;
        let FinishedCall {
            serial,
            server,
            action: deed,
            outcome,
            started_at: began,
        } = called;
        let ended = self
            .call_queue
            .finish_call(&server, deed, outcome.as_ref(), began, now);
        let Some(outcome) = outcome else {
            self.drop_lost(serial);
            return;
        };
        if ended {
            self.advise_rate_limit(&server);
        }
        if let Some(kept) = self.leaves.get_mut(&serial) {
            telemetry::report_call(kept, deed, &outcome, now.duration_since(began));
        }
        self.step(
            serial,
            &LeaveEvent::CallFinished(deed, outcome, began),
            "call",
            now,
        );
    }

    /// Tells the administrator what a homeserver would have to allow, and again when that has doubled.
    fn advise_rate_limit(&mut self, server: &ServerName) {
        let of_server = self
            .leaves
            .values()
            .filter(|kept| kept.leave.server() == server);
        let (mut leaves, mut rate) = (0_u64, 0.0);
        for kept in of_server {
            leaves += 1;
            rate += 1.0 / kept.leave.restart_interval().as_secs_f64();
        }
        // as many again for those who come and go
        let needed = (rate * 2.0).ceil().max(2.0) as u64;
        if self.advised_limits.len() >= MAX_ADVISED_SERVERS {
            self.advised_limits.clear();
        }
        let told = self.advised_limits.entry(server.clone()).or_default();
        if needed >= *told * 2 {
            *told = needed;
            telemetry::report_rate_limited(server, leaves, rate, needed);
        }
    }
}
