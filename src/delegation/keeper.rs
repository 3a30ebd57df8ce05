//! The one thread that owns all leaves and their timers.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::{io, panic, process, thread};

use log::{debug, error, info, warn};

use super::Shared;
use super::counts::one;
use super::lanes::{Job, Lanes, PLACES};
use super::pool::{self, Answer, Task};
use crate::journal::{Fence, Hold};
use crate::leave::{Action, Event, Key, Leave, Time, Why};
use crate::livekit::webhook::{Kind, Webhook};
use crate::matrix::delayed_event::{Deed, Outcome};
use crate::matrix::id::ServerName;

/// Questions to the SFU under way.
const LOOKS: usize = 4;
/// Questions to the journal under way, and how many may wait; what is lost here is found by a look at the SFU.
const TAKES: usize = 4;
const MAX_TAKES: usize = 1000;
/// Servers whose administrator is not told the same again; so many are strangers'.
const MAX_ADVISED: usize = 1024;
/// Threads that wait for others, started as they are needed.
const THREADS: usize = PLACES + LOOKS + TAKES;
/// What the thread is told.
#[derive(Debug)]
pub(super) enum News {
    Delegated(Box<Leave>, Fence),
    Adopted(Key, Fence, String),
    Heard(Box<Webhook>),
    Called(Called),
    LookedUp(u64, Answer),
    Took(Key, Option<(Fence, String)>, Event),
    Stop(SyncSender<()>),
}

/// A call that has ended.
#[derive(Debug)]
pub(super) struct Called {
    pub(super) serial: u64,
    pub(super) server: ServerName,
    pub(super) deed: Deed,
    /// None if the leave is not ours any more, so that the call was not made.
    pub(super) outcome: Option<Outcome>,
    pub(super) began: Time,
}

/// A leave that is kept here.
#[derive(Debug)]
struct Kept {
    leave: Leave,
    fence: Fence,
    wake: Option<Time>,
    /// The record in the journal.
    record: u64,
    /// Why calls are made again, if they are.
    trouble: Option<String>,
}

pub(super) struct Keeper {
    shared: Arc<Shared>,
    news: SyncSender<News>,
    kept: HashMap<u64, Kept>,
    serials: HashMap<Key, u64>,
    serial: u64,
    wakes: BinaryHeap<Reverse<(Time, u64)>>,
    lanes: Lanes,
    looks: VecDeque<u64>,
    looking: usize,
    takes: VecDeque<(Key, Event)>,
    taking: usize,
    tasks: SyncSender<Task>,
    todo: Arc<Mutex<Receiver<Task>>>,
    busy: usize,
    threads: usize,
    /// Restarts a second that administrators were told to allow.
    advised: HashMap<ServerName, u64>,
    journal_ails: bool,
}

impl Keeper {
    /// Starts the thread.
    pub(super) fn start(
        shared: Arc<Shared>,
        news: SyncSender<News>,
        received: Receiver<News>,
    ) -> io::Result<()> {
        let (tasks, todo) = sync_channel(THREADS);
        let mut keeper = Self {
            shared,
            news,
            kept: HashMap::new(),
            serials: HashMap::new(),
            serial: 0,
            wakes: BinaryHeap::new(),
            lanes: Lanes::default(),
            looks: VecDeque::new(),
            looking: 0,
            takes: VecDeque::new(),
            taking: 0,
            tasks,
            todo: Arc::new(Mutex::new(todo)),
            busy: 0,
            threads: 0,
            advised: HashMap::new(),
            journal_ails: false,
        };
        let keep = move || {
            let kept = panic::catch_unwind(panic::AssertUnwindSafe(|| keeper.keep(&received)));
            if kept.is_err() {
                // nobody else has the leaves; whoever starts us anew finds them in the journal
                error!("the thread that keeps the leaves has failed");
                process::exit(1);
            }
        };
        let named = thread::Builder::new().name("leaves".into());
        named.spawn(keep).map(drop)
    }

    fn keep(&mut self, received: &Receiver<News>) {
        loop {
            let now = self.shared.clock.now();
            self.wake(now);
            self.hand_out(now);
            let next = self.wakes.peek().map(|Reverse((at, _))| *at);
            let next = next.into_iter().chain(self.lanes.opens(now)).min();
            let news = match next {
                Some(at) => received.recv_timeout(at.since(self.shared.clock.now())),
                None => received.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match news {
                Ok(News::Stop(done)) => {
                    let _ = done.send(());
                    return;
                }
                Ok(news) => self.hear(news),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn hear(&mut self, news: News) {
        let now = self.shared.clock.now();
        match news {
            News::Delegated(leave, fence) => self.install(*leave, fence, now),
            News::Adopted(key, fence, record) => {
                self.restore(key, fence, &record, now);
            }
            News::Heard(webhook) => self.heard(*webhook, now),
            News::Called(called) => self.called(called, now),
            News::LookedUp(serial, answer) => {
                self.busy -= 1;
                self.looking -= 1;
                let presence = match answer {
                    Ok(presence) => Some(presence),
                    Err(cause) => {
                        if let Some(kept) = self.kept.get(&serial) {
                            debug!(
                                "not looked up leave={:08x} cause={cause:?}",
                                kept.leave.id()
                            );
                        }
                        None
                    }
                };
                self.step(serial, &Event::LookedUp(presence), "look", now);
            }
            News::Took(key, taken, event) => {
                self.busy -= 1;
                self.taking -= 1;
                if let Some((fence, record)) = taken {
                    self.restore(key.clone(), fence, &record, now);
                }
                if let Some(serial) = self.serials.get(&key) {
                    self.step(*serial, &event, "webhook", now);
                }
            }
            News::Stop(_) => {}
        }
    }

    /// Brings the leaves whose time has come to do something.
    fn wake(&mut self, now: Time) {
        while let Some(Reverse((at, serial))) = self.wakes.peek().copied()
            && at <= now
        {
            self.wakes.pop();
            // any other is an older wish
            if let Some(kept) = self.kept.get_mut(&serial)
                && kept.wake == Some(at)
            {
                kept.wake = None;
                self.step(serial, &Event::Tick, "timer", now);
            }
        }
    }

    fn install(&mut self, leave: Leave, fence: Fence, now: Time) {
        if let Some(earlier) = self.serials.get(leave.key()).copied() {
            if self
                .kept
                .get(&earlier)
                .is_some_and(|kept| kept.fence > fence)
            {
                return;
            }
            self.step(earlier, &Event::Replaced, "replaced", now);
        }
        self.shared.book.enter(leave.key(), &leave.order().user);
        self.serial += 1;
        let serial = self.serial;
        self.serials.insert(leave.key().clone(), serial);
        let kept = Kept {
            record: digest(&leave.record().unwrap_or_default()),
            leave,
            fence,
            wake: None,
            trouble: None,
        };
        self.kept.insert(serial, kept);
        self.step(serial, &Event::Tick, "new", now);
    }

    fn restore(&mut self, key: Key, fence: Fence, record: &str, now: Time) {
        let journal = &*self.shared.journal;
        match Leave::restore(key.clone(), record, self.shared.check, now) {
            Ok(Some(leave)) => {
                one(&self.shared.counts.adopted);
                info!(
                    "adopted leave={:08x} user={:?} room={} identity={:?} state={}",
                    leave.id(),
                    leave.order().user.as_str(),
                    key.room,
                    key.identity.as_str(),
                    leave.standing()
                );
                self.install(leave, fence, now);
            }
            Ok(None) => {
                info!(
                    "dropped room={} identity={:?}: its time has passed",
                    key.room,
                    key.identity.as_str()
                );
                self.journalled(journal.remove(&key, fence).map(drop));
            }
            Err(bad) => {
                self.journalled(journal.set_aside(&key, fence, &bad.to_string()).map(drop));
            }
        }
    }

    fn heard(&mut self, webhook: Webhook, now: Time) {
        let reason = webhook.reason.as_deref().unwrap_or("webhook");
        let Some((identity, sid)) = webhook.participant else {
            if webhook.kind == Kind::RoomFinished {
                let serials = self.serials.iter();
                let of_room = serials.filter(|(key, _)| key.room == webhook.room);
                let of_room: Vec<u64> = of_room.map(|(_, serial)| *serial).collect();
                for serial in of_room {
                    self.step(serial, &Event::RoomFinished, reason, now);
                }
            }
            return;
        };
        let event = match webhook.kind {
            Kind::Joined => Event::Connected(sid),
            Kind::Left => {
                let replaced = matches!(reason, "DUPLICATE_IDENTITY" | "MIGRATION");
                Event::Disconnected { sid, replaced }
            }
            Kind::Aborted => Event::Aborted(sid),
            Kind::RoomFinished => return,
        };
        let key = Key {
            room: webhook.room,
            identity,
        };
        if let Some(serial) = self.serials.get(&key) {
            self.step(*serial, &event, reason, now);
        } else if self.takes.len() < MAX_TAKES {
            self.takes.push_back((key, event));
        }
    }

    fn called(&mut self, called: Called, now: Time) {
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
        let counts = &self.shared.counts;
        match (&outcome, deed) {
            (Outcome::Done, Deed::Restart) => one(&counts.restarts),
            (Outcome::Done, Deed::Send) => one(&counts.sends),
            (Outcome::SlowDown(_) | Outcome::NotNow(_) | Outcome::Failed(_), _) => {
                one(&counts.retries);
            }
            _ => {}
        }
        if let Some(kept) = self.kept.get_mut(&serial) {
            let (id, name) = (kept.leave.id(), name(deed));
            let ms = now.since(began).as_millis();
            match &outcome {
                Outcome::Failed(cause) if kept.trouble.is_none() => {
                    info!(
                        "retrying leave={id:08x} call={name} server={server} ms={ms} cause={cause:?}"
                    );
                    kept.trouble = Some(cause.clone());
                }
                Outcome::Failed(cause) => {
                    debug!(
                        "retrying leave={id:08x} call={name} server={server} ms={ms} cause={cause:?}"
                    );
                    kept.trouble = Some(cause.clone());
                }
                Outcome::Done if deed == Deed::Restart => {
                    debug!("restarted leave={id:08x} server={server} ms={ms}");
                    kept.trouble = None;
                }
                outcome => debug!(
                    "called leave={id:08x} call={name} server={server} ms={ms} outcome={outcome:?}"
                ),
            }
        }
        self.step(serial, &Event::Done(deed, outcome, began), "call", now);
    }

    /// Has a leave take in an event, and sees to what it wants.
    fn step(&mut self, serial: u64, event: &Event, reason: &str, now: Time) {
        let Some(kept) = self.kept.get_mut(&serial) else {
            return;
        };
        let before = kept.leave.standing();
        let actions = kept.leave.step(event, now);
        let after = kept.leave.standing();
        let id = kept.leave.id();
        if before != after && after != "ended" {
            info!("{after} leave={id:08x} reason={reason}");
        }
        for action in actions {
            match action {
                Action::Restart(by) => {
                    let job = Job {
                        serial,
                        deed: Deed::Restart,
                    };
                    self.lanes.push(kept.leave.server(), job, by);
                }
                Action::Send => {
                    let job = Job {
                        serial,
                        deed: Deed::Send,
                    };
                    self.lanes.push(kept.leave.server(), job, now);
                }
                Action::LookUp => self.looks.push_back(serial),
                Action::Wake(at) => {
                    if kept.wake != Some(at) {
                        kept.wake = Some(at);
                        self.wakes.push(Reverse((at, serial)));
                    }
                }
                Action::Finish(why) => {
                    self.finish(serial, why, before);
                    return;
                }
            }
        }
        self.write_down(serial);
    }

    /// Keeps the journal at what has become of a leave.
    fn write_down(&mut self, serial: u64) {
        let Some(kept) = self.kept.get_mut(&serial) else {
            return;
        };
        let Some(record) = kept.leave.record() else {
            return;
        };
        let digest = digest(&record);
        if digest == kept.record {
            return;
        }
        kept.record = digest;
        let journal = &*self.shared.journal;
        match journal.update(kept.leave.key(), kept.fence, &record) {
            Ok(Hold::Ours) => self.journalled(Ok(())),
            Ok(Hold::Lost) => self.lose(serial),
            Err(error) => self.journalled(Err(error)),
        }
    }

    fn finish(&mut self, serial: u64, why: Why, before: &str) {
        let Some(kept) = self.kept.remove(&serial) else {
            return;
        };
        let (id, server) = (kept.leave.id(), kept.leave.server());
        let cause = kept.trouble.as_deref().unwrap_or("no time was left");
        let counts = &self.shared.counts;
        match why {
            Why::Sent => info!("sent leave={id:08x} server={server}"),
            Why::Gone if before == "disconnected" => {
                info!("sent leave={id:08x} server={server}: it had been already");
            }
            Why::Gone => {
                one(&counts.given_up);
                info!(
                    "gave up leave={id:08x} server={server} cause=\"the homeserver does not have it any more\""
                );
            }
            Why::Aborted => info!("ended leave={id:08x}: nobody was there to leave"),
            Why::Expired => {
                one(&counts.given_up);
                warn!(
                    "gave up leave={id:08x} server={server} state={before} cause={cause:?}: the homeserver's own timer is over"
                );
            }
            Why::Denied(status) => {
                one(&counts.given_up);
                warn!(
                    "gave up leave={id:08x} server={server} state={before} status={status}: the homeserver wants to know who asks"
                );
            }
            Why::Replaced => info!("ended leave={id:08x}: another one takes its place"),
        }
        self.forget(serial, &kept);
        if why != Why::Replaced {
            let removed = self.shared.journal.remove(kept.leave.key(), kept.fence);
            self.journalled(removed.map(drop));
        }
    }

    /// Somebody else keeps it now.
    fn lose(&mut self, serial: u64) {
        if let Some(kept) = self.kept.remove(&serial) {
            info!(
                "lost leave={:08x}: another one of us keeps it",
                kept.leave.id()
            );
            self.forget(serial, &kept);
        }
    }

    fn forget(&mut self, serial: u64, kept: &Kept) {
        let key = kept.leave.key();
        if self.serials.get(key) == Some(&serial) {
            self.serials.remove(key);
            self.shared.book.strike(key);
        }
    }

    /// Says so once when the journal fails, and once when it is well again.
    fn journalled(&mut self, result: Result<(), crate::journal::Error>) {
        match result {
            Ok(()) => self.journal_ails = false,
            Err(error) if !self.journal_ails => {
                warn!("journal cause={:?}", error.to_string());
                self.journal_ails = true;
            }
            Err(_) => {}
        }
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
            warn!(
                "slowed down server={server} leaves={leaves} restarts_per_second={rate:.1}: it limits how often delayed events may be \
                 restarted; in Synapse set rc_delayed_event_mgmt to per_second: {needed} and burst_count: {burst}",
                burst = (leaves * 2).max(10)
            );
        }
    }

    /// Gives everything that can be begun to somebody who waits for it.
    fn hand_out(&mut self, now: Time) {
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
            && let Some((key, event)) = self.takes.pop_front()
        {
            self.taking += 1;
            self.give(Task::Take { key, event });
        }
        loop {
            let kept = &self.kept;
            let wanted = |job: Job| {
                let kept = kept.get(&job.serial);
                kept.is_some_and(|kept| kept.leave.wants(job.deed, now))
            };
            let Some((_, Job { serial, deed })) = self.lanes.next(now, wanted) else {
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
}

fn name(deed: Deed) -> &'static str {
    match deed {
        Deed::Restart => "restart",
        Deed::Send => "send",
    }
}

fn digest(record: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    record.hash(&mut hasher);
    hasher.finish()
}
