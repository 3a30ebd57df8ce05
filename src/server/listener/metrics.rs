//! What operators see: `GET /metrics` on a listener of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tiny_http::{Header, Request, Response, ResponseBox};

use crate::server::event_loop::ServerStats;
use crate::util::metrics;
use crate::util::metrics::MetricsSnapshot;

/// OpenMetrics 1.0, which Prometheus has read since 2.5.
const OPENMETRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) fn metrics_response(
    request: &Request,
    stats: Option<&Arc<ServerStats>>,
    kept: MetricsSnapshot,
) -> ResponseBox {
    let path = request.url().split('?').next().unwrap_or_default();
    let (status, text) = match (request.method().as_str(), path) {
        ("GET" | "HEAD", "/metrics") => (200, metrics::encode(&metrics_snapshot(stats, kept))),
        ("GET" | "HEAD", "/healthz") => (200, String::new()),
        (_, "/metrics" | "/healthz") => (405, String::new()),
        _ => (404, String::new()),
    };
    let mut response = Response::from_string(text).with_status_code(status);
    // it is ASCII without line breaks
    if let Ok(header) = Header::from_bytes("Content-Type", OPENMETRICS_CONTENT_TYPE) {
        response.add_header(header);
    }
    response.boxed()
}

fn metrics_snapshot(stats: Option<&Arc<ServerStats>>, kept: MetricsSnapshot) -> MetricsSnapshot {
    let Some(stats) = stats else {
        return kept;
    };
    let read = |number: &AtomicU64| number.load(Relaxed);
    MetricsSnapshot {
        connections: read(&stats.open_connections),
        connections_limit: read(&stats.max_connections),
        connections_evicted: read(&stats.evicted_connections),
        connections_rejected: read(&stats.rejected_connections),
        requests_shed: read(&stats.shed_requests),
        requests_malformed: read(&stats.refused_requests),
        ..kept
    }
}
