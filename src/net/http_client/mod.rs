//! One HTTP exchange with another server: vetted addresses, a chosen certificate name, bounds on everything that comes back.

mod connection;
mod error;
mod pool;
mod tunnel;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use rustls::ClientConfig;
use ureq::Agent;

use super::permits::KeyedPermitPool;
use crate::net::address::{AddressPolicy, Host, Network, Trust};
use crate::net::base_url::BaseUrl;
use crate::net::dns;
use crate::net::proxy::Proxy;
use crate::util::metrics;

pub(crate) use self::error::Error;
use self::error::{PHASE_CONNECT, PHASE_RESPONSE, PHASE_TOTAL, classify_ureq_error, outcome_label};
use pool::{ConnectionPool, PooledConnection};
use tunnel::ProxyRoute;
#[cfg(fuzzing)]
pub use tunnel::fuzzing;

/// Addresses of one host that are tried, in the resolver's order; of the proxy too.
const MAX_ADDRESSES: usize = 4;

/// Where to connect, and as whom to know the peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpRoute {
    /// What is looked up and dialled.
    pub host: Host,
    /// The port that is dialled.
    pub port: u16,
    /// What the certificate must be for; without it the exchange is plain HTTP.
    pub tls: Option<Host>,
    /// The `Host` header, as it is.
    pub authority: Box<str>,
    /// Whose wish it is.
    pub trust: Trust,
}

impl HttpRoute {
    /// The way to a server that the administrator named.
    pub fn administrator_url(url: &BaseUrl) -> Self {
        Self {
            host: url.host().clone(),
            port: url.port(),
            tls: url.tls().then(|| url.host().clone()),
            authority: url.authority().into(),
            trust: Trust::Administrator,
        }
    }
}

/// How long each part of an exchange may take in all, and how large the answer may be.
#[derive(Debug, Clone, Copy)]
pub struct FetchLimits {
    /// What it is counted as in [`metrics::upstream`].
    pub kind: &'static str,
    /// TCP and TLS.
    pub connect_timeout: Duration,
    /// From the request to the end of the answer's head.
    pub head_timeout: Duration,
    /// The answer's body.
    pub body_timeout: Duration,
    /// Bytes of the answer's body.
    pub max_body: usize,
    /// Calls to strangers in the same /24 or /64 that may be under way, this one included.
    pub max_subnet_calls: usize,
}

/// What to ask.
#[derive(Clone, Copy)]
pub struct FetchRequest<'a> {
    /// Path and query. May hold a token: never logged.
    pub target: &'a str,
    /// The value of `Authorization`.
    pub authorization: Option<&'a str>,
    /// Content type and body of a POST; without them it is a GET.
    pub post: Option<(&'a str, &'a [u8])>,
}

impl<'a> FetchRequest<'a> {
    /// A GET without credentials.
    pub fn get(target: &'a str) -> Self {
        Self {
            target,
            authorization: None,
            post: None,
        }
    }
}

/// What came back.
pub struct FetchResponse {
    /// The status code.
    pub status: u16,
    /// The head's fields.
    pub headers: HeaderMap,
    /// The body; empty for a redirect, whose body nobody needs.
    pub body: Vec<u8>,
}

/// Carries out exchanges, and keeps connections for the next ones.
#[derive(Debug)]
pub struct Fetcher {
    tls: Arc<ClientConfig>,
    policy: AddressPolicy,
    subnet_permits: Arc<KeyedPermitPool<Network>>,
    pool: ConnectionPool,
    proxy: Option<Arc<Proxy>>,
}

impl Fetcher {
    /// A fetcher with a pool of its own, of at most `most_idle` connections.
    pub fn new(tls: Arc<ClientConfig>, policy: AddressPolicy, most_idle: usize) -> Self {
        Self {
            tls,
            policy,
            subnet_permits: KeyedPermitPool::new(),
            pool: ConnectionPool::new(most_idle),
            proxy: None,
        }
    }

    /// Has `proxy` asked for every TLS connection to an address of the public Internet; the others are dialled from here, as a
    /// proxy for the outside has no business in here.
    ///
    /// Names are looked up and vetted here all the same, and CONNECT names the address: a name would be looked up once more by the
    /// proxy, and whoever owns it could have it lead into the proxy's network then.
    pub fn with_proxy(self, proxy: Option<Proxy>) -> Self {
        Self {
            proxy: proxy.map(Arc::new),
            ..self
        }
    }

    /// Asks `request` of the server at `route`, over a kept connection if there is one. Redirects are answers.
    ///
    /// A kept connection that turns out to be closed is replaced, and an address that does not answer is followed by the
    /// next one, so every request has to bear being sent twice.
    pub fn fetch(
        &self,
        route: &HttpRoute,
        request: FetchRequest<'_>,
        limits: FetchLimits,
        deadline: Instant,
    ) -> Result<FetchResponse, Error> {
        let result = self.fetch_with_failover(route, request, limits, deadline);
        metrics::count_upstream_request(limits.kind, outcome_label(&result));
        result
    }

    fn fetch_with_failover(
        &self,
        route: &HttpRoute,
        request: FetchRequest<'_>,
        limits: FetchLimits,
        deadline: Instant,
    ) -> Result<FetchResponse, Error> {
        while let Some(kept) = self.pool.take(route) {
            match self.send_on_connection(kept, request, limits, deadline) {
                Err(Error::Connection(error)) if is_closed(error.kind()) => {}
                // a peer that went without a word may still be there for a new connection
                Err(Error::Connection(_) | Error::Timeout(PHASE_RESPONSE)) => {
                    self.pool.close_all(route)
                }
                outcome => return outcome,
            }
        }
        let mut last = None;
        let mut connect_left = limits.connect_timeout;
        let addresses = self.allowed_addresses(route, deadline)?;
        for (index, address) in addresses.iter().enumerate() {
            let started = Instant::now();
            // the last one may take all that is left
            let share = if index + 1 < addresses.len() {
                connect_left / 2
            } else {
                connect_left
            };
            let way = ProxyRoute::resolve(
                self.proxy.as_ref(),
                route,
                *address,
                deadline.min(started + share),
            );
            let way = match way {
                Ok(way) => way,
                Err(error) => {
                    // what an address has said before tells more
                    last = last.or(Some(error));
                    continue;
                }
            };
            let kept = PooledConnection {
                route: route.clone(),
                agent: connection::single_connection_agent(route, way, &self.tls),
                subnet: Network::subnet_of(address.ip()),
                idle_since: started,
            };
            let limits = FetchLimits {
                connect_timeout: share.saturating_sub(started.elapsed()),
                ..limits
            };
            match self.send_on_connection(kept, request, limits, deadline) {
                Err(
                    error @ (Error::Connection(_)
                    | Error::Proxy(..)
                    | Error::Timeout(PHASE_CONNECT)
                    | Error::SubnetLimit(_)),
                ) => {
                    connect_left = connect_left.saturating_sub(started.elapsed());
                    last = Some(error);
                }
                outcome => return outcome,
            }
        }
        Err(last.unwrap_or(Error::Dns(
            route.host.clone(),
            dns::Error::NotFound("no address".into()),
        )))
    }

    /// Asks over one connection, and keeps it if it can be used again. Holds a place in the network that it is to, so that
    /// strangers with many names for one network take no more than their share of it.
    fn send_on_connection(
        &self,
        kept: PooledConnection,
        request: FetchRequest<'_>,
        limits: FetchLimits,
        deadline: Instant,
    ) -> Result<FetchResponse, Error> {
        let _place = match kept.route.trust {
            Trust::Unlisted => {
                let place = self
                    .subnet_permits
                    .try_acquire(kept.subnet, limits.max_subnet_calls);
                Some(place.ok_or(Error::SubnetLimit(kept.subnet))?)
            }
            Trust::Listed | Trust::Administrator => None,
        };
        let (answer, reusable) = send_request(&kept.agent, &kept.route, request, limits, deadline)?;
        if reusable {
            self.pool.put(kept);
        }
        Ok(answer)
    }

    /// The addresses of a route that may be dialled.
    fn allowed_addresses(
        &self,
        route: &HttpRoute,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, Error> {
        let found = dns::lookup_addresses(&route.host, route.port, route.trust, deadline);
        let found = found.map_err(|error| Error::Dns(route.host.clone(), error))?;
        let (allowed, denied): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|address| self.policy.allows(address.ip(), route.trust));
        match (allowed.is_empty(), denied.first()) {
            (true, Some(address)) => Err(Error::AddressDenied(route.host.clone(), address.ip())),
            _ => Ok(allowed.into_iter().take(MAX_ADDRESSES).collect()),
        }
    }
}

/// The answer, and whether its connection may be used again.
fn send_request(
    agent: &Agent,
    route: &HttpRoute,
    request: FetchRequest<'_>,
    limits: FetchLimits,
    deadline: Instant,
) -> Result<(FetchResponse, bool), Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::Timeout(PHASE_TOTAL));
    }
    let uri = match &route.tls {
        Some(name) => format!("https://{name}:{}{}", route.port, request.target),
        None => format!("http://{}:{}{}", route.host, route.port, request.target),
    };
    macro_rules! configured {
        ($builder:expr) => {{
            let builder = $builder
                .header("host", &*route.authority)
                .header("accept", "application/json");
            let builder = match request.authorization {
                Some(value) => builder.header("authorization", value),
                None => builder,
            };
            builder
                .config()
                .timeout_global(Some(left))
                .timeout_connect(Some(limits.connect_timeout))
                .timeout_send_request(Some(limits.head_timeout))
                .timeout_send_body(Some(limits.head_timeout))
                .timeout_recv_response(Some(limits.head_timeout))
                .timeout_recv_body(Some(limits.body_timeout))
                .build()
        }};
    }
    let sent = match request.post {
        Some((kind, body)) => configured!(agent.post(&uri)).content_type(kind).send(body),
        None => configured!(agent.get(&uri)).call(),
    };
    let mut response = sent.map_err(classify_ureq_error)?;
    let too_large = || Error::TooLarge(limits.max_body);
    let status = response.status();
    let headers = std::mem::take(response.headers_mut());
    if status.is_redirection() {
        return Ok((
            FetchResponse {
                status: status.as_u16(),
                headers,
                body: Vec::new(),
            },
            false,
        ));
    }
    let most = limits.max_body as u64;
    if response
        .body()
        .content_length()
        .is_some_and(|length| length > most)
    {
        return Err(too_large());
    }
    // ureq refuses a body of exactly the limit
    let body = response
        .body_mut()
        .with_config()
        .limit(most + 1)
        .read_to_vec();
    let body = body.map_err(|error| match error {
        ureq::Error::BodyExceedsLimit(_) => too_large(),
        error => classify_ureq_error(error),
    })?;
    if body.len() > limits.max_body {
        return Err(too_large());
    }
    Ok((
        FetchResponse {
            status: status.as_u16(),
            headers,
            body,
        },
        true,
    ))
}

/// Whether the peer has closed the connection.
fn is_closed(kind: ErrorKind) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(
        kind,
        BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof
    )
}
