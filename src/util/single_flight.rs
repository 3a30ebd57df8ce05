//! What many want to know at once is asked once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

/// Questions under way. Memory is bounded by their number.
#[derive(Debug)]
pub(crate) struct SingleFlight<K, V>(Mutex<HashMap<K, Arc<SharedCall<V>>>>);

#[derive(Debug)]
struct SharedCall<V> {
    state: Mutex<SharedCallState<V>>,
    finished: Condvar,
}

#[derive(Debug)]
enum SharedCallState<V> {
    Running,
    Finished(V),
    /// Whoever asked has panicked.
    Panicked,
}

impl<K: Hash + Eq + Clone, V: Clone> SingleFlight<K, V> {
    /// None is under way.
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    /// What `ask` brings, or somebody else's question of the same key that is under way; none if that does not end by `deadline`.
    pub(crate) fn run_or_join(
        &self,
        key: &K,
        deadline: Instant,
        ask: impl FnOnce() -> V,
    ) -> Option<V> {
        let mut under_way = lock(&self.0);
        if let Some(flight) = under_way.get(key).cloned() {
            drop(under_way);
            return flight.wait(deadline);
        }
        let flight = Arc::new(SharedCall {
            state: Mutex::new(SharedCallState::Running),
            finished: Condvar::new(),
        });
        under_way.insert(key.clone(), flight.clone());
        drop(under_way);
        let mut landing = SharedCallGuard {
            single_flight: self,
            key,
            call: &flight,
            result: None,
        };
        let result = ask();
        landing.result = Some(result.clone());
        Some(result)
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: Clone> SharedCall<V> {
    fn wait(&self, deadline: Instant) -> Option<V> {
        let mut state = lock(&self.state);
        loop {
            match &*state {
                SharedCallState::Finished(result) => return Some(result.clone()),
                SharedCallState::Panicked => return None,
                SharedCallState::Running => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let woken = self.finished.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Ends a question for those who wait, also when it panicked.
struct SharedCallGuard<'a, K: Hash + Eq, V> {
    single_flight: &'a SingleFlight<K, V>,
    key: &'a K,
    call: &'a SharedCall<V>,
    result: Option<V>,
}

impl<K: Hash + Eq, V> Drop for SharedCallGuard<'_, K, V> {
    fn drop(&mut self) {
        lock(&self.single_flight.0).remove(self.key);
        *lock(&self.call.state) = match self.result.take() {
            Some(result) => SharedCallState::Finished(result),
            None => SharedCallState::Panicked,
        };
        self.call.finished.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn those_who_come_while_it_is_asked_wait_for_the_one_answer() {
        let flights = SingleFlight::new();
        let asked = AtomicU32::new(0);
        let (finish, may_finish) = channel::<()>();
        let (started, has_started) = channel();
        std::thread::scope(|scope| {
            let (flights, asked) = (&flights, &asked);
            scope.spawn(move || {
                let answer = flights.run_or_join(&"a", soon(), || {
                    started.send(()).unwrap();
                    may_finish.recv().unwrap();
                    asked.fetch_add(1, Ordering::SeqCst)
                });
                assert_eq!(answer, Some(0));
            });
            has_started.recv().unwrap();
            assert_eq!(
                flights.run_or_join(&"a", Instant::now(), || 7),
                None,
                "too late"
            );
            assert_eq!(
                flights.run_or_join(&"b", soon(), || 7),
                Some(7),
                "another key"
            );
            let waiting: Vec<_> = (0..20)
                .map(|_| scope.spawn(|| flights.run_or_join(&"a", soon(), || 7)))
                .collect();
            while Arc::strong_count(&lock(&flights.0)["a"]) < 22 {
                std::thread::yield_now();
            }
            finish.send(()).unwrap();
            for waiting in waiting {
                assert_eq!(waiting.join().unwrap(), Some(0));
            }
        });
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert_eq!(
            flights.run_or_join(&"a", soon(), || 8),
            Some(8),
            "asked afresh"
        );
        assert!(lock(&flights.0).is_empty());
    }

    #[test]
    fn a_panic_leaves_nobody_waiting() {
        let flights = SingleFlight::<_, ()>::new();
        std::thread::scope(|scope| {
            let panics = || flights.run_or_join(&1, soon(), || panic!("on purpose"));
            assert!(scope.spawn(panics).join().is_err());
        });
        assert_eq!(flights.run_or_join(&1, soon(), || ()), Some(()));
    }
}
