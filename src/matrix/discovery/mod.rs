//! From a server name to the places where its homeserver answers (Matrix spec v1.16, server-server API, "Resolving server names").
//!
//! Endpoints are remembered, addresses never: those are looked up and vetted anew for every connection.

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::server_cache;
use super::server_cache::{CachePartition, LookupTimeout, ServerCache};
use crate::matrix::id::ServerName;
use crate::matrix::well_known::{self, WellKnownBackoff, WellKnownResult};
use crate::net::address::{Host, Trust};
use crate::net::dns::{self, SrvTarget};
use crate::net::http_client;
use crate::net::http_client::{Fetcher, HttpRoute};
use crate::util::json;

const WELL_KNOWN_PATH: &str = "/.well-known/matrix/server";
/// After a clear no: 10 minutes, after no answer: a minute, either doubling to an hour.
const WELL_KNOWN_BACKOFF: WellKnownBackoff = WellKnownBackoff {
    absent: Duration::from_secs(600),
    unreachable: Duration::from_secs(60),
    max: Duration::from_secs(3600),
};
/// Where homeservers listen if nobody says otherwise.
const DEFAULT_PORT: u16 = 8448;
/// SRV targets of one server that are tried.
const MAX_SRV_TARGETS: usize = 4;
/// For all SRV questions of one look-up together.
const SRV_BUDGET: Duration = Duration::from_secs(3);
/// How long an SRV answer is believed, whatever its TTL says.
const SRV_TTL_BOUNDS: (Duration, Duration) =
    (Duration::from_secs(60), Duration::from_secs(24 * 3600));
/// How long it is remembered that there is no SRV record.
const NO_SRV_TTL: Duration = Duration::from_secs(300);
/// How long it is remembered that the DNS did not answer.
const SRV_ERROR_TTL: Duration = Duration::from_secs(60);

/// Why nothing was found out.
#[derive(Debug)]
pub(crate) enum Error {
    /// Somebody else's look-up of the same name took longer than the caller could wait.
    LookupTimeout,
    /// We have no place for it ourselves, which says nothing about the server.
    NoCapacity(http_client::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LookupTimeout => f.write_str("discovery of the server is still under way"),
            Self::NoCapacity(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<LookupTimeout> for Error {
    fn from(_: LookupTimeout) -> Self {
        Self::LookupTimeout
    }
}

/// Where a homeserver answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResolvedServer {
    /// In the order in which to try them; empty if DNS says that there is decidedly no such service.
    pub routes: Vec<HttpRoute>,
    /// The step of the specification that found them.
    pub step: &'static str,
}

/// Discovers homeservers and remembers where they are.
#[derive(Debug, Default)]
pub(crate) struct FederationDiscovery {
    cache: ServerCache<FederationFacts>,
}

/// What is known of one server name.
#[derive(Debug, Clone, Default)]
struct FederationFacts {
    well_known: well_known::CachedWellKnown<ServerName>,
    srv: Option<CachedSrv>,
}

/// The SRV records of a name, once asked.
#[derive(Debug, Clone)]
struct CachedSrv {
    name: Box<str>,
    service: SrvService,
    /// At most [`MAX_TARGETS`], all of them names with a port.
    targets: Vec<SrvTarget>,
    /// When to ask again.
    fresh_until: Instant,
    /// Until when they hold, should asking again fail.
    valid_until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SrvService {
    MatrixFed,
    DeprecatedMatrix,
    Absent,
}

impl server_cache::CachedFact for FederationFacts {
    fn is_stale(&self, now: Instant) -> bool {
        let needs_srv = !self.well_known.value().is_some_and(has_explicit_endpoint);
        self.well_known.is_stale(now)
            || needs_srv && self.srv.as_ref().is_none_or(|srv| srv.fresh_until <= now)
    }

    fn expire(&mut self) {
        self.well_known.expire();
        if let Some(srv) = &mut self.srv {
            srv.fresh_until = Instant::now();
        }
    }
}

impl FederationDiscovery {
    /// Finds the homeserver of `name`, asking no more than what is not known already.
    ///
    /// Whoever asks for a name that somebody is asking for already waits for that answer, until `deadline` at the longest.
    pub(crate) fn resolve(
        &self,
        fetcher: &Fetcher,
        name: &ServerName,
        trust: Trust,
        deadline: Instant,
    ) -> Result<ResolvedServer, Error> {
        if has_explicit_endpoint(name) {
            let step = if name.ip().is_some() {
                "1 (IP literal)"
            } else {
                "2 (explicit port)"
            };
            return Ok(resolve_explicit(name, trust, step));
        }
        let known = self.cache.get_or_refresh(
            CachePartition::for_trust(trust),
            name,
            deadline,
            |known| {
                let now = Instant::now();
                if now >= deadline {
                    return Err(Error::LookupTimeout);
                }
                if known.well_known.is_stale(now) {
                    let asked = well_known::fetch_well_known(
                        fetcher,
                        name.host(),
                        WELL_KNOWN_PATH,
                        trust,
                        deadline,
                        parse_server_well_known,
                    )
                    .map_err(Error::NoCapacity)?;
                    log_server_well_known(name, &asked);
                    known
                        .well_known
                        .record(asked, WELL_KNOWN_BACKOFF, Instant::now());
                }
                let delegated = known.well_known.value();
                if delegated.is_some_and(has_explicit_endpoint) {
                    return Ok(());
                }
                let of = delegated.unwrap_or(name).host();
                if known
                    .srv
                    .as_ref()
                    .is_none_or(|srv| *srv.name != *of || srv.fresh_until <= now)
                {
                    let old = known.srv.take().filter(|srv| *srv.name == *of);
                    known.srv = Some(lookup_services(of, old, deadline));
                }
                Ok(())
            },
        )?;
        Ok(resolve_from_facts(name, &known, trust))
    }

    /// Has a server discovered afresh, because it does not answer where it was found before `since`; at most once a minute.
    ///
    /// A delegation that is still valid is kept if its well-known does not answer either.
    pub(crate) fn invalidate(&self, name: &ServerName, trust: Trust, since: Instant) {
        if !has_explicit_endpoint(name) {
            self.cache
                .invalidate(CachePartition::for_trust(trust), name, since);
        }
    }
}

#[derive(Deserialize)]
struct ServerWellKnown {
    #[serde(rename = "m.server")]
    server: String,
}

/// Where a well-known document says that the server is.
fn parse_server_well_known(body: &[u8]) -> Result<ServerName, String> {
    let document = json::parse_object::<ServerWellKnown>(body).ok_or("not JSON with m.server")?;
    ServerName::parse(&document.server).map_err(|expected| format!("m.server: expected {expected}"))
}

/// Whether a name says by itself where to connect.
fn has_explicit_endpoint(name: &ServerName) -> bool {
    name.ip().is_some() || name.port().is_some()
}

fn log_server_well_known(name: &ServerName, asked: &WellKnownResult<ServerName>) {
    match asked {
        WellKnownResult::Found(to, ttl) => log::debug!(
            "well_known server={name} delegated_to={to} ttl={}s",
            ttl.as_secs()
        ),
        WellKnownResult::Absent(why) => {
            log::debug!("well_known server={name} absent cause=\"{why}\"")
        }
        WellKnownResult::Unreachable(why) => {
            log::debug!("well_known server={name} unreachable cause=\"{why}\"")
        }
    }
}

/// A name that says by itself where to connect: IP and port, or name and port.
fn resolve_explicit(name: &ServerName, trust: Trust, step: &'static str) -> ResolvedServer {
    let host = Host::parse(name.host());
    let port = name.port().unwrap_or(DEFAULT_PORT);
    let route = HttpRoute {
        tls: Some(host.clone()),
        host,
        port,
        authority: name.as_str().into(),
        trust,
    };
    ResolvedServer {
        routes: vec![route],
        step,
    }
}

/// Steps 3.1 to 6.
fn resolve_from_facts(name: &ServerName, known: &FederationFacts, trust: Trust) -> ResolvedServer {
    let delegated = known.well_known.value();
    match delegated {
        Some(to) if to.ip().is_some() => {
            return resolve_explicit(to, trust, "3.1 (well-known: IP literal)");
        }
        Some(to) if to.port().is_some() => {
            return resolve_explicit(to, trust, "3.2 (well-known: explicit port)");
        }
        _ => {}
    }
    let subject = delegated.unwrap_or(name);
    let service = known
        .srv
        .as_ref()
        .map_or(SrvService::Absent, |srv| srv.service);
    let step = match (delegated.is_some(), service) {
        (true, SrvService::MatrixFed) => "3.3 (well-known: SRV)",
        (true, SrvService::DeprecatedMatrix) => "3.4 (well-known: old SRV)",
        (true, SrvService::Absent) => "3.5 (well-known: port 8448)",
        (false, SrvService::MatrixFed) => "4 (SRV)",
        (false, SrvService::DeprecatedMatrix) => "5 (old SRV)",
        (false, SrvService::Absent) => "6 (port 8448)",
    };
    let tls = Host::parse(subject.host());
    let route = |host: Host, port| HttpRoute {
        host,
        port,
        // the name that was asked for, never the SRV target: DNS is not to be believed
        tls: Some(tls.clone()),
        authority: subject.as_str().into(),
        trust,
    };
    let routes = match (service, &known.srv) {
        (SrvService::MatrixFed | SrvService::DeprecatedMatrix, Some(srv)) => {
            let targets = srv.targets.iter();
            targets
                .map(|target| route(Host::parse(&target.host), target.port))
                .collect()
        }
        _ => vec![route(tls.clone(), DEFAULT_PORT)],
    };
    ResolvedServer { routes, step }
}

/// Asks for both services in turn. After a DNS error an `old` answer that still holds is kept; without one port 8448 is tried,
/// as no answer is no reason to refuse a server.
fn lookup_services(of: &str, old: Option<CachedSrv>, deadline: Instant) -> CachedSrv {
    let until = deadline.min(Instant::now() + SRV_BUDGET);
    let found = |service, targets, lasting| {
        let until = Instant::now() + lasting;
        CachedSrv {
            name: of.into(),
            service,
            targets,
            fresh_until: until,
            valid_until: until,
        }
    };
    for (service, prefix) in [
        (SrvService::MatrixFed, "_matrix-fed._tcp"),
        (SrvService::DeprecatedMatrix, "_matrix._tcp"),
    ] {
        match dns::lookup_srv(&format!("{prefix}.{of}"), until) {
            Ok(answer) if answer.targets.is_empty() => {}
            Ok(answer) => {
                let lasting = answer.ttl.clamp(SRV_TTL_BOUNDS.0, SRV_TTL_BOUNDS.1);
                let count = answer.targets.len();
                log::debug!(
                    "srv name={prefix}.{of} targets={count} ttl={}s",
                    lasting.as_secs()
                );
                return found(service, usable_targets(answer.targets), lasting);
            }
            Err(error) => {
                log::debug!("srv name={prefix}.{of} cause=\"{error}\"");
                let now = Instant::now();
                return match old.filter(|srv| srv.valid_until > now) {
                    Some(old) => CachedSrv {
                        fresh_until: old.valid_until.min(now + SRV_ERROR_TTL),
                        ..old
                    },
                    None => found(SrvService::Absent, Vec::new(), SRV_ERROR_TTL),
                };
            }
        }
    }
    found(SrvService::Absent, Vec::new(), NO_SRV_TTL)
}

/// The targets that can be dialled. A name that a resolver might read as an address is none.
fn usable_targets(targets: Vec<SrvTarget>) -> Vec<SrvTarget> {
    let is_name =
        |host: &str| ServerName::parse(host).is_ok_and(|name| !has_explicit_endpoint(&name));
    let usable = targets
        .into_iter()
        .filter(|target| target.port != 0 && is_name(&target.host));
    usable.take(MAX_SRV_TARGETS).collect()
}

impl fmt::Display for ResolvedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}", self.step)?;
        for route in &self.routes {
            write!(f, " {}:{}", route.host, route.port)?;
        }
        Ok(())
    }
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    /// Where a well-known document says that the server is.
    pub fn delegation(body: &[u8]) -> Option<super::ServerName> {
        super::read(body).ok()
    }

    pub use crate::matrix::well_known::fuzzing::redirect;
}
