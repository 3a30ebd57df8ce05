//! Unix time in milliseconds, from a clock that changes of the host's clock do not affect.

use std::time::{Duration, Instant};

use crate::util::clock::unix_millis_now;

/// Milliseconds since 1970. Leaves outlast the process, so a monotonic clock alone would not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(u64);

impl UnixMillis {
    /// The time `ms` milliseconds after 1970.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since 1970.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`; zero if `earlier` is later.
    pub fn duration_since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for UnixMillis {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(ms))
    }
}

/// Reads the host's clock once and counts on from there.
#[derive(Debug, Clone, Copy)]
pub(super) struct MonotonicUnixClock {
    unix_start: UnixMillis,
    monotonic_start: Instant,
}

impl MonotonicUnixClock {
    pub(super) fn start() -> Self {
        Self {
            unix_start: UnixMillis(unix_millis_now()),
            monotonic_start: Instant::now(),
        }
    }

    pub(super) fn now(&self) -> UnixMillis {
        self.unix_start + self.monotonic_start.elapsed()
    }
}
