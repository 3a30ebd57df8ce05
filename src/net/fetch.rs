//! One HTTP exchange with another server: vetted addresses, a chosen certificate name, bounds on everything that comes back.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use rustls::ClientConfig;
use ureq::Agent;

use crate::metrics;
use crate::net::address::{AddressPolicy, Host, Network, Trust};
use crate::net::base_url::BaseUrl;
use crate::net::bulkhead::PerKey;
use crate::net::dns;
use crate::net::proxy::Proxy;

mod connection;
mod outcome;
mod pool;
mod tunnel;

pub use outcome::Error;
use outcome::{ANSWER, CONNECTING, EVERYTHING, failure, outcome};
use pool::{Kept, Pool};
pub use tunnel::Trouble;
use tunnel::Way;
#[cfg(fuzzing)]
pub use tunnel::fuzzing;

/// Addresses of one host that are tried, in the resolver's order; of the proxy too.
const MAX_ADDRESSES: usize = 4;

/// Where to connect, and as whom to know the peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
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

impl Route {
    /// The way to a server that the administrator named.
    pub fn to(url: &BaseUrl) -> Self {
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
pub struct Limits {
    /// What it is counted as in [`metrics::upstream`].
    pub kind: &'static str,
    /// TCP and TLS.
    pub connect: Duration,
    /// From the request to the end of the answer's head.
    pub head: Duration,
    /// The answer's body.
    pub body: Duration,
    /// Bytes of the answer's body.
    pub max_body: usize,
    /// Calls to strangers in the same /24 or /64 that may be under way, this one included.
    pub neighbours: usize,
}

/// What to ask.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Path and query. May hold a token: never logged.
    pub target: &'a str,
    /// The value of `Authorization`.
    pub authorization: Option<&'a str>,
    /// Content type and body of a POST; without them it is a GET.
    pub post: Option<(&'a str, &'a [u8])>,
}

impl<'a> Request<'a> {
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
pub struct Answer {
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
    neighbourhoods: Arc<PerKey<Network>>,
    pool: Pool,
    proxy: Option<Arc<Proxy>>,
}

impl Fetcher {
    /// A fetcher with a pool of its own, of at most `most_idle` connections.
    pub fn new(tls: Arc<ClientConfig>, policy: AddressPolicy, most_idle: usize) -> Self {
        Self {
            tls,
            policy,
            neighbourhoods: PerKey::new(),
            pool: Pool::new(most_idle),
            proxy: None,
        }
    }

    /// Has `proxy` asked for every TLS connection to an address of the public Internet; the others are dialled from here, as a
    /// proxy for the outside has no business in here.
    ///
    /// Names are looked up and vetted here all the same, and CONNECT names the address: a name would be looked up once more by the
    /// proxy, and whoever owns it could have it lead into the proxy's network then.
    pub fn through(self, proxy: Option<Proxy>) -> Self {
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
        route: &Route,
        request: Request<'_>,
        limits: Limits,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let result = self.ask(route, request, limits, deadline);
        metrics::upstream(limits.kind, outcome(&result));
        result
    }

    fn ask(
        &self,
        route: &Route,
        request: Request<'_>,
        limits: Limits,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        while let Some(kept) = self.pool.take(route) {
            match self.exchange(kept, request, limits, deadline) {
                Err(Error::Connection(error)) if is_closed(error.kind()) => {}
                // a peer that went without a word may still be there for a new connection
                Err(Error::Connection(_) | Error::Timeout(ANSWER)) => self.pool.forget(route),
                outcome => return outcome,
            }
        }
        let mut last = None;
        let mut connect_left = limits.connect;
        let addresses = self.vetted(route, deadline)?;
        for (index, address) in addresses.iter().enumerate() {
            let started = Instant::now();
            // the last one may take all that is left
            let share = if index + 1 < addresses.len() {
                connect_left / 2
            } else {
                connect_left
            };
            let way = Way::find(
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
            let kept = Kept {
                route: route.clone(),
                agent: connection::agent(route, way, &self.tls),
                near: Network::neighbourhood(address.ip()),
                since: started,
            };
            let limits = Limits {
                connect: share.saturating_sub(started.elapsed()),
                ..limits
            };
            match self.exchange(kept, request, limits, deadline) {
                Err(
                    error @ (Error::Connection(_)
                    | Error::Proxy(..)
                    | Error::Timeout(CONNECTING)
                    | Error::Crowded(_)),
                ) => {
                    connect_left = connect_left.saturating_sub(started.elapsed());
                    last = Some(error);
                }
                outcome => return outcome,
            }
        }
        Err(last.unwrap_or(Error::LookUp(
            route.host.clone(),
            dns::Error::NotFound("no address".into()),
        )))
    }

    /// Asks over one connection, and keeps it if it can be used again. Holds a place in the network that it is to, so that
    /// strangers with many names for one network take no more than their share of it.
    fn exchange(
        &self,
        kept: Kept,
        request: Request<'_>,
        limits: Limits,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let _place = match kept.route.trust {
            Trust::Stranger => {
                let place = self.neighbourhoods.enter(kept.near, limits.neighbours);
                Some(place.ok_or(Error::Crowded(kept.near))?)
            }
            Trust::FullAccess | Trust::Administrator => None,
        };
        let (answer, reusable) = exchange(&kept.agent, &kept.route, request, limits, deadline)?;
        if reusable {
            self.pool.put(kept);
        }
        Ok(answer)
    }

    /// The addresses of a route that may be dialled.
    fn vetted(&self, route: &Route, deadline: Instant) -> Result<Vec<SocketAddr>, Error> {
        let found = dns::lookup_addresses(&route.host, route.port, route.trust, deadline);
        let found = found.map_err(|error| Error::LookUp(route.host.clone(), error))?;
        let (allowed, denied): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|address| self.policy.allows(address.ip(), route.trust));
        match (allowed.is_empty(), denied.first()) {
            (true, Some(address)) => Err(Error::Denied(route.host.clone(), address.ip())),
            _ => Ok(allowed.into_iter().take(MAX_ADDRESSES).collect()),
        }
    }
}

/// The answer, and whether its connection may be used again.
fn exchange(
    agent: &Agent,
    route: &Route,
    request: Request<'_>,
    limits: Limits,
    deadline: Instant,
) -> Result<(Answer, bool), Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::Timeout(EVERYTHING));
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
                .timeout_connect(Some(limits.connect))
                .timeout_send_request(Some(limits.head))
                .timeout_send_body(Some(limits.head))
                .timeout_recv_response(Some(limits.head))
                .timeout_recv_body(Some(limits.body))
                .build()
        }};
    }
    let sent = match request.post {
        Some((kind, body)) => configured!(agent.post(&uri)).content_type(kind).send(body),
        None => configured!(agent.get(&uri)).call(),
    };
    let mut response = sent.map_err(failure)?;
    let too_large = || Error::TooLarge(limits.max_body);
    let status = response.status();
    let headers = std::mem::take(response.headers_mut());
    if status.is_redirection() {
        return Ok((
            Answer {
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
        error => failure(error),
    })?;
    if body.len() > limits.max_body {
        return Err(too_large());
    }
    Ok((
        Answer {
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
