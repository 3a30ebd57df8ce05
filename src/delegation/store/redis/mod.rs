//! Store in a Redis that several replicas share: each leave has one owner, and soon a new one after its owner has died.
//!
//! Ownership is between each replica and Redis; replicas do not talk to each other. A replica renews its lease every second. Without a
//! renewal for 5 s the others adopt its leaves; by its own clock the lease ends a second earlier. A replica that gets a webhook for a
//! leave takes it from its owner at once. So a replica checks its ownership in Redis before each call, and has lost a leave that is in
//! Redis under a later fencing token.

mod address;
mod connection;
mod script;
mod worker;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::warn;
use redis::{Cmd, Value};

pub use self::address::RedisAddress;
use self::connection::{RedisReply, reply_text};
use self::script::{FencedOp, FencedOpReply, StoredLeave};
use self::worker::{RedisStoreShared, RedisWorker, lease_expired};
use super::{
    AdoptedLeave, Error, FencingToken, LeaveStore, Ownership, StoreResult, check_record_size,
};
use crate::livekit::id::ParticipantKey;
use crate::net::tls::{CertificateVerification, RootCertificates, client_config};
use crate::util::sync::lock;

/// Time between two searches of all leaves for orphans, when no replica is known to have died: a Redis that lost its latest writes
/// can have leaves of unknown replicas.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Store in Redis. A call waits 1 s at most while Redis is silent, and fails at once while there is no connection.
pub struct RedisStore {
    shared: Arc<RedisStoreShared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl RedisStore {
    /// Connects to Redis, for some seconds at most. If that fails, it is tried again every other second.
    pub fn open(address: RedisAddress, roots: &RootCertificates) -> Self {
        let tls = client_config(roots, CertificateVerification::On);
        let shared = Arc::new(RedisStoreShared::new(address.to_string()));
        let thread = RedisWorker::start(address, tls, Arc::clone(&shared))
            .map_err(|error| shared.set_problem(&format!("cannot start a thread: {error}")));
        Self {
            shared,
            thread: Mutex::new(thread.ok()),
        }
    }

    fn execute(&self, command: &Cmd) -> StoreResult<Value> {
        self.shared
            .with_connection(|connection| connection.execute(command))
    }

    fn execute_pipeline(&self, commands: &[Cmd]) -> StoreResult<Vec<RedisReply>> {
        self.shared
            .with_connection(|connection| connection.execute_pipeline(commands))
    }

    /// All replicas that may own leaves, and whether they have a lease.
    fn replica_leases(&self) -> StoreResult<HashMap<String, bool>> {
        let replicas: Vec<String> = match self.execute(&script::list_replicas())? {
            Value::Array(ids) | Value::Set(ids) => ids.iter().filter_map(reply_text).collect(),
            _ => Vec::new(),
        };
        let commands: Vec<_> = replicas
            .iter()
            .map(|id| script::replica_exists(id))
            .collect();
        let exist = self.execute_pipeline(&commands)?.into_iter();
        let leased = exist.map(|reply| !matches!(reply, Ok(Value::Int(0))));
        Ok(replicas.into_iter().zip(leased).collect())
    }

    /// Adopts at most `max` orphans, if there may be any, and returns whether those were all.
    fn adopt_orphans(&self, max: usize, sweep: bool) -> StoreResult<(Vec<AdoptedLeave>, bool)> {
        let replicas = self.replica_leases()?;
        let dead = || replicas.iter().filter(|(_, leased)| !**leased);
        if !sweep && dead().next().is_none() {
            return Ok((Vec::new(), true));
        }
        let replica_id = self.shared.lock().replica_id.clone();
        let (orphans, all) = self.find_orphans(max, &replica_id, replicas.clone())?;
        let commands: Vec<_> = orphans
            .iter()
            .map(|(key, orphan)| script::adopt(key, orphan, &replica_id))
            .collect();
        let replies = self.execute_pipeline(&commands)?;
        let mut adopted = Vec::new();
        for ((key, _), reply) in orphans.into_iter().zip(replies) {
            // without a value, another replica was faster
            if let Some(stored) = reply.ok().as_ref().and_then(StoredLeave::from_reply)
                && self
                    .shared
                    .insert_stored(&replica_id, &key, stored.fence, &stored.record)
            {
                adopted.push((key, stored.fence, stored.record));
            }
        }
        if all {
            let commands: Vec<_> = dead().map(|(id, _)| script::remove_replica(id)).collect();
            self.execute_pipeline(&commands)?;
        }
        Ok((adopted, all))
    }

    /// Searches all leaves for at most `max` without a living owner, and returns whether those are all. Invalid values are quarantined.
    fn find_orphans(
        &self,
        max: usize,
        replica_id: &str,
        mut leased: HashMap<String, bool>,
    ) -> StoreResult<(Vec<(ParticipantKey, StoredLeave)>, bool)> {
        let (mut orphans, mut cursor) = (Vec::new(), String::from("0"));
        loop {
            let (next, page) = match self.execute(&script::scan_leaves(&cursor))? {
                Value::Array(reply) => parse_scan_reply(reply)?,
                _ => return Err(Error("unexpected reply of Redis to a scan".into())),
            };
            for (field, value) in page {
                let Some((key, stored)) = parse_stored_leave(&field, &value) else {
                    warn!(cause = "invalid key or value"; "leave record quarantined");
                    self.execute(&script::quarantine(&field, &value))?;
                    continue;
                };
                let is_owned = match leased.get(&stored.replica_id) {
                    _ if stored.replica_id == replica_id => {
                        !self.shared.lock().is_untracked(&key, stored.fence)
                    }
                    Some(is_leased) => *is_leased,
                    None => {
                        let exists = script::replica_exists(&stored.replica_id);
                        let is_leased = self.execute(&exists)? != Value::Int(0);
                        leased.insert(stored.replica_id.clone(), is_leased);
                        is_leased
                    }
                };
                if is_owned {
                    continue;
                }
                if orphans.len() >= max {
                    return Ok((orphans, false));
                }
                // a scan can return a field twice
                if !orphans.iter().any(|(other, _)| *other == key) {
                    orphans.push((key, stored));
                }
            }
            cursor = next;
            if cursor == "0" {
                return Ok((orphans, true));
            }
        }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisStore({})", self.shared.address)
    }
}

impl LeaveStore for RedisStore {
    fn put(&self, key: &ParticipantKey, record: &str) -> StoreResult<FencingToken> {
        check_record_size(record)?;
        self.shared.acquire(key, |replica_id| {
            let reply = self.execute(&script::put(key, replica_id, record))?;
            let fence = reply_text(&reply).and_then(|fence| fence.parse().ok());
            let fence = fence.ok_or_else(|| Error("unexpected reply of Redis to a put".into()))?;
            let fence = FencingToken(fence);
            self.shared.insert_stored(replica_id, key, fence, record);
            Ok(fence)
        })
    }

    fn update(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
        record: &str,
    ) -> StoreResult<Ownership> {
        check_record_size(record)?;
        Ok(self.shared.buffer_change(key, fence, Some(record)))
    }

    fn remove(&self, key: &ParticipantKey, fence: FencingToken) {
        self.shared.buffer_change(key, fence, None);
    }

    fn sync(&self) -> StoreResult<()> {
        let written = self
            .shared
            .with_connection(|connection| self.shared.write_pending(connection))?;
        if written {
            Ok(())
        } else {
            Err(self.data_lost())
        }
    }

    fn check_ownership(&self, key: &ParticipantKey, fence: FencingToken) -> StoreResult<Ownership> {
        let Some(replica_id) = self.shared.owning_replica(key, fence)? else {
            return Ok(Ownership::Lost);
        };
        // an unexpired lease does not suffice: another replica may have taken the leave for a webhook
        let reply = self.execute(&script::fenced_op(key, &replica_id, fence, FencedOp::Check))?;
        match FencedOpReply::parse(&reply) {
            // the process may have been suspended since the lease was checked
            Some(FencedOpReply::Owned) => Ok(Ownership::owned_if(
                self.shared.owning_replica(key, fence)?.is_some(),
            )),
            Some(FencedOpReply::Lost | FencedOpReply::Absent) => {
                self.shared.lock().buffer.discard(key, fence);
                Ok(Ownership::Lost)
            }
            Some(FencedOpReply::DataLost) => Err(self.data_lost()),
            None => Err(Error("unexpected reply of Redis to a check".into())),
        }
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn claim(&self, key: &ParticipantKey) -> StoreResult<Option<(FencingToken, String)>> {
        // the ended leave of this replica must not hide a new one of another replica
        if self.shared.lock().buffer.has_unwritten_removal(key) {
            self.sync()?;
        }
        if self.shared.lock().is_tracked(key) {
            return Ok(None);
        }
        self.shared.acquire(key, |replica_id| {
            let reply = self.execute(&script::claim(key, replica_id))?;
            let Some(stored) = StoredLeave::from_reply(&reply) else {
                return Ok(None);
            };
            self.shared
                .insert_stored(replica_id, key, stored.fence, &stored.record);
            Ok(Some((stored.fence, stored.record)))
        })
    }

    fn adopt(&self, max: usize) -> StoreResult<Vec<AdoptedLeave>> {
        let now = Instant::now();
        let sweep = {
            let mut state = self.shared.lock();
            if !state.is_leased(now) {
                return Err(lease_expired());
            }
            let due = state.next_sweep.is_none_or(|at| now >= at);
            if due {
                state.next_sweep = Some(now + SWEEP_INTERVAL);
            }
            due
        };
        let adopted = self.adopt_orphans(max, sweep);
        if !matches!(adopted, Ok((_, true))) {
            self.shared.lock().next_sweep = None;
        }
        adopted.map(|(adopted, _)| adopted)
    }

    fn quarantine(&self, key: &ParticipantKey, fence: FencingToken, reason: &str) {
        let (replica_id, record) = {
            let state = self.shared.lock();
            (state.replica_id.clone(), state.buffer.record(key, fence))
        };
        let Some(record) = record else {
            return;
        };
        warn!(room:% = key.room, identity:% = key.identity, cause = reason; "leave record quarantined");
        let (field, value) = (
            key.to_json(),
            script::encode_value(&replica_id, fence, &record),
        );
        match self.execute(&script::quarantine(field.as_bytes(), value.as_bytes())) {
            Ok(_) => self.shared.lock().buffer.discard(key, fence),
            Err(error) => warn!(cause:% = error; "invalid leave record not removed"),
        }
    }

    fn problem(&self) -> Option<String> {
        self.shared.lock().problem.get()
    }

    fn close(&self) {
        self.shared.close();
        let thread = lock(&self.thread).take();
        thread.map(JoinHandle::join);
    }
}

impl RedisStore {
    fn data_lost(&self) -> Error {
        self.shared.request_renewal();
        Error("Redis has lost its data".into())
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        self.close();
    }
}

type ScanPage = Vec<(Vec<u8>, Vec<u8>)>;

/// The next cursor, and fields with their values.
fn parse_scan_reply(reply: Vec<Value>) -> StoreResult<(String, ScanPage)> {
    let mut reply = reply.into_iter();
    let cursor = reply.next().as_ref().and_then(reply_text);
    let cursor = cursor.ok_or_else(|| Error("reply of Redis to a scan without cursor".into()))?;
    let Some(Value::Array(fields)) = reply.next() else {
        return Ok((cursor, Vec::new()));
    };
    let bytes = |value: &Value| match value {
        Value::BulkString(bytes) => bytes.clone(),
        _ => Vec::new(),
    };
    let pairs = fields.chunks_exact(2);
    let pairs = pairs.map(|pair| (bytes(&pair[0]), bytes(&pair[1])));
    Ok((cursor, pairs.collect()))
}

fn parse_stored_leave(field: &[u8], value: &[u8]) -> Option<(ParticipantKey, StoredLeave)> {
    let key = ParticipantKey::from_json(std::str::from_utf8(field).ok()?)?;
    let stored = StoredLeave::parse(std::str::from_utf8(value).ok()?)?;
    // the scripts know the one form of a name that this service writes
    (key.to_json().as_bytes() == field).then_some((key, stored))
}
