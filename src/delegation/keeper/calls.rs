//! What is given to others to wait for, and what comes of it.

use std::thread;

use log::error;

use super::{Called, Keeper, LOOKS, MAX_ADVISED, TAKES, story};
use crate::delegation::lanes::Job;
use crate::delegation::pool::{self, Task};
use crate::leave::{Event, Time};
use crate::matrix::id::ServerName;

impl Keeper {
    /// Gives everything that can be begun to somebody who waits for it.
    pub(super) fn hand_out(&mut self, now: Time) {
        while self.looking < LOOKS
            && let Some(serial) = self.looks.pop_front()
        {
            if let Some(kept) = self.kept.get(&serial) {
                let key = kept.leave.key().clone();
                self.looking += 1;
                self.give(Task::LookUp { serial, key });
            }
        }
        while self.taking < TAKES
            && let Some((key, fence, told)) = self.takes.pop_front()
        {
            self.taking += 1;
            self.give(Task::Take { key, fence, told });
        }
        loop {
            let kept = &self.kept;
            let wanted = |job: Job| {
                let kept = kept.get(&job.serial);
                kept.is_some_and(|kept| kept.leave.wants(job.deed, now))
            };
            let Some((server, Job { serial, deed })) = self.lanes.next(now, wanted) else {
                return;
            };
            let Some(kept) = self.kept.get(&serial) else {
                return;
            };
            let task = Task::Call {
                serial,
                key: kept.leave.key().clone(),
                fence: kept.fence,
                deed,
                user: kept.leave.order().user.clone(),
                patience: self.lanes.patience(&server),
                delay: kept.leave.order().delay.clone(),
                began: now,
            };
            self.give(task);
        }
    }

    /// There are never more tasks than threads, so that none waits.
    fn give(&mut self, task: Task) {
        self.busy += 1;
        if self.busy > self.threads {
            let (shared, news) = (self.shared.clone(), self.news.clone());
            let todo = self.todo.clone();
            let named = thread::Builder::new().name("leaves-call".into());
            match named.spawn(move || pool::work(&shared, &todo, &news)) {
                Ok(_) => self.threads += 1,
                Err(error) => error!("no thread for a call: {error}"),
            }
        }
        // the channel has room for as many as there can be
        let _ = self.tasks.send(task);
    }

    pub(super) fn called(&mut self, called: Called, now: Time) {
        self.busy -= 1;
        let Called {
            serial,
            server,
            deed,
            outcome,
            began,
        } = called;
        let ended = self
            .lanes
            .ended(&server, deed, outcome.as_ref(), began, now);
        let Some(outcome) = outcome else {
            self.lose(serial);
            return;
        };
        if ended {
            self.advise(&server);
        }
        if let Some(kept) = self.kept.get_mut(&serial) {
            story::called(kept, deed, &outcome, now.since(began));
        }
        self.step(serial, &Event::Done(deed, outcome, began), "call", now);
    }

    /// Tells the administrator what a homeserver would have to allow, and again when that has doubled.
    fn advise(&mut self, server: &ServerName) {
        let of_server = self
            .kept
            .values()
            .filter(|kept| kept.leave.server() == server);
        let (mut leaves, mut rate) = (0_u64, 0.0);
        for kept in of_server {
            leaves += 1;
            rate += 1.0 / kept.leave.interval().as_secs_f64();
        }
        // as many again for those who come and go
        let needed = (rate * 2.0).ceil().max(2.0) as u64;
        if self.advised.len() >= MAX_ADVISED {
            self.advised.clear();
        }
        let told = self.advised.entry(server.clone()).or_default();
        if needed >= *told * 2 {
            *told = needed;
            story::slowed_down(server, leaves, rate, needed);
        }
    }
}
