//! Those whom application-service mode has let in, for as long as they may be in a call: whoever is no longer in the Matrix room is
//! put out of the LiveKit room (MSC4195).
//!
//! A token says that its holder *was* in the Matrix room. So they are looked at as soon as they are in the call, and again and again,
//! until the SFU says that they are gone and their token can't bring them back. All of it is in memory: after a restart those whose
//! token is older than it stay until they leave.

mod table;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io, thread};

use log::{debug, info, warn};

pub use self::table::{Guest, TooMany};
use self::table::{Next, Table, Task, Verdict};
use crate::current::Current;
use crate::journal::Key;
use crate::livekit::room_service::{Presence, RoomService};
use crate::livekit::webhook::{Kind, Webhook};
use crate::matrix::appservice::Homeserver;

/// Those who look; each asks one question at a time.
const THREADS: usize = 2;
/// Between two looks of one thread, so that all guests of a busy service are no more than 50 questions a second.
const PAUSE: Duration = Duration::from_millis(40);
/// For how long a token may bring somebody back beyond its own time: the SFU's leeway, and the 10 minutes of the tokens by which it
/// lets those reconnect who are connected.
const AFTERGLOW: Duration = Duration::from_secs(660);
/// When to ask an SFU again that did not say whether somebody is there.
const UNSURE: Duration = Duration::from_secs(60);

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
}

struct Shared {
    wires: Current<Wires>,
    table: Mutex<Table>,
    news: Condvar,
    /// Whether the last question went wrong, so that the log has it once.
    ails: AtomicBool,
    removed: AtomicU64,
}

impl Guests {
    /// Starts to look: at each of them every `every`. Tokens can be used for `lifetime`.
    pub fn start(wires: Wires, every: Duration, lifetime: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wires: Current::new(wires),
            table: Mutex::new(Table::new(every, lifetime + AFTERGLOW)),
            news: Condvar::new(),
            ails: AtomicBool::new(false),
            removed: AtomicU64::new(0),
        });
        for _ in 0..THREADS {
            let shared = shared.clone();
            let named = thread::Builder::new().name("guests".into());
            named.spawn(move || shared.look_forever())?;
        }
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

    /// Takes in what the SFU tells: whoever comes is looked at.
    pub fn heard(&self, webhook: &Webhook) {
        if let (Kind::Joined, Some((identity, _))) = (webhook.kind, &webhook.participant) {
            let key = Key {
                room: webhook.room.clone(),
                identity: identity.clone(),
            };
            self.0.table().came(&key, Instant::now());
            self.0.news.notify_one();
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

    /// How many were put out so far.
    pub fn removed(&self) -> u64 {
        self.0.removed.load(Ordering::Relaxed)
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
            let wait = match table.next(Instant::now()) {
                Next::Now(task) => return task,
                Next::In(wait) => wait,
            };
            let woken = self.news.wait_timeout(table, wait);
            table = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn look(&self, task: &Task) -> Verdict {
        let Guest { room, user } = &task.guest;
        let wires = self.wires.get();
        let joined = wires.homeserver.is_still_joined(room, user);
        self.tell(joined.as_ref().err().map(ToString::to_string));
        let out = match joined {
            Ok(joined) => !joined,
            // nobody is put out for what is not known
            Err(_) => task.out,
        };
        if out {
            self.remove(&wires.rooms, task);
        }
        let stays = |out| Verdict::Stays { out, sure: true };
        if !task.ask_sfu {
            return stays(out);
        }
        match wires
            .rooms
            .get_participant(&task.key.room, &task.key.identity)
        {
            Ok(Presence::Here(_)) => stays(out),
            Ok(Presence::NotFound) => Verdict::Gone,
            Err(error) => {
                debug!("not looked up cause={:?}", error.to_string());
                Verdict::Stays { out, sure: false }
            }
        }
    }

    fn remove(&self, rooms: &RoomService, task: &Task) {
        let (user, matrix_room) = (task.guest.user.as_str(), task.guest.room.as_str());
        let (room, identity) = (&task.key.room, task.key.identity.as_str());
        match rooms.remove_participant(room, &task.key.identity) {
            // again only in case that they came back and nobody told us
            Ok(()) if task.out => debug!("removed again user={user:?} room={room}"),
            Ok(()) => {
                self.removed.fetch_add(1, Ordering::Relaxed);
                info!(
                    "removed user={user:?} matrix_room={matrix_room:?} room={room} identity={identity:?}: not in the Matrix room any more"
                );
            }
            Err(error) => warn!(
                "not removed user={user:?} matrix_room={matrix_room:?} room={room} cause={:?}",
                error.to_string()
            ),
        }
    }

    fn tell(&self, trouble: Option<String>) {
        let ailed = self.ails.swap(trouble.is_some(), Ordering::Relaxed);
        match trouble {
            Some(cause) if !ailed => warn!("memberships cannot be checked cause={cause:?}"),
            None if ailed => info!("memberships can be checked again"),
            _ => {}
        }
    }
}
