//! Circuit breaker for each server: a server that does not answer is not called for a time that grows.

use std::hash::Hash;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::net::address::Trust;
use crate::util::bounded_map::BoundedMap;
use crate::util::sync::lock;

/// Failures in a row that open a breaker.
const FAILURE_THRESHOLD: u32 = 2;
/// First time for which a breaker is open.
const MIN_OPEN: Duration = Duration::from_secs(15);
/// Longest time for which a breaker is open.
const MAX_OPEN: Duration = Duration::from_secs(300);
/// Servers that have failed, of which the one whose breaker closes first is forgotten first.
const MAX_SERVERS: usize = 1024;
/// Time after which the outcome of a probe is no longer awaited: the longest call.
const PROBE_TIMEOUT: Duration = Duration::from_secs(25);

#[derive(Debug)]
struct BreakerState {
    failures: u32,
    open_for: Duration,
    open_until: Instant,
}

/// Breakers of servers.
#[derive(Debug)]
pub(crate) struct CircuitBreaker<K: Hash + Eq> {
    min_open: Duration,
    max_open: Duration,
    servers: Mutex<BoundedMap<K, BreakerState>>,
}

impl<K: Hash + Eq + Clone> Default for CircuitBreaker<K> {
    /// Breakers that are open for 15 s at first and for 5 min at most.
    fn default() -> Self {
        Self::new(MIN_OPEN, MAX_OPEN)
    }
}

impl<K: Hash + Eq + Clone> CircuitBreaker<K> {
    pub(crate) fn new(min_open: Duration, max_open: Duration) -> Self {
        Self {
            min_open,
            max_open,
            servers: Mutex::new(BoundedMap::new(MAX_SERVERS)),
        }
    }

    /// Allows a call to the server, or returns how long its breaker is still open. After that time one call is allowed as a
    /// probe; other calls are refused until its outcome is known.
    pub(crate) fn attempt(
        &self,
        server: &K,
        now: Instant,
    ) -> Result<BreakerAttempt<'_, K>, Duration> {
        let mut servers = lock(&self.servers);
        let state = servers.get_mut(server);
        let open = state.filter(|state| state.failures >= FAILURE_THRESHOLD);
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

/// An allowed call. Dropped without an outcome, it counts neither as success nor as failure, and the next call is allowed.
#[derive(Debug)]
pub(crate) struct BreakerAttempt<'a, K: Hash + Eq + Clone> {
    breaker: &'a CircuitBreaker<K>,
    server: K,
    is_probe: bool,
}

impl<K: Hash + Eq + Clone> BreakerAttempt<'_, K> {
    /// The server answered, with whatever status.
    pub(crate) fn record_success(mut self) {
        self.is_probe = false;
        lock(&self.breaker.servers).remove(&self.server);
    }

    /// The server did not answer. The breaker of an unlisted server is open for twice the time after each failed probe.
    pub(crate) fn record_failure(mut self, trust: Trust, now: Instant) {
        let was_probe = std::mem::take(&mut self.is_probe);
        let mut servers = lock(&self.breaker.servers);
        let (failures, mut open_for) = match servers.get(&self.server) {
            Some(state) => (state.failures, state.open_for),
            None => (0, self.breaker.min_open),
        };
        if failures >= FAILURE_THRESHOLD && !was_probe {
            // a call from before the breaker opened
            return;
        }
        if was_probe && trust == Trust::Unlisted {
            open_for = (open_for * 2).min(self.breaker.max_open);
        }
        let state = BreakerState {
            failures: (failures + 1).min(FAILURE_THRESHOLD),
            open_for,
            open_until: now + open_for,
        };
        servers.insert(self.server.clone(), state, now + open_for);
    }
}

impl<K: Hash + Eq + Clone> Drop for BreakerAttempt<'_, K> {
    fn drop(&mut self) {
        if self.is_probe
            && let Some(state) = lock(&self.breaker.servers).get_mut(&self.server)
        {
            state.open_until = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn fail(breaker: &CircuitBreaker<u32>, server: u32, now: Instant) {
        breaker
            .attempt(&server, now)
            .unwrap()
            .record_failure(Trust::Unlisted, now);
    }

    #[test]
    fn two_failures_open_a_breaker_and_then_one_probe_at_a_time_is_allowed() {
        let breaker = CircuitBreaker::default();
        let now = Instant::now();
        let early: Vec<_> = (0..5).map(|_| breaker.attempt(&1, now).unwrap()).collect();
        fail(&breaker, 1, now);
        fail(&breaker, 1, now);
        // calls from before the breaker opened do not keep it open for longer
        early
            .into_iter()
            .for_each(|attempt| attempt.record_failure(Trust::Unlisted, now + SECOND));
        assert_eq!(breaker.attempt(&1, now).unwrap_err(), MIN_OPEN);
        assert!(breaker.attempt(&2, now).is_ok());
        let later = now + MIN_OPEN;
        let probe = breaker.attempt(&1, later).unwrap();
        assert_eq!(
            breaker.attempt(&1, later + SECOND).unwrap_err(),
            PROBE_TIMEOUT - SECOND
        );
        probe.record_success();
        assert!(breaker.attempt(&1, later).is_ok());
    }

    #[test]
    fn failed_probes_double_the_time_for_unlisted_servers() {
        for (trust, open_for) in [(Trust::Unlisted, MAX_OPEN), (Trust::Listed, MIN_OPEN)] {
            let breaker = CircuitBreaker::default();
            let mut now = Instant::now();
            fail(&breaker, 1, now);
            fail(&breaker, 1, now);
            for _ in 0..10 {
                now += breaker.attempt(&1, now).unwrap_err();
                breaker.attempt(&1, now).unwrap().record_failure(trust, now);
            }
            assert_eq!(breaker.attempt(&1, now).unwrap_err(), open_for);
        }
    }

    #[test]
    fn a_probe_without_an_outcome_is_followed_by_another() {
        let breaker = CircuitBreaker::default();
        let then = Instant::now() - MIN_OPEN;
        fail(&breaker, 1, then);
        fail(&breaker, 1, then);
        drop(breaker.attempt(&1, Instant::now()).unwrap());
        assert!(breaker.attempt(&1, Instant::now()).is_ok());
    }

    #[test]
    fn the_number_of_servers_is_bounded() {
        let breaker = CircuitBreaker::default();
        let now = Instant::now();
        for server in 0..10_000 {
            fail(&breaker, server, now);
        }
        assert_eq!(lock(&breaker.servers).len(), MAX_SERVERS);
    }
}
