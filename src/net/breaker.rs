//! Leaves a server alone that did not answer, for a while that grows.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Failures in a row that open a breaker.
const FAILURES: u32 = 2;
/// How long it is open at first.
const FIRST: Duration = Duration::from_secs(15);
/// How long it is open at most for a stranger: each further failure doubles the time.
const LONGEST: Duration = Duration::from_secs(300);
/// Servers that are remembered; only those that fail are.
const MOST: usize = 1024;

/// How long a probe is waited for: the longest that any call takes.
const PROBE: Duration = Duration::from_secs(25);

#[derive(Debug)]
struct State {
    failures: u32,
    open_for: Duration,
    open_until: Instant,
    probing: bool,
}

/// A breaker for each server.
#[derive(Debug)]
pub struct Breakers<K>(Mutex<HashMap<K, State>>);

impl<K: Hash + Eq + Clone> Default for Breakers<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq + Clone> Breakers<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the server may be asked, or how long not. When the time is over one caller is let through to try; the others wait again.
    pub fn check(&self, server: &K, now: Instant) -> Result<(), Duration> {
        let mut servers = self.lock();
        let Some(state) = servers.get_mut(server).filter(|s| s.failures >= FAILURES) else {
            return Ok(());
        };
        if now < state.open_until {
            return Err(state.open_until - now);
        }
        state.probing = true;
        state.open_until = now + PROBE;
        Ok(())
    }

    /// The server answered, whatever it said.
    pub fn success(&self, server: &K) {
        self.lock().remove(server);
    }

    /// A call that was let through came to nothing before the server could answer: the next one may try.
    pub fn spared(&self, server: &K, now: Instant) {
        if let Some(state) = self.lock().get_mut(server).filter(|state| state.probing) {
            state.probing = false;
            state.open_until = now;
        }
    }

    /// The server did not answer. `patient` servers are tried every 15 s, however long they are gone.
    pub fn failure(&self, server: &K, patient: bool, now: Instant) {
        let mut servers = self.lock();
        if servers.len() >= MOST && !servers.contains_key(server) {
            let first = servers
                .iter()
                .min_by_key(|(_, s)| s.open_until)
                .map(|(key, _)| key.clone());
            first.and_then(|key| servers.remove(&key));
        }
        let state = servers.entry(server.clone()).or_insert(State {
            failures: 0,
            open_for: FIRST,
            open_until: now,
            probing: false,
        });
        if state.failures >= FAILURES && !state.probing {
            // a call from before the breaker opened
            return;
        }
        if state.probing && !patient {
            state.open_for = (state.open_for * 2).min(LONGEST);
        }
        state.failures = (state.failures + 1).min(FAILURES);
        state.probing = false;
        state.open_until = now + state.open_for;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn two_failures_open_it_and_one_probe_at_a_time_may_pass() {
        let breakers = Breakers::default();
        let now = Instant::now();
        breakers.failure(&"hs", false, now);
        assert_eq!(breakers.check(&"hs", now), Ok(()));
        for _ in 0..5 {
            breakers.failure(&"hs", false, now);
        }
        assert_eq!(breakers.check(&"hs", now), Err(FIRST));
        assert_eq!(breakers.check(&"other", now), Ok(()));
        let later = now + FIRST;
        assert_eq!(breakers.check(&"hs", later), Ok(()));
        assert!(breakers.check(&"hs", later).is_err());
        breakers.success(&"hs");
        assert_eq!(breakers.check(&"hs", later), Ok(()));
    }

    #[test]
    fn failed_probes_double_the_time_up_to_five_minutes() {
        for (patient, longest) in [(false, LONGEST), (true, FIRST)] {
            let breakers = Breakers::default();
            let mut now = Instant::now();
            breakers.failure(&1, patient, now);
            breakers.failure(&1, patient, now);
            for _ in 0..10 {
                now += breakers.check(&1, now).unwrap_err();
                breakers.check(&1, now).unwrap();
                breakers.failure(&1, patient, now);
            }
            assert_eq!(breakers.check(&1, now), Err(longest));
        }
    }

    #[test]
    fn a_probe_that_never_reports_does_not_close_the_way_for_good() {
        let breakers = Breakers::default();
        let now = Instant::now();
        breakers.failure(&1, false, now);
        breakers.failure(&1, false, now);
        assert_eq!(breakers.check(&1, now + FIRST), Ok(()));
        assert_eq!(
            breakers.check(&1, now + FIRST + SECOND),
            Err(PROBE - SECOND)
        );
        assert_eq!(breakers.check(&1, now + FIRST + PROBE), Ok(()));
    }

    #[test]
    fn a_probe_that_never_reached_the_server_is_made_good() {
        let breakers = Breakers::default();
        let now = Instant::now();
        breakers.failure(&1, false, now);
        breakers.failure(&1, false, now);
        let later = now + FIRST;
        breakers.spared(&1, now);
        assert_eq!(breakers.check(&1, now), Err(FIRST), "there was no probe");
        assert_eq!(breakers.check(&1, later), Ok(()));
        breakers.spared(&1, later);
        assert_eq!(breakers.check(&1, later), Ok(()));
        assert!(breakers.check(&1, later).is_err());
    }

    #[test]
    fn memory_is_bounded_however_many_servers_fail() {
        let breakers = Breakers::default();
        let now = Instant::now();
        for server in 0..10_000 {
            breakers.failure(&server, false, now);
        }
        assert_eq!(breakers.lock().len(), MOST);
    }
}
