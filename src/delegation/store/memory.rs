//! No journal at all: leaves end with the process.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Error, FencingToken, LeaveStore, Ownership, check_record_size};
use crate::livekit::id::ParticipantKey;

/// Keeps no records, as the thread that works the leaves has them in memory anyway; only which of two leaves is the newer one.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<MemoryStoreState>);

#[derive(Debug, Default)]
struct MemoryStoreState {
    last_fence: u64,
    fences: HashMap<ParticipantKey, FencingToken>,
}

impl MemoryStore {
    fn lock(&self) -> MutexGuard<'_, MemoryStoreState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LeaveStore for MemoryStore {
    fn put(&self, key: &ParticipantKey, record: &str) -> Result<FencingToken, Error> {
        check_record_size(record)?;
        let mut state = self.lock();
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
    ) -> Result<Ownership, Error> {
        check_record_size(record)?;
        self.check_ownership(key, fence)
    }

    fn remove(&self, key: &ParticipantKey, fence: FencingToken) -> Result<Ownership, Error> {
        let held = self.check_ownership(key, fence)?;
        if held == Ownership::Owned {
            self.lock().fences.remove(key);
        }
        Ok(held)
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }

    fn check_ownership(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
    ) -> Result<Ownership, Error> {
        let ours = self.lock().fences.get(key) == Some(&fence);
        Ok(if ours {
            Ownership::Owned
        } else {
            Ownership::Lost
        })
    }

    fn claim(&self, _: &ParticipantKey) -> Result<Option<(FencingToken, String)>, Error> {
        Ok(None)
    }

    fn adopt(&self, _: usize) -> Result<Vec<(ParticipantKey, FencingToken, String)>, Error> {
        Ok(Vec::new())
    }

    fn quarantine(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
        _: &str,
    ) -> Result<Ownership, Error> {
        self.remove(key, fence)
    }

    fn check_lease(&self) -> Result<(), Error> {
        Ok(())
    }

    fn problem(&self) -> Option<String> {
        None
    }

    fn close(&self) {}
}
