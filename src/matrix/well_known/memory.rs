//! What is remembered of a well-known document, and when to ask for it again.

use std::time::{Duration, Instant};

use super::Asked;
use crate::random;

/// When to ask again after it was of no use; each failure of the same kind doubles the time.
#[derive(Debug, Clone, Copy)]
pub(in crate::matrix) struct Pauses {
    /// After the first clear no.
    pub(in crate::matrix) absent: Duration,
    /// After the first time without an answer.
    pub(in crate::matrix) unreachable: Duration,
    /// At most.
    pub(in crate::matrix) longest: Duration,
}

/// What is remembered of the last answers.
#[derive(Debug, Clone)]
pub(in crate::matrix) struct Memory<T> {
    found: Option<T>,
    /// When to ask again; never asked at all without it.
    fresh_until: Option<Instant>,
    /// Until when what was found holds, should asking again fail.
    valid_until: Option<Instant>,
    failed: Option<Failed>,
}

/// The last failure, and how many of its kind came in a row.
#[derive(Debug, Clone)]
struct Failed {
    absent: bool,
    why: Box<str>,
    times: u32,
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self {
            found: None,
            fresh_until: None,
            valid_until: None,
            failed: None,
        }
    }
}

impl<T> Memory<T> {
    pub(in crate::matrix) fn is_stale(&self, now: Instant) -> bool {
        self.fresh_until.is_none_or(|until| until <= now)
    }

    pub(in crate::matrix) fn found(&self) -> Option<&T> {
        self.found.as_ref()
    }

    /// Why nothing new was found, and whether that is a clear no.
    pub(in crate::matrix) fn failure(&self) -> Option<(&str, bool)> {
        let failed = self.failed.as_ref()?;
        Some((&failed.why, failed.absent))
    }

    /// Has it asked for again; what it said stays until then.
    pub(in crate::matrix) fn expire(&mut self) {
        self.fresh_until = None;
    }

    pub(in crate::matrix) fn learn(&mut self, asked: Asked<T>, pauses: Pauses, now: Instant) {
        match asked {
            Asked::Found(found, ttl) => {
                // asked again a little early, so that a failure then finds the last answer still valid
                let early = ttl.mul_f64(f64::from(random::up_to(10)) / 100.0 + 0.05);
                *self = Self {
                    found: Some(found),
                    fresh_until: Some(now + (ttl - early)),
                    valid_until: Some(now + ttl),
                    failed: None,
                };
            }
            Asked::Absent(why) => {
                let failed = self.failed_again(true, why);
                *self = Self {
                    found: None,
                    fresh_until: Some(now + pauses.after(&failed)),
                    valid_until: None,
                    failed: Some(failed),
                };
            }
            Asked::Unreachable(why) => {
                let failed = self.failed_again(false, why);
                self.fresh_until = Some(now + pauses.after(&failed));
                self.failed = Some(failed);
                match self.valid_until {
                    Some(until) if until > now => {
                        self.fresh_until = self.fresh_until.min(Some(until))
                    }
                    _ => self.found = None,
                }
            }
        }
    }

    fn failed_again(&self, absent: bool, why: String) -> Failed {
        // a 404 after a time-out is the first of its kind, and the reverse
        let before = self.failed.as_ref().filter(|last| last.absent == absent);
        Failed {
            absent,
            why: why.into(),
            times: before.map_or(1, |last| last.times.saturating_add(1)),
        }
    }
}

impl Pauses {
    fn after(self, failed: &Failed) -> Duration {
        let first = if failed.absent {
            self.absent
        } else {
            self.unreachable
        };
        (first * 2_u32.pow((failed.times - 1).min(6))).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSES: Pauses = Pauses {
        absent: Duration::from_secs(600),
        unreachable: Duration::from_secs(60),
        longest: Duration::from_secs(3600),
    };

    #[test]
    fn failures_are_remembered_for_longer_and_longer() {
        let now = Instant::now();
        for (asked, first) in [
            (
                &(|| Asked::Absent(String::new())) as &dyn Fn() -> Asked<()>,
                PAUSES.absent,
            ),
            (&|| Asked::Unreachable(String::new()), PAUSES.unreachable),
        ] {
            let mut memory = Memory::default();
            assert!(memory.is_stale(now));
            memory.learn(asked(), PAUSES, now);
            assert!(!memory.is_stale(now) && memory.is_stale(now + first));
            memory.learn(asked(), PAUSES, now);
            assert!(!memory.is_stale(now + first) && memory.is_stale(now + 2 * first));
            for _ in 0..100 {
                memory.learn(asked(), PAUSES, now);
            }
            assert!(memory.is_stale(now + PAUSES.longest));
        }
    }

    #[test]
    fn a_failure_of_another_kind_is_the_first_of_it() {
        let now = Instant::now();
        let mut memory = Memory::<()>::default();
        for _ in 0..5 {
            memory.learn(Asked::Unreachable("silence".into()), PAUSES, now);
        }
        assert_eq!(memory.failure(), Some(("silence", false)));
        memory.learn(Asked::Absent("status 404".into()), PAUSES, now);
        assert_eq!(memory.failure(), Some(("status 404", true)));
        assert!(memory.is_stale(now + PAUSES.absent));
    }

    #[test]
    fn what_was_found_outlives_a_short_failure_but_not_its_time() {
        let now = Instant::now();
        let ttl = Duration::from_secs(1000);
        let mut memory = Memory::default();
        memory.learn(Asked::Found("b.org", ttl), PAUSES, now);
        assert!(!memory.is_stale(now + ttl * 8 / 10) && memory.is_stale(now + ttl * 95 / 100));
        let silence = || Asked::Unreachable(String::new());
        memory.learn(silence(), PAUSES, now + ttl * 95 / 100);
        assert!(memory.found().is_some());
        assert!(
            memory.is_stale(now + ttl),
            "asks again when its time ends at the latest"
        );
        memory.learn(silence(), PAUSES, now + ttl);
        assert!(memory.found().is_none());
    }
}
