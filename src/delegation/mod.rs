//! Delegated leaves (MSC4195): keeps each participant's delayed leave event (MSC4140) from being sent while the participant is
//! connected, and has it sent after a disconnect.
//!
//! One thread, the [`scheduler`], owns all leaves and their timers. The actions of a leave ([`leave`]) wait in the [`call_queue`] and
//! are carried out by blocking [`workers`], so that a homeserver that does not answer delays its own leaves only. The [`store`] keeps
//! leaves across restarts.

mod call_queue;
pub(crate) mod leave;
mod quota;
mod scheduler;
pub(crate) mod store;
mod time;
mod workers;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use self::leave::{DelegationRequest, Leave, LeaveId};
use self::quota::LeaveQuota;
use self::scheduler::{Scheduler, SchedulerMessage};
use self::store::{LeaveStore, Ownership};
use self::time::MonotonicUnixClock;
use crate::livekit::id::ParticipantKey;
use crate::livekit::room_service::RoomServiceClient;
use crate::livekit::webhook::WebhookEvent;
use crate::matrix::client_api::{self, DelayedEventSupport};
use crate::matrix::delayed_event::DelayedEventClient;
use crate::matrix::id::{ServerName, UserId};
use crate::util::metrics;
use crate::util::random;
use crate::util::sync::Swappable;

/// Messages queued for the scheduler, which handles about 10,000 in a second; a burst of webhooks for some thousand participants.
const MAX_QUEUED_MESSAGES: usize = 4096;
/// Time to handle a webhook, with a query to the store; shorter than the SFU's timeout.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(4);
/// Attempts at one webhook while other replicas take its leave.
const WEBHOOK_ATTEMPTS: usize = 3;
/// Time for the scheduler to stop, which handles its next message within milliseconds.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a leave cannot be delegated.
#[derive(Debug)]
pub(crate) enum Error {
    NotSupported,
    NoClientApi(client_api::Error),
    UserQuotaExceeded,
    ServerQuotaExceeded,
    CapacityExceeded,
    OwnedByOtherUser,
    NotStored(store::Error),
    Stopping,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSupported => {
                f.write_str("the homeserver does not support delayed events (MSC4140)")
            }
            Self::NoClientApi(error) => write!(f, "client-server API: {error}"),
            Self::UserQuotaExceeded => {
                write!(f, "the user has {} delegated leaves", quota::MAX_PER_USER)
            }
            Self::ServerQuotaExceeded => write!(
                f,
                "the homeserver, which is not listed, has {} delegated leaves",
                quota::MAX_PER_UNLISTED_SERVER
            ),
            Self::CapacityExceeded => {
                write!(f, "there are {} delegated leaves", quota::MAX_LEAVES)
            }
            Self::OwnedByOtherUser => {
                f.write_str("another user has delegated the participant's leave")
            }
            Self::NotStored(error) => write!(f, "the leave cannot be stored: {error}"),
            Self::Stopping => f.write_str("the service is stopping"),
        }
    }
}

impl std::error::Error for Error {}

/// Error for a webhook that cannot be handled now, and has to be delivered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SchedulerBusy;

/// State shared by the scheduler, its workers and the HTTP handlers.
#[derive(Debug)]
struct DelegationContext {
    store: Arc<dyn LeaveStore>,
    /// A running call keeps the clients that it started with.
    clients: Swappable<DelegationClients>,
    quota: LeaveQuota,
    clock: MonotonicUnixClock,
    /// Time between two presence checks of a connected participant; `None` checks only after a doubt.
    check_interval: Option<Duration>,
}

/// Clients of other servers, which a reload replaces.
#[derive(Debug)]
pub(crate) struct DelegationClients {
    pub delayed_events: Arc<DelayedEventClient>,
    pub room_service: Arc<RoomServiceClient>,
    /// Homeservers named in the settings, which have no quota of their own.
    pub listed_servers: BTreeSet<ServerName>,
}

/// Handle to the scheduler and its leaves.
#[derive(Debug, Clone)]
pub(crate) struct DelegationService {
    context: Arc<DelegationContext>,
    scheduler: SyncSender<SchedulerMessage>,
}

impl DelegationService {
    /// Starts the scheduler, and adopts the leaves in the store.
    pub(crate) fn start(
        store: Arc<dyn LeaveStore>,
        clients: DelegationClients,
        check_interval: Option<Duration>,
    ) -> std::io::Result<Self> {
        let context = Arc::new(DelegationContext {
            store,
            clients: Swappable::new(clients),
            quota: LeaveQuota::default(),
            clock: MonotonicUnixClock::start(),
            check_interval,
        });
        let (scheduler, messages) = sync_channel(MAX_QUEUED_MESSAGES);
        Scheduler::start(Arc::clone(&context), scheduler.clone(), messages)?;
        workers::spawn_adopter(Arc::clone(&context), scheduler.clone())?;
        Ok(Self { context, scheduler })
    }

    pub(crate) fn replace_clients(&self, clients: DelegationClients) {
        self.context.clients.replace(clients);
    }

    /// Checks that leaves can be delegated for users of this homeserver; waits for its answer unless that is cached.
    pub(crate) fn check_support(&self, server: &ServerName) -> Result<(), Error> {
        let clients = self.context.clients.get();
        let client_api = clients.delayed_events.client_api();
        match client_api.delayed_event_support(server) {
            Ok(DelayedEventSupport::Supported(_)) => Ok(()),
            Ok(DelayedEventSupport::Unsupported) => Err(Error::NotSupported),
            Err(error) => Err(Error::NoClientApi(error)),
        }
    }

    /// Delegates a leave, in place of an earlier one of the same participant. It is stored when this returns.
    pub(crate) fn delegate(
        &self,
        key: ParticipantKey,
        user: UserId,
        request: DelegationRequest,
    ) -> Result<LeaveId, Error> {
        let context = &*self.context;
        let listed = &context.clients.get().listed_servers;
        let is_listed = listed.contains(user.server());
        let reservation = context.quota.reserve(&key, &user, is_listed)?;
        let id = LeaveId(u32::from_ne_bytes(random::bytes()));
        let now = context.clock.now();
        let leave = Leave::new(key, user, request, id, context.check_interval, now);
        let record = leave.to_record().unwrap_or_default();
        let fence = context.store.put(leave.key(), &record);
        let fence = fence.map_err(Error::NotStored)?;
        self.scheduler
            .send(SchedulerMessage::Delegated(Box::new(leave), fence))
            .map_err(|_| Error::Stopping)?;
        reservation.keep();
        metrics::count_delegated_leave_event("delegated");
        Ok(id)
    }

    /// Handles an event of the SFU, which does not send it again after this succeeds. Its effect is stored when this returns.
    pub(crate) fn handle_webhook(&self, webhook: &WebhookEvent) -> Result<(), SchedulerBusy> {
        let store = &self.context.store;
        for _ in 0..WEBHOOK_ATTEMPTS {
            let (reply, handled) = sync_channel(1);
            let message = SchedulerMessage::WebhookReceived(Box::new(webhook.clone()), reply);
            self.scheduler
                .try_send(message)
                .map_err(|_| SchedulerBusy)?;
            let owned = handled
                .recv_timeout(WEBHOOK_TIMEOUT)
                .map_err(|_| SchedulerBusy)?;
            store.sync().map_err(|_| SchedulerBusy)?;
            let ownership = match owned {
                Some((key, fence)) if store.is_shared() => store.check_ownership(&key, fence),
                _ => Ok(Ownership::Owned),
            };
            // otherwise another replica took the leave meanwhile, without knowing of this event
            if ownership.map_err(|_| SchedulerBusy)? == Ownership::Owned {
                return Ok(());
            }
        }
        Err(SchedulerBusy)
    }

    /// Number of leaves, reserved ones included.
    pub(crate) fn leave_count(&self) -> u64 {
        self.context.quota.count()
    }

    /// Why leaves cannot be stored now; `None` if they can.
    pub(crate) fn store_problem(&self) -> Option<String> {
        self.context.store.problem()
    }

    /// Stops the scheduler. The leaves stay in the store for the next process.
    pub(crate) fn stop(&self) {
        let (reply, stopped) = sync_channel(1);
        if self.scheduler.send(SchedulerMessage::Stop(reply)).is_ok() {
            // without a reply, the scheduler has ended by itself or is left behind
            let _ = stopped.recv_timeout(STOP_TIMEOUT);
        }
        self.context.store.close();
    }
}
