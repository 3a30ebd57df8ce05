//! The way through a proxy: a connection to it, and CONNECT (RFC 9110, 9.3.6) to an address that was vetted here.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ureq::Error;
use ureq::unversioned::transport::{ConnectionDetails, Connector, TcpConnector, Transport};

use super::connection::remaining_timeout;
use super::{HttpRoute, error};
use crate::net::address::{Trust, is_public};
use crate::net::base_url::BaseUrl;
use crate::net::dns;
use crate::net::proxy::Proxy;

/// Largest head of a proxy's answer to CONNECT, in bytes. Squid's has some 40, and that of a refusal 400. For the answer there is
/// what the proxy has left of [`super::Limits::connect`].
const MAX_CONNECT_HEAD: usize = 8 * 1024;
/// Fields of that head.
const MAX_FIELDS: usize = 64;

/// Why a proxy is no way to a server.
#[derive(Debug)]
pub enum TunnelError {
    /// Its own name leads nowhere.
    Dns(dns::Error),
    /// There is no connection to it, for this reason.
    Unreachable(String),
    /// It did not answer to CONNECT in time.
    NoResponse(SocketAddr),
    /// It answered to CONNECT with this status.
    Refused(SocketAddr, u16),
    /// What it said to CONNECT is no answer.
    InvalidHttp(String),
}

impl fmt::Display for TunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(error) => write!(f, "is not found: {error}"),
            Self::Unreachable(why) => write!(f, "cannot be reached: {why}"),
            Self::NoResponse(to) => write!(f, "did not answer to CONNECT {to} in time"),
            Self::Refused(to, status) => {
                write!(f, "answered to CONNECT {to} with status {status}")?;
                f.write_str(match status {
                    401 | 407 => ": it wants a user and a password, or others",
                    403 | 405 => ": it has to allow that, or does not allow addresses",
                    500..=504 => ": it does not get there itself",
                    _ => "",
                })
            }
            Self::InvalidHttp(why) => write!(f, "gave no valid answer to CONNECT: {why}"),
        }
    }
}

/// What ureq hands back to us.
#[derive(Debug)]
pub(super) struct ProxyTunnelError(pub(super) BaseUrl, pub(super) TunnelError);

impl fmt::Display for ProxyTunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.1)
    }
}

impl std::error::Error for ProxyTunnelError {}

/// Where a connection is dialled, and what is to be asked there before it is the server's.
#[derive(Debug)]
pub(super) struct ProxyRoute {
    /// The server's address, or those of the proxy.
    pub(super) addresses: Vec<SocketAddr>,
    /// The proxy, and the server's address.
    pub(super) tunnel: Option<(Arc<Proxy>, SocketAddr)>,
}

impl ProxyRoute {
    /// How to get to a vetted address: TLS to the public Internet through `proxy`, if there is one, and all else directly.
    pub(super) fn resolve(
        proxy: Option<&Arc<Proxy>>,
        route: &HttpRoute,
        address: SocketAddr,
        deadline: Instant,
    ) -> Result<Self, error::Error> {
        let Some(proxy) = proxy.filter(|_| route.tls.is_some() && is_public(address.ip())) else {
            return Ok(Self {
                addresses: vec![address],
                tunnel: None,
            });
        };
        let url = proxy.url();
        let found = dns::lookup_addresses(url.host(), url.port(), Trust::Administrator, deadline);
        let dial =
            found.map_err(|error| error::Error::Proxy(url.clone(), TunnelError::Dns(error)))?;
        Ok(Self {
            addresses: dial,
            tunnel: Some((Arc::clone(proxy), address)),
        })
    }
}

/// TCP to the server, through the proxy if there is one.
#[derive(Debug)]
pub(super) struct TunnelConnector {
    tcp: TcpConnector,
    tunnel: Option<(Arc<Proxy>, SocketAddr)>,
}

impl TunnelConnector {
    pub(super) fn new(through: Option<(Arc<Proxy>, SocketAddr)>) -> Self {
        Self {
            tcp: TcpConnector::default(),
            tunnel: through,
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
        let Some((proxy, to)) = &self.tunnel else {
            return self.tcp.connect(details, chained);
        };
        let failed =
            |trouble| Error::Other(Box::new(ProxyTunnelError(proxy.url().clone(), trouble)));
        let connected = self.tcp.connect(details, chained);
        let mut connected = connected
            .map_err(|error| failed(TunnelError::Unreachable(describe_ureq_error(error))))?;
        if let Some(transport) = &mut connected {
            send_connect(transport, proxy, *to, details).map_err(failed)?;
        }
        Ok(connected)
    }
}

/// Asks for a tunnel. After it, the connection is the server's.
fn send_connect(
    transport: &mut impl Transport,
    proxy: &Proxy,
    to: SocketAddr,
    details: &ConnectionDetails<'_>,
) -> Result<(), TunnelError> {
    let broken = |error| match error {
        Error::Timeout(_) => TunnelError::NoResponse(to),
        error => TunnelError::InvalidHttp(describe_ureq_error(error)),
    };
    let login = match proxy.basic_auth() {
        Some(value) => format!("Proxy-Authorization: {value}\r\n"),
        None => String::new(),
    };
    let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{login}\r\n");
    // a proxy's URL has 2 KiB at most, and the buffer 16
    transport.buffers().output()[..request.len()].copy_from_slice(request.as_bytes());
    transport
        .transmit_output(request.len(), remaining_timeout(details))
        .map_err(broken)?;
    loop {
        let left = remaining_timeout(details);
        if left.after.is_zero() {
            return Err(TunnelError::NoResponse(to));
        }
        if !transport.await_input(left).map_err(broken)? {
            return Err(TunnelError::InvalidHttp("it closed the connection".into()));
        }
        if let Some((status, length)) = parse_connect_head(transport.buffers().input())? {
            if !(200..300).contains(&status) {
                return Err(TunnelError::Refused(to, status));
            }
            transport.buffers().input_consume(length);
            return Ok(());
        }
    }
}

/// The status of an answer and the length of its head, once that is complete. A tunnel begins with nothing: in TLS the client
/// speaks first.
fn parse_connect_head(input: &[u8]) -> Result<Option<(u16, usize)>, TunnelError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut answer = httparse::Response::new(&mut fields);
    let parsed = answer.parse(input);
    let parsed = parsed.map_err(|error| TunnelError::InvalidHttp(error.to_string()))?;
    let length = match parsed {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => input.len(),
    };
    if length > MAX_CONNECT_HEAD {
        let why = format!("its head has more than {MAX_CONNECT_HEAD} bytes");
        return Err(TunnelError::InvalidHttp(why));
    }
    if parsed.is_partial() {
        return Ok(None);
    }
    let status = answer.code.unwrap_or_default();
    if (200..300).contains(&status) && length < input.len() {
        return Err(TunnelError::InvalidHttp("it says more than that".into()));
    }
    Ok(Some((status, length)))
}

/// What ureq says of a connection to a proxy, which holds no secret.
fn describe_ureq_error(error: Error) -> String {
    match error {
        Error::Io(error) => error.to_string(),
        Error::Timeout(_) => "it took too long".into(),
        _ => "unexpected error".into(),
    }
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    /// The status of a proxy's answer and the length of its head, if it is one and complete.
    pub fn connect_answer(input: &[u8]) -> Option<(u16, usize)> {
        super::head(input).ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::Error;
    use super::*;

    fn read(input: &[u8]) -> Result<Option<(u16, usize)>, String> {
        parse_connect_head(input).map_err(|trouble| trouble.to_string())
    }

    #[test]
    fn an_answer_is_read_as_soon_as_its_head_is_complete() {
        let answer = b"HTTP/1.0 200 Connection established\r\nVia: a\r\n\r\n";
        assert_eq!(read(answer), Ok(Some((200, answer.len()))));
        for end in 0..answer.len() {
            assert_eq!(read(&answer[..end]), Ok(None), "{end}");
        }
        let refusal = b"HTTP/1.1 407 No\r\nContent-Length: 9\r\n\r\n<html>";
        assert_eq!(read(refusal), Ok(Some((407, refusal.len() - 6))));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for (input, why) in [
            (&b"SSH-2.0-OpenSSH_9.9\r\n"[..], "invalid"),
            (b"\x16\x03\x01\x02\x00", "invalid"),
            (b"HTTP/1.1 abc\r\n\r\n", "invalid"),
            (b"HTTP/1.1 200 OK\r\n\r\nmore", "says more"),
        ] {
            let refused = read(input).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn a_head_is_bounded_complete_or_not() {
        let begin = "HTTP/1.1 200 OK\r\nX: ";
        let filler = |bytes: usize| "a".repeat(bytes - begin.len());
        let open = |bytes| format!("{begin}{}", filler(bytes));
        assert_eq!(read(open(MAX_CONNECT_HEAD).as_bytes()), Ok(None));
        assert!(read(open(MAX_CONNECT_HEAD + 1).as_bytes()).is_err());
        let closed = |bytes| format!("{begin}{}\r\n\r\n", filler(bytes - 4));
        let most = closed(MAX_CONNECT_HEAD);
        assert_eq!(read(most.as_bytes()), Ok(Some((200, MAX_CONNECT_HEAD))));
        assert!(read(closed(MAX_CONNECT_HEAD + 1).as_bytes()).is_err());
        let fields = |count| format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(count));
        assert!(read(fields(MAX_FIELDS).as_bytes()).is_ok());
        assert!(read(fields(MAX_FIELDS + 1).as_bytes()).is_err());
    }

    #[test]
    fn a_proxy_that_fails_by_itself_says_nothing_about_the_server() {
        let to = "1.1.1.1:8448".parse().unwrap();
        let silence = |trouble| {
            Error::Proxy(BaseUrl::parse("http://p").unwrap(), trouble).is_server_failure()
        };
        assert!(!silence(TunnelError::Unreachable(String::new())));
        assert!(!silence(TunnelError::InvalidHttp(String::new())));
        assert!(!silence(TunnelError::Dns(dns::Error::Busy)));
        assert!(!silence(TunnelError::Refused(to, 407)));
        assert!(silence(TunnelError::Refused(to, 502)));
        assert!(silence(TunnelError::NoResponse(to)));
    }

    #[test]
    fn the_log_line_names_the_proxy_and_what_to_do() {
        let proxy = Proxy::parse("http://u:hunter2@proxy:3128").unwrap();
        let to = "1.1.1.1:8448".parse().unwrap();
        let line = Error::Proxy(proxy.url().clone(), TunnelError::Refused(to, 403)).to_string();
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
