//! Those whom application-service mode has let in, for as long as they may be in a call: whoever is no longer in the Matrix room is
//! put out of the LiveKit room (MSC4195).
//!
//! A token says that its holder *was* in the Matrix room. So they are looked at as soon as they are in the call, and again and again,
//! until the SFU says that they are gone and their token can't bring them back. All of it is in memory, and of no loss: their tokens
//! carry who they are, which the SFU shows to whoever of us asks, or hears that they come.

mod report;
mod seal;
mod table;
mod walk;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io, panic, process, thread};

use log::error;

use self::report::Report;
pub use self::seal::Seals;
pub use self::table::{Guest, TooMany};
use self::table::{Next, Table, Task, Verdict};
use crate::current::Current;
use crate::journal::Key;
use crate::livekit::room_service::{Presence, RoomService};
use crate::livekit::sealed::Sealed;
use crate::livekit::webhook::{Kind, Webhook};
use crate::matrix::appservice::Homeserver;
use crate::metrics;

/// Those who look; each asks one question at a time. A homeserver that takes 0.5 s for an answer has 8 of them to work at, which is
/// what a browser asks of it.
const THREADS: usize = 8;
/// Between two looks of one thread, so that all guests of a busy service are no more than 100 questions a second. Synapse finds an
/// answer in its database, or in its cache, in some milliseconds of its one core: it has that much left.
const PAUSE: Duration = Duration::from_millis(80);

/// All of them, and those who look after them.
#[derive(Clone)]
pub struct Guests(Arc<Shared>);

/// The ways to others, which settings can change.
#[derive(Debug, Clone)]
pub struct Wires {
    /// To whoever knows who is in a Matrix room.
    pub homeserver: Arc<Homeserver>,
    /// To the SFU.
    pub rooms: Arc<RoomService>,
    /// What shows whom the SFU speaks of.
    pub seals: Arc<Seals>,
}

struct Shared {
    wires: Current<Wires>,
    table: Mutex<Table>,
    news: Condvar,
    report: Report,
}

impl Guests {
    /// Starts to look: at each of them every `every`. Tokens can be used for `lifetime`.
    pub fn start(wires: Wires, every: Duration, lifetime: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wires: Current::new(wires),
            table: Mutex::new(Table::new(every, lifetime)),
            news: Condvar::new(),
            report: Report::new(every),
        });
        for _ in 0..THREADS {
            shared.begin("guests", Shared::look_forever)?;
        }
        shared.begin("walker", walk::walk_forever)?;
        Ok(Self(shared))
    }

    /// Calls others in these ways from now on.
    pub fn rewire(&self, wires: Wires) {
        self.0.wires.replace(wires);
    }

    /// Remembers somebody who gets a token. Without a place for them they may not get one.
    pub fn admit(&self, key: Key, guest: Guest) -> Result<(), TooMany> {
        let local = *guest.user.server() == *self.0.wires.get().homeserver.name();
        let mut table = self.0.table();
        table.admit(key, guest, local, Instant::now())?;
        self.0.news.notify_one();
        Ok(())
    }

    /// What the token of somebody who is let in is to carry.
    pub fn seal(&self, key: &Key, guest: &Guest) -> Sealed {
        self.0.wires.get().seals.seal(key, guest)
    }

    /// Takes in what the SFU tells: whoever comes is looked at.
    pub fn heard(&self, webhook: &Webhook) {
        let Some((identity, _)) = &webhook.participant else {
            return;
        };
        let key = Key {
            room: webhook.room.clone(),
            identity: identity.clone(),
        };
        match webhook.kind {
            Kind::Joined => self.0.came(&key, webhook.sealed.as_ref()),
            Kind::Left => self.0.table().left(&key, Instant::now()),
            Kind::Aborted | Kind::RoomFinished => {}
        }
    }

    /// Has somebody looked at who may have left the Matrix room. Gives how many places of theirs in its calls there are to look at.
    pub fn doubt(&self, guest: &Guest) -> usize {
        let count = self.0.table().doubt(guest, Instant::now());
        if count > 0 {
            self.0.news.notify_all();
        }
        count
    }

    /// How many there are.
    pub fn kept(&self) -> u64 {
        self.0.table().len() as u64
    }

    /// How much too late it is for those who are in calls, or come.
    pub fn lag(&self) -> Duration {
        self.0.table().lag(Instant::now())
    }
}

impl fmt::Debug for Guests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guests({})", self.0.table().len())
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>, name: &str, work: fn(&Self)) -> io::Result<()> {
        let shared = self.clone();
        let named = thread::Builder::new().name(name.into());
        let work = move || {
            let worked = panic::catch_unwind(panic::AssertUnwindSafe(|| work(&shared)));
            if worked.is_err() {
                // nobody would be put out any more; whoever starts us anew finds the guests with the SFU
                error!("a thread that looks at the guests has failed");
                process::exit(1);
            }
        };
        named.spawn(work).map(drop)
    }

    /// Has somebody looked at who has come, if they are known or what they carry says who they are.
    fn came(&self, key: &Key, sealed: Option<&Sealed>) {
        let came = || self.table().came(key, Instant::now());
        let is_found = |sealed| {
            self.found(&self.wires.get(), key, sealed);
            came()
        };
        if came() || sealed.is_some_and(is_found) {
            self.news.notify_one();
        }
    }

    /// Takes in somebody who is in a call, if what they carry says who they are. Gives whether nobody here knew.
    fn found(&self, wires: &Wires, key: &Key, sealed: &Sealed) -> bool {
        let Some(guest) = wires.seals.open(key, sealed) else {
            return false;
        };
        let local = guest.user.server() == wires.homeserver.name();
        let mut table = self.table();
        let is_new = !table.knows(key);
        let found = table.found(key.clone(), guest, local, Instant::now());
        drop(table);
        if let Err(error) = found {
            self.report.not_kept(key, &error);
            return false;
        }
        self.news.notify_one();
        if is_new {
            metrics::guest("found");
        }
        is_new
    }

    fn look_forever(&self) {
        loop {
            let task = self.next();
            let verdict = self.look(&task);
            self.table().done(task, verdict, Instant::now());
            thread::sleep(PAUSE);
        }
    }

    /// Waits until it is time to look at somebody.
    fn next(&self) -> Task {
        let mut table = self.table();
        loop {
            let now = Instant::now();
            let (lag, guests) = (table.lag(now), table.len());
            let wait = match table.next(now) {
                Next::Now(task) => {
                    drop(table);
                    // whoever was to wait for the next one is busy now
                    self.news.notify_one();
                    self.report.lag(lag, guests);
                    return task;
                }
                Next::In(wait) => wait,
            };
            let woken = self.news.wait_timeout(table, wait);
            table = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn look(&self, task: &Task) -> Verdict {
        let wires = self.wires.get();
        let presence = task.ask_sfu.then(|| {
            let rooms = &wires.rooms;
            let presence = rooms.get_participant(&task.key.room, &task.key.identity);
            let trouble = presence.as_ref().err().map(ToString::to_string);
            self.report.presence(trouble);
            presence
        });
        let (shown, unsure) = match presence {
            None => (false, false),
            Some(Ok(Presence::Here(_))) => (true, false),
            Some(Ok(Presence::NotFound)) => return Verdict::Absent,
            Some(Err(_)) if task.present => (false, true),
            // as long as nobody is known to be there, nobody need leave
            Some(Err(_)) => return Verdict::Unknown,
        };
        let Guest { room, user } = &task.guest;
        let joined = wires.homeserver.is_still_joined(room, user);
        let trouble = joined.as_ref().err().map(ToString::to_string);
        self.report.membership(trouble);
        match joined {
            Ok(true) if unsure => Verdict::Unknown,
            Ok(true) => Verdict::Stays { shown },
            Ok(false) => self.remove(&wires.rooms, task, shown),
            // whoever was put out for good reason is so again
            Err(_) if task.out => self.remove(&wires.rooms, task, shown),
            // and nobody for what is not known
            Err(_) => Verdict::Unknown,
        }
    }

    fn remove(&self, rooms: &RoomService, task: &Task, shown: bool) -> Verdict {
        match rooms.remove_participant(&task.key.room, &task.key.identity) {
            Ok(()) => {
                self.report.removed(task);
                Verdict::Out { shown }
            }
            Err(error) => {
                self.report.not_removed(task, &error.to_string());
                Verdict::NotPutOut
            }
        }
    }
}
