//! Limits on log lines of frequent events.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::sync::lock;

/// Default time between two lines.
const INTERVAL: Duration = Duration::from_secs(1);

/// Limits the lines of one kind of event to one per interval, with the number of events since the line before.
#[derive(Debug)]
pub(crate) struct LogThrottle {
    interval: Duration,
    state: Mutex<ThrottleState>,
}

#[derive(Debug, Default)]
struct ThrottleState {
    unlogged: u64,
    last_logged: Option<Instant>,
}

impl Default for LogThrottle {
    fn default() -> Self {
        Self::with_interval(INTERVAL)
    }
}

impl LogThrottle {
    pub(crate) fn with_interval(interval: Duration) -> Self {
        Self {
            interval,
            state: Mutex::default(),
        }
    }

    /// Counts an event. If a line is due, calls `log` with the number of events since the line before, this one included.
    pub(crate) fn log(&self, log: impl FnOnce(u64)) {
        if let Some(count) = self.count(Instant::now()) {
            log(count);
        }
    }

    /// Counts an event. Returns the number of events since the last line if another line is due; the first event's is.
    pub(crate) fn count(&self, now: Instant) -> Option<u64> {
        let mut state = lock(&self.state);
        state.unlogged += 1;
        let too_early = |last: Instant| now.saturating_duration_since(last) < self.interval;
        if state.last_logged.is_some_and(too_early) {
            return None;
        }
        state.last_logged = Some(now);
        Some(std::mem::take(&mut state.unlogged))
    }
}

/// Limits the lines about a problem that lasts, or that comes and goes: one per interval for its failures, and one for recovery.
#[derive(Debug)]
pub(crate) struct ProblemLog {
    active: AtomicBool,
    failures: LogThrottle,
    recoveries: LogThrottle,
}

impl ProblemLog {
    pub(crate) fn with_interval(interval: Duration) -> Self {
        Self {
            active: AtomicBool::new(false),
            failures: LogThrottle::with_interval(interval),
            recoveries: LogThrottle::with_interval(interval),
        }
    }

    /// Counts a failure. If a line is due, calls `log` with the number of failures since the line before.
    pub(crate) fn failed(&self, now: Instant, log: impl FnOnce(u64)) {
        self.active.store(true, Ordering::Relaxed);
        if let Some(count) = self.failures.count(now) {
            log(count);
        }
    }

    /// Calls `log` if a problem has ended and a line is due.
    pub(crate) fn recovered(&self, now: Instant, log: impl FnOnce()) {
        if self.active.swap(false, Ordering::Relaxed) && self.recoveries.count(now).is_some() {
            log();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_logged_once_per_interval_with_their_number() {
        let now = Instant::now();
        for interval in [INTERVAL, 60 * INTERVAL] {
            let throttle = LogThrottle::with_interval(interval);
            assert_eq!(throttle.count(now), Some(1));
            assert!((0..99).all(|_| throttle.count(now).is_none()));
            assert_eq!(throttle.count(now + interval - INTERVAL / 2), None);
            assert_eq!(throttle.count(now + interval), Some(101));
            assert_eq!(throttle.count(now + interval), None);
        }
    }

    #[test]
    fn a_problem_that_comes_and_goes_is_logged_once_per_interval() {
        let (problem, now) = (ProblemLog::with_interval(INTERVAL), Instant::now());
        problem.recovered(now, || panic!("there was no problem"));
        let lines = |now: Instant| {
            let mut lines = 0;
            for _ in 0..100 {
                problem.failed(now, |_| lines += 1);
                problem.recovered(now, || lines += 1);
            }
            lines
        };
        assert_eq!(lines(now), 2);
        assert_eq!(lines(now + INTERVAL / 2), 0);
        assert_eq!(lines(now + INTERVAL), 2);
    }

    #[test]
    fn a_problem_that_lasts_is_logged_again_with_its_number() {
        let (problem, now) = (ProblemLog::with_interval(INTERVAL), Instant::now());
        let mut counts = Vec::new();
        for at in [now, now, now + INTERVAL] {
            problem.failed(at, |count| counts.push(count));
        }
        assert_eq!(counts, [1, 2]);
        let mut recoveries = 0;
        for _ in 0..2 {
            problem.recovered(now + INTERVAL, || recoveries += 1);
        }
        assert_eq!(recoveries, 1);
    }
}
