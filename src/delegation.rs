//! The thread that keeps the leaves which clients have handed to us, and carries out what they call for.
//!
//! One thread owns all leaves and their timers (`keeper`); what [`crate::leave`] wants done waits in `lanes` for its turn and is then
//! done by a small pool (`pool`), so that nobody who does not answer holds up the others.

mod book;
mod counts;
mod keeper;
mod lanes;
mod pool;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::info;

use self::book::Book;
pub use self::counts::Counts;
pub(crate) use self::counts::one;
use self::keeper::{Keeper, News};
use crate::journal::{self, Journal};
use crate::leave::{Key, Leave, Order, Time};
use crate::livekit::room_service::RoomService;
use crate::livekit::webhook::Webhook;
use crate::matrix::client_api::{self, Support};
use crate::matrix::delayed_event::DelayedEvents;
use crate::matrix::id::ServerName;
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
    events: DelayedEvents,
    rooms: Arc<RoomService>,
    /// Homeservers that the administrator answers for.
    listed: BTreeSet<ServerName>,
    book: Book,
    counts: Counts,
    clock: Clock,
    /// How often the SFU is asked about those who are connected.
    check: Option<Duration>,
}

/// All leaves that are kept here.
#[derive(Debug, Clone)]
pub struct Delegation {
    shared: Arc<Shared>,
    news: SyncSender<News>,
}

impl Delegation {
    /// Takes up the leaves in the journal, and starts to keep them. Those of homeservers that are `listed` have room before others. The SFU is asked about those who are connected every `check`, or only
    /// in doubt.
    pub fn start(
        journal: Arc<dyn Journal>,
        events: DelayedEvents,
        rooms: Arc<RoomService>,
        listed: BTreeSet<ServerName>,
        check: Option<Duration>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            journal,
            events,
            rooms,
            listed,
            book: Book::default(),
            counts: Counts::default(),
            clock: Clock::start(),
            check,
        });
        let (news, received) = sync_channel(MAX_NEWS);
        Keeper::start(shared.clone(), news.clone(), received)?;
        pool::adopt_forever(shared.clone(), news.clone())?;
        Ok(Self { shared, news })
    }

    /// Whether leaves can be delegated for users of this homeserver; waits for its answer when it is not known.
    pub fn check(&self, server: &ServerName) -> Result<(), Error> {
        match self.shared.events.client_api().delayed_events(server) {
            Ok(Support::Yes(_)) => Ok(()),
            Ok(Support::No) => Err(Error::NotSupported),
            Err(error) => Err(Error::NoClientApi(error)),
        }
    }

    /// Takes a leave on, in place of an earlier one for the same participant. It is in the journal when this returns.
    pub fn delegate(&self, key: Key, order: Order) -> Result<u32, Error> {
        let shared = &*self.shared;
        let id = u32::from_ne_bytes(random::bytes());
        let listed = shared.listed.contains(order.user.server());
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
            "delegated leave={id:08x} user={:?} room={} identity={:?} delay_ms={}",
            order.user.as_str(),
            leave.key().room,
            leave.key().identity.as_str(),
            order.timeout.as_millis()
        );
        let sent = self.news.send(News::Delegated(Box::new(leave), fence));
        sent.map_err(|_| Error::Stopping)?;
        shared.counts.delegations.fetch_add(1, Ordering::Relaxed);
        Ok(id)
    }

    /// Takes in what the SFU tells. What is about a leave that others like us may have is to be told again while the journal fails.
    pub fn heard(&self, webhook: Webhook) -> Result<(), Busy> {
        let key = webhook.participant.as_ref().map(|(identity, _)| Key {
            room: webhook.room.clone(),
            identity: identity.clone(),
        });
        let foreign = key.is_some_and(|key| !self.shared.book.has(&key));
        if foreign && self.shared.journal.trouble().is_some() {
            return Err(Busy);
        }
        match self.news.try_send(News::Heard(Box::new(webhook))) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Busy),
        }
    }

    /// What has been done so far.
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
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

/// For the thread to come to its end: it is never far from it.
const STOP: Duration = Duration::from_secs(2);
