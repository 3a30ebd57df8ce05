//! Rate limits for each key: the generic cell rate algorithm (ITU-T I.371), which needs one time stamp for a key.

use std::hash::Hash;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::bounded_map::BoundedMap;
use super::sync::lock;

/// One event per `interval` on average, and at most `burst` at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    interval: Duration,
    burst: u32,
}

impl Rate {
    pub(crate) const fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst }
    }

    /// At most `count` a minute, and as many at once.
    pub(crate) fn per_minute(count: u32) -> Self {
        Self::new(Duration::from_secs(60) / count.max(1), count)
    }
}

/// Counts the events of each key.
#[derive(Debug)]
pub(crate) struct RateLimiter<K> {
    /// The theoretical arrival time of each key: the time at which its past events are used up.
    arrivals: Mutex<BoundedMap<K, ()>>,
}

impl<K: Hash + Eq + Clone> RateLimiter<K> {
    /// Remembers at most `max_keys` keys. With more active ones, the key whose events are used up first starts afresh.
    pub(crate) fn new(max_keys: usize) -> Self {
        Self {
            arrivals: Mutex::new(BoundedMap::new(max_keys)),
        }
    }

    /// Counts an event at `now`, or returns how long to wait for the next one.
    pub(crate) fn try_acquire(&self, key: &K, rate: Rate, now: Instant) -> Result<(), Duration> {
        let mut arrivals = lock(&self.arrivals);
        let known = arrivals.rank(key);
        let arrival = known.unwrap_or(now).max(now);
        let ahead = arrival.duration_since(now);
        let tolerance = rate.interval * rate.burst.saturating_sub(1);
        if ahead > tolerance {
            return Err(ahead - tolerance);
        }
        match known {
            Some(_) => arrivals.set_rank(key, arrival + rate.interval),
            None => drop(arrivals.insert(key.clone(), (), arrival + rate.interval)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn acquired(limiter: &RateLimiter<&str>, key: &'static str, rate: Rate, now: Instant) -> usize {
        let attempts = (0..9).filter(|_| limiter.try_acquire(&key, rate, now).is_ok());
        attempts.count()
    }

    #[test]
    fn a_burst_is_followed_by_one_event_per_interval() {
        let limiter = RateLimiter::new(10);
        let rate = Rate::new(SECOND, 3);
        let now = Instant::now();
        assert_eq!(acquired(&limiter, "a", rate, now), 3);
        assert_eq!(limiter.try_acquire(&"a", rate, now), Err(SECOND));
        assert_eq!(
            limiter.try_acquire(&"a", rate, now + SECOND / 2),
            Err(SECOND / 2)
        );
        assert_eq!(acquired(&limiter, "a", rate, now + SECOND), 1);
        assert_eq!(acquired(&limiter, "b", rate, now), 3);
        assert_eq!(acquired(&limiter, "a", rate, now + 60 * SECOND), 3);
    }

    #[test]
    fn each_key_can_have_its_own_rate() {
        let limiter = RateLimiter::new(10);
        let now = Instant::now();
        let (five, two) = (Rate::per_minute(5), Rate::per_minute(2));
        assert_eq!(acquired(&limiter, "a", five, now), 5);
        assert_eq!(acquired(&limiter, "b", two, now), 2);
        assert_eq!(limiter.try_acquire(&"b", two, now), Err(30 * SECOND));
        assert_eq!(acquired(&limiter, "b", two, now + 30 * SECOND), 1);
        assert_eq!(acquired(&limiter, "a", five, now + 60 * SECOND), 5);
    }

    #[test]
    fn the_number_of_keys_is_bounded() {
        let limiter = RateLimiter::new(10);
        let now = Instant::now();
        for key in 0..1000 {
            limiter
                .try_acquire(&key, Rate::new(SECOND, 1), now)
                .unwrap();
        }
        assert_eq!(lock(&limiter.arrivals).len(), 10);
    }
}
