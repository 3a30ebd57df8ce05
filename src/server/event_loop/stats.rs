//! What an operator can see of the gate while it runs.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters since the start, and one gauge. Read them at any time, from any thread.
#[derive(Debug, Default)]
pub struct ServerStats {
    /// Connections that are open now.
    pub open_connections: AtomicU64,
    /// Connections that there is room for.
    pub max_connections: AtomicU64,
    /// Connections taken from the kernel.
    pub accepted_connections: AtomicU64,
    /// Connections closed to make room for others, or because memory was short.
    pub evicted_connections: AtomicU64,
    /// Connections closed at once: too many of one address, or no room.
    pub rejected_connections: AtomicU64,
    /// Errors of `accept`.
    pub accept_errors: AtomicU64,
    /// Requests that a worker has answered.
    pub served_requests: AtomicU64,
    /// Requests that the gate itself has answered because of load: 429, 503, 504.
    pub shed_requests: AtomicU64,
    /// Requests that the gate itself has answered because of what they were: the other statuses.
    pub refused_requests: AtomicU64,
}

/// One more.
pub(super) fn increment(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
