//! `GET /metrics` for operators, on a listener of its own.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::server::{HttpResponse, ServerStats};
use crate::util::metrics::{self, MetricsSnapshot};

/// OpenMetrics 1.0, which Prometheus reads since 2.5.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers a request to the metrics listener; `gauges` are those of the endpoints.
pub(super) fn respond(
    method: &str,
    path: &str,
    stats: &ServerStats,
    gauges: MetricsSnapshot,
) -> HttpResponse {
    let (status, text) = match (method, path) {
        ("GET" | "HEAD", "/metrics") => (200, metrics::encode(&with_server_stats(stats, gauges))),
        ("GET" | "HEAD", "/healthz") => (200, String::new()),
        (_, "/metrics" | "/healthz") => (405, String::new()),
        _ => (404, String::new()),
    };
    HttpResponse {
        status,
        headers: vec![("Content-Type", CONTENT_TYPE.into())],
        body: text.into_bytes(),
    }
}

fn with_server_stats(stats: &ServerStats, gauges: MetricsSnapshot) -> MetricsSnapshot {
    let read = |number: &AtomicU64| number.load(Relaxed);
    MetricsSnapshot {
        connections: read(&stats.open_connections),
        connections_limit: read(&stats.max_connections),
        connections_evicted: read(&stats.evicted_connections),
        connections_rejected: read(&stats.rejected_connections),
        requests_shed: read(&stats.shed_requests),
        requests_malformed: read(&stats.refused_requests),
        ..gauges
    }
}
