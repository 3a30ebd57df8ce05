//! Where a homeserver's client-server API is (Matrix spec v1.16, client-server API, "Server Discovery"), and whether it has delayed
//! events (MSC4140).

mod document;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use super::server_cache;
use super::server_cache::{CachePartition, LookupTimeout, ServerCache};
use crate::matrix::id::ServerName;
use crate::matrix::well_known::{self, CachedWellKnown, WellKnownBackoff, WellKnownResult};
use crate::net::address::Trust;
use crate::net::base_url::BaseUrl;
use crate::net::http_client;
use crate::net::http_client::{FetchLimits, FetchRequest, Fetcher, HttpRoute};
use crate::net::permits::MAX_CALLS_PER_SUBNET;

use document::{parse_client_well_known, parse_versions};

const WELL_KNOWN_PATH: &str = "/.well-known/matrix/client";
const VERSIONS_PATH: &str = "/_matrix/client/versions";
/// For the well-known and the versions together: the client behind the request waits for a token, too.
const LOOKUP_BUDGET: Duration = Duration::from_secs(10);
/// Shorter than for discovery: leaves wait for it that nobody will ask for a second time.
const WELL_KNOWN_BACKOFF: WellKnownBackoff = WellKnownBackoff {
    absent: Duration::from_secs(60),
    unreachable: Duration::from_secs(15),
    max: Duration::from_secs(300),
};
const VERSIONS_LIMITS: FetchLimits = FetchLimits {
    kind: "versions",
    connect_timeout: Duration::from_secs(5),
    head_timeout: Duration::from_secs(5),
    body_timeout: Duration::from_secs(3),
    // Synapse's have some 4 KiB
    max_body: 64 * 1024,
    max_subnet_calls: MAX_CALLS_PER_SUBNET,
};
/// How long it is believed that a server has delayed events, has none, or does not say.
const SUPPORTED_TTL: Duration = Duration::from_secs(3600);
const UNSUPPORTED_TTL: Duration = Duration::from_secs(300);
const UNKNOWN_SUPPORT_TTL: Duration = Duration::from_secs(60);
/// What to tell a caller for whom there is no place.
const BUSY_RETRY: Duration = Duration::from_secs(2);

/// How a homeserver wants to be told about delayed events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DelayedEventPath {
    /// `/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{id}/{action}`
    Unstable,
    /// `/_matrix/client/v1/delayed_events/{id}/{action}`
    Stable,
    /// The unstable path without the action, which is in the body.
    UnstableActionInBody,
}

/// Whether a homeserver has delayed events (MSC4140).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DelayedEventSupport {
    /// It has, or does not say.
    Supported(DelayedEventPath),
    /// It says that it has not.
    Unsupported,
}

/// Why a client-server API was not found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Error {
    /// The server says nowhere, or nothing usable, about where it is.
    Absent(String),
    /// It could not be asked.
    Unreachable(String),
    /// We have no place to ask it right now; when to try again.
    Busy(Duration),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(why) => write!(
                f,
                "no client-server API by {WELL_KNOWN_PATH}: {why} (LIVEKIT_CS_API_URL_OVERRIDES would say where it is)"
            ),
            Self::Unreachable(why) => write!(
                f,
                "no answer to {WELL_KNOWN_PATH}: {why} (LIVEKIT_CS_API_URL_OVERRIDES would say where the API is)"
            ),
            Self::Busy(after) => write!(f, "too many look-ups under way, try again in {after:?}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<LookupTimeout> for Error {
    fn from(_: LookupTimeout) -> Self {
        Self::Busy(BUSY_RETRY)
    }
}

/// What is known of one server name.
#[derive(Debug, Clone, Default)]
struct ClientApiFacts {
    well_known: CachedWellKnown<BaseUrl>,
    versions: Option<CachedVersions>,
    /// The form that was found out by trying.
    observed_path: Option<DelayedEventPath>,
}

#[derive(Debug, Clone)]
struct CachedVersions {
    base_url: BaseUrl,
    support: DelayedEventSupport,
    fresh_until: Instant,
}

impl server_cache::CachedFact for ClientApiFacts {
    fn is_stale(&self, now: Instant) -> bool {
        self.well_known.is_stale(now)
            || self
                .well_known
                .value()
                .is_some_and(|base| self.needs_versions(base, now))
    }

    fn expire(&mut self) {
        self.well_known.expire();
        if let Some(versions) = &mut self.versions {
            versions.fresh_until = Instant::now();
        }
    }
}

impl ClientApiFacts {
    fn needs_versions(&self, base: &BaseUrl, now: Instant) -> bool {
        let fresh =
            |versions: &CachedVersions| versions.base_url == *base && versions.fresh_until > now;
        !self.versions.as_ref().is_some_and(fresh)
    }
}

/// An API that was found.
#[derive(Debug, Clone)]
pub(super) struct ResolvedClientApi {
    /// Where it is.
    pub(super) base_url: BaseUrl,
    /// The way there.
    pub(super) route: HttpRoute,
    /// What it said about delayed events.
    pub(super) support: DelayedEventSupport,
}

/// The client-server APIs of all homeservers.
#[derive(Debug)]
pub(crate) struct ClientApiDiscovery {
    fetcher: Fetcher,
    overrides: BTreeMap<ServerName, BaseUrl>,
    listed: BTreeSet<ServerName>,
    cache: ServerCache<ClientApiFacts>,
}

impl ClientApiDiscovery {
    /// `overrides` say where APIs are instead of the well-known. Servers that the administrator has `listed` may be on private
    /// addresses.
    pub(crate) fn new(
        fetcher: Fetcher,
        overrides: BTreeMap<ServerName, BaseUrl>,
        listed: BTreeSet<ServerName>,
    ) -> Self {
        Self {
            fetcher,
            overrides,
            listed,
            cache: ServerCache::default(),
        }
    }

    /// Finds the API and asks whether it has delayed events. Both are remembered; when they are not, this waits for the homeserver,
    /// 10 s at most.
    pub(crate) fn delayed_event_support(
        &self,
        server: &ServerName,
    ) -> Result<DelayedEventSupport, Error> {
        self.resolve(server, Instant::now() + LOOKUP_BUDGET)
            .map(|api| api.support)
    }

    /// Whether the administrator lists a server or says where it is.
    pub(super) fn is_listed(&self, server: &ServerName) -> bool {
        self.trust(server) != Trust::Unlisted
    }

    /// Finds the API by `deadline`.
    pub(super) fn resolve(
        &self,
        server: &ServerName,
        deadline: Instant,
    ) -> Result<ResolvedClientApi, Error> {
        let trust = self.trust(server);
        let shelf = CachePartition::for_trust(trust);
        let known = self
            .cache
            .get_or_refresh(shelf, server, deadline, |known| {
                let now = Instant::now();
                if now >= deadline {
                    return Err(LookupTimeout.into());
                }
                self.refresh(known, server, trust, deadline.min(now + LOOKUP_BUDGET))
            })?;
        let Some(base) = known.well_known.value() else {
            return Err(match known.well_known.failure() {
                Some((why, true)) => Error::Absent(why.to_owned()),
                Some((why, false)) => Error::Unreachable(why.to_owned()),
                None => LookupTimeout.into(),
            });
        };
        let said = known.versions.map_or(DEFAULT_SUPPORT, |v| v.support);
        Ok(ResolvedClientApi {
            base_url: base.clone(),
            route: route_to(base, trust),
            support: match (said, known.observed_path) {
                (DelayedEventSupport::Supported(_), Some(form)) => {
                    DelayedEventSupport::Supported(form)
                }
                _ => said,
            },
        })
    }

    /// Remembers the form that a server has turned out to understand.
    pub(super) fn record_path(&self, server: &ServerName, form: DelayedEventPath) {
        let shelf = CachePartition::for_trust(self.trust(server));
        self.cache
            .update(shelf, server, |known| known.observed_path = Some(form));
    }

    /// Has a server looked up afresh, because its API does not answer where it was found before `since`; at most once a minute.
    pub(super) fn invalidate(&self, server: &ServerName, since: Instant) {
        let shelf = CachePartition::for_trust(self.trust(server));
        self.cache.invalidate(shelf, server, since);
    }

    fn trust(&self, server: &ServerName) -> Trust {
        if self.overrides.contains_key(server) {
            Trust::Administrator
        } else if self.listed.contains(server) {
            Trust::Listed
        } else {
            Trust::Unlisted
        }
    }

    fn refresh(
        &self,
        known: &mut ClientApiFacts,
        server: &ServerName,
        trust: Trust,
        deadline: Instant,
    ) -> Result<(), Error> {
        if known.well_known.is_stale(Instant::now()) {
            let asked = match self.overrides.get(server) {
                Some(url) => WellKnownResult::Found(url.clone(), well_known::MAX_TTL),
                None => {
                    let host = server.host();
                    well_known::fetch_well_known(
                        &self.fetcher,
                        host,
                        WELL_KNOWN_PATH,
                        trust,
                        deadline,
                        parse_client_well_known,
                    )
                    .map_err(|_| Error::Busy(BUSY_RETRY))?
                }
            };
            log_client_well_known(server, &asked);
            let before = known.well_known.value().cloned();
            known
                .well_known
                .record(asked, WELL_KNOWN_BACKOFF, Instant::now());
            if known.well_known.value() != before.as_ref() {
                known.observed_path = None;
            }
        }
        if let Some(base) = known.well_known.value()
            && known.needs_versions(base, Instant::now())
        {
            let said = self.fetch_versions(server, base, trust, deadline)?;
            // without an answer, what it said before is the best guess
            let before = known
                .versions
                .take()
                .filter(|before| before.base_url == *base);
            known.versions = Some(CachedVersions {
                base_url: base.clone(),
                support: said
                    .or(before.map(|before| before.support))
                    .unwrap_or(DEFAULT_SUPPORT),
                fresh_until: Instant::now()
                    + match said {
                        Some(DelayedEventSupport::Supported(_)) => SUPPORTED_TTL,
                        Some(DelayedEventSupport::Unsupported) => UNSUPPORTED_TTL,
                        None => UNKNOWN_SUPPORT_TTL,
                    },
            });
        }
        Ok(())
    }

    fn fetch_versions(
        &self,
        server: &ServerName,
        base: &BaseUrl,
        trust: Trust,
        deadline: Instant,
    ) -> Result<Option<DelayedEventSupport>, Error> {
        let target = format!("{}{VERSIONS_PATH}", base.path());
        let request = FetchRequest::get(&target);
        let route = route_to(base, trust);
        let answer = self
            .fetcher
            .fetch(&route, request, VERSIONS_LIMITS, deadline);
        match answer {
            Ok(answer) if answer.status == 200 => Ok(parse_versions(&answer.body)),
            Ok(answer) => {
                log::debug!("versions server={server} status={}", answer.status);
                Ok(None)
            }
            Err(error) if error.is_local_overload() => Err(Error::Busy(BUSY_RETRY)),
            // nobody will ever be told there about a leave
            Err(error @ http_client::Error::AddressDenied(..)) => {
                Err(Error::Absent(error.to_string()))
            }
            Err(error) => {
                log::debug!("versions server={server} cause=\"{error}\"");
                Ok(None)
            }
        }
    }
}

/// What is taken for granted of a server that says nothing about it.
const DEFAULT_SUPPORT: DelayedEventSupport =
    DelayedEventSupport::Supported(DelayedEventPath::Unstable);

fn route_to(base: &BaseUrl, trust: Trust) -> HttpRoute {
    HttpRoute {
        trust,
        ..HttpRoute::administrator_url(base)
    }
}

fn log_client_well_known(server: &ServerName, asked: &WellKnownResult<BaseUrl>) {
    match asked {
        WellKnownResult::Found(base, ttl) => log::debug!(
            "client_well_known server={server} base_url={base} ttl={}s",
            ttl.as_secs()
        ),
        WellKnownResult::Absent(why) => {
            log::debug!("client_well_known server={server} absent cause=\"{why}\"")
        }
        WellKnownResult::Unreachable(why) => {
            log::debug!("client_well_known server={server} unreachable cause=\"{why}\"")
        }
    }
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use super::document::fuzzing::{client_base, support};
}
