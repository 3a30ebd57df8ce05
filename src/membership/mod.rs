//! Participants of application-service mode: a participant who leaves the Matrix room is removed from the LiveKit room (MSC4195).
//!
//! An access token proves that its user *was* in the Matrix room when it was issued. So the membership is checked when the participant
//! joins, and regularly until the SFU reports that the participant has left and the token has expired. The state is in memory only;
//! after a restart the sealed attribute of each connected participant, which the SFU returns, restores it.

mod attribute_sealer;
mod reconcile;
mod report;
mod table;

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use std::{fmt, io, thread};

pub(crate) use self::attribute_sealer::AttributeSealer;
use self::report::MembershipReporter;
pub(crate) use self::table::ParticipantQuotaExceeded;
use self::table::{CheckResult, CheckTask, NextCheck, ParticipantTable};
use crate::livekit::id::ParticipantKey;
use crate::livekit::room_service::{ParticipantPresence, RoomServiceClient};
use crate::livekit::sealed_attribute::SealedAttribute;
use crate::livekit::webhook::{ConnectionChange, WebhookEvent};
use crate::matrix::appservice::HomeserverClient;
use crate::matrix::id::RoomMember;
use crate::util::sync::{self, Swappable, lock};

/// Threads that check participants, each with one call at a time. With responses in 0.5 s they put 8 concurrent calls on the
/// homeserver, as one web browser does.
const CHECK_THREADS: usize = 8;
/// Pause of a thread between two checks: bounds the homeserver's load to 100 checks a second. Synapse answers one in milliseconds
/// from its cache or database.
const CHECK_PAUSE: Duration = Duration::from_millis(80);

/// Tracked participants and the threads that check them.
#[derive(Clone)]
pub(crate) struct Membership(Arc<MembershipInner>);

/// Clients and keys, which a reload can replace.
#[derive(Debug, Clone)]
pub(crate) struct MembershipClients {
    pub homeserver: Arc<HomeserverClient>,
    pub room_service: Arc<RoomServiceClient>,
    pub sealer: Arc<AttributeSealer>,
}

struct MembershipInner {
    clients: Swappable<MembershipClients>,
    table: Mutex<ParticipantTable>,
    /// Notified when a check is scheduled earlier than those before.
    work_available: Condvar,
    reporter: MembershipReporter,
}

impl Membership {
    /// Starts the threads. Connected participants are checked every `check_interval`; access tokens are valid for `token_lifetime`.
    pub(crate) fn start(
        clients: MembershipClients,
        check_interval: Duration,
        token_lifetime: Duration,
    ) -> io::Result<Self> {
        let server = clients.homeserver.name().clone();
        let inner = Arc::new(MembershipInner {
            table: Mutex::new(ParticipantTable::new(
                server,
                check_interval,
                token_lifetime,
            )),
            clients: Swappable::new(clients),
            work_available: Condvar::new(),
            reporter: MembershipReporter::new(check_interval),
        });
        for _ in 0..CHECK_THREADS {
            let inner = Arc::clone(&inner);
            sync::spawn("member-check", move || inner.run_checks())?;
        }
        let reconciled = Arc::clone(&inner);
        sync::spawn("reconciler", move || reconcile::run(&reconciled))?;
        Ok(Self(inner))
    }

    pub(crate) fn replace_clients(&self, clients: MembershipClients) {
        let server = clients.homeserver.name().clone();
        lock(&self.0.table).set_local_server(server);
        self.0.clients.replace(clients);
    }

    /// Tracks a participant before an access token is handed out.
    ///
    /// # Errors
    /// A quota is used up by connected participants: the token must not be handed out.
    pub(crate) fn record_issued_token(
        &self,
        key: ParticipantKey,
        member: RoomMember,
    ) -> Result<(), ParticipantQuotaExceeded> {
        lock(&self.0.table).record_issued_token(key, member, Instant::now())?;
        self.0.work_available.notify_one();
        Ok(())
    }

    /// The attribute for the participant's access token.
    pub(crate) fn seal_attribute(
        &self,
        key: &ParticipantKey,
        member: &RoomMember,
    ) -> SealedAttribute {
        self.0.clients.get().sealer.seal(key, member)
    }

    /// Handles an event of the SFU: a participant who joins is checked at once.
    pub(crate) fn handle_webhook(&self, event: &WebhookEvent) {
        let WebhookEvent::Participant {
            change,
            key,
            sealed_attribute,
            ..
        } = event
        else {
            return;
        };
        match change {
            ConnectionChange::Joined => self.0.handle_joined(key, sealed_attribute.as_ref()),
            ConnectionChange::Left => lock(&self.0.table).mark_left(key, Instant::now()),
            ConnectionChange::Aborted => {}
        }
    }

    /// Checks a user who may have left the Matrix room, at once. Returns the number of the user's participants in the room's calls.
    pub(crate) fn recheck(&self, member: &RoomMember) -> usize {
        let count = lock(&self.0.table).recheck(member, Instant::now());
        if count > 0 {
            self.0.work_available.notify_all();
        }
        count
    }

    pub(crate) fn tracked_count(&self) -> u64 {
        lock(&self.0.table).len() as u64
    }

    /// How long the most urgent check of a connected participant is overdue.
    pub(crate) fn lag(&self) -> Duration {
        lock(&self.0.table).lag(Instant::now())
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Membership({} participants)", self.tracked_count())
    }
}

impl MembershipInner {
    /// Schedules the check of a participant who has joined, if the participant is tracked or the sealed attribute is authentic.
    fn handle_joined(&self, key: &ParticipantKey, sealed_attribute: Option<&SealedAttribute>) {
        let mark_joined = || lock(&self.table).mark_joined(key, Instant::now());
        let mut tracked = mark_joined();
        if !tracked && let Some(attribute) = sealed_attribute {
            self.record_discovered(&self.clients.get(), key, attribute);
            tracked = mark_joined();
        }
        if tracked {
            self.work_available.notify_one();
        }
    }

    /// Tracks a connected participant whose sealed attribute is authentic. Returns whether the participant was not tracked before.
    fn record_discovered(
        &self,
        clients: &MembershipClients,
        key: &ParticipantKey,
        attribute: &SealedAttribute,
    ) -> bool {
        let Some(member) = clients.sealer.open(key, attribute) else {
            return false;
        };
        let recorded = lock(&self.table).record_discovered(key.clone(), member, Instant::now());
        match recorded {
            Ok(is_new) => {
                self.work_available.notify_one();
                if is_new {
                    self.reporter.count_discovered();
                }
                is_new
            }
            Err(error) => {
                self.reporter.log_not_tracked(key, &error);
                false
            }
        }
    }

    fn run_checks(&self) {
        loop {
            let task = self.next_check();
            let result = self.check(&task);
            lock(&self.table).complete_check(task, result, Instant::now());
            thread::sleep(CHECK_PAUSE);
        }
    }

    /// Waits until a check is due.
    fn next_check(&self) -> CheckTask {
        let mut table = lock(&self.table);
        loop {
            let now = Instant::now();
            let (lag, participants) = (table.lag(now), table.len());
            match table.next_check(now) {
                NextCheck::Due(task) => {
                    drop(table);
                    // this thread was the one that waits for the next check: another one takes over
                    self.work_available.notify_one();
                    self.reporter.record_lag(lag, participants);
                    return task;
                }
                NextCheck::Wait(wait) => {
                    table = sync::wait_timeout(&self.work_available, table, wait);
                }
            }
        }
    }

    fn check(&self, task: &CheckTask) -> CheckResult {
        let clients = self.clients.get();
        let presence = task.ask_sfu.then(|| {
            let presence = clients.room_service.get_participant(&task.key);
            self.reporter.presence_checks.record(&presence);
            presence
        });
        let (connected, presence_unknown) = match presence {
            None => (false, false),
            Some(Ok(ParticipantPresence::Present(_))) => (true, false),
            Some(Ok(ParticipantPresence::Absent)) => return CheckResult::Absent,
            Some(Err(_)) if task.connected => (false, true),
            // a participant who was never seen in the call need not be removed
            Some(Err(_)) => return CheckResult::Unknown,
        };
        let RoomMember { room_id, user_id } = &task.member;
        let joined = clients.homeserver.is_joined_uncached(room_id, user_id);
        self.reporter.membership_checks.record(&joined);
        match joined {
            Ok(true) if presence_unknown => CheckResult::Unknown,
            Ok(true) => CheckResult::Allowed { connected },
            Ok(false) => self.remove(&clients.room_service, task, connected),
            // a user who has left the Matrix room is removed again if reconnected, ...
            Err(_) if task.removed => self.remove(&clients.room_service, task, connected),
            // ... and no other user is removed without a negative response of the homeserver
            Err(_) => CheckResult::Unknown,
        }
    }

    fn remove(&self, sfu: &RoomServiceClient, task: &CheckTask, connected: bool) -> CheckResult {
        match sfu.remove_participant(&task.key) {
            Ok(()) => {
                self.reporter.log_removed(task);
                CheckResult::Removed { connected }
            }
            Err(error) => {
                self.reporter.log_removal_failed(task, &error);
                CheckResult::RemovalFailed
            }
        }
    }
}
