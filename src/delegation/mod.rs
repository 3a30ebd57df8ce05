//! The thread that keeps the leaves which clients have handed to us, and carries out what they call for.
//!
//! One thread owns all leaves and their timers (`keeper`); what [`self::leave`] wants done waits in `lanes` for its turn and is then
//! done by a small pool (`pool`), so that nobody who does not answer holds up the others.

mod call_queue;
pub(crate) mod leave;
mod quota;
mod scheduler;
pub(crate) mod store;
mod workers;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::info;

use self::leave::{DelegationRequest, Leave, UnixMillis};
use self::quota::LeaveQuota;
use self::scheduler::{Scheduler, SchedulerMessage};
use self::store::{LeaveStore, Ownership};
use crate::livekit::id::ParticipantKey;
use crate::livekit::room_service::RoomServiceClient;
use crate::livekit::webhook::WebhookEvent;
use crate::matrix::client_api::{self, DelayedEventSupport};
use crate::matrix::delayed_event::DelayedEventClient;
use crate::matrix::id::ServerName;
use crate::util::metrics;
use crate::util::random;
use crate::util::sync::Swappable;

/// Events that wait for the thread; a burst of webhooks for a few thousand participants. It takes some 10,000 a second.
const MAX_QUEUED_MESSAGES: usize = 4096;

/// Why a leave was not taken on.
#[derive(Debug)]
pub(crate) enum Error {
    /// The user's homeserver says that it has no delayed events.
    NotSupported,
    /// Its client-server API could not be found or asked.
    NoClientApi(client_api::Error),
    /// The user has as many leaves here as one may have.
    UserQuotaExceeded,
    /// There are as many leaves as we can keep, or as we keep of one stranger's server.
    CapacityExceeded,
    /// The participant's leave is another user's.
    OwnedByOtherUser,
    /// It could not be written down, and might be lost.
    NotStored(store::Error),
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
            Self::UserQuotaExceeded => write!(
                f,
                "the user has {} leaves here already",
                quota::MAX_PER_USER
            ),
            Self::CapacityExceeded => write!(
                f,
                "there are {} leaves already, or {} of a homeserver that is not listed",
                quota::MAX_LEAVES,
                quota::MAX_PER_UNLISTED_SERVER
            ),
            Self::OwnedByOtherUser => f.write_str("the participant's leave is another user's"),
            Self::NotStored(error) => write!(f, "the leave could not be stored: {error}"),
            Self::Stopping => f.write_str("the service is about to stop"),
        }
    }
}

impl std::error::Error for Error {}

/// More to do than can be done: to be told again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SchedulerBusy;

/// Milliseconds since 1970 that go on steadily, whoever sets the host's clock meanwhile.
#[derive(Debug, Clone, Copy)]
struct MonotonicUnixClock {
    unix_start: UnixMillis,
    monotonic_start: Instant,
}

impl MonotonicUnixClock {
    fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let ms = since.map_or(0, |since| since.as_millis());
        Self {
            unix_start: UnixMillis::from_millis(u64::try_from(ms).unwrap_or(u64::MAX)),
            monotonic_start: Instant::now(),
        }
    }

    fn now(&self) -> UnixMillis {
        self.unix_start + self.monotonic_start.elapsed()
    }
}

/// What is reached for from every thread.
#[derive(Debug)]
struct DelegationContext {
    store: Arc<dyn LeaveStore>,
    /// Calls that are under way end on those that they began with.
    clients: Swappable<DelegationClients>,
    quota: LeaveQuota,
    clock: MonotonicUnixClock,
    /// How often the SFU is asked about those who are connected.
    check_interval: Option<Duration>,
}

/// The ways to others, which settings can change.
#[derive(Debug)]
pub(crate) struct DelegationClients {
    /// To homeservers.
    pub delayed_events: Arc<DelayedEventClient>,
    /// To the SFU.
    pub room_service: Arc<RoomServiceClient>,
    /// Homeservers that the administrator answers for: they may have all the room that there is.
    pub listed_servers: BTreeSet<ServerName>,
}

/// All leaves that are kept here.
#[derive(Debug, Clone)]
pub(crate) struct DelegationService {
    context: Arc<DelegationContext>,
    scheduler: SyncSender<SchedulerMessage>,
}

impl DelegationService {
    /// Takes up the leaves in the journal, and starts to keep them. The SFU is asked about those who are connected every `check`,
    /// or only in doubt.
    pub(crate) fn start(
        journal: Arc<dyn LeaveStore>,
        wires: DelegationClients,
        check: Option<Duration>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(DelegationContext {
            store: journal,
            clients: Swappable::new(wires),
            quota: LeaveQuota::default(),
            clock: MonotonicUnixClock::start(),
            check_interval: check,
        });
        let (news, received) = sync_channel(MAX_QUEUED_MESSAGES);
        Scheduler::start(shared.clone(), news.clone(), received)?;
        workers::spawn_adopter(shared.clone(), news.clone())?;
        Ok(Self {
            context: shared,
            scheduler: news,
        })
    }

    /// Calls others in these ways from now on.
    pub(crate) fn replace_clients(&self, wires: DelegationClients) {
        self.context.clients.replace(wires);
    }

    /// Whether leaves can be delegated for users of this homeserver; waits for its answer when it is not known.
    pub(crate) fn check_support(&self, server: &ServerName) -> Result<(), Error> {
        let wires = self.context.clients.get();
        match wires
            .delayed_events
            .client_api()
            .delayed_event_support(server)
        {
            Ok(DelayedEventSupport::Supported(_)) => Ok(()),
            Ok(DelayedEventSupport::Unsupported) => Err(Error::NotSupported),
            Err(error) => Err(Error::NoClientApi(error)),
        }
    }

    /// Takes a leave on, in place of an earlier one for the same participant. It is in the journal when this returns.
    pub(crate) fn delegate(
        &self,
        key: ParticipantKey,
        order: DelegationRequest,
    ) -> Result<u32, Error> {
        let shared = &*self.context;
        let id = u32::from_ne_bytes(random::bytes());
        let listed = shared
            .clients
            .get()
            .listed_servers
            .contains(order.user.server());
        let place = shared.quota.reserve(&key, &order.user, listed)?;
        let leave = Leave::new(key, order, id, shared.check_interval, shared.clock.now());
        let record = leave.to_record().unwrap_or_default();
        let fence = match shared.store.put(leave.key(), &record) {
            Ok(fence) => fence,
            Err(error) => {
                shared.quota.release(leave.key(), place);
                return Err(Error::NotStored(error));
            }
        };
        let order = leave.request();
        info!(
            "delegated leave={id:08x} user={:?} room={:?} identity={:?} delay_ms={}",
            order.user.as_str(),
            leave.key().room.as_str(),
            leave.key().identity.as_str(),
            order.timeout.as_millis()
        );
        let sent = self
            .scheduler
            .send(SchedulerMessage::Delegated(Box::new(leave), fence));
        sent.map_err(|_| Error::Stopping)?;
        metrics::count_delegated_leave_event("delegated");
        Ok(id)
    }

    /// Takes in what the SFU tells. It is in the journal when this returns, for the SFU does not tell it again.
    pub(crate) fn handle_webhook(&self, webhook: &WebhookEvent) -> Result<(), SchedulerBusy> {
        let journal = &self.context.store;
        for _ in 0..WEBHOOK_ATTEMPTS {
            let (done, taken_in) = sync_channel(1);
            let news = SchedulerMessage::WebhookReceived(Box::new(webhook.clone()), done);
            self.scheduler.try_send(news).map_err(|_| SchedulerBusy)?;
            // no answer if the journal gave none
            let about = taken_in
                .recv_timeout(WEBHOOK_TIMEOUT)
                .map_err(|_| SchedulerBusy)?;
            journal.sync().map_err(|_| SchedulerBusy)?;
            let held = match about {
                Some((key, fence)) if journal.is_shared() => journal.check_ownership(&key, fence),
                _ => Ok(Ownership::Owned),
            };
            // or else another one of us took the leave in this very moment, and does not know yet
            if held.map_err(|_| SchedulerBusy)? == Ownership::Owned {
                return Ok(());
            }
        }
        Err(SchedulerBusy)
    }

    /// How many leaves are kept here, those that are about to be included.
    pub(crate) fn leave_count(&self) -> u64 {
        self.context.quota.count()
    }

    /// What keeps leaves from being stored; none if nothing does.
    pub(crate) fn store_problem(&self) -> Option<String> {
        self.context.store.problem()
    }

    /// Stops; leaves stay in the journal, for whoever starts next.
    pub(crate) fn stop(&self) {
        let (done, stopped) = sync_channel(1);
        if self.scheduler.send(SchedulerMessage::Stop(done)).is_ok() {
            // gone without a word is stopped as well
            let _ = stopped.recv_timeout(STOP_TIMEOUT);
        }
        self.context.store.close();
    }
}

/// For an event to be taken in, with a question to the journal; less than the SFU's own patience.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(4);
/// How often an event is taken in at most, as others take the leave that it is about.
const WEBHOOK_ATTEMPTS: usize = 3;
/// For the thread to come to its end: it is never far from it.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
