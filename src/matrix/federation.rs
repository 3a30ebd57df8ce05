//! GET requests to the federation API of homeservers that callers name, with limits for each homeserver.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::debug;

use crate::matrix::discovery::{FederationDiscovery, ResolvedServer, limit_reached};
use crate::matrix::id::ServerName;
use crate::matrix::server_directory::ServerDirectory;
use crate::net::address::{Trust, client_key, is_public};
use crate::net::circuit_breaker::{BreakerAttempt, CircuitBreaker};
use crate::net::http_client::{self, FetchLimits, FetchRequest, FetchResponse, Fetcher, HttpRoute};
use crate::net::permits::{
    LimitReached, MAX_CALLS_PER_SERVER, MAX_CALLS_PER_SERVER_IF_RESPONSIVE,
    MAX_CALLS_PER_SUBNET_IF_RESPONSIVE, Permit, PermitCounts, PermitPool,
};
use crate::util::rate_limiter::{Rate, RateLimiter};
use crate::util::ttl_cache::TtlCache;

/// Time for a call to an unlisted server, discovery included. Element Call gives up after about 30 s.
const UNLISTED_BUDGET: Duration = Duration::from_secs(15);
/// Time for a call to a listed server, discovery included.
const LISTED_BUDGET: Duration = Duration::from_secs(25);
/// Rate of calls to one unlisted server for one client address. The burst allows for clients behind one router.
const CLIENT_RATE: Rate = Rate::new(Duration::from_millis(500), 20);
/// Rate of calls to one unlisted server for all clients: bounds the load that this service can be made to cause.
const SERVER_RATE: Rate = Rate::new(Duration::from_millis(20), 200);
/// Time that an unlisted server counts as responsive after a response.
const RESPONSIVE_TTL: Duration = Duration::from_secs(600);
const MAX_RESPONSIVE_SERVERS: usize = 1024;
/// Keys of each rate limiter.
const MAX_RATE_KEYS: usize = 4096;
/// `Retry-After` of a call without a permit: a call that holds one may have timed out by then.
const BUSY_RETRY: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) enum Error {
    /// A limit of this service; the second value is the time to wait before a retry.
    Busy(LimitReached, Duration),
    /// The circuit breaker is open for this time, after failures of the server.
    CircuitOpen(Duration),
    /// DNS says that the name has no homeserver.
    NoSuchServer,
    /// No route led to a response; each with its error.
    Unreachable(Vec<(Box<str>, http_client::Error)>),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(limit, retry_after) => write!(f, "{limit}, try again in {retry_after:?}"),
            Self::CircuitOpen(left) => write!(
                f,
                "circuit breaker open for {} s after failures of the server",
                left.as_secs() + 1
            ),
            Self::NoSuchServer => f.write_str("its SRV record says that there is no homeserver"),
            Self::Unreachable(routes) => {
                for (index, (route, error)) in routes.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "; " };
                    write!(f, "{separator}{route}: {error}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for Error {}

/// Client of the federation API.
#[derive(Debug)]
pub(crate) struct FederationClient {
    fetcher: Arc<Fetcher>,
    discovery: FederationDiscovery,
    directory: ServerDirectory,
    permits: PermitPool<ServerName>,
    breakers: CircuitBreaker<ServerName>,
    server_rate: RateLimiter<ServerName>,
    client_rate: RateLimiter<(IpAddr, ServerName)>,
    /// Unlisted servers that responded to their last call.
    responsive_servers: TtlCache<ServerName, ()>,
}

impl FederationClient {
    pub(crate) fn new(fetcher: Fetcher, directory: ServerDirectory, permits: PermitCounts) -> Self {
        let fetcher = Arc::new(fetcher);
        Self {
            discovery: FederationDiscovery::new(fetcher.clone()),
            fetcher,
            directory,
            permits: PermitPool::new(permits),
            breakers: CircuitBreaker::default(),
            server_rate: RateLimiter::new(MAX_RATE_KEYS),
            client_rate: RateLimiter::new(MAX_RATE_KEYS),
            responsive_servers: TtlCache::new(MAX_RESPONSIVE_SERVERS),
        }
    }

    /// GETs `target` (path and query) from `server` on behalf of a client at the address `client`. Returns a response of any status.
    pub(crate) fn get(
        &self,
        server: &ServerName,
        target: &str,
        limits: FetchLimits,
        client: Option<IpAddr>,
    ) -> Result<FetchResponse, Error> {
        let now = Instant::now();
        let trust = self.directory.trust(server);
        if trust == Trust::Unlisted {
            self.check_rates(server, client, now)?;
        }
        let responsive = self.is_responsive(server, now);
        let _permit = self
            .acquire(server, trust, Some(max_calls(responsive)))
            .map_err(|(limit, retry_after)| Error::Busy(limit, retry_after))?;
        // last, as the result of an attempt has to be recorded
        let attempt = self
            .breakers
            .attempt(server, now)
            .map_err(Error::CircuitOpen)?;
        let limits = FetchLimits {
            max_subnet_calls: if responsive {
                MAX_CALLS_PER_SUBNET_IF_RESPONSIVE
            } else {
                limits.max_subnet_calls
            },
            ..limits
        };
        let deadline = now
            + match trust {
                Trust::Unlisted => UNLISTED_BUDGET,
                Trust::Listed | Trust::Administrator => LISTED_BUDGET,
            };
        let result = match self.directory.base_url(server) {
            Some(url) => {
                let target = format!("{}{target}", url.path());
                let route = HttpRoute::administrator_url(url);
                self.try_routes(&[route], &target, limits, deadline)
            }
            None => self.discover_and_get(server, trust, target, limits, deadline),
        };
        self.record_result(attempt, server, trust, &result);
        result
    }

    fn record_result(
        &self,
        attempt: BreakerAttempt<'_, ServerName>,
        server: &ServerName,
        trust: Trust,
        result: &Result<FetchResponse, Error>,
    ) {
        let now = Instant::now();
        match result {
            Ok(_) => {
                attempt.record_success();
                if trust == Trust::Unlisted {
                    self.responsive_servers
                        .insert(server.clone(), (), now + RESPONSIVE_TTL);
                }
            }
            Err(Error::Unreachable(routes))
                if routes.iter().any(|(_, error)| error.is_server_failure()) =>
            {
                attempt.record_failure(trust, now);
                self.responsive_servers.remove(server);
            }
            Err(_) => {}
        }
    }

    /// Acquires a permit to wait, on behalf of a user of `server`, for another server than `server`.
    ///
    /// # Errors
    ///
    /// The limit, and the time to wait before a retry.
    pub(crate) fn acquire_permit(
        &self,
        server: &ServerName,
    ) -> Result<Permit<ServerName>, (LimitReached, Duration)> {
        self.acquire(server, self.directory.trust(server), None)
    }

    /// Acquires a permit to wait for `server` itself. An unlisted server has few.
    ///
    /// # Errors
    ///
    /// The limit, and the time to wait before a retry.
    pub(crate) fn acquire_server_permit(
        &self,
        server: &ServerName,
    ) -> Result<Permit<ServerName>, (LimitReached, Duration)> {
        let max = max_calls(self.is_responsive(server, Instant::now()));
        self.acquire(server, self.directory.trust(server), Some(max))
    }

    fn acquire(
        &self,
        server: &ServerName,
        trust: Trust,
        max_calls: Option<usize>,
    ) -> Result<Permit<ServerName>, (LimitReached, Duration)> {
        let permit = match (trust, max_calls) {
            (Trust::Listed | Trust::Administrator, _) => self.permits.try_acquire_listed(),
            (Trust::Unlisted, None) => self.permits.try_acquire_common(),
            (Trust::Unlisted, Some(max)) => self.permits.try_acquire_unlisted(server.clone(), max),
        };
        permit.map_err(|limit| (limit, BUSY_RETRY))
    }

    fn is_responsive(&self, server: &ServerName, now: Instant) -> bool {
        self.responsive_servers.get(server, now).is_some()
    }

    /// A client with a private address is a proxy or a router, and has no rate of its own.
    fn check_rates(
        &self,
        server: &ServerName,
        client: Option<IpAddr>,
        now: Instant,
    ) -> Result<(), Error> {
        let busy = |wait| Error::Busy(LimitReached::Rate, wait);
        if let Some(ip) = client.filter(|ip| is_public(*ip)) {
            let key = (client_key(ip), server.clone());
            self.client_rate
                .try_acquire(&key, CLIENT_RATE, now)
                .map_err(busy)?;
        }
        self.server_rate
            .try_acquire(server, SERVER_RATE, now)
            .map_err(busy)
    }

    /// Whether the administrator listed the server or configured its URL.
    pub(crate) fn is_listed(&self, server: &ServerName) -> bool {
        self.directory.trust(server) != Trust::Unlisted
    }

    fn discover_and_get(
        &self,
        server: &ServerName,
        trust: Trust,
        target: &str,
        limits: FetchLimits,
        deadline: Instant,
    ) -> Result<FetchResponse, Error> {
        let started = Instant::now();
        let resolved = self.discover(server, trust, deadline)?;
        let first = self.try_resolved(server, &resolved, target, limits, deadline);
        if !matches!(first, Err(Error::Unreachable(_))) {
            return first;
        }
        // the cache may be outdated; concurrent callers share the new resolution
        self.discovery.invalidate(server, trust, started);
        let again = self.discover(server, trust, deadline)?;
        if again.routes == resolved.routes {
            return first;
        }
        self.try_resolved(server, &again, target, limits, deadline)
    }

    fn discover(
        &self,
        server: &ServerName,
        trust: Trust,
        deadline: Instant,
    ) -> Result<ResolvedServer, Error> {
        let resolved = self
            .discovery
            .resolve(server, trust, deadline)
            .map_err(|limit| Error::Busy(limit, BUSY_RETRY))?;
        if resolved.routes.is_empty() {
            Err(Error::NoSuchServer)
        } else {
            Ok(resolved)
        }
    }

    fn try_resolved(
        &self,
        server: &ServerName,
        resolved: &ResolvedServer,
        target: &str,
        limits: FetchLimits,
        deadline: Instant,
    ) -> Result<FetchResponse, Error> {
        debug!(server:% = server, step = resolved.step, routes:% = resolved; "server name resolved");
        self.try_routes(&resolved.routes, target, limits, deadline)
    }

    fn try_routes(
        &self,
        routes: &[HttpRoute],
        target: &str,
        limits: FetchLimits,
        deadline: Instant,
    ) -> Result<FetchResponse, Error> {
        let mut errors = Vec::new();
        for route in routes {
            let request = FetchRequest::get(target);
            match self.fetcher.fetch(route, request, limits, deadline) {
                Ok(response) => return Ok(response),
                Err(error) if error.is_local_overload() => {
                    return Err(Error::Busy(limit_reached(&error), BUSY_RETRY));
                }
                Err(error) => errors.push((format!("{}:{}", route.host, route.port).into(), error)),
            }
        }
        Err(Error::Unreachable(errors))
    }
}

/// Concurrent calls to one unlisted server.
fn max_calls(responsive: bool) -> usize {
    if responsive {
        MAX_CALLS_PER_SERVER_IF_RESPONSIVE
    } else {
        MAX_CALLS_PER_SERVER
    }
}
