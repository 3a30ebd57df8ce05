//! No journal at all: leaves end with the process.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Error, Fence, Hold, Journal, Key, fits};

/// Keeps no records, as the thread that works the leaves has them in memory anyway; only which of two leaves is the newer one.
#[derive(Debug, Default)]
pub struct Memory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: u64,
    fences: HashMap<Key, Fence>,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal for Memory {
    fn put(&self, key: &Key, record: &str) -> Result<Fence, Error> {
        fits(record)?;
        let mut state = self.lock();
        state.last += 1;
        let fence = Fence(state.last);
        state.fences.insert(key.clone(), fence);
        Ok(fence)
    }

    fn update(&self, key: &Key, fence: Fence, record: &str) -> Result<Hold, Error> {
        fits(record)?;
        self.hold(key, fence)
    }

    fn remove(&self, key: &Key, fence: Fence) -> Result<Hold, Error> {
        let held = self.hold(key, fence)?;
        if held == Hold::Ours {
            self.lock().fences.remove(key);
        }
        Ok(held)
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }

    fn hold(&self, key: &Key, fence: Fence) -> Result<Hold, Error> {
        let ours = self.lock().fences.get(key) == Some(&fence);
        Ok(if ours { Hold::Ours } else { Hold::Lost })
    }

    fn take(&self, _: &Key) -> Result<Option<(Fence, String)>, Error> {
        Ok(None)
    }

    fn adopt(&self, _: usize) -> Result<Vec<(Key, Fence, String)>, Error> {
        Ok(Vec::new())
    }

    fn set_aside(&self, key: &Key, fence: Fence, _: &str) -> Result<Hold, Error> {
        self.remove(key, fence)
    }

    fn renew(&self) -> Result<(), Error> {
        Ok(())
    }

    fn trouble(&self) -> Option<String> {
        None
    }

    fn close(&self) {}
}
