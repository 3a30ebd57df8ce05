//! TODO module

pub mod clock;
pub mod json;
pub mod log_throttle;
pub mod logging;
pub mod metrics;
pub mod random;
pub mod rate_limiter;
pub mod single_flight;
pub mod swappable;
pub mod systemd;
pub mod ttl_cache;
