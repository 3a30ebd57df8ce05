//! Leaves in a Redis that several of us share: each leave has one keeper at a time, and another one soon after its keeper has died.
//!
//! Who keeps what is a matter between each of us and Redis; we do not talk to each other. A replica gives a sign of life every
//! second; without one for 5 s the others may take what it kept, and by its own clock it has stopped a second earlier. A leave that an
//! event reaches another replica for changes hands at once. So nobody acts on a leave without having asked Redis; what is then found
//! under a later fence is no longer theirs.

mod address;
mod connection;
mod orphans;
mod script;
mod shared;
mod worker;
mod write_behind;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::warn;
use redis::{Cmd, Value};
use rustls::ClientConfig;

use self::connection::{RedisCommandError, RedisReply, reply_text};
use self::script::{FencedOp, FencedOpReply, StoredLeave};
use self::shared::RedisStoreShared;
use self::worker::RedisWorker;
use super::{Error, FencingToken, LeaveStore, Ownership, check_record_size};
use crate::livekit::id::ParticipantKey;
use crate::net::tls::{CertificateVerification, RootCertificates, client_config};

pub use self::address::RedisAddress;

/// How often the whole hash is looked through though no replica is known to have died: for what a Redis that lost its latest
/// writes has left without a keeper.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// As [`SWEEP`], after a call that may have been carried out though it failed.
const SWEEP_RETRY_DELAY: Duration = Duration::from_secs(1);

/// A journal in Redis. Calls wait for a second at the longest if Redis is silent, and not at all once it is known to be gone.
pub struct RedisStore {
    shared: Arc<RedisStoreShared>,
    worker_thread: Mutex<Option<JoinHandle<()>>>,
}

impl RedisStore {
    /// Connects, which may take some seconds. This does not fail: what is amiss is logged, told by [`Journal::trouble`], and tried
    /// again every other second.
    pub fn open(address: RedisAddress, roots: &RootCertificates) -> Self {
        let tls: Arc<ClientConfig> = client_config(roots, CertificateVerification::On);
        let shared = Arc::new(RedisStoreShared::new(address.to_string()));
        let mut keeper = RedisWorker::new(address, tls, Arc::clone(&shared));
        keeper.tick(Instant::now());
        let thread = thread::Builder::new().name("journal".into());
        let thread = match thread.spawn(move || keeper.run()) {
            Ok(thread) => Some(thread),
            Err(reason) => {
                shared.set_problem(&format!("no thread for it: {reason}"));
                None
            }
        };
        Self {
            shared,
            worker_thread: Mutex::new(thread),
        }
    }

    fn execute(&self, command: &Cmd) -> Result<Value, Error> {
        self.shared
            .with_connection(|connection| connection.execute(command))
    }

    fn execute_pipeline(&self, commands: &[Cmd]) -> Result<Vec<RedisReply>, Error> {
        self.shared
            .with_connection(|connection| connection.execute_pipeline(commands))
    }

    /// A call that gives us a leave: it may be carried out even if it fails, and then the leave is found again soon.
    fn acquire<T>(
        &self,
        key: &ParticipantKey,
        call: impl FnOnce(&Arc<str>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let me = {
            let mut state = self.shared.lock();
            state.keys_in_flight.push(key.clone());
            state.replica_id.clone()
        };
        let outcome = call(&me);
        let mut state = self.shared.lock();
        state.clear_in_flight(key);
        if outcome.is_err() {
            state.next_sweep = Some(Instant::now() + SWEEP_RETRY_DELAY);
        }
        outcome
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis({})", self.shared.display_address)
    }
}

impl LeaveStore for RedisStore {
    fn put(&self, key: &ParticipantKey, record: &str) -> Result<FencingToken, Error> {
        check_record_size(record)?;
        self.acquire(key, |me| {
            let answer = self.execute(&script::put(key, me, record))?;
            let fence = reply_text(&answer).and_then(|fence| fence.parse().ok());
            let fence = FencingToken(fence.ok_or_else(|| Error("Redis gave no fence".into()))?);
            self.shared.insert_stored(me, key, fence, record);
            Ok(fence)
        })
    }

    fn update(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
        record: &str,
    ) -> Result<Ownership, Error> {
        check_record_size(record)?;
        Ok(self.shared.buffer_change(key, fence, Some(record)))
    }

    fn remove(&self, key: &ParticipantKey, fence: FencingToken) -> Result<Ownership, Error> {
        Ok(self.shared.buffer_change(key, fence, None))
    }

    fn sync(&self) -> Result<(), Error> {
        match self
            .shared
            .with_connection(|connection| self.shared.write_pending(connection))?
        {
            true => Ok(()),
            false => {
                self.shared.request_renewal();
                Err(Error("Redis has lost what it had".into()))
            }
        }
    }

    fn check_ownership(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
    ) -> Result<Ownership, Error> {
        let Some(me) = self.shared.owning_replica(key, fence)? else {
            return Ok(Ownership::Lost);
        };
        // if Redis is gone nobody knows: another of us may have taken it for a webhook, though our lease has not lapsed
        let answer = self.execute(&script::fenced_op(key, &me, fence, FencedOp::Check))?;
        match FencedOpReply::parse(&answer) {
            Some(FencedOpReply::Lost | FencedOpReply::Absent) => {
                self.shared.lock().buffer.discard(key, fence);
                Ok(Ownership::Lost)
            }
            Some(FencedOpReply::DataLost) => {
                self.shared.request_renewal();
                Err(Error("Redis has lost what it had".into()))
            }
            // our clock may have stood still meanwhile
            Some(FencedOpReply::Owned) => {
                let held = self.shared.owning_replica(key, fence)?.is_some();
                Ok(if held {
                    Ownership::Owned
                } else {
                    Ownership::Lost
                })
            }
            None => Err(Error(
                "Redis answered a question with something else".into(),
            )),
        }
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn claim(&self, key: &ParticipantKey) -> Result<Option<(FencingToken, String)>, Error> {
        {
            let state = self.shared.lock();
            if state.buffer.contains(key) || state.keys_in_flight.contains(key) {
                return Ok(None);
            }
        }
        self.acquire(key, |me| {
            let value = self.execute(&script::claim(key, me))?;
            let Some(kept) = reply_text(&value).and_then(|value| StoredLeave::parse(&value)) else {
                return Ok(None);
            };
            self.shared
                .insert_stored(me, key, FencingToken(kept.fence), &kept.record);
            Ok(Some((FencingToken(kept.fence), kept.record)))
        })
    }

    fn adopt(&self, most: usize) -> Result<Vec<(ParticipantKey, FencingToken, String)>, Error> {
        let now = Instant::now();
        let swept = {
            let mut state = self.shared.lock();
            let due = state.next_sweep.is_none_or(|sweep| now >= sweep);
            due.then(|| state.next_sweep.replace(now + SWEEP_INTERVAL))
        };
        let adopted = self.adopt_orphans(most, swept.is_some());
        if !matches!(adopted, Ok((_, true))) {
            self.shared.lock().next_sweep = None;
        }
        adopted.map(|(adopted, _)| adopted)
    }

    fn quarantine(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
        why: &str,
    ) -> Result<Ownership, Error> {
        let (me, record) = {
            let state = self.shared.lock();
            (state.replica_id.clone(), state.buffer.record(key, fence))
        };
        let Some(record) = record else {
            return Ok(Ownership::Lost);
        };
        warn!("a record of the journal is set aside: {why}");
        let value = script::encode_value(&me, fence, &record);
        self.execute(&script::quarantine(
            key.to_json().as_bytes(),
            value.as_bytes(),
        ))?;
        self.shared.lock().buffer.discard(key, fence);
        Ok(Ownership::Owned)
    }

    fn check_lease(&self) -> Result<(), Error> {
        let state = self.shared.lock();
        match state.is_leased(Instant::now()) {
            true => Ok(()),
            false => Err(Error("the lease in Redis has lapsed".into())),
        }
    }

    fn problem(&self) -> Option<String> {
        self.shared.lock().problem.clone()
    }

    fn close(&self) {
        self.shared.close();
        let thread = self.worker_thread.lock().map(|mut thread| thread.take());
        if let Ok(Some(thread)) = thread {
            // it has nothing to say
            let _ = thread.join();
        }
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl From<RedisCommandError> for Error {
    fn from(failure: RedisCommandError) -> Self {
        Self(format!("Redis: {failure}"))
    }
}
