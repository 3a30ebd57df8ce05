//! Errors of an exchange, and the labels by which outcomes are counted.

use std::fmt;
use std::io::ErrorKind;
use std::net::IpAddr;

use super::FetchResponse;
use super::connection::{ConnectionClosed, InputLimitExceeded};
use super::proxy::{ProxyTunnelError, TunnelError};
use crate::net::address::{Host, Network};
use crate::net::base_url::BaseUrl;
use crate::net::dns;

/// Part of an exchange that has a time limit of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// TCP, the proxy and TLS.
    Connect,
    SendRequest,
    ResponseHead,
    ResponseBody,
    WholeCall,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::SendRequest => "sending the request",
            Self::ResponseHead => "waiting for the response",
            Self::ResponseBody => "reading the response",
            Self::WholeCall => "the whole call",
        })
    }
}

/// Why an exchange has no response.
#[derive(Debug)]
pub(crate) enum Error {
    /// The address policy denies every address of the host; one of them.
    AddressDenied(Host, IpAddr),
    Dns(Host, dns::Error),
    /// Too many calls to the /24 or /64 are in progress.
    SubnetLimit(Network),
    /// The proxy at this URL gives no connection to the server.
    Proxy(BaseUrl, TunnelError),
    /// No TCP connection, or it broke.
    Connection(std::io::Error),
    /// The TLS handshake failed.
    Tls(rustls::Error),
    Timeout(Phase),
    /// The response's body is larger than this many bytes.
    TooLarge(usize),
    /// The response is not HTTP, or its head is too large.
    InvalidHttp(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressDenied(host, address) => write!(
                f,
                "{host} has the address {address}, which the address policy denies (LIVEKIT_ALLOWED_NETWORKS={address} would allow it, \
                 or its server name in LIVEKIT_FULL_ACCESS_HOMESERVERS if the address is private)"
            ),
            Self::Dns(host, error) => write!(f, "looking up {host}: {error}"),
            Self::SubnetLimit(network) => write!(f, "too many calls to {network} in progress"),
            Self::Proxy(proxy, error) => {
                write!(f, "the proxy {proxy} (LIVEKIT_HTTPS_PROXY) {error}")
            }
            Self::Connection(error) => write!(f, "connection: {error}"),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Timeout(phase) => write!(f, "{phase} timed out"),
            Self::TooLarge(max) => write!(f, "the response is larger than {max} bytes"),
            Self::InvalidHttp(error) => write!(f, "no valid HTTP response: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// Whether a limit of this service is the cause, not a failure of the server.
    pub(crate) fn is_local_overload(&self) -> bool {
        matches!(
            self,
            Self::SubnetLimit(_)
                | Self::Dns(_, dns::Error::Busy)
                | Self::Proxy(_, TunnelError::Dns(dns::Error::Busy))
        )
    }

    /// Whether the server has received the request, and its response is late or too large.
    pub(crate) fn is_response_failure(&self) -> bool {
        match self {
            Self::TooLarge(_) => true,
            Self::Timeout(phase) => !matches!(phase, Phase::Connect | Phase::SendRequest),
            _ => false,
        }
    }

    /// Whether the server itself has failed. A denied address is no failure of the server, nor is one of the proxy.
    pub(crate) fn is_server_failure(&self) -> bool {
        match self {
            Self::AddressDenied(..) => false,
            Self::Proxy(_, error) => match error {
                TunnelError::Dns(_)
                | TunnelError::Unreachable(_)
                | TunnelError::InvalidHttp(_)
                | TunnelError::Refused(_, 401 | 407) => false,
                TunnelError::Refused(..) | TunnelError::NoResponse(_) => true,
            },
            _ => !self.is_local_overload(),
        }
    }
}

/// Label of an outcome in the metric `upstream_requests_total`.
pub(super) fn outcome_label(result: &Result<FetchResponse, Error>) -> &'static str {
    match result {
        Ok(response) => match response.status {
            401 | 403 => "denied",
            400..500 => "http_4xx",
            500.. => "http_5xx",
            _ => "ok",
        },
        Err(Error::AddressDenied(..)) => "address_denied",
        Err(Error::Dns(..)) => "dns",
        Err(Error::SubnetLimit(_)) => "subnet_limit",
        Err(Error::Proxy(..)) => "proxy",
        Err(Error::Connection(_)) => "connect",
        Err(Error::Tls(_)) => "tls",
        Err(Error::Timeout(_)) => "timeout",
        Err(Error::TooLarge(_) | Error::InvalidHttp(_)) => "invalid",
    }
}

/// Classifies an error of ureq. Texts that may hold the request's target, and with it a token, are dropped.
pub(super) fn classify_ureq_error(error: ureq::Error) -> Error {
    let unexpected = || Error::InvalidHttp("unexpected error".into());
    match error {
        ureq::Error::Other(other) => classify_connector_error(other).unwrap_or_else(unexpected),
        ureq::Error::Io(error) => {
            let tls = error
                .get_ref()
                .and_then(|e| e.downcast_ref::<rustls::Error>());
            match tls.cloned() {
                Some(tls) => Error::Tls(tls),
                None => Error::Connection(error),
            }
        }
        ureq::Error::Timeout(timeout) => Error::Timeout(match timeout {
            ureq::Timeout::Connect => Phase::Connect,
            ureq::Timeout::SendRequest | ureq::Timeout::SendBody => Phase::SendRequest,
            ureq::Timeout::RecvResponse => Phase::ResponseHead,
            ureq::Timeout::RecvBody => Phase::ResponseBody,
            _ => Phase::WholeCall,
        }),
        ureq::Error::Protocol(error) => Error::InvalidHttp(error.to_string()),
        ureq::Error::LargeResponseHeader(..) => Error::InvalidHttp("its head is too large".into()),
        ureq::Error::ConnectionFailed => Error::Connection(ErrorKind::NotConnected.into()),
        _ => unexpected(),
    }
}

/// Classifies an error of the connectors of this module, which ureq passes on.
fn classify_connector_error(error: Box<dyn std::error::Error + Send + Sync>) -> Option<Error> {
    if error.is::<ConnectionClosed>() {
        return Some(Error::Connection(ErrorKind::NotConnected.into()));
    }
    if error.is::<InputLimitExceeded>() {
        return Some(Error::InvalidHttp(error.to_string()));
    }
    match error.downcast::<ProxyTunnelError>() {
        Ok(error) => Some(Error::Proxy(error.0, error.1)),
        Err(error) => Some(Error::Tls(*error.downcast().ok()?)),
    }
}
