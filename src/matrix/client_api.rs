//! Where a homeserver's client-server API is (Matrix spec v1.16, client-server API, "Server Discovery"), and whether it has delayed
//! events (MSC4140).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use crate::matrix::cache::{self, Cache, Shelf, Waited};
use crate::matrix::id::ServerName;
use crate::matrix::well_known::{self, Asked, Memory, Pauses};
use crate::net::address::Trust;
use crate::net::base_url::BaseUrl;
use crate::net::bulkhead::PER_NEIGHBOURHOOD;
use crate::net::fetch::{self, Fetcher, Limits, Request, Route};

mod document;

use document::{read_base, read_support};

const WELL_KNOWN: &str = "/.well-known/matrix/client";
const VERSIONS: &str = "/_matrix/client/versions";
/// For the well-known and the versions together: the client behind the request waits for a token, too.
const BUDGET: Duration = Duration::from_secs(10);
/// Shorter than for discovery: leaves wait for it that nobody will ask for a second time.
const PAUSES: Pauses = Pauses {
    absent: Duration::from_secs(60),
    unreachable: Duration::from_secs(15),
    longest: Duration::from_secs(300),
};
const VERSIONS_LIMITS: Limits = Limits {
    kind: "versions",
    connect: Duration::from_secs(5),
    head: Duration::from_secs(5),
    body: Duration::from_secs(3),
    // Synapse's have some 4 KiB
    max_body: 64 * 1024,
    neighbours: PER_NEIGHBOURHOOD,
};
/// How long it is believed that a server has delayed events, has none, or does not say.
const SUPPORTED: Duration = Duration::from_secs(3600);
const UNSUPPORTED: Duration = Duration::from_secs(300);
const UNSAID: Duration = Duration::from_secs(60);
/// What to tell a caller for whom there is no place.
const BUSY_RETRY: Duration = Duration::from_secs(2);

/// How a homeserver wants to be told about delayed events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathForm {
    /// `/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{id}/{action}`
    Unstable,
    /// `/_matrix/client/v1/delayed_events/{id}/{action}`
    Stable,
    /// The unstable path without the action, which is in the body.
    InBody,
}

/// Whether a homeserver has delayed events (MSC4140).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It has, or does not say.
    Yes(PathForm),
    /// It says that it has not.
    No,
}

/// Why a client-server API was not found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
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
                "no client-server API by {WELL_KNOWN}: {why} (LIVEKIT_CS_API_URL_OVERRIDES would say where it is)"
            ),
            Self::Unreachable(why) => write!(
                f,
                "no answer to {WELL_KNOWN}: {why} (LIVEKIT_CS_API_URL_OVERRIDES would say where the API is)"
            ),
            Self::Busy(after) => write!(f, "too many look-ups under way, try again in {after:?}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<Waited> for Error {
    fn from(_: Waited) -> Self {
        Self::Busy(BUSY_RETRY)
    }
}

/// What is known of one server name.
#[derive(Debug, Clone, Default)]
struct Known {
    base: Memory<BaseUrl>,
    versions: Option<Versions>,
    /// The form that was found out by trying.
    learned: Option<PathForm>,
}

#[derive(Debug, Clone)]
struct Versions {
    of: BaseUrl,
    support: Support,
    fresh_until: Instant,
}

impl cache::Known for Known {
    fn is_stale(&self, now: Instant) -> bool {
        self.base.is_stale(now) || self.base.found().is_some_and(|base| self.asks(base, now))
    }

    fn expire(&mut self) {
        self.base.expire();
        if let Some(versions) = &mut self.versions {
            versions.fresh_until = Instant::now();
        }
    }
}

impl Known {
    fn asks(&self, base: &BaseUrl, now: Instant) -> bool {
        let fresh = |versions: &Versions| versions.of == *base && versions.fresh_until > now;
        !self.versions.as_ref().is_some_and(fresh)
    }
}

/// An API that was found.
#[derive(Debug, Clone)]
pub(super) struct Api {
    /// Where it is.
    pub(super) base: BaseUrl,
    /// The way there.
    pub(super) route: Route,
    /// What it said about delayed events.
    pub(super) support: Support,
}

/// The client-server APIs of all homeservers.
#[derive(Debug)]
pub struct ClientApi {
    fetcher: Fetcher,
    overrides: BTreeMap<ServerName, BaseUrl>,
    listed: BTreeSet<ServerName>,
    cache: Cache<Known>,
}

impl ClientApi {
    /// `overrides` say where APIs are instead of the well-known. Servers that the administrator has `listed` may be on private
    /// addresses.
    pub fn new(
        fetcher: Fetcher,
        overrides: BTreeMap<ServerName, BaseUrl>,
        listed: BTreeSet<ServerName>,
    ) -> Self {
        Self {
            fetcher,
            overrides,
            listed,
            cache: Cache::default(),
        }
    }

    /// Finds the API and asks whether it has delayed events. Both are remembered; when they are not, this waits for the homeserver,
    /// 10 s at most.
    pub fn delayed_events(&self, server: &ServerName) -> Result<Support, Error> {
        self.find(server, Instant::now() + BUDGET)
            .map(|api| api.support)
    }

    /// Whether the administrator lists a server or says where it is.
    pub(super) fn knows(&self, server: &ServerName) -> bool {
        self.trust(server) != Trust::Stranger
    }

    /// Finds the API by `deadline`.
    pub(super) fn find(&self, server: &ServerName, deadline: Instant) -> Result<Api, Error> {
        let trust = self.trust(server);
        let shelf = Shelf::of(trust);
        let known = self.cache.refresh(shelf, server, deadline, |known| {
            let now = Instant::now();
            if now >= deadline {
                return Err(Waited.into());
            }
            self.refresh(known, server, trust, deadline.min(now + BUDGET))
        })?;
        let Some(base) = known.base.found() else {
            return Err(match known.base.failure() {
                Some((why, true)) => Error::Absent(why.to_owned()),
                Some((why, false)) => Error::Unreachable(why.to_owned()),
                None => Waited.into(),
            });
        };
        let said = known.versions.map_or(UNSAID_SUPPORT, |v| v.support);
        Ok(Api {
            base: base.clone(),
            route: route(base, trust),
            support: match (said, known.learned) {
                (Support::Yes(_), Some(form)) => Support::Yes(form),
                _ => said,
            },
        })
    }

    /// Remembers the form that a server has turned out to understand.
    pub(super) fn learn(&self, server: &ServerName, form: PathForm) {
        let shelf = Shelf::of(self.trust(server));
        self.cache
            .amend(shelf, server, |known| known.learned = Some(form));
    }

    /// Has a server looked up afresh, because its API does not answer where it was found before `since`; at most once a minute.
    pub(super) fn doubt(&self, server: &ServerName, since: Instant) {
        let shelf = Shelf::of(self.trust(server));
        self.cache.doubt(shelf, server, since);
    }

    fn trust(&self, server: &ServerName) -> Trust {
        if self.overrides.contains_key(server) {
            Trust::Administrator
        } else if self.listed.contains(server) {
            Trust::FullAccess
        } else {
            Trust::Stranger
        }
    }

    fn refresh(
        &self,
        known: &mut Known,
        server: &ServerName,
        trust: Trust,
        deadline: Instant,
    ) -> Result<(), Error> {
        if known.base.is_stale(Instant::now()) {
            let asked = match self.overrides.get(server) {
                Some(url) => Asked::Found(url.clone(), well_known::MAX_TTL),
                None => {
                    let host = server.host();
                    well_known::ask(&self.fetcher, host, WELL_KNOWN, trust, deadline, read_base)
                        .map_err(|_| Error::Busy(BUSY_RETRY))?
                }
            };
            log_base(server, &asked);
            let before = known.base.found().cloned();
            known.base.learn(asked, PAUSES, Instant::now());
            if known.base.found() != before.as_ref() {
                known.learned = None;
            }
        }
        if let Some(base) = known.base.found()
            && known.asks(base, Instant::now())
        {
            let said = self.ask_versions(server, base, trust, deadline)?;
            // without an answer, what it said before is the best guess
            let before = known.versions.take().filter(|before| before.of == *base);
            known.versions = Some(Versions {
                of: base.clone(),
                support: said
                    .or(before.map(|before| before.support))
                    .unwrap_or(UNSAID_SUPPORT),
                fresh_until: Instant::now()
                    + match said {
                        Some(Support::Yes(_)) => SUPPORTED,
                        Some(Support::No) => UNSUPPORTED,
                        None => UNSAID,
                    },
            });
        }
        Ok(())
    }

    fn ask_versions(
        &self,
        server: &ServerName,
        base: &BaseUrl,
        trust: Trust,
        deadline: Instant,
    ) -> Result<Option<Support>, Error> {
        let target = format!("{}{VERSIONS}", base.path());
        let request = Request::get(&target);
        let route = route(base, trust);
        let answer = self
            .fetcher
            .fetch(&route, request, VERSIONS_LIMITS, deadline);
        match answer {
            Ok(answer) if answer.status == 200 => Ok(read_support(&answer.body)),
            Ok(answer) => {
                log::debug!("versions server={server} status={}", answer.status);
                Ok(None)
            }
            Err(error) if error.is_ours() => Err(Error::Busy(BUSY_RETRY)),
            // nobody will ever be told there about a leave
            Err(error @ fetch::Error::Denied(..)) => Err(Error::Absent(error.to_string())),
            Err(error) => {
                log::debug!("versions server={server} cause=\"{error}\"");
                Ok(None)
            }
        }
    }
}

/// What is taken for granted of a server that says nothing about it.
const UNSAID_SUPPORT: Support = Support::Yes(PathForm::Unstable);

fn route(base: &BaseUrl, trust: Trust) -> Route {
    Route {
        trust,
        ..Route::to(base)
    }
}

fn log_base(server: &ServerName, asked: &Asked<BaseUrl>) {
    match asked {
        Asked::Found(base, ttl) => log::debug!(
            "client_well_known server={server} base_url={base} ttl={}s",
            ttl.as_secs()
        ),
        Asked::Absent(why) => {
            log::debug!("client_well_known server={server} absent cause=\"{why}\"")
        }
        Asked::Unreachable(why) => {
            log::debug!("client_well_known server={server} unreachable cause=\"{why}\"")
        }
    }
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use super::document::fuzzing::{client_base, support};
}

#[cfg(test)]
mod tests;
