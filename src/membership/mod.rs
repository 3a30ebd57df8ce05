//! Those whom application-service mode has let in, for as long as they may be in a call: whoever is no longer in the Matrix room is
//! put out of the LiveKit room (MSC4195).
//!
//! A token says that its holder *was* in the Matrix room. So they are looked at as soon as they are in the call, and again and again,
//! until the SFU says that they are gone and their token can't bring them back. All of it is in memory, and of no loss: their tokens
//! carry who they are, which the SFU shows to whoever of us asks, or hears that they come.

mod attribute_sealer;
mod reconcile;
mod report;
mod table;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io, panic, process, thread};

use log::error;

pub(crate) use self::attribute_sealer::AttributeSealer;
use self::report::MembershipReporter;
use self::table::{CheckResult, CheckTask, NextCheck, ParticipantTable};
pub(crate) use self::table::{ParticipantQuotaExceeded, TrackedParticipant};
use crate::livekit::id::ParticipantKey;
use crate::livekit::room_service::{ParticipantPresence, RoomServiceClient};
use crate::livekit::sealed_attribute::SealedAttribute;
use crate::livekit::webhook::{ConnectionChange, WebhookEvent};
use crate::matrix::appservice::HomeserverClient;
use crate::util::metrics;
use crate::util::sync::Swappable;

/// Those who look; each asks one question at a time. A homeserver that takes 0.5 s for an answer has 8 of them to work at, which is
/// what a browser asks of it.
const CHECK_THREADS: usize = 8;
/// Between two looks of one thread, so that all guests of a busy service are no more than 100 questions a second. Synapse finds an
/// answer in its database, or in its cache, in some milliseconds of its one core: it has that much left.
const CHECK_PAUSE: Duration = Duration::from_millis(80);

/// All of them, and those who look after them.
#[derive(Clone)]
pub(crate) struct Membership(Arc<MembershipInner>);

/// The ways to others, which settings can change.
#[derive(Debug, Clone)]
pub(crate) struct MembershipClients {
    /// To whoever knows who is in a Matrix room.
    pub homeserver: Arc<HomeserverClient>,
    /// To the SFU.
    pub room_service: Arc<RoomServiceClient>,
    /// What shows whom the SFU speaks of.
    pub sealer: Arc<AttributeSealer>,
}

struct MembershipInner {
    clients: Swappable<MembershipClients>,
    table: Mutex<ParticipantTable>,
    work_available: Condvar,
    reporter: MembershipReporter,
}

impl Membership {
    /// Starts to look: at each of them every `every`. Tokens can be used for `lifetime`.
    pub(crate) fn start(
        wires: MembershipClients,
        every: Duration,
        lifetime: Duration,
    ) -> io::Result<Self> {
        let shared = Arc::new(MembershipInner {
            clients: Swappable::new(wires),
            table: Mutex::new(ParticipantTable::new(every, lifetime)),
            work_available: Condvar::new(),
            reporter: MembershipReporter::new(every),
        });
        for _ in 0..CHECK_THREADS {
            shared.spawn_worker("guests", MembershipInner::run_checks)?;
        }
        shared.spawn_worker("walker", reconcile::run_reconciler)?;
        Ok(Self(shared))
    }

    /// Calls others in these ways from now on.
    pub(crate) fn replace_clients(&self, wires: MembershipClients) {
        self.0.clients.replace(wires);
    }

    /// Remembers somebody who gets a token. Without a place for them they may not get one.
    pub(crate) fn record_issued_token(
        &self,
        key: ParticipantKey,
        guest: TrackedParticipant,
    ) -> Result<(), ParticipantQuotaExceeded> {
        let local = *guest.user_id.server() == *self.0.clients.get().homeserver.name();
        let mut table = self.0.lock_table();
        table.record_issued_token(key, guest, local, Instant::now())?;
        self.0.work_available.notify_one();
        Ok(())
    }

    /// What the token of somebody who is let in is to carry.
    pub(crate) fn seal_attribute(
        &self,
        key: &ParticipantKey,
        guest: &TrackedParticipant,
    ) -> SealedAttribute {
        self.0.clients.get().sealer.seal(key, guest)
    }

    /// Takes in what the SFU tells: whoever comes is looked at.
    pub(crate) fn handle_webhook(&self, webhook: &WebhookEvent) {
        let WebhookEvent::Participant {
            change,
            key,
            sealed_attribute,
            ..
        } = webhook
        else {
            return;
        };
        match change {
            ConnectionChange::Joined => self.0.handle_joined(key, sealed_attribute.as_ref()),
            ConnectionChange::Left => self.0.lock_table().mark_left(key, Instant::now()),
            ConnectionChange::Aborted => {}
        }
    }

    /// Has somebody looked at who may have left the Matrix room. Gives how many places of theirs in its calls there are to look at.
    pub(crate) fn recheck(&self, guest: &TrackedParticipant) -> usize {
        let count = self.0.lock_table().recheck(guest, Instant::now());
        if count > 0 {
            self.0.work_available.notify_all();
        }
        count
    }

    /// How many there are.
    pub(crate) fn tracked_count(&self) -> u64 {
        self.0.lock_table().len() as u64
    }

    /// How much too late it is for those who are in calls, or come.
    pub(crate) fn lag(&self) -> Duration {
        self.0.lock_table().lag(Instant::now())
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guests({})", self.0.lock_table().len())
    }
}

impl MembershipInner {
    fn lock_table(&self) -> MutexGuard<'_, ParticipantTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn_worker(self: &Arc<Self>, name: &str, work: fn(&Self)) -> io::Result<()> {
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
    fn handle_joined(&self, key: &ParticipantKey, sealed: Option<&SealedAttribute>) {
        let came = || self.lock_table().mark_joined(key, Instant::now());
        let is_found = |sealed| {
            self.record_discovered(&self.clients.get(), key, sealed);
            came()
        };
        if came() || sealed.is_some_and(is_found) {
            self.work_available.notify_one();
        }
    }

    /// Takes in somebody who is in a call, if what they carry says who they are. Gives whether nobody here knew.
    fn record_discovered(
        &self,
        wires: &MembershipClients,
        key: &ParticipantKey,
        sealed: &SealedAttribute,
    ) -> bool {
        let Some(guest) = wires.sealer.open(key, sealed) else {
            return false;
        };
        let local = guest.user_id.server() == wires.homeserver.name();
        let mut table = self.lock_table();
        let is_new = !table.contains(key);
        let found = table.record_discovered(key.clone(), guest, local, Instant::now());
        drop(table);
        if let Err(error) = found {
            self.reporter.log_untracked(key, &error);
            return false;
        }
        self.work_available.notify_one();
        if is_new {
            metrics::count_participant_event("found");
        }
        is_new
    }

    fn run_checks(&self) {
        loop {
            let task = self.next_check();
            let verdict = self.check(&task);
            self.lock_table()
                .complete_check(task, verdict, Instant::now());
            thread::sleep(CHECK_PAUSE);
        }
    }

    /// Waits until it is time to look at somebody.
    fn next_check(&self) -> CheckTask {
        let mut table = self.lock_table();
        loop {
            let now = Instant::now();
            let (lag, guests) = (table.lag(now), table.len());
            let wait = match table.next_check(now) {
                NextCheck::Due(task) => {
                    drop(table);
                    // whoever was to wait for the next one is busy now
                    self.work_available.notify_one();
                    self.reporter.record_lag(lag, guests);
                    return task;
                }
                NextCheck::Wait(wait) => wait,
            };
            let woken = self.work_available.wait_timeout(table, wait);
            table = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn check(&self, task: &CheckTask) -> CheckResult {
        let wires = self.clients.get();
        let presence = task.ask_sfu.then(|| {
            let rooms = &wires.room_service;
            let presence = rooms.get_participant(&task.key);
            let trouble = presence.as_ref().err().map(ToString::to_string);
            self.reporter.record_presence_check(trouble);
            presence
        });
        let (shown, unsure) = match presence {
            None => (false, false),
            Some(Ok(ParticipantPresence::Present(_))) => (true, false),
            Some(Ok(ParticipantPresence::Absent)) => return CheckResult::Absent,
            Some(Err(_)) if task.present => (false, true),
            // as long as nobody is known to be there, nobody need leave
            Some(Err(_)) => return CheckResult::Unknown,
        };
        let TrackedParticipant {
            room_id: room,
            user_id: user,
        } = &task.participant;
        let joined = wires.homeserver.is_joined_uncached(room, user);
        let trouble = joined.as_ref().err().map(ToString::to_string);
        self.reporter.record_membership_check(trouble);
        match joined {
            Ok(true) if unsure => CheckResult::Unknown,
            Ok(true) => CheckResult::Allowed { shown },
            Ok(false) => self.remove(&wires.room_service, task, shown),
            // whoever was put out for good reason is so again
            Err(_) if task.removed => self.remove(&wires.room_service, task, shown),
            // and nobody for what is not known
            Err(_) => CheckResult::Unknown,
        }
    }

    fn remove(&self, rooms: &RoomServiceClient, task: &CheckTask, shown: bool) -> CheckResult {
        match rooms.remove_participant(&task.key) {
            Ok(()) => {
                self.reporter.log_removed(task);
                CheckResult::Removed { shown }
            }
            Err(error) => {
                self.reporter.log_removal_failed(task, &error.to_string());
                CheckResult::RemovalFailed
            }
        }
    }
}
