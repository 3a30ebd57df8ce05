//! Look-ups: addresses by the system's resolver, SRV records by a stub of our own on the wire.
//!
//! getaddrinfo knows `/etc/hosts` and whatever the host is set up for, but has no deadline; SRV it does not know at all.

mod srv;

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::LazyLock;
use std::sync::mpsc;
use std::time::Instant;

use crate::net::address::{Host, Trust};
use crate::net::permits::{Semaphore, SemaphorePermit};

pub(crate) use srv::{SrvTarget, lookup_srv};

/// Address look-ups that may be under way at once. One that missed its deadline holds its thread until getaddrinfo gives up
/// (5 to 30 s with a dead resolver), so there are more of them than outbound places.
const MAX_LOOKUPS: usize = 160;
/// Of these, how many strangers' names never take: each of their places may leave several look-ups behind.
const RESERVED_LOOKUPS: usize = 32;
/// Stack of a look-up thread: more than getaddrinfo of glibc or musl takes, less than the default of 2 MiB.
const LOOKUP_STACK: usize = 256 * 1024;

/// Why a look-up gave nothing.
#[derive(Debug)]
pub enum Error {
    /// No address: in the system's words, which tell a name that does not exist from a DNS that does not answer.
    NotFound(String),
    /// No answer before the deadline.
    Timeout,
    /// Too many look-ups are under way.
    Busy,
    /// The DNS server answered with an error (RFC 1035, RCODE).
    ResponseCode(String),
    /// The DNS server's answer makes no sense.
    Malformed,
    /// The DNS server could not be reached, or the system's resolver failed.
    Io(std::io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(why) => f.write_str(why),
            Self::Timeout => f.write_str("the DNS server did not answer in time"),
            Self::Busy => f.write_str("too many DNS look-ups under way"),
            Self::ResponseCode(code) => write!(f, "the DNS server answered {code}"),
            Self::Malformed => f.write_str("the DNS server's answer is malformed"),
            Self::Io(error) => write!(f, "DNS: {error}"),
        }
    }
}

impl std::error::Error for Error {}

/// Looks up the addresses of a host, each with `port`.
///
/// The caller waits until `deadline` at the longest; the look-up itself may outlive it, in a thread that is counted.
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
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::Timeout);
    }
    let slot = acquire_lookup(trust).ok_or(Error::Busy)?;
    let (found, answer) = mpsc::sync_channel(1);
    let look_up = move || {
        let addresses = (&*name, port)
            .to_socket_addrs()
            .map(Iterator::collect::<Vec<_>>);
        // the caller may be gone
        let _ = found.send(addresses);
        drop(slot);
    };
    let thread = std::thread::Builder::new()
        .name("lookup".into())
        .stack_size(LOOKUP_STACK);
    thread.spawn(look_up).map_err(Error::Io)?;
    match answer.recv_timeout(left) {
        Ok(Ok(addresses)) if addresses.is_empty() => Err(Error::NotFound("no address".into())),
        Ok(Ok(addresses)) => Ok(addresses),
        // std keeps getaddrinfo's own code to itself, but not its text
        Ok(Err(error)) if error.raw_os_error().is_none() => Err(Error::NotFound(error.to_string())),
        Ok(Err(error)) => Err(Error::Io(error)),
        Err(_) => Err(Error::Timeout),
    }
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use super::srv::fuzzing::srv_answer;
}

static LOOKUPS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(MAX_LOOKUPS));

fn acquire_lookup(trust: Trust) -> Option<SemaphorePermit> {
    LOOKUPS.try_acquire_above(match trust {
        Trust::Unlisted => RESERVED_LOOKUPS,
        Trust::Listed | Trust::Administrator => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn hosts_of_this_machine_are_found() {
        let find = |host, port| lookup_addresses(&Host::parse(host), port, Trust::Unlisted, soon());
        let found = find("localhost", 8448).unwrap();
        assert!(
            found
                .iter()
                .all(|a| a.ip().is_loopback() && a.port() == 8448)
        );
        let literal = find("[2001:db8::1]", 1).unwrap();
        assert_eq!(literal, ["[2001:db8::1]:1".parse().unwrap()]);
    }

    #[test]
    fn no_look_up_is_begun_after_its_deadline() {
        let host = Host::parse("localhost");
        let late = lookup_addresses(&host, 1, Trust::Unlisted, Instant::now());
        assert!(matches!(late, Err(Error::Timeout)), "{late:?}");
    }

    #[test]
    fn strangers_leave_look_ups_for_the_others() {
        let strangers: Vec<_> = std::iter::from_fn(|| acquire_lookup(Trust::Unlisted)).collect();
        assert!(strangers.len() <= MAX_LOOKUPS - RESERVED_LOOKUPS);
        assert!(acquire_lookup(Trust::Listed).is_some());
    }
}
