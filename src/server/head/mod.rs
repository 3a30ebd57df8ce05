//! Request heads (RFC 9112, RFC 9110): what is ambiguous is refused, never repaired.
//!
//! tiny_http gets heads written anew by [`RequestHead::write_backend_head`]: it never sees framing that a client chose.

mod chunked;
#[cfg(test)]
mod tests;

pub use chunked::ChunkDecoder;

use std::io::Write;

use super::service::RequestRefusal;

/// Bytes of request line and header fields. Browsers and proxies stay below 4 KiB; nginx allows 8 KiB per line.
pub const MAX_HEAD_BYTES: usize = 16 << 10;
/// Header fields of one request. Browsers send about 20, proxies add up to 10.
pub(super) const MAX_HEADERS: usize = 64;
/// Bytes of the request target. RFC 9112 section 3 recommends at least 8,000.
const MAX_TARGET_BYTES: usize = 8 << 10;
/// Bytes of an ordinary body after decoding. The largest expected one, an OpenID token with its member, has less than 2 KiB.
pub const MAX_BODY_BYTES: usize = 64 << 10;
/// Bytes of a Host: 253 for the longest name, brackets, colon and port.
const MAX_HOST_BYTES: usize = 261;
/// Digits of the Content-Length that replaces a chunked coding.
const CONTENT_LENGTH_DIGITS: usize = 10;

/// Carries the number of a request through tiny_http.
pub(super) const REQUEST_ID_HEADER: &str = "X-Internal-Request-Id";

/// Where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// No body.
    Empty,
    /// So many bytes, at least one.
    ContentLength(usize),
    /// Chunked coding, RFC 9112 section 7.1.
    Chunked,
}

/// A request head with exactly one meaning.
#[derive(Debug)]
pub struct RequestHead<'a> {
    method: &'a str,
    target: &'a str,
    host: Option<&'a str>,
    pub(super) http11: bool,
    /// Whether the client may send another request on this connection.
    pub(super) keep_alive: bool,
    expects_continue: bool,
    framing: BodyFraming,
    headers: [httparse::Header<'a>; MAX_HEADERS],
    header_count: usize,
    allowed_headers: &'static [&'static str],
}

/// Searches for the end of a head: the index after its empty line. `scanned` is where the last search ended.
///
/// # Errors
/// [`RequestRefusal::Malformed`] for NUL, a CR without LF and a LF without CR.
pub fn find_head_end(bytes: &[u8], scanned: &mut usize) -> Result<Option<usize>, RequestRefusal> {
    let mut last = scanned.checked_sub(1).map_or(0, |at| bytes[at]);
    for (at, &byte) in bytes.iter().enumerate().skip(*scanned) {
        if byte == 0 || (byte == b'\n') != (last == b'\r') {
            return Err(RequestRefusal::Malformed);
        }
        if byte == b'\n' && at >= 3 && bytes[at - 2] == b'\n' {
            *scanned = at + 1;
            return Ok(Some(at + 1));
        }
        last = byte;
    }
    *scanned = bytes.len();
    Ok(None)
}

impl<'a> RequestHead<'a> {
    /// Parses a whole head, including the empty line that [`find_head_end`] has found. Only `allowed_headers` are written to
    /// tiny_http, and must be ASCII.
    ///
    /// # Errors
    /// The refusal for the client. The connection must be closed, because the end of the request is unknown.
    pub fn parse(
        bytes: &'a [u8],
        allowed_headers: &'static [&'static str],
    ) -> Result<Self, RequestRefusal> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(end)) if end == bytes.len() => {}
            Err(httparse::Error::TooManyHeaders) => return Err(RequestRefusal::HeadTooLarge),
            Err(httparse::Error::Version) => return Err(version_refusal(bytes)),
            _ => return Err(RequestRefusal::Malformed),
        }
        let (Some(method), Some(target)) = (request.method, request.path) else {
            return Err(RequestRefusal::Malformed);
        };
        let (http11, header_count) = (request.version == Some(1), request.headers.len());
        if !["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"].contains(&method) {
            return Err(RequestRefusal::NotImplemented);
        }
        let (host, target) = parse_target(method, target)?;
        let mut head = Self {
            method,
            target,
            host,
            http11,
            keep_alive: http11,
            expects_continue: false,
            framing: BodyFraming::Empty,
            headers,
            header_count,
            allowed_headers,
        };
        head.interpret_headers()?;
        Ok(head)
    }

    /// `GET`, `HEAD`, `POST`, `PUT`, `DELETE`, `OPTIONS` or `PATCH`.
    pub fn method(&self) -> &'a str {
        self.method
    }

    /// Path and query as sent, or `*`: visible ASCII without `#`.
    pub fn target(&self) -> &'a str {
        self.target
    }

    /// Where the body ends.
    pub fn framing(&self) -> BodyFraming {
        self.framing
    }

    /// Whether the client waits for `100 Continue` before it sends the body.
    pub(super) fn expects_continue(&self) -> bool {
        self.expects_continue && self.http11 && self.framing != BodyFraming::Empty
    }

    /// Values of a header field, in the order of the request.
    pub fn header_values(&self, name: &str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        self.headers[..self.header_count]
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    }

    /// Appends the head for tiny_http: the allowed header fields, `request_id` and a Content-Length.
    pub fn write_backend_head(&self, request_id: u64, out: &mut Vec<u8>) {
        let (method, target) = (self.method, self.target);
        // TE: identity makes tiny_http answer with a Content-Length, never in chunks
        let _ = write!(
            out,
            "{method} {target} HTTP/1.1\r\nTE: identity\r\n{REQUEST_ID_HEADER}: {request_id}\r\n"
        );
        for header in &self.headers[..self.header_count] {
            if self.is_allowed(header.name) {
                let value = match self.host {
                    Some(host) if header.name.eq_ignore_ascii_case("host") => host.as_bytes(),
                    _ => header.value,
                };
                for part in [header.name.as_bytes(), b": ", value, b"\r\n"] {
                    out.extend_from_slice(part);
                }
            }
        }
        let _ = match self.framing {
            BodyFraming::Empty => write!(out, "\r\n"),
            BodyFraming::ContentLength(length) => write!(out, "Content-Length: {length}\r\n\r\n"),
            BodyFraming::Chunked => {
                write!(out, "Content-Length: {:0CONTENT_LENGTH_DIGITS$}\r\n\r\n", 0)
            }
        };
    }

    fn is_allowed(&self, name: &str) -> bool {
        self.allowed_headers
            .iter()
            .any(|allowed| allowed.eq_ignore_ascii_case(name))
    }

    fn interpret_headers(&mut self) -> Result<(), RequestRefusal> {
        let (mut length, mut chunked, mut host, mut closes) = (None, false, None, false);
        for header in &self.headers[..self.header_count] {
            let (name, value) = (header.name, header.value);
            if name.eq_ignore_ascii_case("content-length") {
                if length.replace(parse_content_length(value)?).is_some() {
                    return Err(RequestRefusal::Malformed);
                }
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                if chunked || !self.http11 {
                    return Err(RequestRefusal::Malformed);
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(RequestRefusal::NotImplemented);
                }
                chunked = true;
            } else if name.eq_ignore_ascii_case("host") {
                if host.replace(parse_host(value)?).is_some() {
                    return Err(RequestRefusal::Malformed);
                }
            } else if name.eq_ignore_ascii_case("connection") {
                for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    closes |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            } else if name.eq_ignore_ascii_case("expect") {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(RequestRefusal::ExpectationFailed);
                }
                self.expects_continue = true;
            } else if self.is_allowed(name) && !value.is_ascii() {
                return Err(RequestRefusal::Malformed);
            }
        }
        if (self.http11 && host.is_none()) || (chunked && length.is_some()) {
            return Err(RequestRefusal::Malformed);
        }
        self.keep_alive &= !closes;
        self.host = self.host.or(host);
        self.framing = match length {
            _ if chunked => BodyFraming::Chunked,
            None | Some(0) => BodyFraming::Empty,
            Some(length) => BodyFraming::ContentLength(length),
        };
        Ok(())
    }
}

/// Replaces the placeholder of a chunked body's length in a request for tiny_http, whose body begins at `body_start`.
pub fn set_content_length(request: &mut [u8], body_start: usize) {
    let length = request.len() - body_start;
    let end = body_start - b"\r\n\r\n".len();
    let _ = write!(
        &mut request[end - CONTENT_LENGTH_DIGITS..end],
        "{length:0CONTENT_LENGTH_DIGITS$}"
    );
}

/// `HTTP/2.0` is an unsupported version, `http/1.1` is malformed.
fn version_refusal(head: &[u8]) -> RequestRefusal {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    match words[..] {
        [_, _, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            RequestRefusal::UnsupportedVersion
        }
        _ => RequestRefusal::Malformed,
    }
}

/// Parses origin-form, absolute-form (RFC 9112 section 3.2.2: its authority replaces Host) and `*` into authority and target.
fn parse_target<'a>(
    method: &str,
    target: &'a str,
) -> Result<(Option<&'a str>, &'a str), RequestRefusal> {
    if target.len() > MAX_TARGET_BYTES {
        return Err(RequestRefusal::TargetTooLong);
    }
    if !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(RequestRefusal::Malformed);
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok((None, target));
    }
    let (scheme, rest) = target.split_once("://").ok_or(RequestRefusal::Malformed)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(RequestRefusal::Malformed);
    }
    let (authority, path) = match rest.find(['/', '?']) {
        // a query without a path needs a `/` that the borrowed target does not have; no client sends it
        Some(at) if rest[at..].starts_with('?') => return Err(RequestRefusal::Malformed),
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    Ok((Some(parse_host(authority.as_bytes())?), path))
}

/// `uri-host [ ":" port ]`, RFC 9110 section 7.2; not empty.
fn parse_host(value: &[u8]) -> Result<&str, RequestRefusal> {
    let is_host_byte = |b: &u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(b);
    std::str::from_utf8(value)
        .ok()
        .filter(|host| (1..=MAX_HOST_BYTES).contains(&host.len()) && value.iter().all(is_host_byte))
        .ok_or(RequestRefusal::Malformed)
}

/// Digits only. A number beyond `usize` is too large, not malformed.
fn parse_content_length(value: &[u8]) -> Result<usize, RequestRefusal> {
    match std::str::from_utf8(value) {
        Ok(digits) if !digits.is_empty() && value.iter().all(u8::is_ascii_digit) => {
            digits.parse().map_err(|_| RequestRefusal::BodyTooLarge)
        }
        _ => Err(RequestRefusal::Malformed),
    }
}
