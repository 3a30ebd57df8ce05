//! The endpoints as the [`Service`] of the HTTP server.

use std::sync::Arc;
use std::time::Duration;

use super::metrics;
use super::request::single;
use super::router::{RequestRoute, Router, path_without_query};
use super::token::API_KEY_HEADER;
use crate::server::{
    HttpRequest, HttpResponse, MAX_BODY_BYTES, RequestClass, RequestHead, RequestRefusal,
    ServerStats, Service,
};
use crate::token::Credentials;

/// Bytes of a body that our homeserver may push: 100 events at once (Synapse) of 64 KiB each, with what they replace.
const MAX_TRANSACTION_BYTES: usize = 16 << 20;

/// For clients that the server refuses because of load: requests leave its queue sooner.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// All endpoints, and the metrics.
#[derive(Debug)]
pub(crate) struct ApiService {
    router: Router,
    /// Listeners from this index on are for the metrics.
    metrics_listener: usize,
    stats: Arc<ServerStats>,
}

impl ApiService {
    pub(crate) fn new(router: Router, metrics_listener: usize, stats: Arc<ServerStats>) -> Self {
        Self {
            router,
            metrics_listener,
            stats,
        }
    }
}

impl Service for ApiService {
    /// `None`: a request for the metrics.
    type Context = Option<RequestRoute>;

    const ALLOWED_HEADERS: &'static [&'static str] = &[
        "Host",
        "Content-Type",
        "Authorization",
        API_KEY_HEADER,
        "Origin",
        "User-Agent",
        "Accept",
        "Access-Control-Request-Method",
        "Access-Control-Request-Headers",
        "X-Request-Id",
        "X-Matrix-User-Identifier",
        "X-Matrix-Origin",
    ];

    fn classify(&self, listener: usize, head: &RequestHead<'_>) -> RequestClass<Self::Context> {
        if listener >= self.metrics_listener {
            return RequestClass {
                outbound: false,
                max_body_bytes: MAX_BODY_BYTES,
                address_limited: true,
                context: None,
            };
        }
        let text = |value| std::str::from_utf8(value).unwrap_or_default();
        let values = |name| head.header_values(name).map(text);
        let authorization = single(values("Authorization"));
        let route = self.router.resolve(head.target(), authorization);
        let credentials = Credentials::parse(values(API_KEY_HEADER), values("Authorization"));
        RequestClass {
            outbound: self
                .router
                .needs_upstream(head.method(), route, credentials),
            max_body_bytes: if route.is_transaction() {
                MAX_TRANSACTION_BYTES
            } else {
                MAX_BODY_BYTES
            },
            address_limited: route.homeserver.is_err(),
            context: Some(route),
        }
    }

    fn respond(&self, request: &HttpRequest<'_, Self::Context>) -> HttpResponse {
        let Some(route) = request.origin.context else {
            let (method, path) = (request.method, path_without_query(request.target));
            return metrics::respond(method, path, &self.stats, self.router.gauge_values());
        };
        self.router.respond(route, request)
    }

    fn refuse(&self, refusal: RequestRefusal) -> HttpResponse {
        refusal_response(refusal)
    }
}

fn refusal_response(refusal: RequestRefusal) -> HttpResponse {
    let response = match refusal {
        RequestRefusal::TooManyRequests => HttpResponse::matrix_rate_limited(RETRY_AFTER),
        RequestRefusal::Busy => HttpResponse::matrix_busy(RETRY_AFTER),
        RequestRefusal::BodyTooLarge => {
            HttpResponse::matrix_error(refusal.status(), "M_TOO_LARGE", refusal.message())
        }
        _ => HttpResponse::matrix_error(refusal.status(), "M_UNKNOWN", refusal.message()),
    };
    response.with_matrix_cors()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn refusals_of_the_server_have_an_errcode_and_cors_headers() {
        for (refusal, status, errcode, retry_after) in [
            (RequestRefusal::Malformed, 400, "M_UNKNOWN", None),
            (RequestRefusal::BodyTooLarge, 413, "M_TOO_LARGE", None),
            (
                RequestRefusal::TooManyRequests,
                429,
                "M_LIMIT_EXCEEDED",
                Some("1"),
            ),
            (RequestRefusal::InternalError, 500, "M_UNKNOWN", None),
            (RequestRefusal::Busy, 503, "M_UNKNOWN", Some("1")),
        ] {
            let response = refusal_response(refusal);
            let body: Value = serde_json::from_slice(&response.body).unwrap();
            let header = |name| {
                let mut headers = response.headers.iter();
                headers.find(|h| h.0 == name).map(|h| &*h.1)
            };
            assert_eq!(response.status, status);
            assert_eq!(body["errcode"], errcode);
            assert!(body["error"].is_string());
            assert_eq!(header("Retry-After"), retry_after);
            assert_eq!(header("Access-Control-Allow-Origin"), Some("*"));
            assert_eq!(header("Content-Type"), Some("application/json"));
            if refusal == RequestRefusal::TooManyRequests {
                assert_eq!(body["retry_after_ms"], 1000);
            }
        }
    }
}
