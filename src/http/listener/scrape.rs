//! What operators see: `GET /metrics` on a listener of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tiny_http::{Header, Request, Response, ResponseBox};

use crate::http::gate::Stats;
use crate::metrics::{self, Now};

/// OpenMetrics 1.0, which Prometheus has read since 2.5.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) fn answer(request: &Request, stats: Option<&Arc<Stats>>, kept: Now) -> ResponseBox {
    let path = request.url().split('?').next().unwrap_or_default();
    let (status, text) = match (request.method().as_str(), path) {
        ("GET" | "HEAD", "/metrics") => (200, metrics::text(&now(stats, kept))),
        ("GET" | "HEAD", "/healthz") => (200, String::new()),
        (_, "/metrics" | "/healthz") => (405, String::new()),
        _ => (404, String::new()),
    };
    let mut response = Response::from_string(text).with_status_code(status);
    // it is ASCII without line breaks
    if let Ok(header) = Header::from_bytes("Content-Type", CONTENT_TYPE) {
        response.add_header(header);
    }
    response.boxed()
}

fn now(stats: Option<&Arc<Stats>>, kept: Now) -> Now {
    let Some(stats) = stats else {
        return kept;
    };
    let read = |number: &AtomicU64| number.load(Relaxed);
    Now {
        connections: read(&stats.open),
        connections_limit: read(&stats.room),
        evicted: read(&stats.evicted),
        turned_away: read(&stats.turned_away),
        shed: read(&stats.shed),
        malformed: read(&stats.refused),
        ..kept
    }
}
