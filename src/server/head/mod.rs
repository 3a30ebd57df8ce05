//! Request heads of strangers: one meaning, or refused. Nothing ambiguous is repaired.
//!
//! What passes is written anew for tiny_http ([`Head::write`]), so that it never sees a byte of framing that a stranger
//! chose. RFC 9112 (HTTP/1.1), RFC 9110 (fields).

mod chunked;
mod refusal;
#[cfg(test)]
mod tests;

pub use self::chunked::ChunkDecoder;
pub(crate) use refusal::RequestRefusal;

use std::io::Write;

/// Bytes of request line and fields. Browsers and proxies stay below 4 KiB; nginx allows 8 KiB per line.
pub const MAX_HEAD_BYTES: usize = 16 << 10;
/// Fields of one request. Browsers send about 20, and proxies add some 10.
pub(crate) const MAX_HEADERS: usize = 64;
/// Bytes of the target. RFC 9112 recommends that at least 8,000 be understood.
pub(crate) const MAX_TARGET_BYTES: usize = 8 << 10;
/// Bytes of a body after decoding. The largest honest one, an OpenID token with its member, has less than 2 KiB.
pub const MAX_BODY_BYTES: usize = 64 << 10;
/// The same of a client that has proven by its head alone that it is one of ours: a homeserver pushes 100 events at once (Synapse),
/// of 64 KiB each, with what was there before them.
pub const MAX_LARGE_BODY_BYTES: usize = 16 << 20;
/// Bytes of a host: 253 for the longest name, brackets, colon and port.
const MAX_HOST_BYTES: usize = 261;
/// Digits of the length of a chunked body, which is only known once it has been read.
const CONTENT_LENGTH_DIGITS: usize = 10;

/// Carries the client's address to the handlers, or `unix` where there is none. Set by the gate; any such from outside is
/// dropped.
pub(crate) const CLIENT_ADDRESS_HEADER: &str = "X-Gate-Client";
/// Tells handlers which listener a request came to, counted from 0.
pub(crate) const LISTENER_HEADER: &str = "X-Gate-Door";

/// The fields that a handler gets to see; all others end at the gate, which saves tiny_http the work and leaves nothing
/// to abuse. A handler that wants another one adds it here. Framing, hop-by-hop and forwarding fields must never be here.
const ALLOWED_HEADERS: [&str; 12] = [
    "Host",
    "Content-Type",
    "Authorization",
    "X-API-Key",
    "Origin",
    "User-Agent",
    "Accept",
    "Access-Control-Request-Method",
    "Access-Control-Request-Headers",
    "X-Request-Id",
    "X-Matrix-User-Identifier",
    "X-Matrix-Origin",
];

/// Where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is none.
    Empty,
    /// So many bytes, at least one and at most [`LARGE_BODY_BYTES`].
    ContentLength(usize),
    /// Chunks, RFC 9112 section 7.1.
    Chunked,
}

/// A request head that means one thing only.
#[derive(Debug)]
pub struct RequestHead<'a> {
    method: &'a str,
    target: &'a str,
    host: Option<&'a str>,
    http11: bool,
    keep_alive: bool,
    expects_continue: bool,
    framing: BodyFraming,
    headers: [httparse::Header<'a>; MAX_HEADERS],
    header_count: usize,
}

/// Looks for the end of a head in what has come so far: the index after its empty line. `from` is where the last look
/// ended. NUL, a CR that no LF follows and a LF that no CR precedes are refused at once.
///
/// # Errors
/// [`Refusal::Malformed`] for these bytes.
pub fn find_head_end(bytes: &[u8], from: &mut usize) -> Result<Option<usize>, RequestRefusal> {
    let mut last = from.checked_sub(1).map_or(0, |at| bytes[at]);
    for (at, &byte) in bytes.iter().enumerate().skip(*from) {
        if byte == 0 || (byte == b'\n') != (last == b'\r') {
            return Err(RequestRefusal::Malformed);
        }
        if byte == b'\n' && at >= 3 && bytes[at - 2] == b'\n' {
            *from = at + 1;
            return Ok(Some(at + 1));
        }
        last = byte;
    }
    *from = bytes.len();
    Ok(None)
}

impl<'a> RequestHead<'a> {
    /// Reads a whole head, its empty line included, of which [`find_end`] has told the end.
    ///
    /// # Errors
    /// The refusal that the client gets; the connection must be closed then, for the end of the request is unknown.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RequestRefusal> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(end)) if end == bytes.len() => {}
            Err(httparse::Error::TooManyHeaders) => return Err(RequestRefusal::HeadTooLarge),
            Err(httparse::Error::Version) => return Err(version_refusal(bytes)),
            _ => return Err(RequestRefusal::Malformed),
        }
        let (Some(method), Some(target)) = (request.method, request.path) else {
            return Err(RequestRefusal::Malformed);
        };
        let (modern, count) = (request.version == Some(1), request.headers.len());
        if !["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"].contains(&method) {
            return Err(RequestRefusal::NotImplemented);
        }
        let (authority, target) = parse_target(method, target)?;
        let mut head = Self {
            method,
            target,
            host: authority,
            http11: modern,
            keep_alive: modern,
            expects_continue: false,
            framing: BodyFraming::Empty,
            headers: fields,
            header_count: count,
        };
        head.interpret_headers()?;
        Ok(head)
    }

    /// The method, one of the seven that are passed on.
    pub fn method(&self) -> &'a str {
        self.method
    }

    /// The target as sent, beginning with `/` (or `*`): visible ASCII without `#`.
    pub fn target(&self) -> &'a str {
        self.target
    }

    /// Where the body ends.
    pub fn framing(&self) -> BodyFraming {
        self.framing
    }

    /// Whether the client speaks HTTP/1.1 rather than 1.0.
    pub fn is_http11(&self) -> bool {
        self.http11
    }

    /// Whether the client wants another request on this connection.
    pub fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Whether the client waits for `100 Continue` before it sends the body.
    pub fn expects_continue(&self) -> bool {
        self.expects_continue && self.http11 && self.framing != BodyFraming::Empty
    }

    /// The values of a field, the last one first.
    pub fn header_values_reversed(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers[..self.header_count]
            .iter()
            .rev()
            .filter(move |field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    }

    /// Writes the head as tiny_http gets it: only the fields of `PASSED`, the client's address, its door and one length.
    pub fn write_backend_head(
        &self,
        client: &dyn std::fmt::Display,
        door: usize,
        out: &mut Vec<u8>,
    ) {
        let (method, target) = (self.method, self.target);
        // TE: identity makes tiny_http answer with a Content-Length, never in chunks
        let _ = write!(
            out,
            "{method} {target} HTTP/1.1\r\nTE: identity\r\n{CLIENT_ADDRESS_HEADER}: {client}\r\n{LISTENER_HEADER}: {door}\r\n"
        );
        for field in &self.headers[..self.header_count] {
            if is_allowed_header(field.name) {
                let value = match self.host {
                    Some(host) if field.name.eq_ignore_ascii_case("host") => host.as_bytes(),
                    _ => field.value,
                };
                for part in [field.name.as_bytes(), b": ", value, b"\r\n"] {
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

    fn interpret_headers(&mut self) -> Result<(), RequestRefusal> {
        let (mut length, mut chunked, mut host, mut closes) = (None, false, None, false);
        for field in &self.headers[..self.header_count] {
            let (name, value) = (field.name, field.value);
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
            } else if is_allowed_header(name) && !value.is_ascii() {
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
            Some(length) if length > MAX_LARGE_BODY_BYTES as u64 => {
                return Err(RequestRefusal::BodyTooLarge);
            }
            Some(length) => BodyFraming::ContentLength(length as usize),
        };
        Ok(())
    }
}

/// Writes the length of a chunked body, now that it is known, into its request: `body` is where the body begins.
pub fn set_content_length(request: &mut [u8], body: usize) {
    let length = request.len() - body;
    let end = body - b"\r\n\r\n".len();
    let _ = write!(
        &mut request[end - CONTENT_LENGTH_DIGITS..end],
        "{length:0CONTENT_LENGTH_DIGITS$}"
    );
}

fn is_allowed_header(name: &str) -> bool {
    ALLOWED_HEADERS
        .iter()
        .any(|passed| passed.eq_ignore_ascii_case(name))
}

/// `HTTP/2.0` is a version that we do not speak, `http/1.1` is none at all.
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

/// Reads origin-form, absolute-form (which every server must accept, and whose authority replaces Host) and `*`.
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
        // a query without a path would need a byte more than there is; nobody sends it
        Some(at) if rest[at..].starts_with('?') => return Err(RequestRefusal::Malformed),
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    Ok((Some(parse_host(authority.as_bytes())?), path))
}

/// `uri-host [ ":" port ]`, RFC 9110 section 7.2; an empty one is refused, for a URL of http has a host.
fn parse_host(value: &[u8]) -> Result<&str, RequestRefusal> {
    let fits = |b: &u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(b);
    match std::str::from_utf8(value) {
        Ok(host) if !host.is_empty() && host.len() <= MAX_HOST_BYTES && value.iter().all(fits) => {
            Ok(host)
        }
        _ => Err(RequestRefusal::Malformed),
    }
}

/// One or more digits and nothing else; a number that is beyond any body is too large, not malformed.
fn parse_content_length(value: &[u8]) -> Result<u64, RequestRefusal> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(RequestRefusal::Malformed);
    }
    let text = std::str::from_utf8(value).map_err(|_| RequestRefusal::Malformed)?;
    text.parse().map_err(|_| RequestRefusal::BodyTooLarge)
}
