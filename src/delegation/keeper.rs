//! The one thread that owns all leaves and their timers.

mod calls;
mod story;
mod told;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::{io, panic, process, thread};

use log::{error, info, warn};

use super::Shared;
use super::lanes::{Job, Lanes, PLACES};
use super::pool::{Answer, Taken, Task, Told};
use crate::journal::{self, Fence, Hold};
use crate::leave::{Action, Event, Key, Leave, Time, Why};
use crate::livekit::webhook::Webhook;
use crate::matrix::delayed_event::{Deed, Outcome};
use crate::matrix::id::ServerName;

/// Questions to the SFU under way.
const LOOKS: usize = 4;
/// Questions to the journal under way, and how many may wait; the SFU is told to come again with more.
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
    Heard(Box<Webhook>, SyncSender<Option<(Key, Fence)>>),
    Called(Called),
    LookedUp(u64, Answer),
    Took(Key, Option<Fence>, Result<Taken, journal::Error>, Told),
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
    takes: VecDeque<(Key, Option<Fence>, Told)>,
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
            News::Heard(webhook, done) => self.heard(*webhook, done, now),
            News::Called(called) => self.called(called, now),
            News::LookedUp(serial, answer) => {
                self.busy -= 1;
                self.looking -= 1;
                let presence = story::looked_up(answer, self.kept.get(&serial));
                self.step(serial, &Event::LookedUp(presence), "look", now);
            }
            News::Took(key, fence, taken, told) => {
                self.busy -= 1;
                self.taking -= 1;
                self.took(key, fence, taken, told, now);
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
            match self.kept.get(&earlier) {
                Some(kept) if kept.fence > fence => return,
                // the same leave, by way of the journal
                Some(kept) if kept.leave.id() == leave.id() => drop(self.kept.remove(&earlier)),
                _ => self.step(earlier, &Event::Replaced, "replaced", now),
            }
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
                story::adopted(&leave);
                self.install(leave, fence, now);
            }
            Ok(None) => {
                story::dropped(&key);
                self.journalled(journal.remove(&key, fence).map(drop));
            }
            Err(bad) => {
                self.journalled(journal.set_aside(&key, fence, &bad.to_string()).map(drop));
            }
        }
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
        story::ended(&kept, why, before);
        self.forget(serial, &kept);
        if why != Why::Replaced {
            let removed = self.shared.journal.remove(kept.leave.key(), kept.fence);
            self.journalled(removed.map(drop));
        }
    }

    /// Somebody else keeps it now.
    fn lose(&mut self, serial: u64) {
        if let Some(kept) = self.kept.remove(&serial) {
            story::lost(&kept);
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
    fn journalled(&mut self, result: Result<(), journal::Error>) {
        match result {
            Ok(()) => self.journal_ails = false,
            Err(error) if !self.journal_ails => {
                warn!("journal cause={:?}", error.to_string());
                self.journal_ails = true;
            }
            Err(_) => {}
        }
    }
}

fn digest(record: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    record.hash(&mut hasher);
    hasher.finish()
}
