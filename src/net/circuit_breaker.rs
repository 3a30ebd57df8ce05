//! Leaves a server alone that did not answer, for a while that grows.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Failures in a row that open a breaker.
const FAILURE_THRESHOLD: u32 = 2;
/// How long it is open at first.
const MIN_OPEN: Duration = Duration::from_secs(15);
/// How long it is open at most for a stranger: each further failure doubles the time.
const MAX_OPEN: Duration = Duration::from_secs(300);
/// Servers that are remembered; only those that fail are.
const MAX_SERVERS: usize = 1024;

/// How long a probe is waited for: the longest that any call takes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(25);

#[derive(Debug)]
struct BreakerState {
    failures: u32,
    open_for: Duration,
    open_until: Instant,
}

/// A breaker for each server.
#[derive(Debug)]
pub(crate) struct CircuitBreaker<K: Hash + Eq> {
    min_open: Duration,
    max_open: Duration,
    servers: Mutex<HashMap<K, BreakerState>>,
}

impl<K: Hash + Eq> Default for CircuitBreaker<K> {
    fn default() -> Self {
        Self::new(MIN_OPEN, MAX_OPEN)
    }
}

impl<K: Hash + Eq> CircuitBreaker<K> {
    /// Breakers that are open for `first`, and for `longest` at most, instead of 15 s and 5 min.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self {
            min_open: first,
            max_open: longest,
            servers: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, BreakerState>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq + Clone> CircuitBreaker<K> {
    /// Lets a call to the server pass, or says for how long not. When the time is over one call is let through as a probe; the
    /// others wait for what comes of it.
    pub(crate) fn attempt(
        &self,
        server: &K,
        now: Instant,
    ) -> Result<BreakerAttempt<'_, K>, Duration> {
        let mut servers = self.lock();
        let open = servers
            .get_mut(server)
            .filter(|s| s.failures >= FAILURE_THRESHOLD);
        let is_probe = open.is_some();
        if let Some(state) = open {
            if now < state.open_until {
                return Err(state.open_until - now);
            }
            state.open_until = now + PROBE_TIMEOUT;
        }
        Ok(BreakerAttempt {
            breaker: self,
            server: server.clone(),
            is_probe,
        })
    }
}

/// A call that was let pass. Dropped without a word, it says nothing about the server, and the next call may try.
#[derive(Debug)]
pub(crate) struct BreakerAttempt<'a, K: Hash + Eq> {
    breaker: &'a CircuitBreaker<K>,
    server: K,
    is_probe: bool,
}

impl<K: Hash + Eq + Clone> BreakerAttempt<'_, K> {
    /// The server answered, whatever it said.
    pub(crate) fn record_success(mut self) {
        self.is_probe = false;
        self.breaker.lock().remove(&self.server);
    }

    /// The server did not answer. `patient` servers are tried after the same time again, however long they are gone.
    pub(crate) fn record_failure(mut self, patient: bool, now: Instant) {
        let was_probe = std::mem::take(&mut self.is_probe);
        let mut servers = self.breaker.lock();
        if servers.len() >= MAX_SERVERS && !servers.contains_key(&self.server) {
            let first = servers.iter().min_by_key(|(_, s)| s.open_until);
            let first = first.map(|(key, _)| key.clone());
            first.and_then(|key| servers.remove(&key));
        }
        let state = servers.entry(self.server.clone()).or_insert(BreakerState {
            failures: 0,
            open_for: self.breaker.min_open,
            open_until: now,
        });
        if state.failures >= FAILURE_THRESHOLD && !was_probe {
            // a call from before the breaker opened
            return;
        }
        if was_probe && !patient {
            state.open_for = (state.open_for * 2).min(self.breaker.max_open);
        }
        state.failures = (state.failures + 1).min(FAILURE_THRESHOLD);
        state.open_until = now + state.open_for;
    }
}

impl<K: Hash + Eq> Drop for BreakerAttempt<'_, K> {
    fn drop(&mut self) {
        if self.is_probe
            && let Some(state) = self.breaker.lock().get_mut(&self.server)
        {
            state.open_until = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn fail(breakers: &CircuitBreaker<u32>, server: u32, now: Instant) {
        breakers
            .attempt(&server, now)
            .unwrap()
            .record_failure(false, now);
    }

    #[test]
    fn two_failures_open_it_and_one_probe_at_a_time_may_pass() {
        let breakers = CircuitBreaker::default();
        let now = Instant::now();
        let early: Vec<_> = (0..5).map(|_| breakers.attempt(&1, now).unwrap()).collect();
        fail(&breakers, 1, now);
        fail(&breakers, 1, now);
        // calls from before it opened do not keep it open for longer
        early
            .into_iter()
            .for_each(|attempt| attempt.record_failure(false, now + SECOND));
        assert_eq!(breakers.attempt(&1, now).unwrap_err(), MIN_OPEN);
        assert!(breakers.attempt(&2, now).is_ok());
        let later = now + MIN_OPEN;
        let probe = breakers.attempt(&1, later).unwrap();
        assert_eq!(
            breakers.attempt(&1, later + SECOND).unwrap_err(),
            PROBE_TIMEOUT - SECOND
        );
        probe.record_success();
        assert!(breakers.attempt(&1, later).is_ok());
    }

    #[test]
    fn failed_probes_double_the_time_up_to_five_minutes() {
        for (patient, longest) in [(false, MAX_OPEN), (true, MIN_OPEN)] {
            let breakers = CircuitBreaker::default();
            let mut now = Instant::now();
            fail(&breakers, 1, now);
            fail(&breakers, 1, now);
            for _ in 0..10 {
                now += breakers.attempt(&1, now).unwrap_err();
                breakers
                    .attempt(&1, now)
                    .unwrap()
                    .record_failure(patient, now);
            }
            assert_eq!(breakers.attempt(&1, now).unwrap_err(), longest);
        }
    }

    #[test]
    fn a_probe_that_never_reached_the_server_is_made_good() {
        let breakers = CircuitBreaker::default();
        let then = Instant::now() - MIN_OPEN;
        fail(&breakers, 1, then);
        fail(&breakers, 1, then);
        drop(breakers.attempt(&1, Instant::now()).unwrap());
        assert!(breakers.attempt(&1, Instant::now()).is_ok());
    }

    #[test]
    fn memory_is_bounded_however_many_servers_fail() {
        let breakers = CircuitBreaker::default();
        let now = Instant::now();
        for server in 0..10_000 {
            fail(&breakers, server, now);
        }
        assert_eq!(breakers.lock().len(), MAX_SERVERS);
    }
}
