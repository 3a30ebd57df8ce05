//! What became of an exchange, for callers and for those who count.

use std::fmt;
use std::net::IpAddr;

use super::Answer;
use crate::net::address::{Host, Network};
use crate::net::dns;

/// Why there was no answer.
#[derive(Debug)]
pub enum Error {
    /// The host resolves to addresses that may not be dialled; one of them.
    Denied(Host, IpAddr),
    /// The host was not found.
    LookUp(Host, dns::Error),
    /// Too many calls to the same /24 or /64 are under way.
    Crowded(Network),
    /// No connection, or it broke.
    Connection(std::io::Error),
    /// The TLS handshake failed.
    Tls(rustls::Error),
    /// A part of the exchange took too long.
    Timeout(&'static str),
    /// The answer's body is larger than this many bytes.
    TooLarge(usize),
    /// Not an HTTP answer, or one whose head is too large.
    NotHttp(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(host, address) => write!(
                f,
                "{host} has the address {address}, which may not be dialled (LIVEKIT_ALLOWED_NETWORKS={address} would allow it, \
                 or its server name in LIVEKIT_FULL_ACCESS_HOMESERVERS if the address is private)"
            ),
            Self::LookUp(host, error) => write!(f, "looking up {host}: {error}"),
            Self::Crowded(network) => write!(f, "too many calls to {network} under way"),
            Self::Connection(error) => write!(f, "connection: {error}"),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Timeout(part) => write!(f, "{part} took too long"),
            Self::TooLarge(most) => write!(f, "the answer is larger than {most} bytes"),
            Self::NotHttp(error) => write!(f, "no valid HTTP answer: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// Whether it is for want of a place of ours, and says nothing about the server.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Crowded(_) | Self::LookUp(_, dns::Error::Busy))
    }

    /// Whether the server was there, and only its answer came too late or was too much.
    pub fn is_of_the_answer(&self) -> bool {
        match self {
            Self::TooLarge(_) => true,
            Self::Timeout(part) => ![super::CONNECTING, super::REQUEST].contains(part),
            _ => false,
        }
    }

    /// Whether the server itself failed to answer; an address that may not be dialled says nothing about it.
    pub fn is_silence(&self) -> bool {
        !matches!(self, Self::Denied(..)) && !self.is_ours()
    }
}

/// The words that an operator counts by.
pub(super) fn outcome(result: &Result<Answer, Error>) -> &'static str {
    match result {
        Ok(answer) => match answer.status {
            401 | 403 => "denied",
            400..500 => "http_4xx",
            500.. => "http_5xx",
            _ => "ok",
        },
        Err(Error::Denied(..)) => "denied_address",
        Err(Error::LookUp(..)) => "dns",
        Err(Error::Crowded(_)) => "crowded",
        Err(Error::Connection(_)) => "connect",
        Err(Error::Tls(_)) => "tls",
        Err(Error::Timeout(_)) => "timeout",
        Err(Error::TooLarge(_) | Error::NotHttp(_)) => "invalid",
    }
}
