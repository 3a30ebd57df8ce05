//! State of a replica, and the thread that keeps it: connects to Redis, renews the lease, and writes changes behind.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::warn;
use redis::{Cmd, Value};
use rustls::ClientConfig;

use super::RedisAddress;
use super::connection::{RedisCommandError, RedisConnection};
use super::script::{self, FencedOp, FencedOpReply, LEASE_MS};
use crate::delegation::store::write_buffer::{BufferedChange, WriteBuffer};
use crate::delegation::store::{Error, FencingToken, Ownership, StoreProblem, StoreResult};
use crate::livekit::id::ParticipantKey;
use crate::util::backoff::Backoff;
use crate::util::random;
use crate::util::sync::{lock, spawn, wait_timeout_while};
use crate::util::text::hex;

/// How long this replica relies on its lease after it asked for it: shorter than in Redis, for commands take time and clocks differ.
const LEASE_DURATION: Duration = Duration::from_millis(LEASE_MS - 1000);
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// How often the thread looks for work; changes wait this long to be written together.
const TICK_INTERVAL: Duration = Duration::from_millis(100);
/// Pause before the next attempt to connect.
const RECONNECT_BACKOFF: Backoff =
    Backoff::doubling(Duration::from_millis(250), Duration::from_secs(2));
/// Delay of a search for orphans after a failed call that Redis may have carried out.
const SWEEP_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Commands sent together.
const PIPELINE_SIZE: usize = 256;

/// State shared by the store's callers and its thread.
pub(super) struct RedisStoreShared {
    /// Redis' address without its password.
    pub(super) address: String,
    state: Mutex<RedisStoreState>,
    wake: Condvar,
    /// `None` while there is no usable connection. Where both locks are taken, this one comes first.
    connection: Mutex<Option<RedisConnection>>,
}

#[derive(Default)]
pub(super) struct RedisStoreState {
    /// This replica's name in Redis; a new one after each expired lease.
    pub(super) replica_id: Arc<str>,
    pub(super) buffer: WriteBuffer,
    /// When all leaves are searched for orphans; at once if `None`.
    pub(super) next_sweep: Option<Instant>,
    pub(super) problem: StoreProblem,
    /// Replica id and leaves of the last expired lease, until their changes are written.
    previous_lease: Option<(Arc<str>, WriteBuffer)>,
    /// Until when no other replica adopts this one's leaves.
    leased_until: Option<Instant>,
    renewal_requested: bool,
    closing: bool,
    /// Leaves being put or claimed, which are not in the buffer yet but are no orphans.
    keys_in_flight: Vec<ParticipantKey>,
}

impl RedisStoreState {
    pub(super) fn is_leased(&self, now: Instant) -> bool {
        self.leased_until.is_some_and(|until| now < until)
    }

    /// Whether the participant's leave is owned, or being put or claimed.
    pub(super) fn is_tracked(&self, key: &ParticipantKey) -> bool {
        self.buffer.contains(key) || self.keys_in_flight.contains(key)
    }

    /// Whether this replica owns the leave in Redis but not here: it was stored after `put` gave up.
    pub(super) fn is_untracked(&self, key: &ParticipantKey, fence: FencingToken) -> bool {
        self.buffer.fence(key) != Some(fence) && !self.keys_in_flight.contains(key)
    }

    /// Continues under a new replica id if the lease has expired, and returns whether it has.
    fn expire_lease(&mut self, now: Instant) -> bool {
        let expired = self.leased_until.is_some_and(|until| now >= until);
        if expired {
            self.leased_until = None;
            let replica_id = std::mem::replace(&mut self.replica_id, new_replica_id());
            let buffer = std::mem::take(&mut self.buffer);
            // a lease can expire before the changes of the one before are written; no leave was added meanwhile
            if self.previous_lease.is_none() || !buffer.is_empty() {
                self.previous_lease = Some((replica_id, buffer));
            }
            self.next_sweep = None;
        }
        expired
    }

    /// Replica id and buffer of the current or the previous lease.
    fn lease(&mut self, previous: bool) -> Option<(&Arc<str>, &mut WriteBuffer)> {
        match (&mut self.previous_lease, previous) {
            (Some((replica_id, buffer)), true) => Some((replica_id, buffer)),
            (None, true) => None,
            (_, false) => Some((&self.replica_id, &mut self.buffer)),
        }
    }
}

fn new_replica_id() -> Arc<str> {
    hex(&random::bytes::<8>()).into()
}

impl RedisStoreShared {
    pub(super) fn new(address: String) -> Self {
        Self {
            address,
            state: Mutex::new(RedisStoreState {
                replica_id: new_replica_id(),
                ..RedisStoreState::default()
            }),
            wake: Condvar::new(),
            connection: Mutex::new(None),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, RedisStoreState> {
        lock(&self.state)
    }

    fn lock_connection(&self) -> MutexGuard<'_, Option<RedisConnection>> {
        lock(&self.connection)
    }

    pub(super) fn set_problem(&self, cause: &str) {
        let problem = format!("Redis at {}: {cause}", self.address);
        self.lock().problem.set(Some(problem));
        self.wake.notify_all();
    }

    /// Runs `call`, which puts or claims a leave under the current replica id. If it fails, Redis may have stored the leave all the same,
    /// so that a search for orphans follows soon.
    pub(super) fn acquire<T>(
        &self,
        key: &ParticipantKey,
        call: impl FnOnce(&Arc<str>) -> StoreResult<T>,
    ) -> StoreResult<T> {
        let replica_id = {
            let mut state = self.lock();
            state.keys_in_flight.push(key.clone());
            state.replica_id.clone()
        };
        let result = call(&replica_id);
        let mut state = self.lock();
        let mut in_flight = state.keys_in_flight.iter();
        if let Some(index) = in_flight.position(|other| other == key) {
            state.keys_in_flight.swap_remove(index);
        }
        if result.is_err() {
            state.next_sweep = Some(Instant::now() + SWEEP_RETRY_DELAY);
        }
        result
    }

    /// Adds a leave that Redis has stored for `replica_id`, and returns whether it is owned: not if a later one is, nor if the lease has
    /// expired meanwhile, in which case the leave is adopted later.
    pub(super) fn insert_stored(
        &self,
        replica_id: &Arc<str>,
        key: &ParticipantKey,
        fence: FencingToken,
        record: &str,
    ) -> bool {
        let mut state = self.lock();
        let is_newest = state.buffer.fence(key).is_none_or(|other| other < fence);
        let owned = state.replica_id == *replica_id && is_newest;
        if owned {
            state.buffer.insert(key.clone(), fence, record.into());
        }
        owned
    }

    pub(super) fn buffer_change(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
        record: Option<&str>,
    ) -> Ownership {
        let mut state = self.lock();
        match (
            state.buffer.update(key, fence, record),
            &mut state.previous_lease,
        ) {
            // written if no other replica has adopted the leave
            (Ownership::Lost, Some((_, buffer))) => buffer.update(key, fence, record),
            (ownership, _) => ownership,
        }
    }

    /// The replica id under which the leave is owned, as far as this replica knows; `None` if it is lost.
    pub(super) fn owning_replica(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
    ) -> StoreResult<Option<Arc<str>>> {
        let state = self.lock();
        let owned = |buffer: &WriteBuffer| buffer.ownership(key, fence) == Ownership::Owned;
        if owned(&state.buffer) && state.is_leased(Instant::now()) {
            return Ok(Some(state.replica_id.clone()));
        }
        let previous = state.previous_lease.as_ref();
        if owned(&state.buffer) || previous.is_some_and(|(_, buffer)| owned(buffer)) {
            return Err(lease_expired());
        }
        Ok(None)
    }

    /// Uses the connection, if there is one. A connection that breaks is dropped, and the thread opens a new one.
    pub(super) fn with_connection<T>(
        &self,
        work: impl FnOnce(&mut RedisConnection) -> Result<T, RedisCommandError>,
    ) -> StoreResult<T> {
        let mut connection = self.lock_connection();
        let Some(open) = connection.as_mut() else {
            let problem = self.lock().problem.get();
            return Err(Error(problem.unwrap_or_else(|| "not connected".into())));
        };
        let result = work(open);
        if let Err(RedisCommandError::ConnectionLost(cause)) = &result {
            *connection = None;
            drop(connection);
            self.set_problem(cause);
        }
        Ok(result?)
    }

    pub(super) fn request_renewal(&self) {
        self.lock().renewal_requested = true;
        self.wake.notify_all();
    }

    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_all();
    }

    /// Writes pending changes, first those of the previous lease. Returns `false` if Redis has lost its data, which is restored with
    /// the next renewal of the lease.
    pub(super) fn write_pending(
        &self,
        connection: &mut RedisConnection,
    ) -> Result<bool, RedisCommandError> {
        for previous in [true, false] {
            loop {
                let pending = |buffer: &WriteBuffer| buffer.pending_changes(PIPELINE_SIZE);
                let (replica_id, changes) = self.select_changes(previous, pending);
                if changes.is_empty() {
                    break;
                }
                let commands = changes.iter().map(|change| {
                    let record = change.record.as_deref();
                    let op = record.map_or(FencedOp::Delete, FencedOp::Set);
                    script::fenced_op(&change.key, &replica_id, change.fence, op)
                });
                if !self.execute_changes(connection, previous, &changes, commands.collect())? {
                    return Ok(false);
                }
            }
        }
        self.lock().previous_lease = None;
        Ok(true)
    }

    /// Writes all leaves again, as Redis may have lost them.
    fn restore_lost(&self, connection: &mut RedisConnection) -> Result<(), RedisCommandError> {
        for previous in [true, false] {
            let (replica_id, mut changes) = self.select_changes(previous, WriteBuffer::all_changes);
            changes.retain(|change| change.record.is_some());
            if !changes.is_empty() {
                let cause = "Redis may have lost leaves";
                warn!(count = changes.len(), cause; "rewriting leaves to Redis");
            }
            for part in changes.chunks(PIPELINE_SIZE) {
                let commands = part.iter().map(|change| {
                    let record = change.record.as_deref().unwrap_or_default();
                    script::restore(&change.key, &replica_id, change.fence, record)
                });
                self.execute_changes(connection, previous, part, commands.collect())?;
            }
        }
        Ok(())
    }

    fn select_changes(
        &self,
        previous: bool,
        select: impl FnOnce(&WriteBuffer) -> Vec<BufferedChange>,
    ) -> (Arc<str>, Vec<BufferedChange>) {
        let mut state = self.lock();
        let lease = state.lease(previous);
        lease.map_or_else(
            || ("".into(), Vec::new()),
            |(replica_id, buffer)| (replica_id.clone(), select(buffer)),
        )
    }

    /// Returns `false` if Redis has lost its data, and requests a renewal of the lease, which restores them.
    fn execute_changes(
        &self,
        connection: &mut RedisConnection,
        previous: bool,
        changes: &[BufferedChange],
        commands: Vec<Cmd>,
    ) -> Result<bool, RedisCommandError> {
        let replies = connection.execute_pipeline(&commands)?;
        let mut state = self.lock();
        let Some((_, buffer)) = state.lease(previous) else {
            return Ok(true);
        };
        let mut complete = true;
        for (change, reply) in changes.iter().zip(replies) {
            match FencedOpReply::parse(&reply?) {
                Some(FencedOpReply::Lost) => buffer.discard(&change.key, change.fence),
                Some(FencedOpReply::Absent) if change.record.is_some() => {
                    buffer.discard(&change.key, change.fence);
                }
                Some(FencedOpReply::DataLost) if change.record.is_some() => complete = false,
                Some(_) => buffer.mark_written(change),
                None => {
                    return Err(RedisCommandError::Rejected("unexpected reply".into()));
                }
            }
        }
        state.renewal_requested |= !complete;
        Ok(complete)
    }
}

pub(super) fn lease_expired() -> Error {
    Error("the lease in Redis has expired".into())
}

/// State of the thread.
pub(super) struct RedisWorker {
    address: RedisAddress,
    tls: Arc<ClientConfig>,
    shared: Arc<RedisStoreShared>,
    /// Run id of the Redis process of the last connection.
    last_run_id: Option<String>,
    next_renewal: Instant,
    connect_failures: u32,
    next_connect: Option<Instant>,
}

impl RedisWorker {
    /// Tries to connect, and starts the thread.
    pub(super) fn start(
        address: RedisAddress,
        tls: Arc<ClientConfig>,
        shared: Arc<RedisStoreShared>,
    ) -> io::Result<JoinHandle<()>> {
        let mut worker = Self {
            address,
            tls,
            shared,
            last_run_id: None,
            next_renewal: Instant::now(),
            connect_failures: 0,
            next_connect: None,
        };
        worker.tick(Instant::now());
        spawn("leave-store", move || worker.run())
    }

    fn run(mut self) {
        loop {
            let state = self.shared.lock();
            let mut state = wait_timeout_while(&self.shared.wake, state, TICK_INTERVAL, |state| {
                !state.closing && !state.renewal_requested
            });
            if state.closing {
                drop(state);
                return self.release_lease();
            }
            if std::mem::take(&mut state.renewal_requested) {
                self.next_renewal = Instant::now();
            }
            drop(state);
            self.tick(Instant::now());
        }
    }

    /// Renews the lease, writes changes and reconnects if due.
    fn tick(&mut self, now: Instant) {
        self.handle_expired_lease(now);
        let shared = Arc::clone(&self.shared);
        let mut connection = shared.lock_connection();
        let result = match connection.as_mut() {
            Some(open) => self.maintain(open, now),
            None if self.next_connect.is_some_and(|at| now < at) => return,
            None => {
                // callers need not wait for the new connection
                drop(connection);
                let opened = RedisConnection::open(&self.address, &self.tls);
                connection = shared.lock_connection();
                opened.and_then(|mut opened| {
                    self.init_connection(&mut opened)?;
                    *connection = Some(opened);
                    Ok(())
                })
            }
        };
        match result {
            Ok(()) => {
                self.connect_at_once();
                drop(connection);
                shared.lock().problem.set(None);
            }
            Err(error) => {
                *connection = None;
                drop(connection);
                self.connect_failures = self.connect_failures.saturating_add(1);
                let pause = RECONNECT_BACKOFF.delay(self.connect_failures);
                self.next_connect = Some(Instant::now() + pause);
                shared.set_problem(&error.to_string());
            }
        }
    }

    fn connect_at_once(&mut self) {
        self.connect_failures = 0;
        self.next_connect = None;
    }

    fn handle_expired_lease(&mut self, now: Instant) {
        if self.shared.lock().expire_lease(now) {
            let cause = "no renewal in time: other replicas may adopt the leaves of this one";
            warn!(cause; "Redis lease expired");
            *self.shared.lock_connection() = None;
            self.connect_at_once();
        }
    }

    /// Prepares a new connection before other threads use it.
    fn init_connection(
        &mut self,
        connection: &mut RedisConnection,
    ) -> Result<(), RedisCommandError> {
        let restarted = self.last_run_id.is_some() && self.last_run_id != connection.run_id;
        self.renew_lease(connection, restarted || connection.run_id.is_none())?;
        self.last_run_id.clone_from(&connection.run_id);
        self.shared.write_pending(connection).map(drop)
    }

    fn maintain(
        &mut self,
        connection: &mut RedisConnection,
        now: Instant,
    ) -> Result<(), RedisCommandError> {
        if now >= self.next_renewal {
            self.renew_lease(connection, false)?;
        }
        self.shared.write_pending(connection).map(drop)
    }

    /// Renews the lease. If Redis may have been restarted, or has dropped the lease too early, all leaves are written again.
    fn renew_lease(
        &mut self,
        connection: &mut RedisConnection,
        restarted: bool,
    ) -> Result<(), RedisCommandError> {
        let asked_at = Instant::now();
        let (replica_id, was_leased) = {
            let state = self.shared.lock();
            (state.replica_id.clone(), state.is_leased(asked_at))
        };
        let existed = connection.execute(&script::renew_lease(&replica_id))?;
        self.next_renewal = asked_at + RENEW_INTERVAL;
        if restarted || (was_leased && existed == Value::Int(0)) {
            self.shared.restore_lost(connection)?;
        }
        self.shared.lock().leased_until = Some(asked_at + LEASE_DURATION);
        Ok(())
    }

    /// Writes pending changes and releases the lease, as the store is closing.
    fn release_lease(&mut self) {
        // the first attempt fails if Redis was restarted a moment ago
        for _ in 0..2 {
            self.connect_at_once();
            self.tick(Instant::now());
            if self.shared.lock_connection().is_some() {
                break;
            }
        }
        if let Some(mut connection) = self.shared.lock_connection().take() {
            let replica_id = self.shared.lock().replica_id.clone();
            if let Err(error) = connection.execute(&script::release_lease(&replica_id)) {
                warn!(redis = self.shared.address, cause:% = error; "lease in Redis not released");
            }
        }
    }
}
