//! How often something may happen: the generic cell rate algorithm (ITU-T I.371), one time stamp for each key.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// At most `burst` events at once and one per `interval` on average, for each key.
#[derive(Debug)]
pub(crate) struct RateLimiter<K> {
    interval: Duration,
    tolerance: Duration,
    max_keys: usize,
    /// When the key will have used up its past events.
    theoretical_arrival: Mutex<HashMap<K, Instant>>,
}

impl<K: Hash + Eq + Clone> RateLimiter<K> {
    /// Remembers at most `most_keys` keys; with more than that active, the one that is due first starts afresh.
    pub(crate) fn new(interval: Duration, burst: u32, most_keys: usize) -> Self {
        let tolerance = interval * burst.saturating_sub(1);
        Self {
            interval,
            tolerance,
            max_keys: most_keys,
            theoretical_arrival: Mutex::default(),
        }
    }

    /// Counts an event at `now`, or says how long to wait for the next one.
    pub(crate) fn try_acquire(&self, key: &K, now: Instant) -> Result<(), Duration> {
        self.try_acquire_with(key, self.interval, self.tolerance, now)
    }

    /// As [`Self::take`], at most `count` a minute and as many at once, for keys that have different paces.
    pub(crate) fn try_acquire_per_minute(
        &self,
        key: &K,
        count: u32,
        now: Instant,
    ) -> Result<(), Duration> {
        let interval = Duration::from_secs(60) / count.max(1);
        self.try_acquire_with(key, interval, interval * count.saturating_sub(1), now)
    }

    fn try_acquire_with(
        &self,
        key: &K,
        interval: Duration,
        tolerance: Duration,
        now: Instant,
    ) -> Result<(), Duration> {
        let mut due = self
            .theoretical_arrival
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let at = due.get(key).copied().unwrap_or(now).max(now);
        let ahead = at.duration_since(now);
        if ahead > tolerance {
            return Err(ahead - tolerance);
        }
        if due.len() >= self.max_keys && !due.contains_key(key) {
            due.retain(|_, at| *at > now);
            if due.len() >= self.max_keys {
                let first = due
                    .iter()
                    .min_by_key(|(_, at)| **at)
                    .map(|(key, _)| key.clone());
                first.and_then(|key| due.remove(&key));
            }
        }
        due.insert(key.clone(), at + interval);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_passes_and_then_one_per_interval() {
        let rate = RateLimiter::new(SECOND, 3, 10);
        let now = Instant::now();
        assert_eq!(
            (0..5)
                .filter(|_| rate.try_acquire(&"a", now).is_ok())
                .count(),
            3
        );
        assert_eq!(rate.try_acquire(&"a", now), Err(SECOND));
        assert_eq!(rate.try_acquire(&"a", now + SECOND / 2), Err(SECOND / 2));
        assert_eq!(rate.try_acquire(&"a", now + SECOND), Ok(()));
        assert!(rate.try_acquire(&"a", now + SECOND).is_err());
        assert_eq!(rate.try_acquire(&"b", now), Ok(()));
        let later = now + 60 * SECOND;
        assert_eq!(
            (0..5)
                .filter(|_| rate.try_acquire(&"a", later).is_ok())
                .count(),
            3
        );
    }

    #[test]
    fn each_key_can_have_a_pace_of_its_own() {
        let rate = RateLimiter::new(SECOND, 1, 10);
        let now = Instant::now();
        let passed = |key, count, at| {
            (0..9)
                .filter(|_| rate.try_acquire_per_minute(key, count, at).is_ok())
                .count()
        };
        assert_eq!((passed(&"a", 5, now), passed(&"b", 2, now)), (5, 2));
        assert_eq!(rate.try_acquire_per_minute(&"b", 2, now), Err(30 * SECOND));
        assert_eq!(passed(&"b", 2, now + 30 * SECOND), 1);
        assert_eq!(passed(&"a", 5, now + 60 * SECOND), 5);
    }

    #[test]
    fn memory_is_bounded_however_many_keys_there_are() {
        let rate = RateLimiter::new(SECOND, 1, 10);
        let now = Instant::now();
        for key in 0..1000 {
            rate.try_acquire(&key, now).unwrap();
        }
        assert_eq!(rate.theoretical_arrival.lock().unwrap().len(), 10);
    }
}
