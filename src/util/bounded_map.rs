//! A map with a bound, for what requests from outside make the service remember.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Instant;

/// Map of at most `capacity` entries, each with a rank; if the map is full, a new key evicts the entry of the lowest rank.
///
/// With the time at which an entry ends as its rank, expired entries go first; with the time of the last use, it is an LRU map.
/// Insertion, removal and eviction take logarithmic time.
#[derive(Debug)]
pub(crate) struct BoundedMap<K, V, R = Instant> {
    capacity: usize,
    entries: HashMap<K, RankedValue<V, R>>,
    /// Keys by rank; among equal ranks the earlier one is first.
    order: BTreeMap<(R, u64), K>,
    next_sequence: u64,
}

#[derive(Debug)]
struct RankedValue<V, R> {
    value: V,
    position: (R, u64),
}

impl<K: Hash + Eq + Clone, V, R: Ord + Copy> BoundedMap<K, V, R> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            entries: HashMap::new(),
            order: BTreeMap::new(),
            next_sequence: 0,
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        Some(&self.entries.get(key)?.value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        Some(&mut self.entries.get_mut(key)?.value)
    }

    pub(crate) fn rank(&self, key: &K) -> Option<R> {
        Some(self.entries.get(key)?.position.0)
    }

    /// Inserts an entry, or replaces the key's value and rank. Returns the entry that a new key has evicted.
    pub(crate) fn insert(&mut self, key: K, value: V, rank: R) -> Option<(K, V)> {
        let mut evicted = None;
        if let Some(entry) = self.entries.get(&key) {
            self.order.remove(&entry.position);
        } else if self.entries.len() >= self.capacity {
            evicted = self.pop_lowest();
        }
        let position = self.next_position(rank);
        self.order.insert(position, key.clone());
        self.entries.insert(key, RankedValue { value, position });
        evicted
    }

    /// Changes the rank of a key that is in the map.
    pub(crate) fn set_rank(&mut self, key: &K, rank: R) {
        let position = self.next_position(rank);
        if let Some(entry) = self.entries.get_mut(key)
            && let Some(key) = self.order.remove(&entry.position)
        {
            entry.position = position;
            self.order.insert(position, key);
        }
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.remove(key)?;
        self.order.remove(&entry.position);
        Some(entry.value)
    }

    /// The lowest rank in the map.
    pub(crate) fn lowest_rank(&self) -> Option<R> {
        Some(self.order.first_key_value()?.0.0)
    }

    /// Removes the entry of the lowest rank, the earliest one among equals.
    pub(crate) fn pop_lowest(&mut self) -> Option<(K, V)> {
        let (_, key) = self.order.pop_first()?;
        let entry = self.entries.remove(&key)?;
        Some((key, entry.value))
    }

    fn next_position(&mut self, rank: R) -> (R, u64) {
        self.next_sequence += 1;
        (rank, self.next_sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_evicts_the_lowest_rank() {
        let mut map = BoundedMap::new(3);
        for (key, rank) in [("a", 2), ("b", 1), ("c", 3)] {
            assert_eq!(map.insert(key, key, rank), None);
        }
        assert_eq!(map.insert("d", "d", 0), Some(("b", "b")));
        assert_eq!(map.lowest_rank(), Some(0));
        // a key that is in the map evicts nothing
        assert_eq!(map.insert("d", "D", 5), None);
        map.set_rank(&"a", 4);
        map.set_rank(&"missing", 9);
        assert_eq!(map.insert("e", "e", 6), Some(("c", "c")));
        assert_eq!((map.get(&"d"), map.rank(&"a")), (Some(&"D"), Some(4)));
        assert_eq!(map.remove(&"d"), Some("D"));
        assert_eq!((map.len(), map.get(&"d")), (2, None));
        *map.get_mut(&"a").unwrap() = "A";
        assert_eq!(map.pop_lowest(), Some(("a", "A")));
    }

    #[test]
    fn among_equal_ranks_the_earliest_entry_is_evicted() {
        let mut map = BoundedMap::new(10);
        for key in 0..1000 {
            map.insert(key, (), 0);
        }
        assert_eq!(map.len(), 10);
        assert_eq!(map.order.len(), 10);
        assert!((990..1000).all(|key| map.get(&key).is_some()));
    }
}
