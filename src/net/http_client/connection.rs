//! One connection, to an address that was vetted: dialled once, never again.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

use super::tunnel::{ProxyRoute, TunnelConnector};
use super::{HttpRoute, MAX_ADDRESSES};

/// Largest head of an answer, in bytes. Synapse's has some 400.
const MAX_HEAD: usize = 16 * 1024;
/// Bytes buffered in each direction; ureq's own default of 128 KiB would cost a megabyte per four connections.
const BUFFER_BYTES: usize = 16 * 1024;

/// Bytes that one exchange may bring in: head and body, and as much again for chunks, interim answers and the like. Each of those
/// is bounded by itself in ureq, but not how many there are.
const MAX_INPUT: usize = 256 * 1024;

/// An agent for one connection: as ureq sees it, a pool of one that goes this `way` at most once.
pub(super) fn single_connection_agent(
    route: &HttpRoute,
    way: ProxyRoute,
    tls: &Arc<ClientConfig>,
) -> Agent {
    let config = Agent::config_builder()
        // the default obeys ALL_PROXY and HTTPS_PROXY, which would bypass the vetting; a tunnel of ours does not
        .proxy(None)
        .http_status_as_error(false)
        // reading a redirect's body is unbounded in ureq, and every hop has to be vetted
        .max_redirects(0)
        .max_idle_connections(1)
        .max_idle_connections_per_host(1)
        // the pool of agents has its own clock
        .max_idle_age(std::time::Duration::MAX)
        .max_response_header_size(MAX_HEAD)
        .input_buffer_size(BUFFER_BYTES)
        .output_buffer_size(BUFFER_BYTES)
        .user_agent(concat!("livekit-token-service/", env!("CARGO_PKG_VERSION")))
        .accept("")
        .accept_encoding("")
        .build();
    let name = route.tls.as_ref().and_then(|host| match host {
        crate::net::address::Host::Ip(ip) => Some(ServerName::from(*ip)),
        crate::net::address::Host::Dns(name) => ServerName::try_from(name.to_string()).ok(),
    });
    let tls = TlsConnector {
        config: tls.clone(),
        name,
    };
    let connector =
        ().chain(SingleUseConnector(AtomicBool::new(false)))
            .chain(TunnelConnector::new(way.tunnel))
            .chain(tls);
    Agent::with_parts(config, connector, FixedResolver(way.addresses))
}

/// The connection is gone, and its address is not to be used again without a new look-up.
#[derive(Debug)]
pub(super) struct ConnectionClosed;

impl fmt::Display for ConnectionClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the kept connection was closed")
    }
}

impl std::error::Error for ConnectionClosed {}

/// The answer does not end.
#[derive(Debug)]
pub(super) struct InputLimitExceeded;

impl fmt::Display for InputLimitExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more than {MAX_INPUT} bytes in answer to one request")
    }
}

impl std::error::Error for InputLimitExceeded {}

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

/// Gives the address that was vetted, or the proxy's; looks nothing up.
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

/// TLS under a name of our choosing, with one configuration for all.
struct TlsConnector {
    config: Arc<ClientConfig>,
    /// What the certificate must be for; SNI is sent for a DNS name only.
    name: Option<ServerName<'static>>,
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({:?})", self.name)
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
            input_since_send: 0,
        })))
    }
}

/// What TCP and the proxy have left of the time to connect.
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
    /// Bytes that came in since something was last sent.
    input_since_send: usize,
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
        self.input_since_send = 0;
        self.stream.sock.set_timeout(timeout);
        std::io::Write::write_all(&mut self.stream, &self.buffers.output()[..amount])?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.sock.set_timeout(timeout);
        let read = std::io::Read::read(&mut self.stream, self.buffers.input_append_buf())?;
        self.buffers.input_appended(read);
        self.input_since_send += read;
        if self.input_since_send > MAX_INPUT {
            return Err(Error::Other(Box::new(InputLimitExceeded)));
        }
        Ok(read > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
