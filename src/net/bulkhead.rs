//! Places for work that waits for others' servers, so that no server, slow or hostile, takes them all.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Calls that may be under way to one /24 or /64: a stranger may have many names, but not many networks.
pub const PER_NEIGHBOURHOOD: usize = 8;
/// As [`PER_NEIGHBOURHOOD`], for a call to a server that has answered lately.
pub const PER_KNOWN_NEIGHBOURHOOD: usize = 16;
/// Calls that may be under way in the name of one stranger: a server that never answers holds no more than these.
pub const PER_STRANGER: usize = 4;
/// As [`PER_STRANGER`], of a server that has answered lately: a meeting's members arrive together.
pub const PER_KNOWN_STRANGER: usize = 16;

/// What is taken without a lock's poison: the state is a count, right after every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number of places for each key. Whoever finds none is told at once; nobody waits.
#[derive(Debug)]
pub struct PerKey<K>(Mutex<HashMap<K, usize>>);

impl<K: Hash + Eq + Clone> PerKey<K> {
    /// All places are free. Memory is bounded by the places that are taken.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::default()))
    }

    /// Takes one of `most` places, until it is dropped.
    pub fn enter(self: &Arc<Self>, key: K, most: usize) -> Option<KeyPlace<K>> {
        let mut taken = lock(&self.0);
        let count = taken.entry(key.clone()).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(KeyPlace {
            of: self.clone(),
            key,
        })
    }
}

/// A place of [`PerKey`].
#[derive(Debug)]
pub struct KeyPlace<K: Hash + Eq> {
    of: Arc<PerKey<K>>,
    key: K,
}

impl<K: Hash + Eq> Drop for KeyPlace<K> {
    fn drop(&mut self) {
        let mut taken = lock(&self.of.0);
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

/// How many workers may wait for others' servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// For anybody.
    pub common: usize,
    /// For servers that the administrator listed.
    pub reserved: usize,
}

impl Places {
    /// Of 56 workers that may leave the house, 40 may wait for strangers, and 16 for nobody but listed homeservers.
    ///
    /// Each worker takes one place, so a caller whose homeserver is listed always finds one.
    pub fn of(outbound: usize) -> Self {
        let reserved = (outbound * 2 / 7).max(1);
        Self {
            common: outbound.saturating_sub(reserved).max(1),
            reserved,
        }
    }
}

/// Which places were all taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// All that the caller may have: the service is busy.
    Service,
    /// Those of DNS look-ups: names are slow to be found.
    LookUps,
    /// Those of the one server name: it is slow.
    Name,
    /// Those of the network that the server is in.
    Neighbourhood,
    /// None; but the name is asked for too often.
    Rate,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "every outbound place is taken",
            Self::LookUps => "too many DNS look-ups are under way",
            Self::Name => "every outbound place of this server name is taken",
            Self::Neighbourhood => "every outbound place of this server's network is taken",
            Self::Rate => "this server name is asked for too often",
        })
    }
}

impl std::error::Error for Full {}

/// The outbound places of the service.
#[derive(Debug)]
pub struct Bulkhead<K> {
    free: Arc<Mutex<Places>>,
    names: Arc<PerKey<K>>,
}

impl<K: Hash + Eq + Clone> Bulkhead<K> {
    /// A bulkhead with all places free.
    pub fn new(places: Places) -> Self {
        Self {
            free: Arc::new(Mutex::new(places)),
            names: PerKey::new(),
        }
    }

    /// Takes a place for a call in the name of a stranger, one of `most` for that name.
    pub fn enter_stranger(&self, name: K, most: usize) -> Result<Place<K>, Full> {
        let name = self.names.enter(name, most).ok_or(Full::Name)?;
        self.enter_common(Some(name))
    }

    /// Takes a place that anybody may have, for a call that is in nobody's name.
    pub fn enter_anybody(&self) -> Result<Place<K>, Full> {
        self.enter_common(None)
    }

    fn enter_common(&self, name: Option<KeyPlace<K>>) -> Result<Place<K>, Full> {
        let mut free = lock(&self.free);
        free.common = free.common.checked_sub(1).ok_or(Full::Service)?;
        Ok(Place {
            free: self.free.clone(),
            reserved: false,
            _name: name,
        })
    }

    /// Takes a place for a call to a listed server: a reserved one if there is one left, else a common one.
    pub fn enter_listed(&self) -> Result<Place<K>, Full> {
        let mut free = lock(&self.free);
        let reserved = free.reserved > 0;
        let pool = if reserved {
            &mut free.reserved
        } else {
            &mut free.common
        };
        *pool = pool.checked_sub(1).ok_or(Full::Service)?;
        Ok(Place {
            free: self.free.clone(),
            reserved,
            _name: None,
        })
    }
}

/// A place of [`Bulkhead`], free again once dropped.
#[derive(Debug)]
pub struct Place<K: Hash + Eq> {
    free: Arc<Mutex<Places>>,
    reserved: bool,
    _name: Option<KeyPlace<K>>,
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut free = lock(&self.free);
        *if self.reserved {
            &mut free.reserved
        } else {
            &mut free.common
        } += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_never_take_the_reserved_places() {
        let bulkhead = Bulkhead::new(Places {
            common: 3,
            reserved: 2,
        });
        let strangers: Vec<_> = (0..3)
            .map(|name| bulkhead.enter_stranger(name, PER_STRANGER).unwrap())
            .collect();
        assert_eq!(
            bulkhead.enter_stranger(9, PER_STRANGER).unwrap_err(),
            Full::Service
        );
        let listed: Vec<_> = (0..2).map(|_| bulkhead.enter_listed().unwrap()).collect();
        assert_eq!(bulkhead.enter_listed().unwrap_err(), Full::Service);
        drop(strangers);
        let more: Vec<_> = (0..3).map(|_| bulkhead.enter_listed().unwrap()).collect();
        assert_eq!(
            bulkhead.enter_stranger(1, PER_STRANGER).unwrap_err(),
            Full::Service
        );
        drop((listed, more));
        assert_eq!(
            *lock(&bulkhead.free),
            Places {
                common: 3,
                reserved: 2
            }
        );
    }

    #[test]
    fn one_name_takes_only_its_share_and_leaves_no_trace() {
        let bulkhead = Bulkhead::new(Places::of(56));
        let taken: Vec<_> = (0..PER_STRANGER)
            .map(|_| bulkhead.enter_stranger("slow", PER_STRANGER).unwrap())
            .collect();
        assert_eq!(
            bulkhead.enter_stranger("slow", PER_STRANGER).unwrap_err(),
            Full::Name
        );
        let other = bulkhead.enter_stranger("other", PER_STRANGER).unwrap();
        drop((taken, other));
        assert!(lock(&bulkhead.names.0).is_empty());
        assert_eq!(
            *lock(&bulkhead.free),
            Places {
                common: 40,
                reserved: 16
            }
        );
    }

    #[test]
    fn a_full_service_does_not_count_against_the_name() {
        let bulkhead = Bulkhead::new(Places {
            common: 0,
            reserved: 0,
        });
        assert_eq!(
            bulkhead.enter_stranger("a", PER_STRANGER).unwrap_err(),
            Full::Service
        );
        assert!(lock(&bulkhead.names.0).is_empty());
    }
}
