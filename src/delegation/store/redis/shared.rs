//! What a replica keeps, as its callers and its thread see it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use log::{error, info};

use super::connection::{RedisCommandError, RedisConnection};
use crate::delegation::store::write_buffer::WriteBuffer;
use crate::delegation::store::{Error, FencingToken, Ownership};
use crate::livekit::id::ParticipantKey;
use crate::util::random;

/// What the thread and the callers share.
pub(super) struct RedisStoreShared {
    /// The address, as it may be shown.
    pub(super) display_address: String,
    state: Mutex<RedisStoreState>,
    pub(super) wake: Condvar,
    /// None while there is no connection that may be used. Whoever locks both locks this one first.
    connection: Mutex<Option<RedisConnection>>,
}

pub(super) struct RedisStoreState {
    /// Our id as a keeper; a new one whenever our lease has lapsed.
    pub(super) replica_id: Arc<str>,
    pub(super) buffer: WriteBuffer,
    /// When all leaves are to be looked through; at once if none.
    pub(super) next_sweep: Option<Instant>,
    pub(super) problem: Option<String>,
    /// Who we were, and what we kept, until Redis is known to have what it needs of that.
    pub(super) previous_lease: Option<(Arc<str>, WriteBuffer)>,
    /// Until when nobody else takes what is ours.
    pub(super) leased_until: Option<Instant>,
    pub(super) renewal_requested: bool,
    pub(super) closing: bool,
    /// Leaves that are on their way into Redis, or back: not yet in the ledger, but not forgotten either.
    pub(super) keys_in_flight: Vec<ParticipantKey>,
}

impl RedisStoreState {
    pub(super) fn clear_in_flight(&mut self, key: &ParticipantKey) {
        if let Some(at) = self.keys_in_flight.iter().position(|moving| moving == key) {
            self.keys_in_flight.swap_remove(at);
        }
    }

    /// Begins anew under another id if our lease has lapsed, and says whether it has.
    pub(super) fn expire_lease(&mut self, now: Instant) -> bool {
        let lapsed = self.leased_until.is_some_and(|until| now >= until);
        if lapsed {
            self.leased_until = None;
            let me = std::mem::replace(&mut self.replica_id, new_replica_id());
            let ledger = std::mem::take(&mut self.buffer);
            // it may lapse again before what it was about is settled; then nothing has been added
            if self.previous_lease.is_none() || !ledger.is_empty() {
                self.previous_lease = Some((me, ledger));
            }
            self.next_sweep = None;
        }
        lapsed
    }

    pub(super) fn is_leased(&self, now: Instant) -> bool {
        self.leased_until.is_some_and(|until| now < until)
    }
}

fn new_replica_id() -> Arc<str> {
    format!("{:016x}", u64::from_ne_bytes(random::bytes())).into()
}

impl RedisStoreShared {
    pub(super) fn new(name: String) -> Self {
        Self {
            display_address: name,
            state: Mutex::new(RedisStoreState {
                replica_id: new_replica_id(),
                buffer: WriteBuffer::default(),
                next_sweep: None,
                problem: None,
                previous_lease: None,
                leased_until: None,
                renewal_requested: false,
                closing: false,
                keys_in_flight: Vec::new(),
            }),
            wake: Condvar::new(),
            connection: Mutex::new(None),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, RedisStoreState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_connection(&self) -> MutexGuard<'_, Option<RedisConnection>> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that Redis can't be used, and says so when it is news.
    pub(super) fn set_problem(&self, why: &str) {
        let trouble = format!("Redis at {}: {why}", self.display_address);
        let mut state = self.lock();
        if state.problem.as_ref() != Some(&trouble) {
            error!(
                "the journal of delegated leaves can't be used, no new ones are taken: {trouble}"
            );
        }
        state.problem = Some(trouble);
        self.wake.notify_all();
    }

    pub(super) fn clear_problem(&self) {
        if self.lock().problem.take().is_some() {
            info!(
                "the journal of delegated leaves can be used again: Redis at {}",
                self.display_address
            );
        }
    }

    /// Keeps what Redis has stored for `me`, if that is still us: else it has no living keeper, and is adopted.
    pub(super) fn insert_stored(
        &self,
        me: &Arc<str>,
        key: &ParticipantKey,
        fence: FencingToken,
        record: &str,
    ) {
        let mut state = self.lock();
        // a later one may have been stored meanwhile
        if state.replica_id == *me && state.buffer.fence(key).is_none_or(|kept| kept < fence) {
            state.buffer.insert(key.clone(), fence, record.into());
        }
    }

    pub(super) fn buffer_change(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
        record: Option<&str>,
    ) -> Ownership {
        let mut state = self.lock();
        match state.buffer.update(key, fence, record) {
            Ownership::Owned => Ownership::Owned,
            Ownership::Lost => match &mut state.previous_lease {
                // written if nobody has taken it meanwhile
                Some((_, former)) => former.update(key, fence, record),
                None => Ownership::Lost,
            },
        }
    }

    /// Who we are, if the leave is ours by all that we know here; none if it is lost.
    pub(super) fn owning_replica(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
    ) -> Result<Option<Arc<str>>, Error> {
        let state = self.lock();
        let former = state.previous_lease.as_ref().map(|(_, former)| former);
        let lapsed = || Error("the lease in Redis has lapsed".into());
        match state.buffer.ownership(key, fence) {
            Ownership::Owned if state.is_leased(Instant::now()) => {
                Ok(Some(state.replica_id.clone()))
            }
            Ownership::Owned => Err(lapsed()),
            Ownership::Lost
                if former
                    .is_some_and(|former| former.ownership(key, fence) == Ownership::Owned) =>
            {
                Err(lapsed())
            }
            Ownership::Lost => Ok(None),
        }
    }

    /// A call to Redis, if there is a connection. One that breaks is given up, and the thread connects anew.
    pub(super) fn with_connection<T>(
        &self,
        work: impl FnOnce(&mut RedisConnection) -> Result<T, RedisCommandError>,
    ) -> Result<T, Error> {
        let mut link = self.lock_connection();
        let Some(connection) = link.as_mut() else {
            let trouble = self.lock().problem.clone();
            return Err(Error(trouble.unwrap_or_else(|| "not connected".into())));
        };
        let answer = work(connection);
        if let Err(RedisCommandError::ConnectionLost(why)) = &answer {
            *link = None;
            drop(link);
            self.set_problem(why);
        }
        Ok(answer?)
    }

    pub(super) fn request_renewal(&self) {
        self.lock().renewal_requested = true;
        self.wake.notify_all();
    }

    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_all();
    }
}
