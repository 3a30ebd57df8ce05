//! Connections to allowed addresses, and the pool of idle ones.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time;

use http::Uri;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use ureq::config::Config;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::time::{Duration, Instant};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
    TransportAdapter,
};
use ureq::{Agent, Error};

use super::proxy::{DialPlan, TunnelConnector};
use super::{HttpRoute, MAX_ADDRESSES};
use crate::net::address::{Network, Trust};
use crate::net::tls;
use crate::util::sync::lock;

/// Largest head of a response, in bytes. Synapse's has some 400.
const MAX_HEAD: usize = 16 * 1024;
/// Bytes buffered in each direction; with ureq's default of 128 KiB, four connections take a megabyte.
const BUFFER_BYTES: usize = 16 * 1024;
/// Bytes of input for one response beside twice its largest body: head, chunk framing, interim responses. ureq bounds the size of
/// each of those, but not their number.
const MAX_INPUT_OVERHEAD: usize = 128 * 1024;

/// Idle connections to one unlisted server.
const MAX_IDLE_PER_UNLISTED_SERVER: usize = 2;
/// Longest idle time of a connection: below the 60 s after which common proxies close it.
const MAX_IDLE_TIME: time::Duration = time::Duration::from_secs(50);

/// A connection to a server. The first request dials it; after it is closed, no request dials it again, because a new connection needs
/// a new lookup.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) route: HttpRoute,
    /// ureq's agent, restricted to this connection.
    pub(super) agent: Agent,
    /// The subnet of the address, for which each use counts.
    pub(super) subnet: Network,
    input_limit: Arc<AtomicUsize>,
}

impl Connection {
    pub(super) fn new(
        route: &HttpRoute,
        address: SocketAddr,
        plan: DialPlan,
        tls: &Arc<ClientConfig>,
    ) -> Result<Self, rustls::Error> {
        let config = Agent::config_builder()
            // the default obeys ALL_PROXY and HTTPS_PROXY, which would bypass the address policy
            .proxy(None)
            .http_status_as_error(false)
            // ureq reads a redirect's body without a bound, and each hop needs a check of its address
            .max_redirects(0)
            .max_idle_connections(1)
            .max_idle_connections_per_host(1)
            // ConnectionPool limits the idle time
            .max_idle_age(time::Duration::MAX)
            .max_response_header_size(MAX_HEAD)
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .user_agent(concat!("livekit-token-service/", env!("CARGO_PKG_VERSION")))
            .accept("")
            .accept_encoding("")
            .build();
        let name = route.tls.as_ref().map(tls::server_name).transpose()?;
        let input_limit = Arc::<AtomicUsize>::default();
        let connector = ()
            .chain(SingleUseConnector(AtomicBool::new(false)))
            .chain(TunnelConnector::new(plan.tunnel))
            .chain(TlsConnector {
                config: tls.clone(),
                name,
            })
            .chain(InputLimitConnector(input_limit.clone()));
        Ok(Self {
            route: route.clone(),
            agent: Agent::with_parts(config, connector, FixedResolver(plan.addresses)),
            subnet: Network::subnet_of(address.ip()),
            input_limit,
        })
    }

    /// Prepares for a response with a body of at most `max_body` bytes.
    pub(super) fn limit_input(&self, max_body: usize) {
        let limit = max_body
            .saturating_mul(2)
            .saturating_add(MAX_INPUT_OVERHEAD);
        self.input_limit.store(limit, Ordering::Relaxed);
    }
}

/// The connection is closed.
#[derive(Debug)]
pub(super) struct ConnectionClosed;

impl fmt::Display for ConnectionClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is closed")
    }
}

impl std::error::Error for ConnectionClosed {}

/// The response has more bytes than its body may have, with all overhead.
#[derive(Debug)]
pub(super) struct InputLimitExceeded;

impl fmt::Display for InputLimitExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its bytes are too many for the size of its body")
    }
}

impl std::error::Error for InputLimitExceeded {}

/// Fails from the second connection on.
#[derive(Debug)]
struct SingleUseConnector(AtomicBool);

impl<In: Transport> Connector<In> for SingleUseConnector {
    type Out = In;

    fn connect(&self, _: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<In>, Error> {
        if self.0.swap(true, Ordering::AcqRel) {
            Err(Error::Other(Box::new(ConnectionClosed)))
        } else {
            Ok(chained)
        }
    }
}

/// Resolves every name to the given addresses.
#[derive(Debug)]
struct FixedResolver(Vec<SocketAddr>);

impl Resolver for FixedResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut addresses = self.empty();
        for address in self.0.iter().take(MAX_ADDRESSES) {
            addresses.push(*address);
        }
        Ok(addresses)
    }
}

/// TLS with a certificate name that is independent of the address and of the `Host` header.
struct TlsConnector {
    config: Arc<ClientConfig>,
    /// Name that the certificate has to match; SNI is sent for a DNS name only.
    name: Option<ServerName<'static>>,
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsConnector({:?})", self.name)
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        let Some(tcp) = chained else { return Ok(None) };
        if !details.needs_tls() {
            return Ok(Some(Either::A(tcp)));
        }
        let name = self.name.clone().ok_or(Error::TlsRequired)?;
        let mut conn = ClientConnection::new(self.config.clone(), name)
            .map_err(|e| Error::Other(Box::new(e)))?;
        let mut sock = TransportAdapter::new(tcp.boxed(), details.current_time.clone());
        sock.set_timeout(remaining_timeout(details));
        conn.complete_io(&mut sock)?;
        let buffers = LazyBuffers::new(
            details.config.input_buffer_size(),
            details.config.output_buffer_size(),
        );
        Ok(Some(Either::B(TlsTransport {
            buffers,
            stream: StreamOwned { conn, sock },
        })))
    }
}

/// The rest of the time to connect, after TCP and the proxy.
pub(super) fn remaining_timeout(details: &ConnectionDetails<'_>) -> NextTimeout {
    let mut timeout = details.timeout;
    if let (Duration::Exact(budget), Instant::Exact(start)) = (timeout.after, details.now) {
        timeout.after = Duration::Exact(budget.saturating_sub(start.elapsed()));
    }
    timeout
}

struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsTransport")
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.sock.set_timeout(timeout);
        std::io::Write::write_all(&mut self.stream, &self.buffers.output()[..amount])?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.sock.set_timeout(timeout);
        let read = std::io::Read::read(&mut self.stream, self.buffers.input_append_buf())?;
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// Fails a connection that receives more bytes than the limit, from which each byte is taken.
#[derive(Debug)]
struct InputLimitConnector(Arc<AtomicUsize>);

impl<In: Transport> Connector<In> for InputLimitConnector {
    type Out = InputLimitTransport<In>;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(|inner| InputLimitTransport {
            inner,
            limit: self.0.clone(),
        }))
    }
}

#[derive(Debug)]
struct InputLimitTransport<T> {
    inner: T,
    limit: Arc<AtomicUsize>,
}

impl<T: Transport> Transport for InputLimitTransport<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let before = self.inner.buffers().input().len();
        let progress = self.inner.await_input(timeout)?;
        let received = self.inner.buffers().input().len() - before;
        let left = self.limit.load(Ordering::Relaxed).checked_sub(received);
        let left = left.ok_or_else(|| Error::Other(Box::new(InputLimitExceeded)))?;
        self.limit.store(left, Ordering::Relaxed);
        Ok(progress)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

/// Idle connections, oldest first. Each call of [`Self::take`] closes those that were idle for too long.
#[derive(Debug)]
pub(super) struct ConnectionPool {
    idle: Mutex<Vec<(time::Instant, Connection)>>,
    max_idle: usize,
}

impl ConnectionPool {
    pub(super) fn new(max_idle: usize) -> Self {
        Self {
            idle: Mutex::default(),
            max_idle,
        }
    }

    /// The connection to `route` that was used last.
    pub(super) fn take(&self, route: &HttpRoute) -> Option<Connection> {
        let mut idle = lock(&self.idle);
        // closing a socket does not block
        idle.retain(|(since, _)| since.elapsed() < MAX_IDLE_TIME);
        let index = idle.iter().rposition(|(_, other)| other.route == *route)?;
        Some(idle.remove(index).1)
    }

    /// Closes all connections to `route`: one of them is broken, and the others may be as old.
    pub(super) fn close_all(&self, route: &HttpRoute) {
        lock(&self.idle).retain(|(_, other)| other.route != *route);
    }

    /// Adds a connection. A full pool closes the oldest connection of the lowest trust, which may be the new one.
    pub(super) fn put(&self, connection: Connection) {
        let mut idle = lock(&self.idle);
        let trust = connection.route.trust;
        let same_route = idle
            .iter()
            .filter(|(_, other)| other.route == connection.route);
        if trust == Trust::Unlisted && same_route.count() >= MAX_IDLE_PER_UNLISTED_SERVER {
            return;
        }
        if idle.len() >= self.max_idle {
            // among equals the first one, which is the oldest
            let lowest = (0..idle.len()).min_by_key(|index| idle[*index].1.route.trust);
            match lowest {
                Some(index) if idle[index].1.route.trust <= trust => drop(idle.remove(index)),
                _ => return,
            }
        }
        idle.push((time::Instant::now(), connection));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::address::Host;

    fn connection(name: &str, trust: Trust) -> Connection {
        let route = HttpRoute {
            host: Host::parse(name),
            port: 1,
            tls: None,
            authority: name.into(),
            trust,
        };
        Connection {
            route,
            agent: Agent::new_with_defaults(),
            subnet: Network::subnet_of([127, 0, 0, 1].into()),
            input_limit: Arc::default(),
        }
    }

    fn take(pool: &ConnectionPool, name: &str, trust: Trust) -> Option<Connection> {
        pool.take(&connection(name, trust).route)
    }

    #[test]
    fn connections_to_unlisted_servers_never_evict_one_to_a_listed_server() {
        let pool = ConnectionPool::new(50);
        for _ in 0..10 {
            pool.put(connection("own.example", Trust::Listed));
        }
        for n in 0..1000 {
            pool.put(connection(&format!("{n}.example"), Trust::Unlisted));
        }
        assert_eq!(lock(&pool.idle).len(), 50);
        let taken = (0..20).filter_map(|_| take(&pool, "own.example", Trust::Listed));
        assert_eq!(taken.count(), 10);
        assert!(take(&pool, "0.example", Trust::Unlisted).is_none());
        assert!(take(&pool, "999.example", Trust::Unlisted).is_some());
    }

    #[test]
    fn a_pool_full_of_listed_servers_takes_no_unlisted_one() {
        let pool = ConnectionPool::new(2);
        for name in ["a.example", "b.example"] {
            pool.put(connection(name, Trust::Listed));
        }
        pool.put(connection("unlisted.example", Trust::Unlisted));
        assert!(take(&pool, "unlisted.example", Trust::Unlisted).is_none());
        pool.put(connection("c.example", Trust::Listed));
        assert!(take(&pool, "a.example", Trust::Listed).is_none());
        pool.close_all(&connection("b.example", Trust::Listed).route);
        assert!(take(&pool, "b.example", Trust::Listed).is_none());
        assert!(take(&pool, "c.example", Trust::Listed).is_some());
    }

    #[test]
    fn one_unlisted_server_has_few_idle_connections() {
        let pool = ConnectionPool::new(50);
        for _ in 0..10 {
            pool.put(connection("a.example", Trust::Unlisted));
        }
        assert_eq!(lock(&pool.idle).len(), MAX_IDLE_PER_UNLISTED_SERVER);
    }
}
