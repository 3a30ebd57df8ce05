//! Facts about homeservers by server name: bounded in number, and refreshed by one caller while the others wait.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::matrix::id::ServerName;
use crate::net::address::Trust;
use crate::util::bounded_map::BoundedMap;
use crate::util::single_flight::SingleFlight;
use crate::util::sync::lock;

/// Server names in each partition. An entry has about 300 bytes, with long names and four SRV targets 2 KiB.
const MAX_SERVERS_PER_PARTITION: usize = 1024;
/// Shortest time between two invalidations of one server.
const INVALIDATE_INTERVAL: Duration = Duration::from_secs(60);

/// What the cache holds for a server name. The default is an entry without any facts.
pub(super) trait CachedFact: Clone + Default {
    /// Whether a refresh is due.
    fn is_stale(&self, now: Instant) -> bool;

    /// Makes a refresh due. Values that are still valid remain in case the refresh fails.
    fn expire(&mut self);
}

/// Facts by server name, in two partitions: names that callers invent evict no listed server.
#[derive(Debug)]
pub(super) struct ServerCache<F> {
    listed: Partition<F>,
    unlisted: Partition<F>,
}

#[derive(Debug)]
struct Partition<F> {
    /// By the time of the last use.
    entries: Mutex<BoundedMap<ServerName, ServerCacheEntry<F>>>,
    refreshes: SingleFlight<ServerName, ()>,
}

#[derive(Debug, Default)]
struct ServerCacheEntry<F> {
    facts: Arc<F>,
    refreshed_at: Option<Instant>,
    invalidated_at: Option<Instant>,
}

impl<F: CachedFact> Default for ServerCache<F> {
    fn default() -> Self {
        Self {
            listed: Partition::new(),
            unlisted: Partition::new(),
        }
    }
}

impl<F: CachedFact> ServerCache<F> {
    fn partition(&self, trust: Trust) -> &Partition<F> {
        match trust {
            Trust::Unlisted => &self.unlisted,
            Trust::Listed | Trust::Administrator => &self.listed,
        }
    }

    /// Returns the facts about `name`; stale ones are refreshed first, by one caller at a time. Facts that `refresh` learns before it
    /// fails are stored. If the refresh of another caller fails, this one tries its own. `None` after `deadline`.
    pub(super) fn get_or_refresh<E>(
        &self,
        trust: Trust,
        name: &ServerName,
        deadline: Instant,
        refresh: impl FnOnce(&mut F) -> Result<(), E>,
    ) -> Option<Result<Arc<F>, E>> {
        let partition = self.partition(trust);
        let mut refresh = Some(refresh);
        let mut result = None;
        loop {
            let facts = partition.get(name);
            let now = Instant::now();
            if !facts.is_stale(now) {
                return Some(Ok(facts));
            }
            if now >= deadline {
                return None;
            }
            partition.refreshes.run_or_join(name, deadline, || {
                result = refresh
                    .take()
                    .map(|refresh| partition.refresh(name, refresh));
            });
            if result.is_some() {
                return result;
            }
        }
    }

    /// Changes facts without a refresh. A refresh in progress overwrites the change.
    pub(super) fn update(&self, trust: Trust, name: &ServerName, change: impl FnOnce(&mut F)) {
        self.partition(trust)
            .with_entry(name, |entry| change(Arc::make_mut(&mut entry.facts)));
    }

    /// Makes a refresh of `name` due, unless the last refresh ended after `since` or the last invalidation is less than a minute ago.
    pub(super) fn invalidate(&self, trust: Trust, name: &ServerName, since: Instant) {
        let now = Instant::now();
        self.partition(trust).with_entry(name, |entry| {
            let is_old = entry.refreshed_at.is_some_and(|at| at < since);
            let is_allowed = entry
                .invalidated_at
                .is_none_or(|at| now.duration_since(at) >= INVALIDATE_INTERVAL);
            // a refresh of stale facts is due anyway, or in progress
            if is_old && is_allowed && !entry.facts.is_stale(now) {
                entry.invalidated_at = Some(now);
                Arc::make_mut(&mut entry.facts).expire();
            }
        });
    }
}

impl<F: CachedFact> Partition<F> {
    fn new() -> Self {
        Self {
            entries: Mutex::new(BoundedMap::new(MAX_SERVERS_PER_PARTITION)),
            refreshes: SingleFlight::new(),
        }
    }

    fn get(&self, name: &ServerName) -> Arc<F> {
        self.with_entry(name, |entry| entry.facts.clone())
    }

    fn with_entry<R>(
        &self,
        name: &ServerName,
        access: impl FnOnce(&mut ServerCacheEntry<F>) -> R,
    ) -> R {
        let mut entries = lock(&self.entries);
        let now = Instant::now();
        entries.set_rank(name, now);
        if let Some(entry) = entries.get_mut(name) {
            return access(entry);
        }
        let mut entry = ServerCacheEntry::default();
        let result = access(&mut entry);
        entries.insert(name.clone(), entry, now);
        result
    }

    fn refresh<E>(
        &self,
        name: &ServerName,
        refresh: impl FnOnce(&mut F) -> Result<(), E>,
    ) -> Result<Arc<F>, E> {
        let mut facts = self.get(name);
        // another refresh may have ended since the caller read the facts
        if !facts.is_stale(Instant::now()) {
            return Ok(facts);
        }
        let result = refresh(Arc::make_mut(&mut facts));
        self.with_entry(name, |entry| {
            entry.facts = facts.clone();
            entry.refreshed_at = Some(Instant::now());
        });
        result.map(|()| facts)
    }
}

/// A value with two ends of life: from the first on a refresh is due; until the second the value may be used if the refresh fails.
#[derive(Debug, Clone)]
pub(super) struct CachedValue<T> {
    /// The value and the time until which it is valid.
    value: Option<(T, Instant)>,
    fresh_until: Option<Instant>,
}

impl<T> Default for CachedValue<T> {
    fn default() -> Self {
        Self {
            value: None,
            fresh_until: None,
        }
    }
}

impl<T> CachedValue<T> {
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.fresh_until.is_none_or(|until| until <= now)
    }

    pub(super) fn value(&self) -> Option<&T> {
        self.value.as_ref().map(|(value, _)| value)
    }

    /// Stores a value that is valid for `ttl`; a refresh is due `early` before the end of that time.
    pub(super) fn store(&mut self, value: T, ttl: Duration, early: Duration, now: Instant) {
        self.value = Some((value, now + ttl));
        self.fresh_until = Some(now + ttl.saturating_sub(early));
    }

    /// Stores that there is no value; a refresh is due after `ttl`.
    pub(super) fn store_none(&mut self, ttl: Duration, now: Instant) {
        self.value = None;
        self.fresh_until = Some(now + ttl);
    }

    /// Stores that a refresh failed. The value remains if it is still valid. The next refresh is due after `retry_delay`, or when the
    /// value ceases to be valid.
    pub(super) fn store_failure(&mut self, retry_delay: Duration, now: Instant) {
        let retry_at = now + retry_delay;
        self.value.take_if(|(_, valid_until)| *valid_until <= now);
        let valid_until = self.value.as_ref().map(|(_, until)| *until);
        self.fresh_until = Some(valid_until.map_or(retry_at, |until| until.min(retry_at)));
    }

    /// Makes a refresh due; the value remains in case the refresh fails.
    pub(super) fn expire(&mut self) {
        self.fresh_until = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[derive(Debug, Clone, Default, PartialEq)]
    struct TestFact {
        fresh: bool,
        learned: u32,
    }

    impl CachedFact for TestFact {
        fn is_stale(&self, _now: Instant) -> bool {
            !self.fresh
        }

        fn expire(&mut self) {
            self.fresh = false;
        }
    }

    fn name(text: &str) -> ServerName {
        ServerName::parse(text).unwrap()
    }

    fn set_fresh(fact: &mut TestFact) -> Result<(), ()> {
        fact.fresh = true;
        Ok(())
    }

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn get(
        cache: &ServerCache<TestFact>,
        refresh: impl FnOnce(&mut TestFact) -> Result<(), ()>,
    ) -> Result<Arc<TestFact>, ()> {
        let facts = cache.get_or_refresh(Trust::Listed, &name("a"), in_a_minute(), refresh);
        facts.unwrap()
    }

    /// Runs `first` in a refresh, and `others` once the refresh has begun; the argument of `others` ends it.
    fn during_refresh(
        cache: &ServerCache<TestFact>,
        first: impl FnOnce(&mut TestFact) -> Result<(), ()> + Send,
        others: impl FnOnce(Sender<()>),
    ) -> thread::Result<Result<Arc<TestFact>, ()>> {
        let (started, has_started) = channel();
        let (finish, may_finish): (Sender<()>, Receiver<()>) = channel();
        thread::scope(|scope| {
            let refreshing = scope.spawn(move || {
                get(cache, |fact| {
                    started.send(()).unwrap();
                    may_finish.recv().unwrap();
                    first(fact)
                })
            });
            has_started.recv().unwrap();
            others(finish);
            refreshing.join()
        })
    }

    #[test]
    fn concurrent_callers_cause_one_refresh() {
        let cache = ServerCache::<TestFact>::default();
        let refreshes = AtomicU32::new(0);
        let count = |fact: &mut TestFact| {
            refreshes.fetch_add(1, Ordering::SeqCst);
            set_fresh(fact)
        };
        let first = during_refresh(&cache, count, |finish| {
            thread::scope(|scope| {
                for _ in 0..50 {
                    scope.spawn(|| get(&cache, count).unwrap());
                }
                finish.send(()).unwrap();
            });
        });
        assert!(first.unwrap().is_ok());
        assert_eq!(refreshes.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_waiting_caller_gives_up_at_its_deadline_and_a_panic_ends_the_refresh() {
        let cache = ServerCache::<TestFact>::default();
        let panicked = during_refresh(
            &cache,
            |_| panic!("for the test"),
            |finish| {
                let late = cache.get_or_refresh(
                    Trust::Listed,
                    &name("a"),
                    Instant::now() + Duration::from_millis(10),
                    set_fresh,
                );
                assert!(late.is_none());
                finish.send(()).unwrap();
            },
        );
        assert!(panicked.is_err());
        assert!(get(&cache, set_fresh).is_ok());
    }

    #[test]
    fn facts_of_a_failed_refresh_are_stored_and_a_waiting_caller_tries_again() {
        let cache = ServerCache::<TestFact>::default();
        let fail = |fact: &mut TestFact| {
            fact.learned += 1;
            Err(())
        };
        let (joined, has_joined) = channel();
        thread::scope(|scope| {
            let mut waiting = None;
            let first = during_refresh(&cache, fail, |finish| {
                waiting = Some(scope.spawn(|| {
                    joined.send(()).unwrap();
                    get(&cache, |fact| {
                        fact.learned += 10;
                        set_fresh(fact)
                    })
                }));
                has_joined.recv().unwrap();
                finish.send(()).unwrap();
            });
            assert!(first.unwrap().is_err());
            let facts = waiting.unwrap().join().unwrap().unwrap();
            assert_eq!(facts.learned, 11);
        });
    }

    #[test]
    fn unlisted_names_evict_each_other_but_no_listed_server() {
        let cache = ServerCache::<TestFact>::default();
        get(&cache, set_fresh).unwrap();
        for n in 0..3000 {
            cache
                .get_or_refresh(
                    Trust::Unlisted,
                    &name(&format!("{n}.example")),
                    in_a_minute(),
                    set_fresh,
                )
                .unwrap()
                .unwrap();
        }
        assert_eq!(
            (
                lock(&cache.listed.entries).len(),
                lock(&cache.unlisted.entries).len()
            ),
            (1, MAX_SERVERS_PER_PARTITION)
        );
        get(&cache, |_| panic!("was evicted")).unwrap();
    }

    #[test]
    fn a_server_is_invalidated_at_most_once_a_minute() {
        let cache = ServerCache::<TestFact>::default();
        let invalidate = |since| cache.invalidate(Trust::Listed, &name("a"), since);
        let refreshed = || {
            let mut refreshed = false;
            let refresh = |fact: &mut TestFact| {
                refreshed = true;
                set_fresh(fact)
            };
            get(&cache, refresh).unwrap();
            refreshed
        };
        let before = Instant::now();
        assert!(refreshed());
        invalidate(before);
        assert!(!refreshed(), "refreshed after that time");
        // no effect on stale facts, which does not count
        cache.update(Trust::Listed, &name("a"), CachedFact::expire);
        invalidate(in_a_minute());
        assert!(refreshed());
        invalidate(in_a_minute());
        assert!(refreshed());
        invalidate(in_a_minute());
        assert!(!refreshed(), "second time within a minute");
    }

    #[test]
    fn a_value_outlives_failed_refreshes_until_its_ttl() {
        let now = Instant::now();
        let mut cached = CachedValue::default();
        assert!(cached.is_stale(now));
        cached.store("b.org", 100 * SECOND, 10 * SECOND, now);
        assert!(!cached.is_stale(now + 89 * SECOND) && cached.is_stale(now + 90 * SECOND));
        cached.store_failure(5 * SECOND, now + 90 * SECOND);
        assert_eq!(cached.value(), Some(&"b.org"));
        assert!(!cached.is_stale(now + 94 * SECOND) && cached.is_stale(now + 95 * SECOND));
        cached.store_failure(60 * SECOND, now + 95 * SECOND);
        assert!(cached.is_stale(now + 100 * SECOND), "at the end of the TTL");
        cached.store_failure(60 * SECOND, now + 100 * SECOND);
        assert_eq!(cached.value(), None);
        assert!(cached.is_stale(now + 160 * SECOND));
    }
}
