//! What a client may cost, and for how long. Times are totals, never per read: a byte now and then buys nothing.

use crate::net::address::{Network, client_key, is_public};
use std::net::IpAddr;
use std::time::Duration;

/// From the first byte of a head (or the connection) to its last. Phones on bad networks need 2 or 3 s.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// From the end of the head to the end of the body: of a large one as well, for our homeserver is near.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// In the queue for a worker; clients give up not much later.
pub const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// With a worker. Budgets of outbound calls stay below it, so that 504 is never the usual answer.
pub const WORK_TIMEOUT: Duration = Duration::from_secs(60);
/// From the first byte of the answer to the last that the kernel takes.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two requests of a client.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two requests of a trusted proxy: above nginx's 60 s, so that the proxy closes first and loses no request.
pub const PROXY_IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// After the answer to a broken request, in which what was under way is swallowed: closing at once would reset the
/// connection, and the answer could be lost.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes swallowed while lingering: a few bodies.
pub const MAX_LINGER_BYTES: usize = 256 << 10;
/// After SIGTERM, for all that is under way.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// After SIGTERM, for a client that has not finished sending its request.
pub const SHUTDOWN_READ_TIMEOUT: Duration = Duration::from_secs(2);
/// After SIGTERM, for a kept-alive client to learn from one more answer that the connection ends.
pub const SHUTDOWN_IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Requests that wait for a worker, per lane: 5 s of work for a small host.
pub const MAX_QUEUED_REQUESTS: usize = 512;
/// Requests on one connection, so that none lives for ever and load spreads anew.
pub const MAX_REQUESTS_PER_CONNECTION: u32 = 10_000;
/// Bytes of one answer; tokens have 1 KiB, a page of metrics 50 KiB.
pub const MAX_RESPONSE_BYTES: usize = 16 << 20;
/// Bytes kept for all clients, requests that are not complete and answers that were not read; beyond it the slowest go.
pub const MAX_BUFFERED_BYTES: usize = 32 << 20;
/// Completed connections that the kernel keeps for us; a burst of clients must not wait a second for its SYN again.
pub const LISTEN_BACKLOG: i32 = 4096;

/// How many of so many workers may wait for other servers; the others are for what is answered from here.
pub fn max_outbound_workers(workers: usize) -> usize {
    workers - (workers / 8).max(1)
}

/// What an administrator may set.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Connections in all; what the descriptor limit leaves room for may be less.
    pub max_connections: usize,
    /// Connections of one address (IPv6: of one /64).
    pub max_connections_per_address: usize,
    /// Requests of one address that wait for a worker or have one; `None` is half the workers.
    pub max_requests_per_address: Option<usize>,
    /// Networks of trusted proxies: exempt from limits per address, and believed about `X-Forwarded-For`, whose addresses
    /// have the limits instead. Peers on unix sockets are trusted in any case.
    pub trusted_proxies: Vec<Network>,
    /// Whether private addresses have limits too. Normally they have none: behind one there is a proxy that nobody named, or
    /// the network address translation of a container, and all its clients would share the limits of one.
    pub limit_private_addresses: bool,
    /// Normally [`WORK_TIME`].
    pub work_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            max_connections_per_address: 256,
            max_requests_per_address: None,
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
    /// Whether this peer is a proxy of ours.
    pub fn is_trusted_proxy(&self, address: IpAddr) -> bool {
        self.trusted_proxies
            .iter()
            .any(|network| network.contains(address))
    }

    /// What an address is counted under, if it is: itself, or the /64 of an IPv6 one.
    pub(crate) fn limit_key(&self, address: IpAddr) -> Option<IpAddr> {
        let counted =
            !self.is_trusted_proxy(address) && (self.limit_private_addresses || is_public(address));
        counted.then(|| client_key(address))
    }

    /// How long a connection may wait for its next request.
    pub(super) fn idle_timeout(&self, trusted: bool) -> Duration {
        if trusted {
            PROXY_IDLE_TIMEOUT
        } else {
            IDLE_TIMEOUT
        }
    }
}
