//! Helpers without knowledge of the service: caches, rate limits, threads, text, time, JSON, logging and metrics.

pub(crate) mod auth;
pub(crate) mod backoff;
pub(crate) mod bounded_map;
pub(crate) mod clock;
pub(crate) mod file;
pub(crate) mod json;
pub(crate) mod log_throttle;
pub(crate) mod logging;
pub(crate) mod metrics;
pub(crate) mod random;
pub(crate) mod rate_limiter;
pub(crate) mod signal;
pub(crate) mod single_flight;
pub(crate) mod sync;
pub(crate) mod systemd;
pub(crate) mod text;
pub(crate) mod ttl_cache;
