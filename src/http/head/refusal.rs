//! What the gate answers by itself, so that a browser and a Matrix client understand it.

use crate::http::reply::CORS;
use std::io::Write;
use std::time::SystemTime;

/// Why the gate does not pass a request on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// 400: it means nothing, or more than one thing.
    Malformed,
    /// 408: head or body did not come in time.
    TooSlow,
    /// 413: the body is longer than any that is served.
    BodyTooLarge,
    /// 414: the target is.
    TargetTooLong,
    /// 417: an expectation other than `100-continue`.
    Expectation,
    /// 429: the address has too many requests under way.
    TooMany,
    /// 431: the head is too long, or has too many fields.
    HeadTooLarge,
    /// 501: a method or a transfer coding that nobody here speaks.
    Unsupported,
    /// 503: no worker in time, the queue is full, or the service is ending.
    Busy,
    /// 504: the worker did not answer in time.
    Late,
    /// 505: a version other than HTTP/1.0 and HTTP/1.1.
    Version,
}

/// Seconds after which a client should come again; the queue turns over faster than that.
const RETRY_AFTER: u32 = 1;

impl Refusal {
    /// The status of the reply.
    pub fn status(self) -> u16 {
        self.parts().0
    }

    /// What the client is told.
    pub fn sentence(self) -> &'static str {
        self.parts().2
    }

    /// Whether the request was read to its end, so that the connection can carry another.
    pub fn keeps_connection(self) -> bool {
        matches!(self, Self::TooMany | Self::Busy | Self::Late)
    }

    /// Writes the reply; `connection` is its Connection field or nothing, and a `bodiless` one answers HEAD.
    pub fn write(self, connection: &str, bodiless: bool, out: &mut Vec<u8>) {
        let (status, reason, sentence) = self.parts();
        let (errcode, wait) = match self {
            Self::TooMany => ("M_LIMIT_EXCEEDED", true),
            Self::BodyTooLarge => ("M_TOO_LARGE", false),
            _ => ("M_UNKNOWN", self == Self::Busy),
        };
        let pause = match self {
            Self::TooMany => format!(r#","retry_after_ms":{}"#, RETRY_AFTER * 1000),
            _ => String::new(),
        };
        let body = format!(r#"{{"errcode":"{errcode}","error":"{sentence}"{pause}}}"#);
        let date = httpdate::fmt_http_date(SystemTime::now());
        let length = body.len();
        let _ = write!(
            out,
            "HTTP/1.1 {status} {reason}\r\nDate: {date}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{connection}"
        );
        for (name, value) in CORS {
            let _ = write!(out, "{name}: {value}\r\n");
        }
        if wait {
            let _ = write!(out, "Retry-After: {RETRY_AFTER}\r\n");
        }
        out.extend_from_slice(b"\r\n");
        if !bodiless {
            out.extend_from_slice(body.as_bytes());
        }
    }

    fn parts(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Malformed => (400, "Bad Request", "The request is malformed."),
            Self::TooSlow => (408, "Request Timeout", "The request took too long."),
            Self::BodyTooLarge => (413, "Content Too Large", "The body is too large."),
            Self::TargetTooLong => (414, "URI Too Long", "The target is too long."),
            Self::Expectation => (417, "Expectation Failed", "That cannot be expected."),
            Self::TooMany => (429, "Too Many Requests", "Too many requests at once."),
            Self::HeadTooLarge => (
                431,
                "Request Header Fields Too Large",
                "The head is too large.",
            ),
            Self::Unsupported => (501, "Not Implemented", "Unknown method or coding."),
            Self::Busy => (503, "Service Unavailable", "Too busy, try again."),
            Self::Late => (504, "Gateway Timeout", "The work took too long."),
            Self::Version => (505, "HTTP Version Not Supported", "Speak HTTP/1.1."),
        }
    }
}
