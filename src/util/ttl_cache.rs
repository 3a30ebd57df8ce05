//! Caches with a bound and a time to live for each value.

use std::cell::Cell;
use std::hash::Hash;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::bounded_map::BoundedMap;
use super::single_flight::SingleFlight;
use super::sync::lock;

/// Cache whose values expire. If it is full, a new key evicts the value that expires first.
#[derive(Debug)]
pub(crate) struct TtlCache<K, V>(Mutex<BoundedMap<K, V>>);

impl<K: Hash + Eq + Clone, V: Clone> TtlCache<K, V> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self(Mutex::new(BoundedMap::new(capacity)))
    }

    /// The value, unless it has expired by `now`.
    pub(crate) fn get(&self, key: &K, now: Instant) -> Option<V> {
        let entries = lock(&self.0);
        let expires = entries.rank(key)?;
        if expires <= now {
            return None;
        }
        entries.get(key).cloned()
    }

    pub(crate) fn insert(&self, key: K, value: V, expires: Instant) {
        lock(&self.0).insert(key, value, expires);
    }

    pub(crate) fn remove(&self, key: &K) {
        lock(&self.0).remove(key);
    }
}

/// [`TtlCache`] whose missing values are fetched, by one caller at a time for each key.
#[derive(Debug)]
pub(crate) struct FetchCache<K, V, E> {
    cache: TtlCache<K, V>,
    in_flight: SingleFlight<K, Result<V, E>>,
}

impl<K: Hash + Eq + Clone, V: Clone, E: Clone> FetchCache<K, V, E> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            cache: TtlCache::new(capacity),
            in_flight: SingleFlight::new(),
        }
    }

    /// The cached value, unless it has expired.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.cache.get(key, Instant::now())
    }

    /// Caches a value that was not fetched by [`Self::get_or_fetch`].
    pub(crate) fn insert(&self, key: K, value: V, ttl: Duration) {
        self.cache.insert(key, value, Instant::now() + ttl);
    }

    /// The cached value, or that of `fetch`, which returns it with its time to live. Errors are not cached, and a caller who has
    /// only joined a fetch that fails tries once more.
    ///
    /// `None` if a fetch that another caller has begun does not end by `deadline`.
    pub(crate) fn get_or_fetch(
        &self,
        key: &K,
        deadline: Instant,
        fetch: impl Fn() -> Result<(V, Duration), E>,
    ) -> Option<Result<V, E>> {
        let own_fetch = Cell::new(false);
        let run_or_join = || {
            self.in_flight.run_or_join(key, deadline, || {
                // another fetch may have ended since the caller's own lookup
                if let Some(value) = self.get(key) {
                    return Ok(value);
                }
                own_fetch.set(true);
                let (value, ttl) = fetch()?;
                self.insert(key.clone(), value.clone(), ttl);
                Ok(value)
            })
        };
        match run_or_join() {
            Some(Ok(value)) => Some(Ok(value)),
            outcome if own_fetch.get() || Instant::now() >= deadline => outcome,
            _ => run_or_join(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn values_expire_and_are_bounded() {
        let cache = TtlCache::new(10);
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        cache.insert("a", 1, later);
        assert_eq!(
            (cache.get(&"a", now), cache.get(&"a", later)),
            (Some(1), None)
        );
        cache.remove(&"a");
        assert_eq!(cache.get(&"a", now), None);
        let cache = TtlCache::new(10);
        for key in 0..1000_u32 {
            cache.insert(key, key, later + Duration::from_secs(key.into()));
        }
        assert_eq!(lock(&cache.0).len(), 10);
        assert_eq!(
            (cache.get(&999, now), cache.get(&0, now)),
            (Some(999), None)
        );
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_value_is_fetched_once_and_an_error_each_time() {
        let cache = FetchCache::new(10);
        let calls = AtomicU32::new(0);
        let fetch = |outcome: Result<u32, ()>| {
            cache.get_or_fetch(&"a", soon(), || {
                calls.fetch_add(1, Ordering::SeqCst);
                outcome.map(|value| (value, Duration::from_secs(60)))
            })
        };
        assert_eq!(
            (fetch(Err(())), fetch(Err(()))),
            (Some(Err(())), Some(Err(())))
        );
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        assert_eq!((fetch(Ok(7)), fetch(Ok(8))), (Some(Ok(7)), Some(Ok(7))));
        assert_eq!(calls.load(Ordering::SeqCst), 3);
        assert_eq!(cache.get(&"a"), Some(7));
    }

    #[test]
    fn a_caller_of_a_joined_fetch_that_fails_tries_once_more() {
        let cache = FetchCache::<_, u32, ()>::new(10);
        let (started, has_started) = channel();
        let (finish, may_finish) = channel::<()>();
        std::thread::scope(|scope| {
            let cache = &cache;
            let failing = scope.spawn(move || {
                cache.get_or_fetch(&"a", soon(), || {
                    started.send(()).unwrap();
                    may_finish.recv().unwrap();
                    Err(())
                })
            });
            has_started.recv().unwrap();
            let joined = scope
                .spawn(|| cache.get_or_fetch(&"a", soon(), || Ok((7, Duration::from_secs(60)))));
            assert_eq!(
                cache.get_or_fetch(&"a", Instant::now(), || Err(())),
                None,
                "too late to join"
            );
            while cache.in_flight.callers(&"a") < 2 {
                std::thread::yield_now();
            }
            finish.send(()).unwrap();
            assert_eq!(failing.join().unwrap(), Some(Err(())));
            assert_eq!(joined.join().unwrap(), Some(Ok(7)));
        });
    }
}
