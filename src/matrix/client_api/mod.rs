//! Discovery of homeservers' client-server APIs (Matrix spec v1.16, client-server API, "Server Discovery") and of their support for
//! delayed events (MSC4140).

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, Instant};

use log::debug;
use serde::Deserialize;

use super::server_cache::{CachedFact, CachedValue, ServerCache};
use super::well_known::{CachedWellKnown, WellKnownBackoff, WellKnownDocument};
use crate::matrix::id::ServerName;
use crate::matrix::server_directory::ServerDirectory;
use crate::net::address::Trust;
use crate::net::base_url::BaseUrl;
use crate::net::http_client::{self, FetchLimits, FetchRequest, Fetcher, HttpRoute};
use crate::util::backoff::Backoff;
use crate::util::json;

const WELL_KNOWN_PATH: &str = "/.well-known/matrix/client";
const VERSIONS_PATH: &str = "/_matrix/client/versions";
/// Shorter delays than for federation: delegated leaves wait for the result.
const WELL_KNOWN: WellKnownDocument<BaseUrl> = WellKnownDocument {
    path: WELL_KNOWN_PATH,
    parse: parse_client_well_known,
    retry: WellKnownBackoff {
        absent: Backoff::doubling(Duration::from_secs(60), Duration::from_secs(300)),
        unreachable: Backoff::doubling(Duration::from_secs(15), Duration::from_secs(300)),
    },
};
/// Time for well-known and versions together, while the client of the request waits for a token.
const LOOKUP_BUDGET: Duration = Duration::from_secs(10);
const VERSIONS_LIMITS: FetchLimits = FetchLimits {
    head_timeout: Duration::from_secs(5),
    ..FetchLimits::new("versions")
};
/// Lifetime of the versions response, by what it says about delayed events.
const SUPPORTED_TTL: Duration = Duration::from_secs(3600);
const UNSUPPORTED_TTL: Duration = Duration::from_secs(300);
const UNKNOWN_SUPPORT_TTL: Duration = Duration::from_secs(60);
/// Support of a server whose versions response does not say.
const DEFAULT_SUPPORT: DelayedEventSupport =
    DelayedEventSupport::Supported(DelayedEventPath::Unstable);
/// `Retry-After` of a lookup that a limit of this service refused.
const BUSY_RETRY: Duration = Duration::from_secs(2);

/// The path of delayed events that a homeserver implements.
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
    /// The homeserver has delayed events, or does not say.
    Supported(DelayedEventPath),
    /// The homeserver says that it has none.
    Unsupported,
}

/// Why there is no client-server API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Error {
    /// The well-known document is unusable or unreachable, or the API has a denied address.
    NotFound(String),
    /// A limit of this service; the value is the time to wait before a retry.
    Busy(Duration),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(cause) => write!(
                f,
                "no client-server API found by {WELL_KNOWN_PATH}: {cause} (LIVEKIT_CS_API_URL_OVERRIDES can set its URL)"
            ),
            Self::Busy(retry_after) => {
                write!(
                    f,
                    "too many lookups in progress, try again in {retry_after:?}"
                )
            }
        }
    }
}

impl std::error::Error for Error {}

#[derive(Debug, Clone, Default)]
struct ClientApiFacts {
    well_known: CachedWellKnown<BaseUrl>,
    /// Support for delayed events at that base URL.
    versions: CachedValue<DelayedEventSupport>,
    /// The path that the API at that base URL turned out to implement.
    observed_path: Option<DelayedEventPath>,
}

impl CachedFact for ClientApiFacts {
    fn is_stale(&self, now: Instant) -> bool {
        let base_url = &self.well_known.cached;
        base_url.is_stale(now) || base_url.value().is_some() && self.versions.is_stale(now)
    }

    fn expire(&mut self) {
        self.well_known.cached.expire();
        self.versions.expire();
    }
}

/// A client-server API.
#[derive(Debug, Clone)]
pub(super) struct ResolvedClientApi {
    pub(super) base_url: BaseUrl,
    pub(super) route: HttpRoute,
    pub(super) support: DelayedEventSupport,
}

/// Discovers the client-server APIs of homeservers, with a cache.
#[derive(Debug)]
pub(crate) struct ClientApiDiscovery {
    fetcher: Fetcher,
    directory: ServerDirectory,
    cache: ServerCache<ClientApiFacts>,
}

impl ClientApiDiscovery {
    pub(crate) fn new(fetcher: Fetcher, directory: ServerDirectory) -> Self {
        Self {
            fetcher,
            directory,
            cache: ServerCache::default(),
        }
    }

    /// Discovers the API of `server` and whether it has delayed events. Waits for the homeserver, 10 s at most, unless the cache has
    /// the answer.
    pub(crate) fn delayed_event_support(
        &self,
        server: &ServerName,
    ) -> Result<DelayedEventSupport, Error> {
        self.resolve(server, Instant::now() + LOOKUP_BUDGET)
            .map(|api| api.support)
    }

    /// Discovers the API of `server` by `deadline`.
    pub(super) fn resolve(
        &self,
        server: &ServerName,
        deadline: Instant,
    ) -> Result<ResolvedClientApi, Error> {
        let trust = self.directory.trust(server);
        let facts = self.cache.get_or_refresh(trust, server, deadline, |facts| {
            let deadline = deadline.min(Instant::now() + LOOKUP_BUDGET);
            self.refresh(facts, server, trust, deadline)
        });
        let facts = facts.unwrap_or(Err(Error::Busy(BUSY_RETRY)))?;
        let Some(base_url) = facts.well_known.cached.value() else {
            let failure = facts.well_known.last_failure.as_ref();
            return Err(failure.map_or(Error::Busy(BUSY_RETRY), |failure| {
                Error::NotFound(failure.to_string())
            }));
        };
        let support = facts.versions.value().copied().unwrap_or(DEFAULT_SUPPORT);
        Ok(ResolvedClientApi {
            base_url: base_url.clone(),
            route: route_to(base_url, trust),
            support: match (support, facts.observed_path) {
                (DelayedEventSupport::Supported(_), Some(path)) => {
                    DelayedEventSupport::Supported(path)
                }
                _ => support,
            },
        })
    }

    /// Stores the path that `server` turned out to implement.
    pub(super) fn record_path(&self, server: &ServerName, trust: Trust, path: DelayedEventPath) {
        self.cache
            .update(trust, server, |facts| facts.observed_path = Some(path));
    }

    /// Makes the next [`Self::resolve`] refresh the facts about a server whose API did not respond where it was found before `since`;
    /// at most once a minute.
    pub(super) fn invalidate(&self, server: &ServerName, trust: Trust, since: Instant) {
        self.cache.invalidate(trust, server, since);
    }

    fn refresh(
        &self,
        facts: &mut ClientApiFacts,
        server: &ServerName,
        trust: Trust,
        deadline: Instant,
    ) -> Result<(), Error> {
        let previous = facts.well_known.cached.value().cloned();
        match self.directory.base_url(server) {
            Some(url) => facts.well_known.set(url.clone(), Instant::now()),
            None => facts
                .well_known
                .refresh(&WELL_KNOWN, &self.fetcher, server, trust, deadline)
                .map_err(|_| Error::Busy(BUSY_RETRY))?,
        }
        let base_url = facts.well_known.cached.value();
        if base_url != previous.as_ref() {
            facts.versions = CachedValue::default();
            facts.observed_path = None;
        }
        if let Some(base_url) = base_url
            && facts.versions.is_stale(Instant::now())
        {
            let support = self.fetch_versions(server, base_url, trust, deadline)?;
            let ttl = match support {
                Some(DelayedEventSupport::Supported(_)) => SUPPORTED_TTL,
                Some(DelayedEventSupport::Unsupported) => UNSUPPORTED_TTL,
                None => UNKNOWN_SUPPORT_TTL,
            };
            // without an answer, the previous one is the best guess
            let previous = facts.versions.value().copied();
            let support = support.or(previous).unwrap_or(DEFAULT_SUPPORT);
            facts
                .versions
                .store(support, ttl, Duration::ZERO, Instant::now());
        }
        Ok(())
    }

    /// Fetches the support for delayed events; `None` if the response does not mention it.
    fn fetch_versions(
        &self,
        server: &ServerName,
        base_url: &BaseUrl,
        trust: Trust,
        deadline: Instant,
    ) -> Result<Option<DelayedEventSupport>, Error> {
        let target = format!("{}{VERSIONS_PATH}", base_url.path());
        let request = FetchRequest::get(&target);
        let route = route_to(base_url, trust);
        let result = self
            .fetcher
            .fetch(&route, request, VERSIONS_LIMITS, deadline);
        let cause = match result {
            Ok(response) if response.status == 200 => return Ok(parse_versions(&response.body)),
            Ok(response) => format!("status {}", response.status),
            Err(error) if error.is_local_overload() => return Err(Error::Busy(BUSY_RETRY)),
            // calls for delayed events would be denied, too
            Err(error @ http_client::Error::AddressDenied(..)) => {
                return Err(Error::NotFound(error.to_string()));
            }
            Err(error) => error.to_string(),
        };
        debug!(server:% = server, cause; "versions unavailable");
        Ok(None)
    }
}

fn route_to(base_url: &BaseUrl, trust: Trust) -> HttpRoute {
    HttpRoute {
        trust,
        ..HttpRoute::administrator_url(base_url)
    }
}

#[derive(Deserialize)]
struct ClientWellKnown<'a> {
    #[serde(
        rename = "m.homeserver",
        borrow,
        deserialize_with = "json::deserialize_object"
    )]
    homeserver: HomeserverInformation<'a>,
}

#[derive(Deserialize)]
struct HomeserverInformation<'a> {
    #[serde(borrow)]
    base_url: Cow<'a, str>,
}

/// Parses `m.homeserver.base_url`. It has to be an https URL.
fn parse_client_well_known(body: &[u8]) -> Result<BaseUrl, String> {
    let document: ClientWellKnown<'_> =
        json::parse_object(body).ok_or("no m.homeserver with a base_url")?;
    let url = document.homeserver.base_url;
    let base_url = BaseUrl::parse(&url).map_err(|expected| format!("base_url: {expected}"))?;
    let is_https = url
        .get(..8)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
    // a resolver may read a host that is no server name as an IP address
    if !is_https || ServerName::parse(&base_url.authority()).is_err() {
        return Err("base_url: expected https:// and a server name".into());
    }
    Ok(base_url)
}

#[derive(Deserialize)]
struct Versions {
    #[serde(deserialize_with = "json::deserialize_object")]
    unstable_features: UnstableFeatures,
}

#[derive(Deserialize)]
struct UnstableFeatures {
    #[serde(rename = "org.matrix.msc4140")]
    delayed_events: Option<bool>,
    #[serde(rename = "org.matrix.msc4140.stable")]
    stable_delayed_events: Option<bool>,
}

/// Parses the support for delayed events of a versions response; `None` if it is not mentioned.
fn parse_versions(body: &[u8]) -> Option<DelayedEventSupport> {
    let features = json::parse_object::<Versions>(body)?.unstable_features;
    match (features.stable_delayed_events, features.delayed_events) {
        (Some(true), _) => Some(DelayedEventSupport::Supported(DelayedEventPath::Stable)),
        (_, Some(true)) => Some(DelayedEventSupport::Supported(DelayedEventPath::Unstable)),
        (_, Some(false)) => Some(DelayedEventSupport::Unsupported),
        _ => None,
    }
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    use super::DelayedEventSupport;

    /// Whether the base URL of a well-known document has TLS, and its authority, port and path.
    pub fn client_base(body: &[u8]) -> Option<(bool, String, u16, String)> {
        let base = super::parse_client_well_known(body).ok()?;
        Some((
            base.tls(),
            base.authority(),
            base.port(),
            base.path().to_owned(),
        ))
    }

    /// Support for delayed events in a versions response.
    pub fn support(body: &[u8]) -> Option<DelayedEventSupport> {
        super::parse_versions(body)
    }
}
