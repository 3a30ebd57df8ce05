//! Limits of time, number and memory for clients, and the division of the descriptor limit. Timeouts are totals, never per
//! read: a slow client gains nothing by a byte now and then.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Error;
use super::head::RequestHead;
use crate::net::address::{Network, client_key, is_public};

/// From the first byte of a head, or from the start of a connection, to the end of the head. Phones on bad networks need 2 to 3 s.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// From the end of the head to the end of the body.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// In the queue for a worker; clients give up not much later.
pub(super) const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// With a worker. Deadlines of outbound calls are shorter, so that 504 stays an exception.
const WORK_TIMEOUT: Duration = Duration::from_secs(60);
/// From the first byte of a response until the kernel has the last one.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two requests of a client.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two requests of a trusted proxy: longer than nginx's 60 s, so that the proxy closes first and loses no request.
const PROXY_IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// Reading and discarding after the response to a broken request: closing at once would reset the connection, and the
/// response could be lost.
pub(super) const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes discarded while lingering: a few bodies.
pub(super) const MAX_LINGER_BYTES: usize = 256 << 10;
/// From the start of the shutdown to its end, whatever is in progress.
pub(super) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// During the shutdown, for a client that has not sent its whole request.
pub(super) const SHUTDOWN_READ_TIMEOUT: Duration = Duration::from_secs(2);
/// During the shutdown, for one more request on an idle connection, whose response announces the end of the connection.
pub(super) const SHUTDOWN_IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Requests in each queue for a worker: 5 s of work for a small host.
pub(super) const MAX_QUEUED_REQUESTS: usize = 512;
/// Requests on one connection, so that load is spread anew from time to time.
pub(super) const MAX_REQUESTS_PER_CONNECTION: u32 = 10_000;
/// Bytes of one response; tokens have 1 KiB, a page of metrics 50 KiB.
pub(super) const MAX_RESPONSE_BYTES: usize = 16 << 20;
/// Bytes buffered for all clients: incomplete requests and unread responses. Beyond it the slowest clients are disconnected.
pub(super) const MAX_BUFFERED_BYTES: usize = 32 << 20;
/// Connections that the kernel accepts ahead of the service; a burst of clients must not wait a second to repeat its SYN.
pub(super) const LISTEN_BACKLOG: i32 = 4096;

/// Queued and running requests of one address.
pub(super) fn max_requests_per_address(workers: usize) -> usize {
    (workers / 2).max(1)
}

/// How many of `workers` may wait for other servers; the rest is reserved for responses without outbound calls.
pub(crate) fn max_outbound_workers(workers: usize) -> usize {
    workers - (workers / 8).max(1)
}

/// Limits that an administrator may set.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Open connections; the descriptor limit may allow fewer.
    pub max_connections: usize,
    /// Open connections of one address (IPv6: of one /64).
    pub max_connections_per_address: usize,
    /// Proxies without limits per address. Limits apply to the addresses of their `X-Forwarded-For` instead. Peers on unix
    /// sockets are trusted in any case.
    pub trusted_proxies: Vec<Network>,
    /// Whether limits apply to private addresses. Normally they do not: such an address is a proxy missing in the settings,
    /// or the network address translation of a container, and all clients behind it would share one limit.
    pub limit_private_addresses: bool,
    /// Time that a worker has for a response.
    pub work_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            max_connections_per_address: 256,
            trusted_proxies: ["127.0.0.0/8", "::1"]
                .iter()
                .filter_map(|network| network.parse().ok())
                .collect(),
            limit_private_addresses: false,
            work_timeout: WORK_TIMEOUT,
        }
    }
}

impl ServerLimits {
    pub(super) fn is_trusted_proxy(&self, address: IpAddr) -> bool {
        self.trusted_proxies
            .iter()
            .any(|network| network.contains(address))
    }

    /// The address that limits apply to (IPv6: the first of its /64); `None` if `address` has no limits.
    pub(super) fn limit_key(&self, address: IpAddr) -> Option<IpAddr> {
        let limited =
            !self.is_trusted_proxy(address) && (self.limit_private_addresses || is_public(address));
        limited.then(|| client_key(address))
    }

    /// The client of a request that came from `peer` (`None`: a unix socket): the peer, or the address that trusted proxies
    /// report. `X-Forwarded-For` is read from right to left, past trusted proxies only; what is further left may be forged.
    pub(super) fn client_address(
        &self,
        peer: Option<IpAddr>,
        head: &RequestHead<'_>,
    ) -> Option<IpAddr> {
        let mut client = peer;
        let mut entries = head
            .header_values("X-Forwarded-For")
            .rev()
            .flat_map(|value| value.rsplit(|byte| *byte == b','));
        while client.is_none_or(|address| self.is_trusted_proxy(address)) {
            match entries.next().and_then(parse_forwarded_address) {
                Some(address) => client = Some(address),
                None => break,
            }
        }
        client
    }

    pub(super) fn idle_timeout(&self, trusted_proxy: bool) -> Duration {
        if trusted_proxy {
            PROXY_IDLE_TIMEOUT
        } else {
            IDLE_TIMEOUT
        }
    }
}

/// Parses an address, with or without a port.
fn parse_forwarded_address(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry).ok()?.trim();
    let address = entry.parse().ok().or_else(|| {
        let with_port: Result<SocketAddr, _> = entry.parse();
        with_port.ok().map(|socket| socket.ip())
    })?;
    Some(IpAddr::to_canonical(&address))
}

/// Standard streams, event queue, listeners, signals, random numbers, service manager, one open file.
const OWN_DESCRIPTORS: usize = 18;
/// For each worker the event loop's end of its connection and tiny_http's two; the connection and DNS lookup that it may
/// open at once, and the idle connections to a homeserver and to the SFU that it may leave behind.
const DESCRIPTORS_PER_WORKER: usize = 3 + 4;
/// With fewer, outbound requests would block all others.
const MIN_WORKERS: usize = 2;

/// Number of workers, at most `max_workers` and at least 2, so that half of all descriptors is left for clients. Raises the soft
/// descriptor limit to the hard one.
///
/// # Errors
/// [`Error::Descriptors`] if the limit is too low for two workers.
pub(crate) fn affordable_workers(max_workers: usize) -> Result<usize, Error> {
    let limit = raise_descriptor_limit();
    let possible = (limit / 2).saturating_sub(OWN_DESCRIPTORS) / DESCRIPTORS_PER_WORKER;
    if possible < MIN_WORKERS {
        let needed = 2 * (OWN_DESCRIPTORS + MIN_WORKERS * DESCRIPTORS_PER_WORKER);
        return Err(Error::Descriptors { limit, needed });
    }
    if possible < max_workers {
        log::warn!(workers = possible, wanted = max_workers; "descriptor limit allows fewer workers");
    }
    Ok(possible.min(max_workers.max(MIN_WORKERS)))
}

/// Number of client connections beside `workers`.
pub(super) fn affordable_connections(workers: usize) -> usize {
    raise_descriptor_limit().saturating_sub(OWN_DESCRIPTORS + workers * DESCRIPTORS_PER_WORKER)
}

fn raise_descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    current.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn limits_apply_to_public_addresses_and_their_64_prefix() {
        let mut limits = ServerLimits::default();
        for (client, key) in [
            ("1.1.1.1", "1.1.1.1"),
            ("2606:4700::1", "2606:4700::"),
            ("2606:4700:0:1::1", "2606:4700:0:1::"),
        ] {
            assert_eq!(limits.limit_key(address(client)), Some(address(key)));
        }
        for client in ["127.0.0.1", "::1", "10.0.0.1", "fd00::1"] {
            assert_eq!(limits.limit_key(address(client)), None, "{client}");
        }
        limits.limit_private_addresses = true;
        let private = address("10.0.0.1");
        assert_eq!(limits.limit_key(private), Some(private));
        limits.trusted_proxies.push("10.0.0.0/8".parse().unwrap());
        assert_eq!(limits.limit_key(private), None);
    }

    #[test]
    fn forwarded_addresses_are_used_from_trusted_proxies_only() {
        let limits = ServerLimits {
            trusted_proxies: vec![
                "127.0.0.0/8".parse().unwrap(),
                "10.0.0.0/8".parse().unwrap(),
            ],
            ..ServerLimits::default()
        };
        let client = |peer: Option<&str>, headers: &str| {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
            let head = RequestHead::parse(head.as_bytes(), &[]).unwrap();
            let client = limits.client_address(peer.map(address), &head);
            client.map_or("unix".to_owned(), |client| client.to_string())
        };
        for (headers, expected) in [
            ("", "127.0.0.1"),
            ("X-Forwarded-For: 192.0.2.1\r\n", "192.0.2.1"),
            ("X-Forwarded-For: 198.51.100.7, 192.0.2.1\r\n", "192.0.2.1"),
            (
                "X-Forwarded-For: 198.51.100.7\r\nX-Forwarded-For: 192.0.2.1 , 10.1.2.3\r\n",
                "192.0.2.1",
            ),
            ("X-Forwarded-For: 192.0.2.1:4711\r\n", "192.0.2.1"),
            ("X-Forwarded-For: [2001:db8::1]:80\r\n", "2001:db8::1"),
            ("X-Forwarded-For: ::ffff:192.0.2.1\r\n", "192.0.2.1"),
            ("X-Forwarded-For: 192.0.2.1, unknown\r\n", "127.0.0.1"),
            (
                "X-Forwarded-For: 192.0.2.1, unknown, 10.1.2.3\r\n",
                "10.1.2.3",
            ),
        ] {
            assert_eq!(client(Some("127.0.0.1"), headers), expected, "{headers}");
        }
        let header = "X-Forwarded-For: 192.0.2.1\r\n";
        assert_eq!(client(Some("198.51.100.7"), header), "198.51.100.7");
        assert_eq!(client(None, header), "192.0.2.1");
        assert_eq!(client(None, ""), "unix");
    }
}
