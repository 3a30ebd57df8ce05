//! The interface between the HTTP server and its handler: requests, responses and refusals.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::net::IpAddr;
use std::time::SystemTime;

use http::StatusCode;

use super::head::RequestHead;
#[cfg(doc)]
use super::{MAX_BODY_BYTES, ServerLimits};

/// What the HTTP server serves.
pub trait Service: Send + Sync + 'static {
    /// What [`Service::classify`] has found out about a request and [`Service::respond`] needs to know.
    type Context: Copy + Send + 'static;

    /// Header fields that reach [`Service::respond`]; all others end at the event loop. Must not name fields of framing, of
    /// one hop, or of forwarding.
    const ALLOWED_HEADERS: &'static [&'static str];

    /// Classifies a request by its head and by the index of the listener that it came to. Called once for each request, on
    /// the event loop: must not block.
    fn classify(&self, listener: usize, head: &RequestHead<'_>) -> RequestClass<Self::Context>;

    /// Answers a request. Called on a worker thread; may block, for less than [`ServerLimits::work_timeout`]. A panic costs
    /// the request a [`RequestRefusal::InternalError`], nothing else.
    fn respond(&self, request: &HttpRequest<'_, Self::Context>) -> HttpResponse;

    /// The response to a request that the server refuses. Must not block.
    fn refuse(&self, refusal: RequestRefusal) -> HttpResponse;
}

/// How the server treats a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestClass<C> {
    /// Whether the response waits for other servers. Such requests never occupy the last eighth of the workers.
    pub outbound: bool,
    /// Largest body with a Content-Length, in bytes. A chunked body is limited to [`MAX_BODY_BYTES`].
    pub max_body_bytes: usize,
    /// Whether the request counts towards the limit of its client's address.
    pub address_limited: bool,
    /// Handed on to [`Service::respond`].
    pub context: C,
}

/// Where a request comes from, and what [`Service::classify`] has found out about it.
#[derive(Clone, Copy, Debug)]
pub struct RequestOrigin<C> {
    /// The client, as trusted proxies report it.
    pub client: ClientAddress,
    /// The address that limits apply to; `None` for a client without limits.
    pub limit_key: Option<IpAddr>,
    /// Index of the listener.
    pub listener: usize,
    /// From [`RequestClass::context`].
    pub context: C,
}

/// A complete request. Header fields and body may hold secrets: never logged.
pub struct HttpRequest<'a, C> {
    /// `GET`, `HEAD`, `POST`, `PUT`, `DELETE`, `OPTIONS` or `PATCH`.
    pub method: &'a str,
    /// Path and query as sent: visible ASCII without `#`.
    pub target: &'a str,
    /// The whole body, without the chunked coding.
    pub body: &'a [u8],
    /// Client, listener and context.
    pub origin: RequestOrigin<C>,
    pub(super) headers: &'a [tiny_http::Header],
}

impl<'a, C> HttpRequest<'a, C> {
    /// Names and values of all header fields, in the order of the request.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a, C> {
        self.headers
            .iter()
            .map(|header| (header.field.as_str().as_str(), header.value.as_str()))
    }

    /// Values of a header field, in the order of the request.
    pub fn header_values(&self, name: &'static str) -> impl Iterator<Item = &'a str> + use<'a, C> {
        self.headers()
            .filter(move |(header, _)| header.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The first value of a header field.
    pub fn header(&self, name: &'static str) -> Option<&'a str> {
        self.header_values(name).next()
    }
}

/// A response. Its body may hold a token: never logged.
#[derive(Clone, Default)]
pub struct HttpResponse {
    /// Status code.
    pub status: u16,
    /// All header fields but Date, Content-Length and Connection; ASCII without line breaks.
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
    /// The body.
    pub body: Vec<u8>,
}

impl HttpResponse {
    /// Appends the response to `out`. `connection_header` is a whole line or empty; the response to HEAD has no body.
    pub(super) fn write(&self, connection_header: &str, head_request: bool, out: &mut Vec<u8>) {
        let (status, length) = (self.status, self.body.len());
        let reason = match StatusCode::from_u16(status) {
            // its name since RFC 9110
            Ok(StatusCode::PAYLOAD_TOO_LARGE) => "Content Too Large",
            Ok(status) => status.canonical_reason().unwrap_or_default(),
            Err(_) => "",
        };
        let date = httpdate::fmt_http_date(SystemTime::now());
        let _ = write!(
            out,
            "HTTP/1.1 {status} {reason}\r\nDate: {date}\r\nContent-Length: {length}\r\n{connection_header}"
        );
        for (name, value) in &self.headers {
            let _ = write!(out, "{name}: {value}\r\n");
        }
        out.extend_from_slice(b"\r\n");
        if !head_request {
            out.extend_from_slice(&self.body);
        }
    }
}

/// Address of a client; `None` on a unix socket, displayed as `unix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub Option<IpAddr>);

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("unix"),
        }
    }
}

/// Why the server itself refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestRefusal {
    /// 400: invalid or ambiguous.
    Malformed,
    /// 408: head or body are not complete at the deadline.
    RequestTimeout,
    /// 413: the body is longer than allowed.
    BodyTooLarge,
    /// 414: the request target is longer than allowed.
    TargetTooLong,
    /// 417: an expectation other than `100-continue`.
    ExpectationFailed,
    /// 429: the address has too many requests in progress.
    TooManyRequests,
    /// 431: the head is too long, or has too many fields.
    HeadTooLarge,
    /// 500: [`Service::respond`] has panicked.
    InternalError,
    /// 501: an unknown method or transfer coding.
    NotImplemented,
    /// 503: no worker in time, a full queue, or the end of the service.
    Busy,
    /// 504: no response of the worker at the deadline.
    WorkerTimeout,
    /// 505: a version other than HTTP/1.0 and HTTP/1.1.
    UnsupportedVersion,
}

impl RequestRefusal {
    /// The status code.
    pub fn status(self) -> u16 {
        self.parts().0
    }

    /// An English sentence for the client.
    pub fn message(self) -> &'static str {
        self.parts().1
    }

    /// Whether the request was read to its end, so that the connection can carry another one.
    pub(super) fn keeps_connection(self) -> bool {
        matches!(
            self,
            Self::TooManyRequests | Self::Busy | Self::WorkerTimeout
        )
    }

    fn parts(self) -> (u16, &'static str) {
        match self {
            Self::Malformed => (400, "The request is malformed."),
            Self::RequestTimeout => (408, "The request took too long."),
            Self::BodyTooLarge => (413, "The body is too large."),
            Self::TargetTooLong => (414, "The target is too long."),
            Self::ExpectationFailed => (417, "The expectation is not supported."),
            Self::TooManyRequests => (429, "Too many requests at once."),
            Self::HeadTooLarge => (431, "The head is too large."),
            Self::InternalError => (500, "Internal error"),
            Self::NotImplemented => (501, "Unknown method or coding."),
            Self::Busy => (503, "Too busy, try again."),
            Self::WorkerTimeout => (504, "The work took too long."),
            Self::UnsupportedVersion => (505, "The HTTP version is not supported."),
        }
    }
}
