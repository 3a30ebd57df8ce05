//! Places for work that waits for others' servers, so that no server, slow or hostile, takes them all.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Calls that may be under way to one /24 or /64: a stranger may have many names, but not many networks.
pub(crate) const MAX_CALLS_PER_SUBNET: usize = 8;
/// As [`PER_NEIGHBOURHOOD`], for a call to a server that has answered lately.
pub(crate) const MAX_CALLS_PER_SUBNET_IF_RESPONSIVE: usize = 16;
/// Calls that may be under way in the name of one stranger: a server that never answers holds no more than these.
pub(crate) const MAX_CALLS_PER_SERVER: usize = 4;
/// As [`PER_STRANGER`], of a server that has answered lately: a meeting's members arrive together.
pub(crate) const MAX_CALLS_PER_SERVER_IF_RESPONSIVE: usize = 16;

/// What is taken without a lock's poison: the state is a count, right after every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number of places for each key. Whoever finds none is told at once; nobody waits.
#[derive(Debug)]
pub(crate) struct KeyedPermitPool<K>(Mutex<HashMap<K, usize>>);

impl<K: Hash + Eq + Clone> KeyedPermitPool<K> {
    /// All places are free. Memory is bounded by the places that are taken.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::default()))
    }

    /// Takes one of `most` places, until it is dropped.
    pub(crate) fn try_acquire(self: &Arc<Self>, key: K, most: usize) -> Option<KeyedPermit<K>> {
        let mut taken = lock(&self.0);
        let count = taken.entry(key.clone()).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(KeyedPermit {
            pool: self.clone(),
            key,
        })
    }
}

/// A place of [`PerKey`].
#[derive(Debug)]
pub(crate) struct KeyedPermit<K: Hash + Eq> {
    pool: Arc<KeyedPermitPool<K>>,
    key: K,
}

impl<K: Hash + Eq> Drop for KeyedPermit<K> {
    fn drop(&mut self) {
        let mut taken = lock(&self.pool.0);
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
pub(crate) struct PermitCounts {
    /// For anybody.
    pub common: usize,
    /// For servers that the administrator listed.
    pub reserved: usize,
}

impl PermitCounts {
    /// Of 56 workers that may leave the house, 40 may wait for strangers, and 16 for nobody but listed homeservers.
    ///
    /// Each worker takes one place, so a caller whose homeserver is listed always finds one.
    pub(crate) fn split(outbound: usize) -> Self {
        let reserved = (outbound * 2 / 7).max(1);
        Self {
            common: outbound.saturating_sub(reserved).max(1),
            reserved,
        }
    }
}

/// Which places were all taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LimitReached {
    /// All that the caller may have: the service is busy.
    Service,
    /// Those of DNS look-ups: names are slow to be found.
    DnsLookups,
    /// Those of the one server name: it is slow.
    Server,
    /// Those of the network that the server is in.
    Subnet,
    /// None; but the name is asked for too often.
    Rate,
}

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "every outbound place is taken",
            Self::DnsLookups => "too many DNS look-ups are under way",
            Self::Server => "every outbound place of this server name is taken",
            Self::Subnet => "every outbound place of this server's network is taken",
            Self::Rate => "this server name is asked for too often",
        })
    }
}

impl std::error::Error for LimitReached {}

/// The outbound places of the service.
#[derive(Debug)]
pub(crate) struct PermitPool<K> {
    available: Arc<Mutex<PermitCounts>>,
    per_server: Arc<KeyedPermitPool<K>>,
}

impl<K: Hash + Eq + Clone> PermitPool<K> {
    /// A bulkhead with all places free.
    pub(crate) fn new(places: PermitCounts) -> Self {
        Self {
            available: Arc::new(Mutex::new(places)),
            per_server: KeyedPermitPool::new(),
        }
    }

    /// Takes a place for a call in the name of a stranger, one of `most` for that name.
    pub(crate) fn try_acquire_unlisted(
        &self,
        name: K,
        most: usize,
    ) -> Result<Permit<K>, LimitReached> {
        let name = self
            .per_server
            .try_acquire(name, most)
            .ok_or(LimitReached::Server)?;
        self.take_common(Some(name))
    }

    /// Takes a place that anybody may have, for a call that is in nobody's name.
    pub(crate) fn try_acquire_common(&self) -> Result<Permit<K>, LimitReached> {
        self.take_common(None)
    }

    fn take_common(&self, name: Option<KeyedPermit<K>>) -> Result<Permit<K>, LimitReached> {
        let mut free = lock(&self.available);
        free.common = free.common.checked_sub(1).ok_or(LimitReached::Service)?;
        Ok(Permit {
            available: self.available.clone(),
            reserved: false,
            _server_permit: name,
        })
    }

    /// Takes a place for a call to a listed server: a reserved one if there is one left, else a common one.
    pub(crate) fn try_acquire_listed(&self) -> Result<Permit<K>, LimitReached> {
        let mut free = lock(&self.available);
        let reserved = free.reserved > 0;
        let pool = if reserved {
            &mut free.reserved
        } else {
            &mut free.common
        };
        *pool = pool.checked_sub(1).ok_or(LimitReached::Service)?;
        Ok(Permit {
            available: self.available.clone(),
            reserved,
            _server_permit: None,
        })
    }
}

/// A place of [`Bulkhead`], free again once dropped.
#[derive(Debug)]
pub(crate) struct Permit<K: Hash + Eq> {
    available: Arc<Mutex<PermitCounts>>,
    reserved: bool,
    _server_permit: Option<KeyedPermit<K>>,
}

impl<K: Hash + Eq> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut free = lock(&self.available);
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
        let bulkhead = PermitPool::new(PermitCounts {
            common: 3,
            reserved: 2,
        });
        let strangers: Vec<_> = (0..3)
            .map(|name| {
                bulkhead
                    .try_acquire_unlisted(name, MAX_CALLS_PER_SERVER)
                    .unwrap()
            })
            .collect();
        assert_eq!(
            bulkhead
                .try_acquire_unlisted(9, MAX_CALLS_PER_SERVER)
                .unwrap_err(),
            LimitReached::Service
        );
        let listed: Vec<_> = (0..2)
            .map(|_| bulkhead.try_acquire_listed().unwrap())
            .collect();
        assert_eq!(
            bulkhead.try_acquire_listed().unwrap_err(),
            LimitReached::Service
        );
        drop(strangers);
        let more: Vec<_> = (0..3)
            .map(|_| bulkhead.try_acquire_listed().unwrap())
            .collect();
        assert_eq!(
            bulkhead
                .try_acquire_unlisted(1, MAX_CALLS_PER_SERVER)
                .unwrap_err(),
            LimitReached::Service
        );
        drop((listed, more));
        assert_eq!(
            *lock(&bulkhead.available),
            PermitCounts {
                common: 3,
                reserved: 2
            }
        );
    }

    #[test]
    fn one_name_takes_only_its_share_and_leaves_no_trace() {
        let bulkhead = PermitPool::new(PermitCounts::split(56));
        let taken: Vec<_> = (0..MAX_CALLS_PER_SERVER)
            .map(|_| {
                bulkhead
                    .try_acquire_unlisted("slow", MAX_CALLS_PER_SERVER)
                    .unwrap()
            })
            .collect();
        assert_eq!(
            bulkhead
                .try_acquire_unlisted("slow", MAX_CALLS_PER_SERVER)
                .unwrap_err(),
            LimitReached::Server
        );
        let other = bulkhead
            .try_acquire_unlisted("other", MAX_CALLS_PER_SERVER)
            .unwrap();
        drop((taken, other));
        assert!(lock(&bulkhead.per_server.0).is_empty());
        assert_eq!(
            *lock(&bulkhead.available),
            PermitCounts {
                common: 40,
                reserved: 16
            }
        );
    }

    #[test]
    fn a_full_service_does_not_count_against_the_name() {
        let bulkhead = PermitPool::new(PermitCounts {
            common: 0,
            reserved: 0,
        });
        assert_eq!(
            bulkhead
                .try_acquire_unlisted("a", MAX_CALLS_PER_SERVER)
                .unwrap_err(),
            LimitReached::Service
        );
        assert!(lock(&bulkhead.per_server.0).is_empty());
    }
}
