//! What became of an exchange, for callers and for those who count.

use std::fmt;
use std::io::ErrorKind;
use std::net::IpAddr;

use super::FetchResponse;
use super::connection::{ConnectionClosed, InputLimitExceeded};
use super::tunnel::{ProxyTunnelError, TunnelError};
use crate::net::address::{Host, Network};
use crate::net::base_url::BaseUrl;
use crate::net::dns;

/// What took too long.
pub(super) const PHASE_CONNECT: &str = "connecting";
const PHASE_SEND: &str = "sending the request";
pub(super) const PHASE_RESPONSE: &str = "waiting for the answer";
pub(super) const PHASE_TOTAL: &str = "the whole call";

/// Why there was no answer.
#[derive(Debug)]
pub enum Error {
    /// The host resolves to addresses that may not be dialled; one of them.
    AddressDenied(Host, IpAddr),
    /// The host was not found.
    Dns(Host, dns::Error),
    /// Too many calls to the same /24 or /64 are under way.
    SubnetLimit(Network),
    /// The proxy at this URL is no way to the server.
    Proxy(BaseUrl, TunnelError),
    /// No connection, or it broke.
    Connection(std::io::Error),
    /// The TLS handshake failed.
    Tls(rustls::Error),
    /// A part of the exchange took too long.
    Timeout(&'static str),
    /// The answer's body is larger than this many bytes.
    TooLarge(usize),
    /// Not an HTTP answer, or one whose head is too large.
    InvalidHttp(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressDenied(host, address) => write!(
                f,
                "{host} has the address {address}, which may not be dialled (LIVEKIT_ALLOWED_NETWORKS={address} would allow it, \
                 or its server name in LIVEKIT_FULL_ACCESS_HOMESERVERS if the address is private)"
            ),
            Self::Dns(host, error) => write!(f, "looking up {host}: {error}"),
            Self::SubnetLimit(network) => write!(f, "too many calls to {network} under way"),
            Self::Proxy(proxy, trouble) => {
                write!(f, "the proxy {proxy} (LIVEKIT_HTTPS_PROXY) {trouble}")
            }
            Self::Connection(error) => write!(f, "connection: {error}"),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Timeout(part) => write!(f, "{part} took too long"),
            Self::TooLarge(most) => write!(f, "the answer is larger than {most} bytes"),
            Self::InvalidHttp(error) => write!(f, "no valid HTTP answer: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// Whether it is for want of a place of ours, and says nothing about the server.
    pub fn is_local_overload(&self) -> bool {
        matches!(
            self,
            Self::SubnetLimit(_)
                | Self::Dns(_, dns::Error::Busy)
                | Self::Proxy(_, TunnelError::Dns(dns::Error::Busy))
        )
    }

    /// Whether the server was there, and only its answer came too late or was too much.
    pub fn is_response_failure(&self) -> bool {
        match self {
            Self::TooLarge(_) => true,
            Self::Timeout(part) => ![PHASE_CONNECT, PHASE_SEND].contains(part),
            _ => false,
        }
    }

    /// Whether the server itself failed to answer; an address that may not be dialled says nothing about it, nor does a proxy that
    /// fails by itself.
    pub fn is_server_failure(&self) -> bool {
        let by_itself = |trouble: &TunnelError| match trouble {
            TunnelError::Dns(_) | TunnelError::Unreachable(_) | TunnelError::InvalidHttp(_) => true,
            TunnelError::Refused(_, status) => matches!(status, 401 | 407),
            TunnelError::NoResponse(_) => false,
        };
        match self {
            Self::AddressDenied(..) => false,
            Self::Proxy(_, trouble) => !by_itself(trouble) && !self.is_local_overload(),
            _ => !self.is_local_overload(),
        }
    }
}

/// The words that an operator counts by.
pub(super) fn outcome_label(result: &Result<FetchResponse, Error>) -> &'static str {
    match result {
        Ok(answer) => match answer.status {
            401 | 403 => "denied",
            400..500 => "http_4xx",
            500.. => "http_5xx",
            _ => "ok",
        },
        Err(Error::AddressDenied(..)) => "denied_address",
        Err(Error::Dns(..)) => "dns",
        Err(Error::SubnetLimit(_)) => "crowded",
        Err(Error::Proxy(..)) => "proxy",
        Err(Error::Connection(_)) => "connect",
        Err(Error::Tls(_)) => "tls",
        Err(Error::Timeout(_)) => "timeout",
        Err(Error::TooLarge(_) | Error::InvalidHttp(_)) => "invalid",
    }
}

/// Sorts ureq's errors by whose fault they are, and drops what might hold the request's target.
pub(super) fn classify_ureq_error(error: ureq::Error) -> Error {
    match error {
        ureq::Error::Other(other) if other.is::<ConnectionClosed>() => {
            Error::Connection(ErrorKind::NotConnected.into())
        }
        ureq::Error::Other(other) if other.is::<InputLimitExceeded>() => {
            Error::InvalidHttp(other.to_string())
        }
        ureq::Error::Other(other) => match other.downcast::<ProxyTunnelError>() {
            Ok(failed) => Error::Proxy(failed.0, failed.1),
            Err(other) => match other.downcast::<rustls::Error>() {
                Ok(tls) => Error::Tls(*tls),
                Err(_) => Error::InvalidHttp("unexpected error".into()),
            },
        },
        ureq::Error::Io(error) => match error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>())
        {
            Some(tls) => Error::Tls(tls.clone()),
            None => Error::Connection(error),
        },
        ureq::Error::Timeout(part) => Error::Timeout(match part {
            ureq::Timeout::Connect => PHASE_CONNECT,
            ureq::Timeout::RecvResponse => PHASE_RESPONSE,
            ureq::Timeout::RecvBody => "reading the answer",
            ureq::Timeout::SendRequest | ureq::Timeout::SendBody => PHASE_SEND,
            _ => PHASE_TOTAL,
        }),
        ureq::Error::Protocol(error) => Error::InvalidHttp(error.to_string()),
        ureq::Error::LargeResponseHeader(..) => Error::InvalidHttp("its head is too large".into()),
        ureq::Error::ConnectionFailed => Error::Connection(ErrorKind::NotConnected.into()),
        _ => Error::InvalidHttp("unexpected error".into()),
    }
}
