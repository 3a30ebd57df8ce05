//! Single flight: concurrent calls for the same key share one execution.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use super::clock::time_left;
use super::sync::{lock, wait_timeout};

/// Calls in flight; memory is bounded by their number.
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
    Panicked,
}

impl<K: Hash + Eq + Clone, V: Clone> SingleFlight<K, V> {
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    /// The result of `call`, or of another caller's call of the same key that is in flight; `None` if that one panics or does
    /// not end by `deadline`.
    pub(crate) fn run_or_join(
        &self,
        key: &K,
        deadline: Instant,
        call: impl FnOnce() -> V,
    ) -> Option<V> {
        let mut in_flight = lock(&self.0);
        if let Some(other) = in_flight.get(key).cloned() {
            drop(in_flight);
            return other.wait(deadline);
        }
        let shared = Arc::new(SharedCall {
            state: Mutex::new(SharedCallState::Running),
            finished: Condvar::new(),
        });
        in_flight.insert(key.clone(), shared.clone());
        drop(in_flight);
        let mut guard = SharedCallGuard {
            single_flight: self,
            key,
            call: &shared,
            result: None,
        };
        let result = call();
        guard.result = Some(result.clone());
        Some(result)
    }

    /// Callers that run or wait for the call of `key`.
    #[cfg(test)]
    pub(crate) fn callers(&self, key: &K) -> usize {
        let in_flight = lock(&self.0);
        // the map holds one reference itself
        in_flight
            .get(key)
            .map_or(0, |call| Arc::strong_count(call) - 1)
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
            state = wait_timeout(&self.finished, state, time_left(deadline)?);
        }
    }
}

/// Publishes the result of a call, or that it has panicked.
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
    fn concurrent_calls_share_one_execution() {
        let calls = SingleFlight::new();
        let executions = AtomicU32::new(0);
        let (finish, may_finish) = channel::<()>();
        let (started, has_started) = channel();
        std::thread::scope(|scope| {
            let (calls, executions) = (&calls, &executions);
            scope.spawn(move || {
                let result = calls.run_or_join(&"a", soon(), || {
                    started.send(()).unwrap();
                    may_finish.recv().unwrap();
                    executions.fetch_add(1, Ordering::SeqCst)
                });
                assert_eq!(result, Some(0));
            });
            has_started.recv().unwrap();
            assert_eq!(
                calls.run_or_join(&"a", Instant::now(), || 7),
                None,
                "past the deadline"
            );
            assert_eq!(
                calls.run_or_join(&"b", soon(), || 7),
                Some(7),
                "another key"
            );
            let joined: Vec<_> = (0..20)
                .map(|_| scope.spawn(|| calls.run_or_join(&"a", soon(), || 7)))
                .collect();
            while calls.callers(&"a") < 21 {
                std::thread::yield_now();
            }
            finish.send(()).unwrap();
            for caller in joined {
                assert_eq!(caller.join().unwrap(), Some(0));
            }
        });
        assert_eq!(executions.load(Ordering::SeqCst), 1);
        assert_eq!(
            calls.run_or_join(&"a", soon(), || 8),
            Some(8),
            "a later call"
        );
        assert!(lock(&calls.0).is_empty());
    }

    #[test]
    fn a_panic_ends_the_call() {
        let calls = SingleFlight::<_, ()>::new();
        std::thread::scope(|scope| {
            let panics = || calls.run_or_join(&1, soon(), || panic!("for the test"));
            assert!(scope.spawn(panics).join().is_err());
        });
        assert_eq!(calls.run_or_join(&1, soon(), || ()), Some(()));
    }
}
