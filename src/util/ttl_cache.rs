//! What is remembered for a while: bounded in number and in time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Values that hold until a time of their own.
#[derive(Debug)]
pub(crate) struct TtlCache<K, V> {
    capacity: usize,
    entries: Mutex<HashMap<K, (V, Instant)>>,
}

impl<K: Hash + Eq + Clone, V: Clone> TtlCache<K, V> {
    /// Remembers at most `most` values; when there are more, those go first whose time ends first.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            capacity: most,
            entries: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, (V, Instant)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value, if it still holds at `now`.
    pub(crate) fn get(&self, key: &K, now: Instant) -> Option<V> {
        let known = self.lock();
        let (value, until) = known.get(key)?;
        (*until > now).then(|| value.clone())
    }

    /// Remembers a value `until` its time.
    pub(crate) fn insert(&self, key: K, value: V, until: Instant, now: Instant) {
        let mut known = self.lock();
        if known.len() >= self.capacity && !known.contains_key(&key) {
            known.retain(|_, (_, until)| *until > now);
            if known.len() >= self.capacity {
                let first = known.iter().min_by_key(|(_, (_, until))| *until);
                let first = first.map(|(key, _)| key.clone());
                first.and_then(|key| known.remove(&key));
            }
        }
        known.insert(key, (value, until));
    }

    /// Forgets a value.
    pub(crate) fn remove(&self, key: &K) {
        self.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn values_hold_for_their_time_and_are_few() {
        let memo = TtlCache::new(10);
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        memo.insert("a", 1, later, now);
        assert_eq!(
            (memo.get(&"a", now), memo.get(&"a", later)),
            (Some(1), None)
        );
        memo.remove(&"a");
        assert_eq!(memo.get(&"a", now), None);
        let memo = TtlCache::new(10);
        for key in 0..1000_u32 {
            memo.insert(key, key, later + Duration::from_secs(key.into()), now);
        }
        assert_eq!(memo.lock().len(), 10);
        assert_eq!((memo.get(&999, now), memo.get(&0, now)), (Some(999), None));
    }
}
