//! The thread that keeps the leaves which clients have handed to us, and carries out what they call for.
//!
//! One thread owns all leaves and their timers (`keeper`); what [`crate::leave`] wants done waits in `lanes` for its turn and is then
//! done by a small pool (`pool`), so that nobody who does not answer holds up the others.

mod book;
mod keeper;
mod lanes;
mod pool;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::info;

use self::book::Book;
use self::keeper::{Keeper, News};
use crate::current::Current;
use crate::journal::{self, Hold, Journal};
use crate::leave::{Key, Leave, Order, Time};
use crate::livekit::room_service::RoomService;
use crate::livekit::webhook::Webhook;
use crate::matrix::client_api::{self, Support};
use crate::matrix::delayed_event::DelayedEvents;
use crate::matrix::id::ServerName;
use crate::metrics;
use crate::random;

/// Events that wait for the thread; a burst of webhooks for a few thousand participants. It takes some 10,000 a second.
const MAX_NEWS: usize = 4096;

/// Why a leave was not taken on.
#[derive(Debug)]
pub enum Error {
    /// The user's homeserver says that it has no delayed events.
    NotSupported,
    /// Its client-server API could not be found or asked.
    NoClientApi(client_api::Error),
    /// The user has as many leaves here as one may have.
    TooMany,
    /// There are as many leaves as we can keep, or as we keep of one stranger's server.
    Full,
    /// The participant's leave is another user's.
    NotTheirs,
    /// It could not be written down, and might be lost.
    NotStored(journal::Error),
    /// We are about to stop.
    Stopping,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSupported => {
                f.write_str("the homeserver says that it does not support delayed events (MSC4140)")
            }
            Self::NoClientApi(error) => write!(f, "client-server API: {error}"),
            Self::TooMany => write!(f, "the user has {} leaves here already", book::PER_USER),
            Self::Full => write!(
                f,
                "there are {} leaves already, or {} of a homeserver that is not listed",
                book::TOTAL,
                book::PER_STRANGER
            ),
            Self::NotTheirs => f.write_str("the participant's leave is another user's"),
            Self::NotStored(error) => write!(f, "the leave could not be stored: {error}"),
            Self::Stopping => f.write_str("the service is about to stop"),
        }
    }
}

impl std::error::Error for Error {}

/// More to do than can be done: to be told again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

/// Milliseconds since 1970 that go on steadily, whoever sets the host's clock meanwhile.
#[derive(Debug, Clone, Copy)]
struct Clock {
    wall: Time,
    started: Instant,
}

impl Clock {
    fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let ms = since.map_or(0, |since| since.as_millis());
        Self {
            wall: Time::from_millis(u64::try_from(ms).unwrap_or(u64::MAX)),
            started: Instant::now(),
        }
    }

    fn now(&self) -> Time {
        self.wall + self.started.elapsed()
    }
}

/// What is reached for from every thread.
#[derive(Debug)]
struct Shared {
    journal: Arc<dyn Journal>,
    /// Calls that are under way end on those that they began with.
    wires: Current<Wires>,
    book: Book,
    clock: Clock,
    /// How often the SFU is asked about those who are connected.
    check: Option<Duration>,
}

/// The ways to others, which settings can change.
#[derive(Debug)]
pub struct Wires {
    /// To homeservers.
    pub events: DelayedEvents,
    /// To the SFU.
    pub rooms: Arc<RoomService>,
    /// Homeservers that the administrator answers for: they may have all the room that there is.
    pub listed: BTreeSet<ServerName>,
}

/// All leaves that are kept here.
#[derive(Debug, Clone)]
pub struct Delegation {
    shared: Arc<Shared>,
    news: SyncSender<News>,
}

impl Delegation {
    /// Takes up the leaves in the journal, and starts to keep them. The SFU is asked about those who are connected every `check`,
    /// or only in doubt.
    pub fn start(
        journal: Arc<dyn Journal>,
        wires: Wires,
        check: Option<Duration>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            journal,
            wires: Current::new(wires),
            book: Book::default(),
            clock: Clock::start(),
            check,
        });
        let (news, received) = sync_channel(MAX_NEWS);
        Keeper::start(shared.clone(), news.clone(), received)?;
        pool::adopt_forever(shared.clone(), news.clone())?;
        Ok(Self { shared, news })
    }

    /// Calls others in these ways from now on.
    pub fn rewire(&self, wires: Wires) {
        self.shared.wires.replace(wires);
    }

    /// Whether leaves can be delegated for users of this homeserver; waits for its answer when it is not known.
    pub fn check(&self, server: &ServerName) -> Result<(), Error> {
        let wires = self.shared.wires.get();
        match wires.events.client_api().delayed_events(server) {
            Ok(Support::Yes(_)) => Ok(()),
            Ok(Support::No) => Err(Error::NotSupported),
            Err(error) => Err(Error::NoClientApi(error)),
        }
    }

    /// Takes a leave on, in place of an earlier one for the same participant. It is in the journal when this returns.
    pub fn delegate(&self, key: Key, order: Order) -> Result<u32, Error> {
        let shared = &*self.shared;
        let id = u32::from_ne_bytes(random::bytes());
        let listed = shared.wires.get().listed.contains(order.user.server());
        let place = shared.book.reserve(&key, &order.user, listed)?;
        let leave = Leave::new(key, order, id, shared.check, shared.clock.now());
        let record = leave.record().unwrap_or_default();
        let fence = match shared.journal.put(leave.key(), &record) {
            Ok(fence) => fence,
            Err(error) => {
                shared.book.give_back(leave.key(), place);
                return Err(Error::NotStored(error));
            }
        };
        let order = leave.order();
        info!(
            "delegated leave={id:08x} user={:?} room={:?} identity={:?} delay_ms={}",
            order.user.as_str(),
            leave.key().room.as_str(),
            leave.key().identity.as_str(),
            order.timeout.as_millis()
        );
        let sent = self.news.send(News::Delegated(Box::new(leave), fence));
        sent.map_err(|_| Error::Stopping)?;
        metrics::leave("delegated");
        Ok(id)
    }

    /// Takes in what the SFU tells. It is in the journal when this returns, for the SFU does not tell it again.
    pub fn heard(&self, webhook: &Webhook) -> Result<(), Busy> {
        let journal = &self.shared.journal;
        for _ in 0..HEAR_AGAIN {
            let (done, taken_in) = sync_channel(1);
            let news = News::Heard(Box::new(webhook.clone()), done);
            self.news.try_send(news).map_err(|_| Busy)?;
            // no answer if the journal gave none
            let about = taken_in.recv_timeout(HEARD).map_err(|_| Busy)?;
            journal.sync().map_err(|_| Busy)?;
            let held = match about {
                Some((key, fence)) if journal.is_shared() => journal.hold(&key, fence),
                _ => Ok(Hold::Ours),
            };
            // or else another one of us took the leave in this very moment, and does not know yet
            if held.map_err(|_| Busy)? == Hold::Ours {
                return Ok(());
            }
        }
        Err(Busy)
    }

    /// How many leaves are kept here, those that are about to be included.
    pub fn kept(&self) -> u64 {
        self.shared.book.count()
    }

    /// What keeps leaves from being stored; none if nothing does.
    pub fn trouble(&self) -> Option<String> {
        self.shared.journal.trouble()
    }

    /// Stops; leaves stay in the journal, for whoever starts next.
    pub fn stop(&self) {
        let (done, stopped) = sync_channel(1);
        if self.news.send(News::Stop(done)).is_ok() {
            // gone without a word is stopped as well
            let _ = stopped.recv_timeout(STOP);
        }
        self.shared.journal.close();
    }
}

/// For an event to be taken in, with a question to the journal; less than the SFU's own patience.
const HEARD: Duration = Duration::from_secs(4);
/// How often an event is taken in at most, as others take the leave that it is about.
const HEAR_AGAIN: usize = 3;
/// For the thread to come to its end: it is never far from it.
const STOP: Duration = Duration::from_secs(2);
