//! DNS lookups: addresses by the system's resolver, SRV records by a stub resolver of this crate.
//!
//! getaddrinfo knows `/etc/hosts` and the system's configuration, but has no deadline and no SRV records.

mod srv;

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::LazyLock;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use crate::net::address::{Host, Trust};
use crate::net::permits::{Semaphore, SemaphorePermit};
use crate::util::clock::time_left;
use crate::util::sync::spawn_from;

pub(crate) use srv::{SrvTarget, lookup_srv};

/// Concurrent address lookups. One that missed its deadline holds its thread until getaddrinfo gives up (5 to 30 s with a dead
/// resolver), so that there are more of them than permits for outbound calls.
const MAX_LOOKUPS: usize = 160;
/// Lookups of these that unlisted names never take: each of their calls may leave several lookups behind.
const RESERVED_LOOKUPS: usize = 32;
/// Stack of a lookup thread, in bytes: more than getaddrinfo of glibc or musl takes, less than the default of 2 MiB.
const LOOKUP_STACK: usize = 256 * 1024;

static LOOKUPS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(MAX_LOOKUPS));

/// Why a lookup has no result.
#[derive(Debug)]
pub(crate) enum Error {
    /// No address. The text is the system's, which tells a name that does not exist from a DNS server that does not answer.
    NotFound(String),
    /// No response before the deadline.
    Timeout,
    /// Too many lookups in progress.
    Busy,
    /// The DNS server answered with this RCODE (RFC 1035).
    ResponseCode(String),
    /// The DNS server's response is malformed.
    Malformed,
    /// The DNS server could not be reached, or the system's resolver failed.
    Io(std::io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(reason) => f.write_str(reason),
            Self::Timeout => f.write_str("the DNS server did not answer in time"),
            Self::Busy => f.write_str("too many DNS lookups in progress"),
            Self::ResponseCode(code) => write!(f, "the DNS server answered {code}"),
            Self::Malformed => f.write_str("the DNS server's response is malformed"),
            Self::Io(error) => write!(f, "DNS: {error}"),
        }
    }
}

impl std::error::Error for Error {}

/// Looks up the addresses of a host, each with `port`.
///
/// The caller waits until `deadline` at most; the lookup itself may take longer, in a thread that holds a permit.
pub(crate) fn lookup_addresses(
    host: &Host,
    port: u16,
    trust: Trust,
    deadline: Instant,
) -> Result<Vec<SocketAddr>, Error> {
    let name = match host {
        Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
        Host::Dns(name) => name.clone(),
    };
    let left = time_left(deadline).ok_or(Error::Timeout)?;
    let permit = acquire_lookup(trust).ok_or(Error::Busy)?;
    let (result_sender, result) = mpsc::sync_channel(1);
    let lookup = move || {
        let addresses = (&*name, port).to_socket_addrs();
        // the caller may have given up
        let _ = result_sender.send(addresses.map(Iterator::collect::<Vec<_>>));
        drop(permit);
    };
    let thread = thread::Builder::new().name("dns-lookup".into());
    spawn_from(thread.stack_size(LOOKUP_STACK), lookup).map_err(Error::Io)?;
    match result.recv_timeout(left) {
        Ok(Ok(addresses)) if addresses.is_empty() => Err(Error::NotFound("no address".into())),
        Ok(Ok(addresses)) => Ok(addresses),
        // std hides getaddrinfo's own code, but not its text
        Ok(Err(error)) if error.raw_os_error().is_none() => Err(Error::NotFound(error.to_string())),
        Ok(Err(error)) => Err(Error::Io(error)),
        Err(_) => Err(Error::Timeout),
    }
}

fn acquire_lookup(trust: Trust) -> Option<SemaphorePermit> {
    LOOKUPS.try_acquire_above(match trust {
        Trust::Unlisted => RESERVED_LOOKUPS,
        Trust::Listed | Trust::Administrator => 0,
    })
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use super::srv::fuzzing::srv_answer;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn local_names_and_literals_are_resolved() {
        let lookup =
            |host, port| lookup_addresses(&Host::parse(host), port, Trust::Unlisted, soon());
        let found = lookup("localhost", 8448).unwrap();
        assert!(
            found
                .iter()
                .all(|a| a.ip().is_loopback() && a.port() == 8448)
        );
        let literal = lookup("[2001:db8::1]", 1).unwrap();
        assert_eq!(literal, ["[2001:db8::1]:1".parse().unwrap()]);
    }

    #[test]
    fn no_lookup_starts_after_its_deadline() {
        let host = Host::parse("localhost");
        let late = lookup_addresses(&host, 1, Trust::Unlisted, Instant::now());
        assert!(matches!(late, Err(Error::Timeout)), "{late:?}");
    }

    #[test]
    fn unlisted_names_leave_lookups_for_the_others() {
        let unlisted: Vec<_> = std::iter::from_fn(|| acquire_lookup(Trust::Unlisted)).collect();
        assert!(unlisted.len() <= MAX_LOOKUPS - RESERVED_LOOKUPS);
        assert!(acquire_lookup(Trust::Listed).is_some());
    }
}
