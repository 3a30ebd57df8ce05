//! One HTTP exchange with another server: vetted addresses, a chosen certificate name, bounds on everything that comes back.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use rustls::ClientConfig;
use ureq::Agent;

use crate::net::address::{AddressPolicy, Host, Network, Trust};
use crate::net::bulkhead::{KeyPlace, PER_NEIGHBOURHOOD, PerKey};
use crate::net::dns;

mod connection;
mod pool;

use connection::Gone;
use pool::{Kept, Pool};

/// Addresses of one host that are tried, in the resolver's order.
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

/// How long each part of an exchange may take in all, and how large the answer may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// TCP and TLS.
    pub connect: Duration,
    /// From the request to the end of the answer's head.
    pub head: Duration,
    /// The answer's body.
    pub body: Duration,
    /// Bytes of the answer's body.
    pub max_body: usize,
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

/// Carries out exchanges, and keeps connections for the next ones.
#[derive(Debug)]
pub struct Fetcher {
    tls: Arc<ClientConfig>,
    policy: AddressPolicy,
    neighbourhoods: Arc<PerKey<Network>>,
    pool: Pool,
}

impl Fetcher {
    /// A fetcher with a pool of its own, of at most `most_idle` connections.
    pub fn new(tls: Arc<ClientConfig>, policy: AddressPolicy, most_idle: usize) -> Self {
        Self {
            tls,
            policy,
            neighbourhoods: PerKey::new(PER_NEIGHBOURHOOD),
            pool: Pool::new(most_idle),
        }
    }

    /// Asks `request` of the server at `route`, over a kept connection if there is one. Redirects are answers.
    ///
    /// A kept connection that turns out to be closed is replaced, so every request has to bear being sent twice.
    pub fn fetch(
        &self,
        route: &Route,
        request: Request<'_>,
        limits: Limits,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        while let Some(kept) = self.pool.take(route) {
            let places = self.crowd(&kept.near)?;
            match exchange(&kept.agent, route, request, limits, deadline) {
                Ok((answer, reusable)) => {
                    drop(places);
                    if reusable {
                        self.pool.put(kept);
                    }
                    return Ok(answer);
                }
                Err(Failure::Closed) => {}
                Err(Failure::Other(error)) => return Err(error),
            }
        }
        let (addresses, near, places) =
            self.uncrowded(self.vetted(route, deadline)?, route.trust)?;
        let agent = connection::agent(route, &addresses, &self.tls);
        let (answer, reusable) =
            exchange(&agent, route, request, limits, deadline).map_err(Failure::into_error)?;
        drop(places);
        if reusable {
            self.pool.put(Kept {
                route: route.clone(),
                agent,
                near,
                since: Instant::now(),
            });
        }
        Ok(answer)
    }

    /// Takes a place in each network that a kept connection may be to.
    fn crowd(&self, near: &[Network]) -> Result<Vec<KeyPlace<Network>>, Error> {
        near.iter()
            .map(|network| {
                self.neighbourhoods
                    .enter(*network)
                    .ok_or(Error::Crowded(*network))
            })
            .collect()
    }

    /// Takes a place in each network that strangers' addresses are in; addresses in crowded ones are left out.
    fn uncrowded(&self, mut addresses: Vec<SocketAddr>, trust: Trust) -> Result<Dialled, Error> {
        let (mut near, mut places) = (Vec::new(), Vec::new());
        if trust != Trust::Stranger {
            return Ok((addresses, near, places));
        }
        let mut crowded = None;
        addresses.retain(|address| {
            let network = Network::neighbourhood(address.ip());
            if near.contains(&network) {
                return true;
            }
            match self.neighbourhoods.enter(network) {
                Some(place) => {
                    near.push(network);
                    places.push(place);
                }
                None => crowded = Some(network),
            }
            near.contains(&network)
        });
        match (addresses.is_empty(), crowded) {
            (true, Some(network)) => Err(Error::Crowded(network)),
            _ => Ok((addresses, near, places)),
        }
    }

    /// The addresses of a route that may be dialled.
    fn vetted(&self, route: &Route, deadline: Instant) -> Result<Vec<SocketAddr>, Error> {
        let found = dns::lookup_addresses(&route.host, route.port, deadline);
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

/// Addresses, the networks that they are in, and a place in each.
type Dialled = (Vec<SocketAddr>, Vec<Network>, Vec<KeyPlace<Network>>);

enum Failure {
    /// A kept connection was closed before it answered.
    Closed,
    Other(Error),
}

impl Failure {
    fn into_error(self) -> Error {
        match self {
            Self::Closed => Error::Connection(ErrorKind::UnexpectedEof.into()),
            Self::Other(error) => error,
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
) -> Result<(Answer, bool), Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Failure::Other(Error::Timeout("the whole call")));
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
    let too_large = || Failure::Other(Error::TooLarge(limits.max_body));
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
        error => Failure::Other(failure(error).into_error()),
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

/// Sorts ureq's errors by whose fault they are, and drops what might hold the request's target.
fn failure(error: ureq::Error) -> Failure {
    let error = match error {
        ureq::Error::Other(other) if other.is::<Gone>() => return Failure::Closed,
        ureq::Error::Other(other) => match other.downcast::<rustls::Error>() {
            Ok(tls) => Error::Tls(*tls),
            Err(_) => Error::NotHttp("unexpected error".into()),
        },
        ureq::Error::Io(error) => match error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>())
        {
            Some(tls) => Error::Tls(tls.clone()),
            None if closed(error.kind()) => return Failure::Closed,
            None => Error::Connection(error),
        },
        ureq::Error::Timeout(part) => Error::Timeout(match part {
            ureq::Timeout::Connect => "connecting",
            ureq::Timeout::RecvResponse => "waiting for the answer",
            ureq::Timeout::RecvBody => "reading the answer",
            ureq::Timeout::SendRequest | ureq::Timeout::SendBody => "sending the request",
            _ => "the whole call",
        }),
        ureq::Error::Protocol(error) => Error::NotHttp(error.to_string()),
        ureq::Error::LargeResponseHeader(..) => Error::NotHttp("its head is too large".into()),
        ureq::Error::ConnectionFailed => Error::Connection(ErrorKind::NotConnected.into()),
        _ => Error::NotHttp("unexpected error".into()),
    };
    Failure::Other(error)
}

fn closed(kind: ErrorKind) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(
        kind,
        BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof
    )
}
