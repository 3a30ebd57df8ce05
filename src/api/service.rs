//! The endpoints as the [`Service`] of the HTTP server.

use std::sync::Arc;
use std::time::Duration;

use super::metrics;
use super::path::strip_query;
use super::response::{CORS_HEADERS, Response};
use super::router::{ApiRequest, RequestRoute, Router};
use super::token::API_KEY_HEADER;
use crate::server::{
    HttpRequest, HttpResponse, MAX_BODY_BYTES, RequestClass, RequestHead, RequestRefusal,
    ServerStats, Service,
};
use crate::token::Credentials;

/// Bytes of a body that our homeserver may push: 100 events at once (Synapse) of 64 KiB each, with what they replace.
const MAX_TRANSACTION_BYTES: usize = 16 << 20;

/// For clients that the server refuses because of load; its queue turns over faster.
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
            address_limited: !route.from_homeserver,
            context: Some(route),
        }
    }

    fn respond(&self, request: &HttpRequest<'_, Self::Context>) -> HttpResponse {
        let Some(route) = request.origin.context else {
            let (method, path) = (request.method, strip_query(request.target));
            return metrics::respond(method, path, &self.stats, self.router.gauge_values());
        };
        let single = |name| single(request.header_values(name));
        let response = self.router.respond(
            route,
            &ApiRequest {
                method: request.method,
                target: request.target,
                client: request.origin.client,
                rate_key: request.origin.limit_key,
                authorization: single("Authorization"),
                body: request.body,
                credentials: credentials(request),
                content_type: request.header("Content-Type"),
                origin: request.header("Origin"),
                matrix_user: single("X-Matrix-User-Identifier"),
                matrix_origin: single("X-Matrix-Origin"),
                preflight: request
                    .header("Access-Control-Request-Method")
                    .map(|method| (method, request.header("Access-Control-Request-Headers"))),
            },
        );
        http_response(response)
    }

    fn refuse(&self, refusal: RequestRefusal) -> HttpResponse {
        http_response(match refusal {
            RequestRefusal::TooManyRequests => Response::rate_limited(RETRY_AFTER),
            RequestRefusal::Busy => Response::busy(RETRY_AFTER),
            RequestRefusal::BodyTooLarge => {
                Response::matrix_error(refusal.status(), "M_TOO_LARGE", refusal.message())
            }
            _ => Response::matrix_error(refusal.status(), "M_UNKNOWN", refusal.message()),
        })
    }
}

fn credentials<'a, C>(request: &HttpRequest<'a, C>) -> Credentials<'a> {
    Credentials::parse(
        request.header_values(API_KEY_HEADER),
        request.header_values("Authorization"),
    )
}

/// The only value of a header field; of several values, which is right is unknown: an empty text, which proves nothing.
fn single<'a>(mut values: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let first = values.next();
    match values.next() {
        None => first,
        Some(_) => Some(""),
    }
}

fn http_response(response: Response) -> HttpResponse {
    let mut headers: Vec<_> = match response.headers {
        None => CORS_HEADERS
            .map(|(name, value)| (name, value.into()))
            .into(),
        Some(headers) => headers
            .into_iter()
            .map(|(name, value)| (name, value.into()))
            .collect(),
    };
    headers.push(("Content-Type", "application/json".into()));
    headers.push(("Cache-Control", "no-store".into()));
    if let Some(seconds) = response.retry_after {
        headers.push(("Retry-After", seconds.to_string().into()));
    }
    if let Some(methods) = response.allow {
        headers.push(("Allow", methods.into()));
    }
    HttpResponse {
        status: response.status,
        headers,
        body: response.body,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::api::rate_limit::AddressRateLimiter;

    #[test]
    fn refusals_of_the_server_have_an_errcode_and_cors_headers() {
        let router = Router::new(AddressRateLimiter::new(0));
        let service = ApiService::new(router, 1, Arc::default());
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
            let response = service.refuse(refusal);
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
