//! Responses of the endpoints. A response may hold a token: never logged.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;

use crate::server::HttpResponse;

/// CORS header fields of every response to Matrix clients, errors included: without them a browser reports a network error.
const MATRIX_CORS_HEADERS: [(&str, &str); 4] = [
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "POST, OPTIONS"),
    (
        "Access-Control-Allow-Headers",
        "Accept, Content-Type, Content-Length, Accept-Encoding, X-CSRF-Token, Authorization",
    ),
    // a day, so that browsers do not send a preflight before every call
    ("Access-Control-Max-Age", "86400"),
];

/// `Retry-After` when no permit is free or a queue is full. Also the first retry delay of the SFU's webhooks.
pub(super) const BUSY_RETRY_AFTER: Duration = Duration::from_secs(1);

/// An error in the form of the Matrix API.
#[derive(Serialize)]
struct MatrixErrorResponse<'a> {
    errcode: &'a str,
    error: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

impl HttpResponse {
    /// 200 with an empty body.
    pub(super) fn empty() -> Self {
        Self::with_body(200, Vec::new())
    }

    /// 200 with the body `{}`.
    pub(super) fn empty_object() -> Self {
        Self::with_body(200, b"{}".to_vec())
    }

    pub(super) fn json(status: u16, body: &impl Serialize) -> Self {
        // only maps with keys other than strings fail
        Self::with_body(status, serde_json::to_vec(body).unwrap_or_default())
    }

    fn with_body(status: u16, body: Vec<u8>) -> Self {
        let headers = vec![
            ("Content-Type", "application/json".into()),
            ("Cache-Control", "no-store".into()),
        ];
        Self {
            status,
            headers,
            body,
        }
    }

    pub(super) fn matrix_error(status: u16, errcode: &str, error: &str) -> Self {
        let body = MatrixErrorResponse {
            errcode,
            error,
            retry_after_ms: None,
        };
        Self::json(status, &body)
    }

    /// 429 in the form of the Matrix API.
    pub(super) fn matrix_rate_limited(after: Duration) -> Self {
        let body = MatrixErrorResponse {
            errcode: "M_LIMIT_EXCEEDED",
            error: "Too many requests",
            retry_after_ms: Some(after.as_micros().div_ceil(1000).max(1) as u64),
        };
        Self::json(429, &body).with_retry_after(after)
    }

    /// 503 in the form of the Matrix API.
    pub(super) fn matrix_busy(after: Duration) -> Self {
        Self::matrix_error(503, "M_UNKNOWN", "The service is busy").with_retry_after(after)
    }

    pub(super) fn with_header(
        mut self,
        name: &'static str,
        value: impl Into<Cow<'static, str>>,
    ) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn with_matrix_cors(mut self) -> Self {
        let headers = MATRIX_CORS_HEADERS.map(|(name, value)| (name, value.into()));
        self.headers.extend(headers);
        self
    }

    /// Adds `Retry-After` in seconds, rounded up so that a client that is punctual is not too early.
    pub(super) fn with_retry_after(self, after: Duration) -> Self {
        let seconds = after.as_millis().div_ceil(1000).max(1);
        self.with_header("Retry-After", seconds.to_string())
    }
}
