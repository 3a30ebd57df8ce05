//! The thread that keeps up what a replica keeps: connects, gives signs of life, writes what has changed.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use log::warn;
use redis::Value;
use rustls::ClientConfig;

use super::RedisAddress;
use super::connection::{RedisCommandError, RedisConnection};
use super::script::{self, LEASE_MS};
use super::shared::{RedisStoreShared, RedisStoreState};

/// How long we believe in our lease after we asked for it: less than Redis does, for clocks differ and calls take their time.
const LEASE_DURATION: Duration = Duration::from_millis(LEASE_MS - 1000);
/// How often we ask for it.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// How often the thread looks round; so long do changes wait for others.
const TICK_INTERVAL: Duration = Duration::from_millis(100);
/// How long a Redis that can't be reached is left alone: at first, and twice as long each time up to the second figure.
const RECONNECT_BACKOFF: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(2)];
/// The thread's own.
pub(super) struct RedisWorker {
    address: RedisAddress,
    tls: Arc<ClientConfig>,
    shared: Arc<RedisStoreShared>,
    /// Which run of Redis we spoke with last.
    last_run_id: Option<String>,
    next_renewal: Instant,
    retry: Option<(Instant, Duration)>,
}

impl RedisWorker {
    pub(super) fn new(
        address: RedisAddress,
        tls: Arc<ClientConfig>,
        shared: Arc<RedisStoreShared>,
    ) -> Self {
        Self {
            address,
            tls,
            shared,
            last_run_id: None,
            next_renewal: Instant::now(),
            retry: None,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            let state = self.shared.lock();
            let quiet = |state: &mut RedisStoreState| !state.closing && !state.renewal_requested;
            let waited = self
                .shared
                .wake
                .wait_timeout_while(state, TICK_INTERVAL, quiet);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
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

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Instant) {
        self.handle_expired_lease(now);
        let shared = Arc::clone(&self.shared);
        let mut link = shared.lock_connection();
        let outcome = match link.as_mut() {
            Some(connection) => self.maintain(connection, now),
            None if self.retry.is_some_and(|(at, _)| now < at) => return,
            None => {
                drop(link);
                let opened = RedisConnection::open(&self.address, &self.tls);
                link = shared.lock_connection();
                opened.and_then(|mut connection| {
                    self.init_connection(&mut connection)?;
                    *link = Some(connection);
                    Ok(())
                })
            }
        };
        match outcome {
            Ok(()) => {
                self.retry = None;
                drop(link);
                shared.clear_problem();
            }
            Err(failure) => {
                *link = None;
                drop(link);
                let wait = self.retry.map_or(RECONNECT_BACKOFF[0], |(_, wait)| {
                    (wait * 2).min(RECONNECT_BACKOFF[1])
                });
                self.retry = Some((Instant::now() + wait, wait));
                shared.set_problem(&failure.to_string());
            }
        }
    }

    /// When our lease has lapsed others may have taken what was ours: we begin anew, under another name.
    fn handle_expired_lease(&mut self, now: Instant) {
        if self.shared.lock().expire_lease(now) {
            warn!(
                "the lease in Redis has lapsed: other replicas may take over the leaves that were ours"
            );
            *self.shared.lock_connection() = None;
            self.retry = None;
        }
    }

    /// A new connection, before anybody else may use it.
    fn init_connection(
        &mut self,
        connection: &mut RedisConnection,
    ) -> Result<(), RedisCommandError> {
        let restarted = self.last_run_id.is_some() && self.last_run_id != connection.run_id;
        let unknown = connection.run_id.is_none();
        self.renew_lease(connection, restarted || unknown)?;
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

    /// Gives a sign of life. If Redis has forgotten the last one too early, or was restarted, it is given back what we know.
    fn renew_lease(
        &mut self,
        connection: &mut RedisConnection,
        restarted: bool,
    ) -> Result<(), RedisCommandError> {
        let asked = Instant::now();
        let (me, was_leased) = {
            let state = self.shared.lock();
            (state.replica_id.clone(), state.is_leased(asked))
        };
        let known = connection.execute(&script::renew_lease(&me))?;
        self.next_renewal = asked + RENEW_INTERVAL;
        let forgotten = was_leased && known == Value::Int(0);
        if forgotten || restarted {
            self.shared.restore_lost(connection)?;
        }
        self.shared.lock().leased_until = Some(asked + LEASE_DURATION);
        Ok(())
    }

    /// The last turn: nothing of ours is worked any more.
    fn release_lease(&mut self) {
        // twice, if Redis was restarted a moment ago
        for _ in 0..2 {
            self.retry = None;
            self.tick(Instant::now());
            if self.shared.lock_connection().is_some() {
                break;
            }
        }
        let mut link = self.shared.lock_connection();
        if let Some(connection) = link.as_mut() {
            let me = self.shared.lock().replica_id.clone();
            if let Err(failure) = connection.execute(&script::release_lease(&me)) {
                warn!(
                    "Redis at {} was not told that we end: {failure}",
                    self.shared.display_address
                );
            }
        }
        *link = None;
    }
}
