//! What is known of server names: bounded, and asked for once however many wait for it.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::matrix::id::ServerName;
use crate::net::address::Trust;

/// Names on each shelf. An entry has some 300 bytes, with long names and four SRV targets 2 KiB.
const MAX_SERVERS_PER_PARTITION: usize = 1024;
/// How often a server may be discovered afresh because it does not answer where it was found.
const INVALIDATE_INTERVAL: Duration = Duration::from_secs(60);

/// Two shelves, so that made-up names never push out those that the administrator listed.
#[derive(Debug, Clone, Copy)]
pub(super) enum CachePartition {
    Listed,
    Unlisted,
}

impl CachePartition {
    /// Where a server of this standing is kept.
    pub(super) fn for_trust(trust: Trust) -> Self {
        match trust {
            Trust::Unlisted => Self::Unlisted,
            Trust::Listed | Trust::Administrator => Self::Listed,
        }
    }
}

/// Somebody else's look-up of the same name took longer than the caller could wait.
#[derive(Debug)]
pub(super) struct LookupTimeout;

/// What is kept of one name.
pub(super) trait CachedFact: Clone + Default {
    /// Whether it is to be asked for.
    fn is_stale(&self, now: Instant) -> bool;

    /// Has everything asked for again.
    fn expire(&mut self);
}

#[derive(Debug, Default)]
pub(super) struct ServerCache<K> {
    listed: Mutex<HashMap<ServerName, ServerCacheItem<K>>>,
    unlisted: Mutex<HashMap<ServerName, ServerCacheItem<K>>>,
}

#[derive(Debug)]
struct ServerCacheItem<K> {
    entry: Arc<ServerCacheEntry<K>>,
    last_used: Instant,
}

#[derive(Debug, Default)]
struct ServerCacheEntry<K> {
    state: Mutex<ServerCacheState<K>>,
    refresh_done: Condvar,
}

#[derive(Debug, Default)]
struct ServerCacheState<K> {
    fact: K,
    refreshing: bool,
    /// When it was last asked for.
    refreshed_at: Option<Instant>,
    invalidated_at: Option<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: CachedFact> ServerCache<K> {
    fn get_or_insert(&self, shelf: CachePartition, name: &ServerName) -> Arc<ServerCacheEntry<K>> {
        let mut names = lock(match shelf {
            CachePartition::Listed => &self.listed,
            CachePartition::Unlisted => &self.unlisted,
        });
        let now = Instant::now();
        if let Some(slot) = names.get_mut(name) {
            slot.last_used = now;
            return slot.entry.clone();
        }
        if names.len() >= MAX_SERVERS_PER_PARTITION {
            let oldest = names
                .iter()
                .min_by_key(|(_, slot)| slot.last_used)
                .map(|(name, _)| name.clone());
            oldest.and_then(|name| names.remove(&name));
        }
        let entry = Arc::<ServerCacheEntry<K>>::default();
        names.insert(
            name.clone(),
            ServerCacheItem {
                entry: entry.clone(),
                last_used: now,
            },
        );
        entry
    }

    /// What is known of `name` after `update`, which one caller at a time carries out.
    pub(super) fn get_or_refresh<E: From<LookupTimeout>>(
        &self,
        shelf: CachePartition,
        name: &ServerName,
        deadline: Instant,
        update: impl FnOnce(&mut K) -> Result<(), E>,
    ) -> Result<K, E> {
        let entry = self.get_or_insert(shelf, name);
        let mut state = lock(&entry.state);
        if !state.fact.is_stale(Instant::now()) {
            return Ok(state.fact.clone());
        }
        while state.refreshing {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LookupTimeout.into());
            }
            state = entry
                .refresh_done
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if !state.refreshing && !state.fact.is_stale(Instant::now()) {
                return Ok(state.fact.clone());
            }
        }
        state.refreshing = true;
        let mut known = state.fact.clone();
        drop(state);
        let flight = RefreshGuard(&entry);
        // what was found out before it went wrong is worth keeping
        let outcome = update(&mut known);
        let mut state = lock(&entry.state);
        state.fact = known.clone();
        state.refreshed_at = Some(Instant::now());
        drop(state);
        drop(flight);
        outcome.map(|()| known)
    }

    /// Adds to what is known what was found out by other means; a look-up under way does not know it.
    pub(super) fn update(
        &self,
        shelf: CachePartition,
        name: &ServerName,
        change: impl FnOnce(&mut K),
    ) {
        change(&mut lock(&self.get_or_insert(shelf, name).state).fact);
    }

    /// Has an entry asked for again, unless it was learned after `since`, or that was done within the last minute.
    pub(super) fn invalidate(
        &self,
        shelf: CachePartition,
        name: &ServerName,
        since: Instant,
    ) -> bool {
        let entry = self.get_or_insert(shelf, name);
        let mut state = lock(&entry.state);
        let now = Instant::now();
        if state.refreshing
            || state.refreshed_at.is_none_or(|at| at >= since)
            || state
                .invalidated_at
                .is_some_and(|at| now.duration_since(at) < INVALIDATE_INTERVAL)
        {
            return false;
        }
        state.invalidated_at = Some(now);
        state.fact.expire();
        true
    }
}

/// Ends a look-up for those who wait, also when it panicked.
struct RefreshGuard<'a, K>(&'a ServerCacheEntry<K>);

impl<K> Drop for RefreshGuard<'_, K> {
    fn drop(&mut self) {
        lock(&self.0.state).refreshing = false;
        self.0.refresh_done.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct TestFact(bool);

    impl CachedFact for TestFact {
        fn is_stale(&self, _now: Instant) -> bool {
            !self.0
        }

        fn expire(&mut self) {
            self.0 = false;
        }
    }

    fn name(text: &str) -> ServerName {
        ServerName::parse(text).unwrap()
    }

    fn set_fact(fact: &mut TestFact) -> Result<(), LookupTimeout> {
        fact.0 = true;
        Ok(())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn many_callers_cause_one_look_up() {
        let cache = ServerCache::<TestFact>::default();
        let asked = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..50 {
                scope.spawn(|| {
                    let update = |known: &mut TestFact| {
                        asked.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(50));
                        set_fact(known)
                    };
                    cache
                        .get_or_refresh(CachePartition::Listed, &name("a"), soon(), update)
                        .unwrap();
                });
            }
        });
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn who_waits_gives_up_at_the_deadline_and_a_panic_frees_the_name() {
        let cache = ServerCache::<TestFact>::default();
        std::thread::scope(|scope| {
            let (started, has_started) = std::sync::mpsc::channel();
            let (finish, may_finish) = std::sync::mpsc::channel::<()>();
            let cache = &cache;
            let flying = scope.spawn(move || {
                let _ = cache.get_or_refresh(
                    CachePartition::Listed,
                    &name("a"),
                    soon(),
                    |_| -> Result<(), LookupTimeout> {
                        started.send(()).unwrap();
                        may_finish.recv().unwrap();
                        panic!("on purpose");
                    },
                );
            });
            has_started.recv().unwrap();
            let late =
                cache.get_or_refresh(CachePartition::Listed, &name("a"), Instant::now(), set_fact);
            assert!(matches!(late, Err(LookupTimeout)));
            assert!(!cache.invalidate(CachePartition::Listed, &name("a"), soon()));
            finish.send(()).unwrap();
            assert!(flying.join().is_err());
        });
        cache
            .get_or_refresh(CachePartition::Listed, &name("a"), soon(), set_fact)
            .unwrap();
    }

    #[test]
    fn made_up_names_stay_on_their_shelf() {
        let cache = ServerCache::<TestFact>::default();
        cache
            .get_or_refresh(
                CachePartition::Listed,
                &name("own.example"),
                soon(),
                set_fact,
            )
            .unwrap();
        for n in 0..3000 {
            cache
                .get_or_refresh(
                    CachePartition::Unlisted,
                    &name(&format!("{n}.example")),
                    soon(),
                    set_fact,
                )
                .unwrap();
        }
        assert_eq!(
            (lock(&cache.listed).len(), lock(&cache.unlisted).len()),
            (1, MAX_SERVERS_PER_PARTITION)
        );
        cache
            .get_or_refresh(
                CachePartition::Listed,
                &name("own.example"),
                soon(),
                |_| -> Result<(), LookupTimeout> { panic!("was forgotten") },
            )
            .unwrap();
    }

    #[test]
    fn a_server_is_doubted_once_a_minute() {
        let cache = ServerCache::<TestFact>::default();
        let refresh = || {
            let mut asked = false;
            let update = |known: &mut TestFact| {
                asked = true;
                set_fact(known)
            };
            cache
                .get_or_refresh(CachePartition::Unlisted, &name("a"), soon(), update)
                .unwrap();
            asked
        };
        let before = Instant::now();
        assert!(refresh());
        assert!(
            !cache.invalidate(CachePartition::Unlisted, &name("a"), before),
            "was learned just now"
        );
        assert!(cache.invalidate(CachePartition::Unlisted, &name("a"), soon()));
        assert!(refresh());
        assert!(
            !cache.invalidate(CachePartition::Unlisted, &name("a"), soon()),
            "twice a minute"
        );
        assert!(!refresh());
    }
}
