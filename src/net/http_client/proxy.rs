//! HTTP proxy for TLS connections to the public Internet: its URL, and CONNECT tunnels through it (RFC 9110, 9.3.6).

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use ureq::Error;
use ureq::unversioned::transport::{ConnectionDetails, Connector, TcpConnector, Transport};

use super::connection::remaining_timeout;
use crate::net::address::Trust;
use crate::net::base_url::BaseUrl;
use crate::net::dns;

/// Longest URL of a proxy, in bytes: its user and password have to fit into one header field.
const MAX_URL: usize = 2048;
/// Largest head of a response to CONNECT, in bytes. Squid's has some 40, and that of a refusal 400.
const MAX_CONNECT_HEAD: usize = 8 * 1024;
/// Fields of that head.
const MAX_FIELDS: usize = 64;

/// The proxy of `LIVEKIT_HTTPS_PROXY`.
#[derive(Clone, PartialEq)]
pub(crate) struct Proxy {
    url: BaseUrl,
    /// Value of `Proxy-Authorization`.
    credentials: Option<Box<str>>,
}

/// Not the URL of a proxy. Holds no part of it, since it may have a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidProxy;

impl InvalidProxy {
    /// Form of a proxy's URL, for error texts.
    pub(crate) const EXPECTED: &'static str =
        "http://[user:password@]host:port, with %40 and the like for what is no letter or digit";
}

impl fmt::Display for InvalidProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", Self::EXPECTED)
    }
}

impl std::error::Error for InvalidProxy {}

impl Proxy {
    /// Parses `http://[user:password@]host:port` of at most 2048 bytes. The port is required, since proxies have no common one.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidProxy> {
        if text.len() > MAX_URL {
            return Err(InvalidProxy);
        }
        let (scheme, rest) = text.split_once("://").ok_or(InvalidProxy)?;
        let (userinfo, authority) = match rest.rsplit_once('@') {
            Some((userinfo, authority)) => (Some(userinfo), authority),
            None => (None, rest),
        };
        let url = BaseUrl::parse(&format!("{scheme}://{authority}")).map_err(|_| InvalidProxy)?;
        let is_http = scheme.eq_ignore_ascii_case("http");
        if !is_http || url.explicit_port().is_none() || !url.path().is_empty() {
            return Err(InvalidProxy);
        }
        let credentials = userinfo.map(basic_credentials).transpose()?;
        Ok(Self { url, credentials })
    }

    /// The URL without user and password.
    pub(crate) fn url(&self) -> &BaseUrl {
        &self.url
    }

    pub(super) fn lookup(&self, deadline: Instant) -> Result<Vec<SocketAddr>, super::Error> {
        let (host, port) = (self.url.host(), self.url.port());
        dns::lookup_addresses(host, port, Trust::Administrator, deadline)
            .map_err(|error| super::Error::Proxy(self.url.clone(), TunnelError::Dns(error)))
    }
}

/// The value of `Proxy-Authorization` for `user:password` (RFC 7617: no colon in the user).
fn basic_credentials(userinfo: &str) -> Result<Box<str>, InvalidProxy> {
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let decode = |text| {
        let text = percent_decode_str(text).decode_utf8();
        let text = text.map_err(|_| InvalidProxy)?;
        let has_control = text.contains(char::is_control);
        (!has_control).then_some(text).ok_or(InvalidProxy)
    };
    let (user, password) = (decode(user)?, decode(password)?);
    if user.is_empty() || user.contains(':') {
        return Err(InvalidProxy);
    }
    let encoded = STANDARD.encode(format!("{user}:{password}"));
    Ok(format!("Basic {encoded}").into())
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self}, credentials hidden)")
    }
}

/// Why a proxy gives no connection to a server.
#[derive(Debug)]
pub(crate) enum TunnelError {
    /// The lookup of the proxy's name.
    Dns(dns::Error),
    /// No connection to the proxy, for this reason.
    Unreachable(String),
    /// No response to CONNECT in time.
    NoResponse(SocketAddr),
    /// A response to CONNECT with this status.
    Refused(SocketAddr, u16),
    /// A response to CONNECT that is not HTTP.
    InvalidHttp(String),
}

impl fmt::Display for TunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(error) => write!(f, "is not found: {error}"),
            Self::Unreachable(reason) => write!(f, "cannot be reached: {reason}"),
            Self::NoResponse(server) => write!(f, "did not answer CONNECT {server} in time"),
            Self::Refused(server, status) => {
                write!(f, "answered CONNECT {server} with status {status}")?;
                f.write_str(match status {
                    401 | 407 => ": it requires a user and a password, or others",
                    403 | 405 => ": it has to allow CONNECT to this port, and to addresses",
                    500..=504 => ": it cannot reach the server",
                    _ => "",
                })
            }
            Self::InvalidHttp(reason) => {
                write!(f, "gave no valid response to CONNECT: {reason}")
            }
        }
    }
}

/// Error of [`TunnelConnector`], which ureq passes on.
#[derive(Debug)]
pub(super) struct ProxyTunnelError(pub(super) BaseUrl, pub(super) TunnelError);

impl fmt::Display for ProxyTunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.1)
    }
}

impl std::error::Error for ProxyTunnelError {}

/// The addresses to dial for a connection, and the tunnel to open on it.
#[derive(Debug)]
pub(super) struct DialPlan {
    /// The server's address, or those of the proxy.
    pub(super) addresses: Vec<SocketAddr>,
    /// The proxy, and the server's address.
    pub(super) tunnel: Option<(Arc<Proxy>, SocketAddr)>,
}

/// TCP to the server, or a tunnel through the proxy.
#[derive(Debug)]
pub(super) struct TunnelConnector {
    tcp: TcpConnector,
    tunnel: Option<(Arc<Proxy>, SocketAddr)>,
}

impl TunnelConnector {
    pub(super) fn new(tunnel: Option<(Arc<Proxy>, SocketAddr)>) -> Self {
        Self {
            tcp: TcpConnector::default(),
            tunnel,
        }
    }
}

impl<In: Transport> Connector<In> for TunnelConnector {
    type Out = <TcpConnector as Connector<In>>::Out;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        let connected = self.tcp.connect(details, chained);
        let Some((proxy, server)) = &self.tunnel else {
            return connected;
        };
        let failed = |error| Error::Other(Box::new(ProxyTunnelError(proxy.url().clone(), error)));
        let mut connected = connected
            .map_err(|error| failed(TunnelError::Unreachable(describe_ureq_error(error))))?;
        if let Some(transport) = &mut connected {
            send_connect(transport, proxy, *server, details).map_err(failed)?;
        }
        Ok(connected)
    }
}

/// Sends CONNECT and reads the response. It names an address and no host name, which the proxy would look up again, perhaps
/// with another result than the one that the address policy allows.
fn send_connect(
    transport: &mut impl Transport,
    proxy: &Proxy,
    server: SocketAddr,
    details: &ConnectionDetails<'_>,
) -> Result<(), TunnelError> {
    let broken = |error| match error {
        Error::Timeout(_) => TunnelError::NoResponse(server),
        error => TunnelError::InvalidHttp(describe_ureq_error(error)),
    };
    let credentials = match &proxy.credentials {
        Some(value) => format!("Proxy-Authorization: {value}\r\n"),
        None => String::new(),
    };
    let request = format!("CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n{credentials}\r\n");
    // the URL of a proxy has 2 KiB at most, the buffer 16
    transport.buffers().output()[..request.len()].copy_from_slice(request.as_bytes());
    transport
        .transmit_output(request.len(), remaining_timeout(details))
        .map_err(broken)?;
    loop {
        let left = remaining_timeout(details);
        if left.after.is_zero() {
            return Err(TunnelError::NoResponse(server));
        }
        if !transport.await_input(left).map_err(broken)? {
            return Err(TunnelError::InvalidHttp("it closed the connection".into()));
        }
        if let Some((status, length)) = parse_connect_head(transport.buffers().input())? {
            if !(200..300).contains(&status) {
                return Err(TunnelError::Refused(server, status));
            }
            transport.buffers().input_consume(length);
            return Ok(());
        }
    }
}

/// The status of a response to CONNECT and the length of its head; `None` while the head is incomplete. Input after the head of a
/// success is an error: in TLS the client speaks first.
fn parse_connect_head(input: &[u8]) -> Result<Option<(u16, usize)>, TunnelError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response.parse(input);
    let parsed = parsed.map_err(|error| TunnelError::InvalidHttp(error.to_string()))?;
    let length = match parsed {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => input.len(),
    };
    if length > MAX_CONNECT_HEAD {
        let reason = format!("its head has more than {MAX_CONNECT_HEAD} bytes");
        return Err(TunnelError::InvalidHttp(reason));
    }
    if parsed.is_partial() {
        return Ok(None);
    }
    let status = response.code.unwrap_or_default();
    if (200..300).contains(&status) && length < input.len() {
        return Err(TunnelError::InvalidHttp("it has more than a head".into()));
    }
    Ok(Some((status, length)))
}

/// The text of an error on the connection to a proxy; holds no secret.
fn describe_ureq_error(error: Error) -> String {
    match error {
        Error::Io(error) => error.to_string(),
        Error::Timeout(_) => "timed out".into(),
        _ => "unexpected error".into(),
    }
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    /// The status of a response to CONNECT and the length of its head, if it is valid and complete.
    pub fn connect_answer(input: &[u8]) -> Option<(u16, usize)> {
        super::parse_connect_head(input).ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::http_client::error;

    #[test]
    fn a_proxy_has_a_port_and_optional_credentials() {
        for (text, displayed, credentials) in [
            ("http://proxy:3128", "http://proxy:3128", None),
            ("HTTP://proxy:80/", "http://proxy:80", None),
            ("http://[::1]:80", "http://[::1]:80", None),
            (
                "http://u:p@10.0.0.1:1",
                "http://10.0.0.1:1",
                Some("Basic dTpw"),
            ),
            ("http://u@h:1", "http://h:1", Some("Basic dTo=")),
            // u:p@/:
            (
                "http://u:p%40%2f:@h:1",
                "http://h:1",
                Some("Basic dTpwQC86"),
            ),
            ("http://u:p@/:@h:1", "http://h:1", Some("Basic dTpwQC86")),
        ] {
            let proxy = Proxy::parse(text).unwrap();
            assert_eq!(proxy.to_string(), displayed);
            assert_eq!(proxy.credentials.as_deref(), credentials);
        }
    }

    #[test]
    fn an_error_about_a_proxy_url_does_not_repeat_it() {
        let too_long = format!("http://u:{}@h:1", "p".repeat(MAX_URL));
        for text in [
            "",
            "proxy",
            "proxy:3128",
            "http://",
            "http://proxy",
            "http://[::1]",
            "http://::1",
            "http://secret@",
            "http://:secret@proxy:1",
            "http://u%3a:secret@proxy:1",
            "http://u:secret%0d%0aX-Y:z@proxy:1",
            "http://u:%ff@proxy:1",
            "https://u:secret@proxy:3128",
            "socks5://u:secret@proxy:1080",
            "ws://proxy:80",
            "http://proxy:0",
            "http://proxy:70000",
            "http://proxy:1/path",
            "http://proxy:1?secret",
            "http://proxy:1#secret",
            "http://pro xy:1",
            "http://secret\r\n@proxy:1",
            &too_long,
        ] {
            let error = Proxy::parse(text).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{text:?}");
        }
        let longest = format!("http://u:{}@h:1", "p".repeat(MAX_URL - 13));
        assert_eq!(longest.len(), MAX_URL);
        assert!(Proxy::parse(&longest).is_ok());
    }

    #[test]
    fn credentials_are_never_displayed() {
        let proxy = Proxy::parse("http://user:hunter2@h:1").unwrap();
        let displayed = format!("{proxy} {proxy:?}");
        let encoded = proxy.credentials.as_deref().unwrap();
        let encoded = encoded.trim_start_matches("Basic ");
        for secret in ["user", "hunter2", encoded] {
            assert!(!displayed.contains(secret), "{displayed}");
        }
    }

    fn parse(input: &[u8]) -> Result<Option<(u16, usize)>, String> {
        parse_connect_head(input).map_err(|error| error.to_string())
    }

    #[test]
    fn a_response_to_connect_is_parsed_once_its_head_is_complete() {
        let response = b"HTTP/1.0 200 Connection established\r\nVia: a\r\n\r\n";
        assert_eq!(parse(response), Ok(Some((200, response.len()))));
        for end in 0..response.len() {
            assert_eq!(parse(&response[..end]), Ok(None), "{end}");
        }
        let refusal = b"HTTP/1.1 407 No\r\nContent-Length: 9\r\n\r\n<html>";
        assert_eq!(parse(refusal), Ok(Some((407, refusal.len() - 6))));
    }

    #[test]
    fn other_bytes_are_no_response_to_connect() {
        for (input, reason) in [
            (&b"SSH-2.0-OpenSSH_9.9\r\n"[..], "invalid"),
            (b"\x16\x03\x01\x02\x00", "invalid"),
            (b"HTTP/1.1 abc\r\n\r\n", "invalid"),
            (b"HTTP/1.1 200 OK\r\n\r\nmore", "more than a head"),
        ] {
            let error = parse(input).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn the_head_of_a_response_to_connect_is_bounded() {
        let start = "HTTP/1.1 200 OK\r\nX: ";
        let filler = |bytes: usize| "a".repeat(bytes - start.len());
        let incomplete = |bytes| format!("{start}{}", filler(bytes));
        assert_eq!(parse(incomplete(MAX_CONNECT_HEAD).as_bytes()), Ok(None));
        assert!(parse(incomplete(MAX_CONNECT_HEAD + 1).as_bytes()).is_err());
        let complete = |bytes| format!("{start}{}\r\n\r\n", filler(bytes - 4));
        let largest = complete(MAX_CONNECT_HEAD);
        assert_eq!(parse(largest.as_bytes()), Ok(Some((200, MAX_CONNECT_HEAD))));
        assert!(parse(complete(MAX_CONNECT_HEAD + 1).as_bytes()).is_err());
        let fields = |count| format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(count));
        assert!(parse(fields(MAX_FIELDS).as_bytes()).is_ok());
        assert!(parse(fields(MAX_FIELDS + 1).as_bytes()).is_err());
    }

    #[test]
    fn a_failure_of_the_proxy_is_no_failure_of_the_server() {
        let server = "1.1.1.1:8448".parse().unwrap();
        let is_server_failure = |error| {
            error::Error::Proxy(BaseUrl::parse("http://p").unwrap(), error).is_server_failure()
        };
        assert!(!is_server_failure(TunnelError::Unreachable(String::new())));
        assert!(!is_server_failure(TunnelError::InvalidHttp(String::new())));
        assert!(!is_server_failure(TunnelError::Dns(dns::Error::Busy)));
        assert!(!is_server_failure(TunnelError::Refused(server, 407)));
        assert!(is_server_failure(TunnelError::Refused(server, 502)));
        assert!(is_server_failure(TunnelError::NoResponse(server)));
    }

    #[test]
    fn the_error_names_the_proxy_and_the_setting() {
        let proxy = Proxy::parse("http://u:hunter2@proxy:3128").unwrap();
        let server = "1.1.1.1:8448".parse().unwrap();
        let refused = TunnelError::Refused(server, 403);
        let line = error::Error::Proxy(proxy.url().clone(), refused).to_string();
        for word in [
            "http://proxy:3128",
            "LIVEKIT_HTTPS_PROXY",
            "CONNECT 1.1.1.1:8448",
            "403",
        ] {
            assert!(line.contains(word), "{line}");
        }
        assert!(!line.contains("hunter2"));
    }
}
