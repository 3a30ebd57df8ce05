//! What is remembered of a well-known document, and when to ask for it again.

use std::time::{Duration, Instant};

use super::WellKnownResult;
use crate::util::random;

/// When to ask again after it was of no use; each failure of the same kind doubles the time.
#[derive(Debug, Clone, Copy)]
pub(in crate::matrix) struct WellKnownBackoff {
    /// After the first clear no.
    pub(in crate::matrix) absent: Duration,
    /// After the first time without an answer.
    pub(in crate::matrix) unreachable: Duration,
    /// At most.
    pub(in crate::matrix) max: Duration,
}

/// What is remembered of the last answers.
#[derive(Debug, Clone)]
pub(in crate::matrix) struct CachedWellKnown<T> {
    value: Option<T>,
    /// When to ask again; never asked at all without it.
    fresh_until: Option<Instant>,
    /// Until when what was found holds, should asking again fail.
    valid_until: Option<Instant>,
    last_failure: Option<WellKnownFailure>,
}

/// The last failure, and how many of its kind came in a row.
#[derive(Debug, Clone)]
struct WellKnownFailure {
    absent: bool,
    cause: Box<str>,
    count: u32,
}

impl<T> Default for CachedWellKnown<T> {
    fn default() -> Self {
        Self {
            value: None,
            fresh_until: None,
            valid_until: None,
            last_failure: None,
        }
    }
}

impl<T> CachedWellKnown<T> {
    pub(in crate::matrix) fn is_stale(&self, now: Instant) -> bool {
        self.fresh_until.is_none_or(|until| until <= now)
    }

    pub(in crate::matrix) fn value(&self) -> Option<&T> {
        self.value.as_ref()
    }

    /// Why nothing new was found, and whether that is a clear no.
    pub(in crate::matrix) fn failure(&self) -> Option<(&str, bool)> {
        let failed = self.last_failure.as_ref()?;
        Some((&failed.cause, failed.absent))
    }

    /// Has it asked for again; what it said stays until then.
    pub(in crate::matrix) fn expire(&mut self) {
        self.fresh_until = None;
    }

    pub(in crate::matrix) fn record(
        &mut self,
        asked: WellKnownResult<T>,
        pauses: WellKnownBackoff,
        now: Instant,
    ) {
        match asked {
            WellKnownResult::Found(found, ttl) => {
                // asked again a little early, so that a failure then finds the last answer still valid
                let early = ttl.mul_f64(f64::from(random::up_to(10)) / 100.0 + 0.05);
                *self = Self {
                    value: Some(found),
                    fresh_until: Some(now + (ttl - early)),
                    valid_until: Some(now + ttl),
                    last_failure: None,
                };
            }
            WellKnownResult::Absent(why) => {
                let failed = self.next_failure(true, why);
                *self = Self {
                    value: None,
                    fresh_until: Some(now + pauses.delay_after(&failed)),
                    valid_until: None,
                    last_failure: Some(failed),
                };
            }
            WellKnownResult::Unreachable(why) => {
                let failed = self.next_failure(false, why);
                self.fresh_until = Some(now + pauses.delay_after(&failed));
                self.last_failure = Some(failed);
                match self.valid_until {
                    Some(until) if until > now => {
                        self.fresh_until = self.fresh_until.min(Some(until))
                    }
                    _ => self.value = None,
                }
            }
        }
    }

    fn next_failure(&self, absent: bool, why: String) -> WellKnownFailure {
        // a 404 after a time-out is the first of its kind, and the reverse
        let before = self
            .last_failure
            .as_ref()
            .filter(|last| last.absent == absent);
        WellKnownFailure {
            absent,
            cause: why.into(),
            count: before.map_or(1, |last| last.count.saturating_add(1)),
        }
    }
}

impl WellKnownBackoff {
    fn delay_after(self, failed: &WellKnownFailure) -> Duration {
        let first = if failed.absent {
            self.absent
        } else {
            self.unreachable
        };
        (first * 2_u32.pow((failed.count - 1).min(6))).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: WellKnownBackoff = WellKnownBackoff {
        absent: Duration::from_secs(600),
        unreachable: Duration::from_secs(60),
        max: Duration::from_secs(3600),
    };

    #[test]
    fn failures_are_remembered_for_longer_and_longer() {
        let now = Instant::now();
        for (asked, first) in [
            (
                &(|| WellKnownResult::Absent(String::new())) as &dyn Fn() -> WellKnownResult<()>,
                BACKOFF.absent,
            ),
            (
                &|| WellKnownResult::Unreachable(String::new()),
                BACKOFF.unreachable,
            ),
        ] {
            let mut memory = CachedWellKnown::default();
            assert!(memory.is_stale(now));
            memory.record(asked(), BACKOFF, now);
            assert!(!memory.is_stale(now) && memory.is_stale(now + first));
            memory.record(asked(), BACKOFF, now);
            assert!(!memory.is_stale(now + first) && memory.is_stale(now + 2 * first));
            for _ in 0..100 {
                memory.record(asked(), BACKOFF, now);
            }
            assert!(memory.is_stale(now + BACKOFF.max));
        }
    }

    #[test]
    fn a_failure_of_another_kind_is_the_first_of_it() {
        let now = Instant::now();
        let mut memory = CachedWellKnown::<()>::default();
        for _ in 0..5 {
            memory.record(WellKnownResult::Unreachable("silence".into()), BACKOFF, now);
        }
        assert_eq!(memory.failure(), Some(("silence", false)));
        memory.record(WellKnownResult::Absent("status 404".into()), BACKOFF, now);
        assert_eq!(memory.failure(), Some(("status 404", true)));
        assert!(memory.is_stale(now + BACKOFF.absent));
    }

    #[test]
    fn what_was_found_outlives_a_short_failure_but_not_its_time() {
        let now = Instant::now();
        let ttl = Duration::from_secs(1000);
        let mut memory = CachedWellKnown::default();
        memory.record(WellKnownResult::Found("b.org", ttl), BACKOFF, now);
        assert!(!memory.is_stale(now + ttl * 8 / 10) && memory.is_stale(now + ttl * 95 / 100));
        let silence = || WellKnownResult::Unreachable(String::new());
        memory.record(silence(), BACKOFF, now + ttl * 95 / 100);
        assert!(memory.value().is_some());
        assert!(
            memory.is_stale(now + ttl),
            "asks again when its time ends at the latest"
        );
        memory.record(silence(), BACKOFF, now + ttl);
        assert!(memory.value().is_none());
    }
}
