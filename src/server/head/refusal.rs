//! What the gate answers by itself, so that a browser and a Matrix client understand it.

use crate::api::response::CORS_HEADERS;
use std::io::Write;
use std::time::SystemTime;

/// Why the gate does not pass a request on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestRefusal {
    /// 400: it means nothing, or more than one thing.
    Malformed,
    /// 408: head or body did not come in time.
    RequestTimeout,
    /// 413: the body is longer than any that is served.
    BodyTooLarge,
    /// 414: the target is.
    TargetTooLong,
    /// 417: an expectation other than `100-continue`.
    ExpectationFailed,
    /// 429: the address has too many requests under way.
    TooManyRequests,
    /// 431: the head is too long, or has too many fields.
    HeadTooLarge,
    /// 501: a method or a transfer coding that nobody here speaks.
    NotImplemented,
    /// 503: no worker in time, the queue is full, or the service is ending.
    Busy,
    /// 504: the worker did not answer in time.
    WorkerTimeout,
    /// 505: a version other than HTTP/1.0 and HTTP/1.1.
    UnsupportedVersion,
}

/// Seconds after which a client should come again; the queue turns over faster than that.
const RETRY_AFTER_SECONDS: u32 = 1;

impl RequestRefusal {
    /// The status of the reply.
    pub fn status(self) -> u16 {
        self.parts().0
    }

    /// What the client is told.
    pub fn message(self) -> &'static str {
        self.parts().2
    }

    /// Whether the request was read to its end, so that the connection can carry another.
    pub fn keeps_connection(self) -> bool {
        matches!(
            self,
            Self::TooManyRequests | Self::Busy | Self::WorkerTimeout
        )
    }

    /// Writes the reply; `connection` is its Connection field or nothing, and a `bodiless` one answers HEAD.
    pub fn write(self, connection: &str, bodiless: bool, out: &mut Vec<u8>) {
        let (status, reason, sentence) = self.parts();
        let (errcode, wait) = match self {
            Self::TooManyRequests => ("M_LIMIT_EXCEEDED", true),
            Self::BodyTooLarge => ("M_TOO_LARGE", false),
            _ => ("M_UNKNOWN", self == Self::Busy),
        };
        let pause = match self {
            Self::TooManyRequests => format!(r#","retry_after_ms":{}"#, RETRY_AFTER_SECONDS * 1000),
            _ => String::new(),
        };
        let body = format!(r#"{{"errcode":"{errcode}","error":"{sentence}"{pause}}}"#);
        let date = httpdate::fmt_http_date(SystemTime::now());
        let length = body.len();
        let _ = write!(
            out,
            "HTTP/1.1 {status} {reason}\r\nDate: {date}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{connection}"
        );
        for (name, value) in CORS_HEADERS {
            let _ = write!(out, "{name}: {value}\r\n");
        }
        if wait {
            let _ = write!(out, "Retry-After: {RETRY_AFTER_SECONDS}\r\n");
        }
        out.extend_from_slice(b"\r\n");
        if !bodiless {
            out.extend_from_slice(body.as_bytes());
        }
    }

    fn parts(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Malformed => (400, "Bad Request", "The request is malformed."),
            Self::RequestTimeout => (408, "Request Timeout", "The request took too long."),
            Self::BodyTooLarge => (413, "Content Too Large", "The body is too large."),
            Self::TargetTooLong => (414, "URI Too Long", "The target is too long."),
            Self::ExpectationFailed => (417, "Expectation Failed", "That cannot be expected."),
            Self::TooManyRequests => (429, "Too Many Requests", "Too many requests at once."),
            Self::HeadTooLarge => (
                431,
                "Request Header Fields Too Large",
                "The head is too large.",
            ),
            Self::NotImplemented => (501, "Not Implemented", "Unknown method or coding."),
            Self::Busy => (503, "Service Unavailable", "Too busy, try again."),
            Self::WorkerTimeout => (504, "Gateway Timeout", "The work took too long."),
            Self::UnsupportedVersion => (505, "HTTP Version Not Supported", "Speak HTTP/1.1."),
        }
    }
}
