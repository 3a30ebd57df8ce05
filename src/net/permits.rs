//! Permits for calls to other servers, so that no server, slow or hostile, holds all workers.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use crate::util::clock::time_left;
use crate::util::sync::{lock, wait_timeout};

/// Concurrent calls to one /24 or /64: an attacker can own many names, but not many networks.
pub(crate) const MAX_CALLS_PER_SUBNET: usize = 8;
/// As [`MAX_CALLS_PER_SUBNET`], for a server that has answered lately.
pub(crate) const MAX_CALLS_PER_SUBNET_IF_RESPONSIVE: usize = 16;
/// Concurrent calls to one unlisted server name: a server that never answers holds no more workers than these.
pub(crate) const MAX_CALLS_PER_SERVER: usize = 4;
/// As [`MAX_CALLS_PER_SERVER`], for a server that has responded recently: the participants of a call arrive together.
pub(crate) const MAX_CALLS_PER_SERVER_IF_RESPONSIVE: usize = 16;

/// A fixed number of permits, taken at once or not at all.
#[derive(Debug, Clone)]
pub(crate) struct Semaphore(Arc<Mutex<usize>>);

impl Semaphore {
    pub(crate) fn new(permits: usize) -> Self {
        Self(Arc::new(Mutex::new(permits)))
    }

    /// Takes a permit, if one is free.
    pub(crate) fn try_acquire(&self) -> Option<SemaphorePermit> {
        self.try_acquire_above(0)
    }

    /// Takes a permit, if more than `reserved` are free.
    pub(crate) fn try_acquire_above(&self, reserved: usize) -> Option<SemaphorePermit> {
        let mut free = lock(&self.0);
        if *free <= reserved {
            return None;
        }
        *free -= 1;
        Some(SemaphorePermit(self.clone()))
    }
}

/// A permit of a [`Semaphore`], free again when dropped.
#[derive(Debug)]
pub(crate) struct SemaphorePermit(Semaphore);

impl Drop for SemaphorePermit {
    fn drop(&mut self) {
        *lock(&self.0.0) += 1;
    }
}

/// A number of permits for each key, taken at once or not at all. Memory is bounded by the permits in use.
#[derive(Debug)]
pub(crate) struct KeyedPermitPool<K>(Mutex<HashMap<K, usize>>);

impl<K: Hash + Eq + Clone> KeyedPermitPool<K> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::default()))
    }

    /// Takes one of `max` permits of the key, if one is free.
    pub(crate) fn try_acquire(self: &Arc<Self>, key: K, max: usize) -> Option<KeyedPermit<K>> {
        let mut in_use = lock(&self.0);
        let count = in_use.entry(key.clone()).or_insert(0);
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(KeyedPermit {
            pool: self.clone(),
            key,
        })
    }
}

/// A permit of a [`KeyedPermitPool`], free again when dropped.
#[derive(Debug)]
pub(crate) struct KeyedPermit<K: Hash + Eq> {
    pool: Arc<KeyedPermitPool<K>>,
    key: K,
}

impl<K: Hash + Eq> Drop for KeyedPermit<K> {
    fn drop(&mut self) {
        let mut in_use = lock(&self.pool.0);
        if let Some(count) = in_use.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                in_use.remove(&self.key);
            }
        }
    }
}

/// Numbers of permits of a [`PermitPool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PermitCounts {
    /// For calls to any server.
    pub(crate) common: usize,
    /// For calls to listed servers only.
    pub(crate) reserved: usize,
}

impl PermitCounts {
    /// Of the 56 workers that may call other servers, 40 may call any server and 16 only listed homeservers.
    ///
    /// Each worker holds one permit at most, so that a caller of a listed homeserver always finds one.
    pub(crate) fn split(outbound: usize) -> Self {
        let reserved = (outbound * 2 / 7).max(1);
        Self {
            common: outbound.saturating_sub(reserved).max(1),
            reserved,
        }
    }
}

/// The limit that has refused a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LimitReached {
    /// All permits that the call may have.
    Service,
    /// Concurrent DNS lookups.
    DnsLookups,
    /// Concurrent calls to the server name.
    Server,
    /// Concurrent calls to the subnet of the server.
    Subnet,
    /// Calls to the server name per time.
    Rate,
}

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "too many calls to other servers in progress",
            Self::DnsLookups => "too many DNS lookups in progress",
            Self::Server => "too many calls to this server in progress",
            Self::Subnet => "too many calls to the subnet of this server in progress",
            Self::Rate => "too many calls to this server in a short time",
        })
    }
}

impl std::error::Error for LimitReached {}

/// The permits of the service for calls to other servers.
#[derive(Debug)]
pub(crate) struct PermitPool<K> {
    common: Semaphore,
    reserved: Semaphore,
    per_server: Arc<KeyedPermitPool<K>>,
}

impl<K: Hash + Eq + Clone> PermitPool<K> {
    pub(crate) fn new(counts: PermitCounts) -> Self {
        Self {
            common: Semaphore::new(counts.common),
            reserved: Semaphore::new(counts.reserved),
            per_server: KeyedPermitPool::new(),
        }
    }

    /// Takes a common permit for a call to an unlisted server, one of `max` for its name.
    pub(crate) fn try_acquire_unlisted(
        &self,
        server: K,
        max: usize,
    ) -> Result<Permit<K>, LimitReached> {
        let per_server = self.per_server.try_acquire(server, max);
        let per_server = per_server.ok_or(LimitReached::Server)?;
        Ok(Permit {
            _server: Some(per_server),
            ..self.try_acquire_common()?
        })
    }

    /// Takes a common permit for a call that counts for no server name.
    pub(crate) fn try_acquire_common(&self) -> Result<Permit<K>, LimitReached> {
        Ok(Permit {
            _permit: self.common.try_acquire().ok_or(LimitReached::Service)?,
            _server: None,
        })
    }

    /// Takes a permit for a call to a listed server: a reserved one if one is free, else a common one.
    pub(crate) fn try_acquire_listed(&self) -> Result<Permit<K>, LimitReached> {
        match self.reserved.try_acquire() {
            Some(permit) => Ok(Permit {
                _permit: permit,
                _server: None,
            }),
            None => self.try_acquire_common(),
        }
    }
}

/// A permit of a [`PermitPool`], free again when dropped.
#[derive(Debug)]
pub(crate) struct Permit<K: Hash + Eq> {
    _permit: SemaphorePermit,
    _server: Option<KeyedPermit<K>>,
}

/// Permits with a queue of bounded length for each key, so that a slow key delays only its own queue. An entry holds its worker
/// from the beginning, whether it waits or not.
#[derive(Debug)]
pub(crate) struct FairQueue<K> {
    max_total: usize,
    max_per_key: usize,
    state: Mutex<FairQueueState<K>>,
    changed: Condvar,
}

#[derive(Debug)]
struct FairQueueState<K> {
    entries: usize,
    queues: HashMap<K, KeyQueue>,
}

#[derive(Debug, Default)]
struct KeyQueue {
    entries: usize,
    /// Entries that have a permit.
    active: usize,
    /// Tickets of the entries that wait for one, the first one first.
    waiting: VecDeque<u64>,
    next_ticket: u64,
}

/// The queue is full, or no permit came free in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueRejected;

impl<K: Hash + Eq + Clone> FairQueue<K> {
    /// At most `max_total` entries in all queues together, and `max_per_key` in one. Memory is bounded by that.
    pub(crate) fn new(max_total: usize, max_per_key: usize) -> Arc<Self> {
        Arc::new(Self {
            max_total,
            max_per_key,
            state: Mutex::new(FairQueueState {
                entries: 0,
                queues: HashMap::new(),
            }),
            changed: Condvar::new(),
        })
    }

    /// Joins the queue of `key`, if it is not full; does not wait.
    pub(crate) fn join(self: &Arc<Self>, key: K) -> Result<FairQueueEntry<K>, QueueRejected> {
        self.join_with_limit(self.max_per_key, key)
    }

    /// As [`Self::join`], with another limit for this queue.
    pub(crate) fn join_with_limit(
        self: &Arc<Self>,
        max_per_key: usize,
        key: K,
    ) -> Result<FairQueueEntry<K>, QueueRejected> {
        let mut state = lock(&self.state);
        let length = state.queues.get(&key).map_or(0, |queue| queue.entries);
        if state.entries >= self.max_total || length >= max_per_key {
            return Err(QueueRejected);
        }
        state.entries += 1;
        state.queues.entry(key.clone()).or_default().entries += 1;
        Ok(FairQueueEntry {
            queue: self.clone(),
            key,
        })
    }
}

/// An entry of a queue, until it is dropped.
#[derive(Debug)]
pub(crate) struct FairQueueEntry<K: Hash + Eq + Clone> {
    queue: Arc<FairQueue<K>>,
    key: K,
}

impl<K: Hash + Eq + Clone> FairQueueEntry<K> {
    /// Waits until `deadline` for one of `max_active` permits of the key; the number is read again whenever a queue changes.
    pub(crate) fn acquire(
        &mut self,
        max_active: impl Fn() -> usize,
        deadline: Instant,
    ) -> Result<QueuePermit<'_, K>, QueueRejected> {
        let FairQueue { state, changed, .. } = &*self.queue;
        let mut state = lock(state);
        let queue = state.queues.entry(self.key.clone()).or_default();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        queue.waiting.push_back(ticket);
        loop {
            let queue = state.queues.entry(self.key.clone()).or_default();
            if queue.waiting.front() == Some(&ticket) && queue.active < max_active() {
                queue.waiting.pop_front();
                queue.active += 1;
                // the next entry may find a permit as well
                changed.notify_all();
                return Ok(QueuePermit(self));
            }
            let Some(left) = time_left(deadline) else {
                queue.waiting.retain(|other| *other != ticket);
                changed.notify_all();
                return Err(QueueRejected);
            };
            state = wait_timeout(changed, state, left);
        }
    }
}

impl<K: Hash + Eq + Clone> Drop for FairQueueEntry<K> {
    fn drop(&mut self) {
        let mut state = lock(&self.queue.state);
        state.entries -= 1;
        if let Some(queue) = state.queues.get_mut(&self.key) {
            queue.entries -= 1;
            if queue.entries == 0 {
                state.queues.remove(&self.key);
            }
        }
    }
}

/// A permit of a [`FairQueue`], free again when dropped.
#[derive(Debug)]
pub(crate) struct QueuePermit<'a, K: Hash + Eq + Clone>(&'a FairQueueEntry<K>);

impl<K: Hash + Eq + Clone> Drop for QueuePermit<'_, K> {
    fn drop(&mut self) {
        let FairQueueEntry { queue, key } = self.0;
        if let Some(queue) = lock(&queue.state).queues.get_mut(key) {
            queue.active -= 1;
        }
        queue.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn free<K>(pool: &PermitPool<K>) -> (usize, usize) {
        (*lock(&pool.common.0), *lock(&pool.reserved.0))
    }

    #[test]
    fn calls_to_unlisted_servers_never_take_reserved_permits() {
        let pool = PermitPool::new(PermitCounts {
            common: 3,
            reserved: 2,
        });
        let unlisted = |name| pool.try_acquire_unlisted(name, MAX_CALLS_PER_SERVER);
        let listed = || pool.try_acquire_listed();
        let unlisted_calls: Vec<_> = (0..3).map(|name| unlisted(name).unwrap()).collect();
        assert_eq!(unlisted(9).unwrap_err(), LimitReached::Service);
        let reserved: Vec<_> = (0..2).map(|_| listed().unwrap()).collect();
        assert_eq!(listed().unwrap_err(), LimitReached::Service);
        drop(unlisted_calls);
        let common: Vec<_> = (0..3).map(|_| listed().unwrap()).collect();
        assert_eq!(unlisted(1).unwrap_err(), LimitReached::Service);
        drop((reserved, common));
        assert_eq!(free(&pool), (3, 2));
    }

    #[test]
    fn one_server_name_has_a_bounded_number_of_permits() {
        let pool = PermitPool::new(PermitCounts::split(56));
        let acquire = |name| pool.try_acquire_unlisted(name, MAX_CALLS_PER_SERVER);
        let slow: Vec<_> = (0..MAX_CALLS_PER_SERVER)
            .map(|_| acquire("slow").unwrap())
            .collect();
        assert_eq!(acquire("slow").unwrap_err(), LimitReached::Server);
        let other = acquire("other").unwrap();
        drop((slow, other));
        assert!(lock(&pool.per_server.0).is_empty());
        assert_eq!(free(&pool), (40, 16));
    }

    #[test]
    fn a_call_refused_for_want_of_permits_does_not_count_for_its_server_name() {
        let pool = PermitPool::new(PermitCounts {
            common: 0,
            reserved: 0,
        });
        assert_eq!(
            pool.try_acquire_unlisted("a", MAX_CALLS_PER_SERVER)
                .unwrap_err(),
            LimitReached::Service
        );
        assert!(lock(&pool.per_server.0).is_empty());
    }

    #[test]
    fn a_semaphore_keeps_its_reserve() {
        let semaphore = Semaphore::new(3);
        let permits = [1, 1, 0].map(|reserved| semaphore.try_acquire_above(reserved));
        assert!(permits.iter().all(Option::is_some));
        assert!(semaphore.try_acquire().is_none());
        let [first, ..] = permits;
        drop(first);
        assert!(semaphore.try_acquire_above(1).is_none());
        assert!(semaphore.try_acquire().is_some());
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn waiting(queue: &FairQueue<&'static str>) -> usize {
        lock(&queue.state).queues["slow"].waiting.len()
    }

    #[test]
    fn the_queue_of_a_key_and_all_queues_together_are_bounded() {
        let queue = FairQueue::new(5, 3);
        let slow: Vec<_> = (0..3).map(|_| queue.join("slow").unwrap()).collect();
        assert_eq!(queue.join("slow").unwrap_err(), QueueRejected);
        let others = [queue.join("a").unwrap(), queue.join("b").unwrap()];
        assert_eq!(queue.join("c").unwrap_err(), QueueRejected);
        drop((slow, others));
        let state = lock(&queue.state);
        assert!(state.queues.is_empty() && state.entries == 0);
    }

    #[test]
    fn an_entry_waits_for_a_permit_until_its_deadline() {
        let queue = FairQueue::new(9, 9);
        let mut first = queue.join("slow").unwrap();
        let permit = first.acquire(|| 1, soon()).unwrap();
        let mut late = queue.join("slow").unwrap();
        assert_eq!(
            late.acquire(|| 1, Instant::now()).unwrap_err(),
            QueueRejected
        );
        let mut other = queue.join("other").unwrap();
        drop(other.acquire(|| 1, Instant::now()).unwrap());
        thread::scope(|scope| {
            let entry = scope.spawn(|| queue.join("slow").unwrap().acquire(|| 1, soon()).is_ok());
            while waiting(&queue) < 1 {
                thread::yield_now();
            }
            drop(permit);
            assert!(entry.join().unwrap());
        });
        assert!(late.acquire(|| 1, Instant::now()).is_ok());
    }

    #[test]
    fn a_raised_limit_applies_to_entries_that_wait() {
        let (queue, max_active) = (FairQueue::new(99, 99), AtomicUsize::new(1));
        let mut first = queue.join("slow").unwrap();
        let permit = first.acquire(|| 1, soon()).unwrap();
        let all_active = std::sync::Barrier::new(9);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut entry = queue.join("slow").unwrap();
                    let limit = || max_active.load(Ordering::SeqCst);
                    let _permit = entry.acquire(limit, soon()).unwrap();
                    all_active.wait();
                });
            }
            while waiting(&queue) < 8 {
                thread::yield_now();
            }
            max_active.store(8, Ordering::SeqCst);
            drop(permit);
            all_active.wait();
        });
    }
}
