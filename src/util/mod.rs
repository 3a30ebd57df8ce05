//! TODO module

pub(crate) mod clock;
pub(crate) mod json;
pub(crate) mod log_throttle;
pub(crate) mod logging;
pub(crate) mod metrics;
pub(crate) mod random;
pub(crate) mod rate_limiter;
pub(crate) mod single_flight;
pub(crate) mod sync;

pub(crate) mod systemd;
pub(crate) mod ttl_cache;
