//! Stores that keep delegated leaves across restarts: in memory (not at all), in a file, or in a Redis that several replicas share.
//!
//! A new leave is stored before [`LeaveStore::put`] returns. Its later changes are written behind, about 100 ms later and many
//! together. A crash that loses the last of them costs a presence check and a call that the homeserver answers with 404, as it sends
//! a delayed event only once.

mod file;
mod redis;
mod write_buffer;

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;

use log::{error, info};
use serde::Deserialize;

pub use self::file::FileStore;
pub use self::redis::{RedisAddress, RedisStore};
use crate::livekit::id::ParticipantKey;
use crate::util::sync::lock;

/// Largest record in bytes; the record of a leave has less than 2 KiB.
pub const MAX_RECORD_BYTES: usize = 16 * 1024;
/// Invalid records kept for inspection.
const MAX_QUARANTINED: usize = 100;

/// Number that grows with each change of a leave's owner: the owner with the greatest one owns the leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub struct FencingToken(u64);

/// Whether this replica owns a leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// This replica owns the leave.
    Owned,
    /// The leave has ended, was replaced, or was taken by another replica.
    Lost,
}

impl Ownership {
    fn owned_if(owned: bool) -> Self {
        if owned { Self::Owned } else { Self::Lost }
    }
}

/// A leave found without an owner: its participant, the new token, and its record.
pub(crate) type AdoptedLeave = (ParticipantKey, FencingToken, String);

/// Why a store cannot be read or written.
#[derive(Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

pub(crate) type StoreResult<T> = Result<T, Error>;

/// Store of leave records. It logs its own problems, each once. The default methods are those of a store that keeps no records.
pub trait LeaveStore: Send + Sync + fmt::Debug {
    /// Stores a new leave in place of an earlier one of the same participant, which its owner loses. Waits for the disk or for Redis,
    /// 5 s at most; concurrent calls are stored together.
    ///
    /// # Errors
    /// The earlier leave stays. A new leave that is stored after all, later than this waits, comes back from [`Self::adopt`].
    fn put(&self, key: &ParticipantKey, record: &str) -> StoreResult<FencingToken>;

    /// Writes a changed record behind; never waits. Returns whether this replica owns the leave.
    ///
    /// # Errors
    /// The record is larger than [`MAX_RECORD_BYTES`].
    fn update(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
        record: &str,
    ) -> StoreResult<Ownership>;

    /// Removes an ended leave behind, if this replica owns it; never waits.
    fn remove(&self, key: &ParticipantKey, fence: FencingToken);

    /// Waits until all earlier changes are stored, 5 s at most.
    ///
    /// # Errors
    /// The changes are not stored yet.
    fn sync(&self) -> StoreResult<()> {
        Ok(())
    }

    /// Confirms right before a call to a homeserver that this replica owns the leave. Waits for Redis, 1 s at most.
    ///
    /// # Errors
    /// Ownership is unknown: the leave is not lost, but must not be acted on now.
    fn check_ownership(&self, key: &ParticipantKey, fence: FencingToken) -> StoreResult<Ownership>;

    /// Whether other replicas use this store, and can take a leave at any time.
    fn is_shared(&self) -> bool {
        false
    }

    /// Takes the leave from another replica, or one that was not adopted yet, for an event that arrived here. `None` if there is none.
    ///
    /// # Errors
    /// The store does not answer.
    fn claim(&self, _key: &ParticipantKey) -> StoreResult<Option<(FencingToken, String)>> {
        Ok(None)
    }

    /// Takes at most `max` leaves without a living owner: at the start all in the store, later those of dead replicas. Fewer than
    /// `max` means that there are no more for now.
    ///
    /// # Errors
    /// The store does not answer.
    fn adopt(&self, _max: usize) -> StoreResult<Vec<AdoptedLeave>> {
        Ok(Vec::new())
    }

    /// Removes an owned leave whose record is invalid, and keeps the record for inspection.
    fn quarantine(&self, key: &ParticipantKey, fence: FencingToken, reason: &str);

    /// Why the store does not work now, for readiness.
    fn problem(&self) -> Option<String> {
        None
    }

    /// Writes pending changes and gives up ownership, so that other replicas need not wait. No other call may follow.
    fn close(&self) {}
}

/// The problem that a store has now; logged when it changes.
#[derive(Debug, Default)]
struct StoreProblem(Option<String>);

impl StoreProblem {
    fn get(&self) -> Option<String> {
        self.0.clone()
    }

    fn set(&mut self, problem: Option<String>) {
        if self.0 == problem {
            return;
        }
        match &problem {
            Some(cause) => error!(cause; "leave store failed"),
            None => info!("leave store recovered"),
        }
        self.0 = problem;
    }
}

fn check_record_size(record: &str) -> StoreResult<()> {
    match record.len() {
        ..=MAX_RECORD_BYTES => Ok(()),
        size => Err(Error(format!("a record of {size} bytes is too large"))),
    }
}

/// Store without records, as the scheduler has all leaves in memory: it only tells which of two leaves is newer.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<MemoryStoreState>);

#[derive(Debug, Default)]
struct MemoryStoreState {
    last_fence: u64,
    fences: HashMap<ParticipantKey, FencingToken>,
}

impl LeaveStore for MemoryStore {
    fn put(&self, key: &ParticipantKey, record: &str) -> StoreResult<FencingToken> {
        check_record_size(record)?;
        let mut state = lock(&self.0);
        state.last_fence += 1;
        let fence = FencingToken(state.last_fence);
        state.fences.insert(key.clone(), fence);
        Ok(fence)
    }

    fn update(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
        record: &str,
    ) -> StoreResult<Ownership> {
        check_record_size(record)?;
        self.check_ownership(key, fence)
    }

    fn remove(&self, key: &ParticipantKey, fence: FencingToken) {
        let mut state = lock(&self.0);
        if state.fences.get(key) == Some(&fence) {
            state.fences.remove(key);
        }
    }

    fn check_ownership(&self, key: &ParticipantKey, fence: FencingToken) -> StoreResult<Ownership> {
        let owned = lock(&self.0).fences.get(key) == Some(&fence);
        Ok(Ownership::owned_if(owned))
    }

    fn quarantine(&self, key: &ParticipantKey, fence: FencingToken, _: &str) {
        self.remove(key, fence);
    }
}
