//! What happens too often for a line each: one line a second, with the number.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines, unless somebody says otherwise.
const INTERVAL: Duration = Duration::from_secs(1);

/// Counts what was not told yet.
#[derive(Debug)]
pub(crate) struct LogThrottle {
    interval: Duration,
    pending: Mutex<ThrottleState>,
}

#[derive(Debug, Default)]
struct ThrottleState {
    count: u64,
    last_logged: Option<Instant>,
}

impl Default for LogThrottle {
    fn default() -> Self {
        Self::with_interval(INTERVAL)
    }
}

impl LogThrottle {
    /// One line in `interval`.
    pub(crate) fn with_interval(interval: Duration) -> Self {
        Self {
            interval,
            pending: Mutex::default(),
        }
    }

    /// Counts one more. The number since the last line, if it is time for another; the first one is told at once.
    pub(crate) fn count(&self, now: Instant) -> Option<u64> {
        let mut untold = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        untold.count += 1;
        let waits = |told: Instant| now.saturating_duration_since(told) < self.interval;
        if untold.last_logged.is_some_and(waits) {
            return None;
        }
        untold.last_logged = Some(now);
        Some(std::mem::take(&mut untold.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_once_a_second_and_nothing_is_left_out() {
        let tally = LogThrottle::default();
        let now = Instant::now();
        assert_eq!(tally.count(now), Some(1));
        assert!((0..99).all(|_| tally.count(now).is_none()));
        assert_eq!(tally.count(now + INTERVAL), Some(100));
        assert_eq!(tally.count(now + INTERVAL), None);
    }

    #[test]
    fn some_floods_are_told_more_rarely() {
        let (tally, now) = (LogThrottle::with_interval(60 * INTERVAL), Instant::now());
        assert_eq!(tally.count(now), Some(1));
        assert_eq!(tally.count(now + 59 * INTERVAL), None);
        assert_eq!(tally.count(now + 60 * INTERVAL), Some(2));
    }
}
