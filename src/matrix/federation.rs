//! A bounded GET to a homeserver that a caller named: who may be asked, how often, and by how many at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::matrix::discovery::{self, FederationDiscovery, ResolvedServer};
use crate::matrix::id::ServerName;
use crate::net::address::{Trust, client_key, is_public};
use crate::net::base_url::BaseUrl;
use crate::net::circuit_breaker::{BreakerAttempt, CircuitBreaker};
use crate::net::http_client;
use crate::net::http_client::{FetchLimits, FetchRequest, FetchResponse, Fetcher, HttpRoute};
use crate::net::permits::{
    LimitReached, MAX_CALLS_PER_SERVER, MAX_CALLS_PER_SERVER_IF_RESPONSIVE,
    MAX_CALLS_PER_SUBNET_IF_RESPONSIVE, Permit, PermitCounts, PermitPool,
};
use crate::util::rate_limiter::{Rate, RateLimiter};
use crate::util::ttl_cache::TtlCache;

/// For a call to a stranger's server in all, discovery included. Element Call gives up after some 30 s.
const UNLISTED_BUDGET: Duration = Duration::from_secs(15);
/// For a call to a listed server in all.
const LISTED_BUDGET: Duration = Duration::from_secs(25);
/// Calls that one address causes to one stranger's server: a burst for those behind one router, and one each interval.
const CLIENT_RATE: Rate = Rate::new(Duration::from_millis(500), 20);
/// Calls to one stranger's server, whoever causes them: what it can be made to answer through us.
const SERVER_RATE: Rate = Rate::new(Duration::from_millis(20), 200);
/// How long a server that has answered counts as one that does.
const RESPONSIVE_TTL: Duration = Duration::from_secs(600);
/// Names that are remembered as such.
const MAX_RESPONSIVE_SERVERS: usize = 1024;
/// Names whose rate is remembered.
const MAX_RATE_KEYS: usize = 4096;
/// What to tell a caller for whom there is no place: by then a call to a tarpit may have ended.
const BUSY_RETRY: Duration = Duration::from_secs(2);

/// Why a homeserver was not heard.
#[derive(Debug)]
pub(crate) enum Error {
    /// No outbound place is free, or the name is asked for too often; try again after this time.
    Busy(LimitReached, Duration),
    /// It did not answer lately, and is left alone for this long.
    CircuitOpen(Duration),
    /// DNS says that there is decidedly no homeserver of this name.
    NoSuchServer,
    /// None of the places where it should be answered.
    Unreachable(Vec<(Box<str>, http_client::Error)>),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(full, after) => write!(f, "{full}, try again in {after:?}"),
            Self::CircuitOpen(left) => write!(
                f,
                "the server did not answer lately and is not asked again for {} s",
                left.as_secs() + 1
            ),
            Self::NoSuchServer => f.write_str("its SRV record says that there is no homeserver"),
            Self::Unreachable(tried) => {
                for (index, (place, error)) in tried.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "; " };
                    write!(f, "{separator}{place}: {error}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for Error {}

/// The way to other homeservers.
#[derive(Debug)]
pub(crate) struct FederationClient {
    fetcher: Fetcher,
    discovery: FederationDiscovery,
    overrides: BTreeMap<ServerName, BaseUrl>,
    listed: BTreeSet<ServerName>,
    bulkhead: PermitPool<ServerName>,
    breakers: CircuitBreaker<ServerName>,
    server_rate: RateLimiter<ServerName>,
    client_rate: RateLimiter<(IpAddr, ServerName)>,
    responsive_servers: TtlCache<ServerName, ()>,
}

impl FederationClient {
    /// `overrides` say where servers are instead of discovery, and `places` how many callers may wait for answers. Servers
    /// that the administrator has `listed` may be on private addresses.
    pub(crate) fn new(
        fetcher: Fetcher,
        overrides: BTreeMap<ServerName, BaseUrl>,
        listed: BTreeSet<ServerName>,
        places: PermitCounts,
    ) -> Self {
        Self {
            fetcher,
            discovery: FederationDiscovery::default(),
            overrides,
            listed,
            bulkhead: PermitPool::new(places),
            breakers: CircuitBreaker::default(),
            server_rate: RateLimiter::new(MAX_RATE_KEYS),
            client_rate: RateLimiter::new(MAX_RATE_KEYS),
            responsive_servers: TtlCache::new(MAX_RESPONSIVE_SERVERS),
        }
    }

    /// Asks `target` (path and query) of `server`, wherever that is, for a client at `client`. Whatever it answers is an answer.
    pub(crate) fn get(
        &self,
        server: &ServerName,
        target: &str,
        limits: FetchLimits,
        client: Option<IpAddr>,
    ) -> Result<FetchResponse, Error> {
        let now = Instant::now();
        let known = self.is_listed(server);
        let (_place, limits) = self.acquire_call_permit(server, limits, client, now)?;
        // last, as whoever is let through to try has to report what came of it
        let attempt = self
            .breakers
            .attempt(server, now)
            .map_err(Error::CircuitOpen)?;
        let budget = if known {
            LISTED_BUDGET
        } else {
            UNLISTED_BUDGET
        };
        let deadline = now + budget;
        let result = match self.overrides.get(server) {
            Some(url) => {
                let target = format!("{}{target}", url.path());
                self.try_routes(
                    &[HttpRoute::administrator_url(url)],
                    &target,
                    limits,
                    deadline,
                )
            }
            None => self.discover_and_get(server, target, limits, deadline),
        };
        self.record_result(attempt, server, known, &result);
        result
    }

    /// A place for the call, and its limits: a server that has answered lately may have more calls at once.
    fn acquire_call_permit(
        &self,
        server: &ServerName,
        limits: FetchLimits,
        client: Option<IpAddr>,
        now: Instant,
    ) -> Result<(Permit<ServerName>, FetchLimits), Error> {
        if !self.is_listed(server) {
            self.check_rates(server, client, now)?;
        }
        let place = self.acquire_server_permit(server);
        let place = place.map_err(|(full, after)| Error::Busy(full, after))?;
        let answers = self.responsive_servers.get(server, now).is_some();
        let neighbours = if answers {
            MAX_CALLS_PER_SUBNET_IF_RESPONSIVE
        } else {
            limits.max_subnet_calls
        };
        Ok((
            place,
            FetchLimits {
                max_subnet_calls: neighbours,
                ..limits
            },
        ))
    }

    /// What the outcome says about the server.
    fn record_result(
        &self,
        attempt: BreakerAttempt<'_, ServerName>,
        server: &ServerName,
        known: bool,
        result: &Result<FetchResponse, Error>,
    ) {
        let now = Instant::now();
        match result {
            Ok(_) => {
                attempt.record_success();
                if !known {
                    self.responsive_servers
                        .insert(server.clone(), (), now + RESPONSIVE_TTL);
                }
            }
            Err(Error::Unreachable(tried))
                if tried.iter().any(|(_, error)| error.is_server_failure()) =>
            {
                attempt.record_failure(known, now);
                self.responsive_servers.remove(server);
            }
            Err(_) => {}
        }
    }

    /// A place to wait in on behalf of a user of `server`, for an answer that is not their server's; or which places were
    /// taken, and when to try again.
    pub(crate) fn acquire_permit(
        &self,
        server: &ServerName,
    ) -> Result<Permit<ServerName>, (LimitReached, Duration)> {
        let place = if self.is_listed(server) {
            self.bulkhead.try_acquire_listed()
        } else {
            self.bulkhead.try_acquire_common()
        };
        place.map_err(|full| (full, BUSY_RETRY))
    }

    /// A place to wait in for an answer of `server` itself: one of few, if it is a stranger; or which places were taken, and when
    /// to try again.
    pub(crate) fn acquire_server_permit(
        &self,
        server: &ServerName,
    ) -> Result<Permit<ServerName>, (LimitReached, Duration)> {
        let place = if self.is_listed(server) {
            self.bulkhead.try_acquire_listed()
        } else {
            let most = match self.responsive_servers.get(server, Instant::now()) {
                Some(()) => MAX_CALLS_PER_SERVER_IF_RESPONSIVE,
                None => MAX_CALLS_PER_SERVER,
            };
            self.bulkhead.try_acquire_unlisted(server.clone(), most)
        };
        place.map_err(|full| (full, BUSY_RETRY))
    }

    /// Private addresses are proxies or routers: they have no rate of their own.
    fn check_rates(
        &self,
        server: &ServerName,
        client: Option<IpAddr>,
        now: Instant,
    ) -> Result<(), Error> {
        let public = client.filter(|ip| is_public(*ip));
        let by_client = public.map(|ip| {
            self.client_rate
                .try_acquire(&(client_key(ip), server.clone()), CLIENT_RATE, now)
        });
        by_client
            .unwrap_or(Ok(()))
            .and_then(|()| self.server_rate.try_acquire(server, SERVER_RATE, now))
            .map_err(|wait| Error::Busy(LimitReached::Rate, wait))
    }

    /// Whether the administrator lists a server or says where it is, and so vouches for it.
    pub(crate) fn is_listed(&self, server: &ServerName) -> bool {
        self.listed.contains(server) || self.overrides.contains_key(server)
    }

    fn discover_and_get(
        &self,
        server: &ServerName,
        target: &str,
        limits: FetchLimits,
        deadline: Instant,
    ) -> Result<FetchResponse, Error> {
        let trust = if self.listed.contains(server) {
            Trust::Listed
        } else {
            Trust::Unlisted
        };
        let started = Instant::now();
        let found = self.discover(server, trust, deadline)?;
        let first = self.try_routes(&found.routes, target, limits, deadline);
        if !matches!(first, Err(Error::Unreachable(_))) {
            return first;
        }
        // one caller a minute may doubt what is known; the others join its look-up, or have its answer already
        self.discovery.invalidate(server, trust, started);
        let again = self.discover(server, trust, deadline)?;
        if again.routes == found.routes {
            return first;
        }
        self.try_routes(&again.routes, target, limits, deadline)
    }

    fn discover(
        &self,
        server: &ServerName,
        trust: Trust,
        deadline: Instant,
    ) -> Result<ResolvedServer, Error> {
        let found = self
            .discovery
            .resolve(&self.fetcher, server, trust, deadline)
            .map_err(|error| match error {
                discovery::Error::NoCapacity(error) => busy_error(&error),
                discovery::Error::LookupTimeout => Error::Busy(LimitReached::Service, BUSY_RETRY),
            })?;
        log::debug!("discovered server={server} {found}");
        if found.routes.is_empty() {
            Err(Error::NoSuchServer)
        } else {
            Ok(found)
        }
    }

    fn try_routes(
        &self,
        routes: &[HttpRoute],
        target: &str,
        limits: FetchLimits,
        deadline: Instant,
    ) -> Result<FetchResponse, Error> {
        let mut tried = Vec::new();
        for route in routes {
            match self
                .fetcher
                .fetch(route, FetchRequest::get(target), limits, deadline)
            {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_local_overload() => return Err(busy_error(&error)),
                Err(error) => tried.push((format!("{}:{}", route.host, route.port).into(), error)),
            }
        }
        Err(Error::Unreachable(tried))
    }
}

/// What the caller is told when we are short of places ourselves.
fn busy_error(error: &http_client::Error) -> Error {
    let full = match error {
        http_client::Error::SubnetLimit(_) => LimitReached::Subnet,
        _ => LimitReached::DnsLookups,
    };
    Error::Busy(full, BUSY_RETRY)
}
