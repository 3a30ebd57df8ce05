//! Resolution of server names to addresses of the federation API (Matrix spec v1.16, server-server API, "Resolving server names").
//!
//! The cache holds host names and ports. IP addresses are looked up and checked for every connection.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::debug;
use serde::Deserialize;

use super::https_route;
use super::server_cache::{CachedFact, CachedValue, ServerCache};
use super::well_known::{CachedWellKnown, WellKnownBackoff, WellKnownDocument};
use crate::matrix::id::ServerName;
use crate::net::address::{Host, Trust};
use crate::net::dns::{self, SrvTarget};
use crate::net::http_client::{self, Fetcher, HttpRoute};
use crate::net::permits::LimitReached;
use crate::util::backoff::Backoff;
use crate::util::json;

const WELL_KNOWN: WellKnownDocument<ServerName> = WellKnownDocument {
    path: "/.well-known/matrix/server",
    parse: parse_server_well_known,
    retry: WellKnownBackoff {
        absent: Backoff::doubling(Duration::from_secs(600), Duration::from_secs(3600)),
        unreachable: Backoff::doubling(Duration::from_secs(60), Duration::from_secs(3600)),
    },
};
/// Port of the federation API without delegation.
const DEFAULT_PORT: u16 = 8448;
/// SRV targets of one server that are tried.
const MAX_SRV_TARGETS: usize = 4;
/// Time for the SRV lookups of one resolution.
const SRV_BUDGET: Duration = Duration::from_secs(3);
/// Bounds of the TTL of SRV records.
const MIN_SRV_TTL: Duration = Duration::from_secs(60);
const MAX_SRV_TTL: Duration = Duration::from_secs(24 * 3600);
/// Lifetime of the answer that there are no SRV records.
const NO_SRV_TTL: Duration = Duration::from_secs(300);
/// Delay before the next lookup after a DNS error.
const SRV_RETRY_DELAY: Duration = Duration::from_secs(60);

/// Where the federation API of a homeserver is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResolvedServer {
    /// Routes in order of preference. Empty if DNS says that the service does not exist (an SRV record with the target `.`).
    pub(crate) routes: Vec<HttpRoute>,
    /// The step of the specification that found them.
    pub(crate) step: &'static str,
}

/// Resolves server names, with a cache.
#[derive(Debug)]
pub(crate) struct FederationDiscovery {
    fetcher: Arc<Fetcher>,
    cache: ServerCache<FederationFacts>,
}

#[derive(Debug, Clone, Default)]
struct FederationFacts {
    /// The delegated name.
    well_known: CachedWellKnown<ServerName>,
    /// SRV records of the delegated name, or of the server name if there is none.
    srv: CachedValue<SrvRecords>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct SrvRecords {
    service: SrvService,
    /// At most [`MAX_SRV_TARGETS`] names with ports.
    targets: Vec<(Host, u16)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SrvService {
    MatrixFed,
    DeprecatedMatrix,
}

impl CachedFact for FederationFacts {
    fn is_stale(&self, now: Instant) -> bool {
        self.well_known.cached.is_stale(now) || self.needs_srv() && self.srv.is_stale(now)
    }

    fn expire(&mut self) {
        self.well_known.cached.expire();
        self.srv.expire();
    }
}

impl FederationFacts {
    fn needs_srv(&self) -> bool {
        let delegated = self.well_known.cached.value();
        !delegated.is_some_and(has_explicit_endpoint)
    }
}

impl FederationDiscovery {
    pub(crate) fn new(fetcher: Arc<Fetcher>) -> Self {
        Self {
            fetcher,
            cache: ServerCache::default(),
        }
    }

    /// Resolves `name`. Facts that are not in the cache are fetched, or awaited if another caller is fetching them, until `deadline`.
    ///
    /// # Errors
    ///
    /// A limit of this service, not a failure of the server.
    pub(crate) fn resolve(
        &self,
        name: &ServerName,
        trust: Trust,
        deadline: Instant,
    ) -> Result<ResolvedServer, LimitReached> {
        if has_explicit_endpoint(name) {
            let step = if name.ip().is_some() {
                "1 (IP literal)"
            } else {
                "2 (explicit port)"
            };
            return Ok(resolve_explicit(name, trust, step));
        }
        let facts = self.cache.get_or_refresh(trust, name, deadline, |facts| {
            self.refresh(facts, name, trust, deadline)
                .map_err(|error| limit_reached(&error))
        });
        let facts = facts.unwrap_or(Err(LimitReached::Service))?;
        Ok(resolve_from_facts(name, &facts, trust))
    }

    /// Makes the next [`Self::resolve`] refresh the facts about a server that did not respond at the routes found before `since`; at
    /// most once a minute. A delegation that is still valid remains if the refresh fails.
    pub(crate) fn invalidate(&self, name: &ServerName, trust: Trust, since: Instant) {
        if !has_explicit_endpoint(name) {
            self.cache.invalidate(trust, name, since);
        }
    }

    fn refresh(
        &self,
        facts: &mut FederationFacts,
        name: &ServerName,
        trust: Trust,
        deadline: Instant,
    ) -> Result<(), http_client::Error> {
        let previous = facts.well_known.cached.value().cloned();
        facts
            .well_known
            .refresh(&WELL_KNOWN, &self.fetcher, name, trust, deadline)?;
        let delegated = facts.well_known.cached.value();
        if delegated != previous.as_ref() {
            facts.srv = CachedValue::default();
        }
        if facts.needs_srv() && facts.srv.is_stale(Instant::now()) {
            let host = delegated.unwrap_or(name).host();
            lookup_services(&mut facts.srv, host, deadline);
        }
        Ok(())
    }
}

/// The limit of this service that an error stands for.
pub(super) fn limit_reached(error: &http_client::Error) -> LimitReached {
    match error {
        http_client::Error::SubnetLimit(_) => LimitReached::Subnet,
        _ => LimitReached::DnsLookups,
    }
}

#[derive(Deserialize)]
struct ServerWellKnown {
    #[serde(rename = "m.server")]
    server: String,
}

fn parse_server_well_known(body: &[u8]) -> Result<ServerName, String> {
    let document = json::parse_object::<ServerWellKnown>(body).ok_or("not JSON with m.server")?;
    ServerName::parse(&document.server).map_err(|expected| format!("m.server: expected {expected}"))
}

/// Whether a name needs neither well-known nor SRV.
fn has_explicit_endpoint(name: &ServerName) -> bool {
    name.ip().is_some() || name.port().is_some()
}

fn resolve_explicit(name: &ServerName, trust: Trust, step: &'static str) -> ResolvedServer {
    let port = name.port().unwrap_or(DEFAULT_PORT);
    ResolvedServer {
        routes: vec![https_route(name.network_host(), port, name.as_str(), trust)],
        step,
    }
}

/// Steps 3.1 to 6.
fn resolve_from_facts(name: &ServerName, facts: &FederationFacts, trust: Trust) -> ResolvedServer {
    let delegated = facts.well_known.cached.value();
    match delegated {
        Some(to) if to.ip().is_some() => {
            return resolve_explicit(to, trust, "3.1 (well-known: IP literal)");
        }
        Some(to) if to.port().is_some() => {
            return resolve_explicit(to, trust, "3.2 (well-known: explicit port)");
        }
        _ => {}
    }
    let records = facts.srv.value();
    let step = match (delegated.is_some(), records.map(|records| records.service)) {
        (true, Some(SrvService::MatrixFed)) => "3.3 (well-known: SRV)",
        (true, Some(SrvService::DeprecatedMatrix)) => "3.4 (well-known: old SRV)",
        (true, None) => "3.5 (well-known: port 8448)",
        (false, Some(SrvService::MatrixFed)) => "4 (SRV)",
        (false, Some(SrvService::DeprecatedMatrix)) => "5 (old SRV)",
        (false, None) => "6 (port 8448)",
    };
    let subject = delegated.unwrap_or(name);
    let route = |host: Host, port| HttpRoute {
        host,
        // never the SRV target, as DNS is not authenticated
        ..https_route(subject.network_host(), port, subject.as_str(), trust)
    };
    let routes = match records {
        Some(records) => records
            .targets
            .iter()
            .map(|(host, port)| route(host.clone(), *port))
            .collect(),
        None => vec![route(subject.network_host(), DEFAULT_PORT)],
    };
    ResolvedServer { routes, step }
}

/// Looks up the SRV records of `host`, `_matrix-fed._tcp` first. After a DNS error, valid records remain; without any, port 8448 is
/// used.
fn lookup_services(srv: &mut CachedValue<SrvRecords>, host: &str, deadline: Instant) {
    let deadline = deadline.min(Instant::now() + SRV_BUDGET);
    for (service, prefix) in [
        (SrvService::MatrixFed, "_matrix-fed._tcp"),
        (SrvService::DeprecatedMatrix, "_matrix._tcp"),
    ] {
        let name = format!("{prefix}.{host}");
        match dns::lookup_srv(&name, deadline) {
            Ok(answer) if answer.targets.is_empty() => {}
            Ok(answer) => {
                let ttl = answer.ttl.clamp(MIN_SRV_TTL, MAX_SRV_TTL);
                let count = answer.targets.len();
                debug!(name, targets = count, ttl_s = ttl.as_secs(); "SRV records found");
                let records = SrvRecords {
                    service,
                    targets: usable_targets(answer.targets),
                };
                return srv.store(records, ttl, Duration::ZERO, Instant::now());
            }
            Err(error) => {
                debug!(name, cause:% = error; "SRV lookup failed");
                return srv.store_failure(SRV_RETRY_DELAY, Instant::now());
            }
        }
    }
    srv.store_none(NO_SRV_TTL, Instant::now());
}

/// The first targets with a port and a DNS name that no resolver may read as an IP address.
fn usable_targets(targets: Vec<SrvTarget>) -> Vec<(Host, u16)> {
    let is_name =
        |host: &str| ServerName::parse(host).is_ok_and(|name| !has_explicit_endpoint(&name));
    targets
        .into_iter()
        .filter(|target| target.port != 0 && is_name(&target.host))
        .map(|target| (Host::Dns(target.host.into()), target.port))
        .take(MAX_SRV_TARGETS)
        .collect()
}

impl fmt::Display for ResolvedServer {
    /// The hosts and ports to connect to.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, route) in self.routes.iter().enumerate() {
            let separator = if index == 0 { "" } else { " " };
            write!(f, "{separator}{}:{}", route.host, route.port)?;
        }
        Ok(())
    }
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    /// The server name of a well-known document.
    pub fn delegation(body: &[u8]) -> Option<super::ServerName> {
        super::parse_server_well_known(body).ok()
    }

    pub use crate::matrix::well_known::fuzzing::redirect;
}
