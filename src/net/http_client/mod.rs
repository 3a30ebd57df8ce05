//! HTTP client for single exchanges with other servers: allowed addresses only, a certificate name of the caller's choice, and bounds on
//! everything that is received.

mod connection;
mod error;
pub(crate) mod proxy;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use rustls::ClientConfig;
use ureq::RequestBuilder;

use self::connection::{Connection, ConnectionPool};
pub(crate) use self::error::{Error, Phase};
use self::error::{classify_ureq_error, outcome_label};
use self::proxy::{DialPlan, Proxy};
use super::permits::{KeyedPermitPool, MAX_CALLS_PER_SUBNET};
use crate::net::address::{AddressPolicy, Host, Network, Trust, is_public};
use crate::net::base_url::BaseUrl;
use crate::net::dns;
use crate::util::clock::time_left;
use crate::util::metrics;

/// Addresses of one host, or of the proxy, that are tried, in the resolver's order.
const MAX_ADDRESSES: usize = 4;

/// Where to connect, and how to identify the server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct HttpRoute {
    /// Host whose addresses are dialled.
    pub(crate) host: Host,
    pub(crate) port: u16,
    /// Name that the certificate has to match; `None` for plain HTTP.
    pub(crate) tls: Option<Host>,
    /// Value of the `Host` header field.
    pub(crate) authority: Box<str>,
    pub(crate) trust: Trust,
}

impl HttpRoute {
    /// The route to a server that the administrator named.
    pub(crate) fn administrator_url(url: &BaseUrl) -> Self {
        Self {
            host: url.host().clone(),
            port: url.port(),
            tls: url.tls().then(|| url.host().clone()),
            authority: url.authority().into(),
            trust: Trust::Administrator,
        }
    }
}

/// Limits on the time of each part of an exchange, and on the size of the response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FetchLimits {
    /// Label of the exchange in the metric `upstream_requests_total`.
    pub(crate) kind: &'static str,
    /// TCP, the proxy and TLS.
    pub(crate) connect_timeout: Duration,
    /// From the start of the request to the end of the response's head.
    pub(crate) head_timeout: Duration,
    pub(crate) body_timeout: Duration,
    /// Bytes of the response's body.
    pub(crate) max_body: usize,
    /// Concurrent calls to unlisted servers in the same /24 or /64, this one included.
    pub(crate) max_subnet_calls: usize,
}

impl FetchLimits {
    /// Limits for a small JSON document, which leave room for the error page of a proxy.
    pub(crate) const fn new(kind: &'static str) -> Self {
        Self {
            kind,
            connect_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(8),
            body_timeout: Duration::from_secs(3),
            max_body: 64 * 1024,
            max_subnet_calls: MAX_CALLS_PER_SUBNET,
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct FetchRequest<'a> {
    /// Path and query. May hold a token: never logged.
    pub(crate) target: &'a str,
    /// Value of `Authorization`.
    pub(crate) authorization: Option<&'a str>,
    /// Content type and body of a POST; `None` for a GET.
    pub(crate) post: Option<(&'a str, &'a [u8])>,
}

impl<'a> FetchRequest<'a> {
    /// A GET without credentials.
    pub(crate) fn get(target: &'a str) -> Self {
        Self {
            target,
            authorization: None,
            post: None,
        }
    }
}

pub(crate) struct FetchResponse {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// Empty for a redirect, whose body is not read.
    pub(crate) body: Vec<u8>,
}

/// The HTTP client, with a pool of idle connections.
#[derive(Debug)]
pub(crate) struct Fetcher {
    tls: Arc<ClientConfig>,
    policy: AddressPolicy,
    subnet_permits: Arc<KeyedPermitPool<Network>>,
    pool: ConnectionPool,
    proxy: Option<Arc<Proxy>>,
}

impl Fetcher {
    /// A client with a pool of at most `max_idle` connections.
    pub(crate) fn new(tls: Arc<ClientConfig>, policy: AddressPolicy, max_idle: usize) -> Self {
        Self {
            tls,
            policy,
            subnet_permits: KeyedPermitPool::new(),
            pool: ConnectionPool::new(max_idle),
            proxy: None,
        }
    }

    /// Uses `proxy` for TLS connections to public addresses. Other addresses are dialled directly: a proxy for the Internet may not
    /// reach the local network, and should not.
    pub(crate) fn with_proxy(self, proxy: Option<Proxy>) -> Self {
        Self {
            proxy: proxy.map(Arc::new),
            ..self
        }
    }

    /// Sends `request` over an idle connection, if there is one, or a new one. Redirects are not followed.
    ///
    /// A request may be sent twice: if the idle connection is closed, it is sent again over a new one, and if an address does not
    /// answer, to the next one.
    pub(crate) fn fetch(
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
        while let Some(connection) = self.pool.take(route) {
            match self.send(connection, request, limits, deadline) {
                Err(Error::Connection(error)) if is_closed(error.kind()) => {}
                // a peer that vanished may still accept a new connection
                Err(Error::Connection(_) | Error::Timeout(Phase::ResponseHead)) => {
                    self.pool.close_all(route)
                }
                outcome => return outcome,
            }
        }
        let addresses = self.allowed_addresses(route, deadline)?;
        let mut started = Instant::now();
        let mut connect_left = limits.connect_timeout;
        let mut last_error = None;
        let proxy = self.proxy.as_ref().filter(|_| route.tls.is_some());
        let proxy_addresses = match proxy {
            Some(proxy) if addresses.iter().any(|address| is_public(address.ip())) => proxy
                .lookup(deadline.min(started + connect_left))
                .unwrap_or_else(|error| {
                    last_error = Some(error);
                    Vec::new()
                }),
            _ => Vec::new(),
        };
        for (index, address) in addresses.iter().enumerate() {
            let plan = match proxy.filter(|_| is_public(address.ip())) {
                Some(_) if proxy_addresses.is_empty() => continue,
                Some(proxy) => DialPlan {
                    addresses: proxy_addresses.clone(),
                    tunnel: Some((Arc::clone(proxy), *address)),
                },
                None => DialPlan {
                    addresses: vec![*address],
                    tunnel: None,
                },
            };
            connect_left = connect_left.saturating_sub(started.elapsed());
            started = Instant::now();
            // the last address may take all the time that is left
            let share = if index + 1 < addresses.len() { 2 } else { 1 };
            let limits = FetchLimits {
                connect_timeout: connect_left / share,
                ..limits
            };
            let connection =
                Connection::new(route, *address, plan, &self.tls).map_err(Error::Tls)?;
            match self.send(connection, request, limits, deadline) {
                Err(
                    error @ (Error::Connection(_)
                    | Error::Proxy(..)
                    | Error::Timeout(Phase::Connect)
                    | Error::SubnetLimit(_)),
                ) => last_error = Some(error),
                outcome => return outcome,
            }
        }
        Err(last_error.unwrap_or(Error::Dns(
            route.host.clone(),
            dns::Error::NotFound("no address".into()),
        )))
    }

    /// Sends the request over one connection, and returns that to the pool if it can be used again. Takes a permit of the subnet, so
    /// that unlisted servers with many names in one subnet take no more than its share.
    fn send(
        &self,
        connection: Connection,
        request: FetchRequest<'_>,
        limits: FetchLimits,
        deadline: Instant,
    ) -> Result<FetchResponse, Error> {
        let _permit = match connection.route.trust {
            Trust::Unlisted => {
                let subnet = connection.subnet;
                let permit = self
                    .subnet_permits
                    .try_acquire(subnet, limits.max_subnet_calls);
                Some(permit.ok_or(Error::SubnetLimit(subnet))?)
            }
            Trust::Listed | Trust::Administrator => None,
        };
        let (response, is_reusable) = send_request(&connection, request, limits, deadline)?;
        if is_reusable {
            self.pool.put(connection);
        }
        Ok(response)
    }

    /// The addresses of a route's host that the policy allows.
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

/// The response, and whether the connection can be used again.
fn send_request(
    connection: &Connection,
    request: FetchRequest<'_>,
    limits: FetchLimits,
    deadline: Instant,
) -> Result<(FetchResponse, bool), Error> {
    let left = time_left(deadline).ok_or(Error::Timeout(Phase::WholeCall))?;
    let Connection { route, agent, .. } = connection;
    let uri = match &route.tls {
        Some(name) => format!("https://{name}:{}{}", route.port, request.target),
        None => format!("http://{}:{}{}", route.host, route.port, request.target),
    };
    connection.limit_input(limits.max_body);
    let sent = match request.post {
        Some((content_type, body)) => configure(agent.post(&uri), route, request, limits, left)
            .content_type(content_type)
            .send(body),
        None => configure(agent.get(&uri), route, request, limits, left).call(),
    };
    let mut response = sent.map_err(classify_ureq_error)?;
    let status = response.status();
    let headers = std::mem::take(response.headers_mut());
    let is_reusable = !status.is_redirection();
    let mut body = Vec::new();
    if is_reusable {
        let too_large = || Error::TooLarge(limits.max_body);
        let max_body = limits.max_body as u64;
        let length = response.body().content_length();
        if length.is_some_and(|length| length > max_body) {
            return Err(too_large());
        }
        // ureq refuses a body of exactly its limit
        let reader = response.body_mut().with_config().limit(max_body + 1);
        body = reader.read_to_vec().map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(_) => too_large(),
            error => classify_ureq_error(error),
        })?;
    }
    let response = FetchResponse {
        status: status.as_u16(),
        headers,
        body,
    };
    Ok((response, is_reusable))
}

fn configure<B>(
    builder: RequestBuilder<B>,
    route: &HttpRoute,
    request: FetchRequest<'_>,
    limits: FetchLimits,
    left: Duration,
) -> RequestBuilder<B> {
    let mut builder = builder
        .header("host", &*route.authority)
        .header("accept", "application/json");
    if let Some(value) = request.authorization {
        builder = builder.header("authorization", value);
    }
    builder
        .config()
        .timeout_global(Some(left))
        .timeout_connect(Some(limits.connect_timeout))
        .timeout_send_request(Some(limits.head_timeout))
        .timeout_send_body(Some(limits.head_timeout))
        .timeout_recv_response(Some(limits.head_timeout))
        .timeout_recv_body(Some(limits.body_timeout))
        .build()
}

/// Whether the peer has closed the connection.
fn is_closed(kind: ErrorKind) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(
        kind,
        BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof
    )
}
