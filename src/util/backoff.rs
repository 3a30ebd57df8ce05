//! Delays that grow with failures.

use std::time::Duration;

/// Exponential backoff: `first` after one failure, `growth_percent` of the previous delay after each further one, at most `max`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    growth_percent: u32,
}

impl Backoff {
    /// Each delay is twice the previous one.
    pub(crate) const fn doubling(first: Duration, max: Duration) -> Self {
        Self::growing(first, max, 200)
    }

    pub(crate) const fn growing(first: Duration, max: Duration, growth_percent: u32) -> Self {
        Self {
            first,
            max,
            growth_percent,
        }
    }

    /// The delay after `failures` failures in a row; zero and one have the same.
    pub(crate) fn delay(self, failures: u32) -> Duration {
        let mut delay = self.first;
        for _ in 1..failures {
            if delay >= self.max {
                break;
            }
            delay = delay.saturating_mul(self.growth_percent) / 100;
        }
        delay.min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_up_to_their_maximum() {
        let seconds = Duration::from_secs;
        let backoff = Backoff::doubling(seconds(1), seconds(5));
        let delays = [0, 1, 2, 3, 4, u32::MAX].map(|failures| backoff.delay(failures));
        assert_eq!(delays, [1, 1, 2, 4, 5, 5].map(seconds));
        let slower = Backoff::growing(seconds(4), seconds(7), 150);
        assert_eq!(
            [1, 2, 3].map(|failures| slower.delay(failures)),
            [4, 6, 7].map(seconds)
        );
    }
}
