//! A bounded GET to a homeserver that a caller named: who may be asked, how often, and by how many at once.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use crate::access::FullAccess;
use crate::matrix::discovery::{self, Discovery, Found};
use crate::matrix::id::ServerName;
use crate::net::address::Trust;
use crate::net::base_url::BaseUrl;
use crate::net::breaker::Breakers;
use crate::net::bulkhead::{Bulkhead, Full, Place, Places};
use crate::net::fetch::{self, Answer, Fetcher, Limits, Request, Route};
use crate::net::rate::Rate;

/// For a call to a stranger's server in all, discovery included. Element Call gives up after some 30 s.
const STRANGER_BUDGET: Duration = Duration::from_secs(15);
/// For a call to a listed server in all.
const LISTED_BUDGET: Duration = Duration::from_secs(25);
/// Calls in the name of one stranger: a burst when a meeting starts, and one each interval.
const STRANGER_BURST: u32 = 50;
const STRANGER_INTERVAL: Duration = Duration::from_millis(100);
/// Names whose rate is remembered.
const RATED_NAMES: usize = 4096;
/// What to tell a caller for whom there is no place: by then a call to a tarpit may have ended.
const FULL_RETRY: Duration = Duration::from_secs(2);

/// Why a homeserver was not heard.
#[derive(Debug)]
pub enum Error {
    /// No outbound place is free, or the name is asked for too often; try again after this time.
    Busy(Full, Duration),
    /// It did not answer lately, and is left alone for this long.
    Resting(Duration),
    /// Its discovery takes too long.
    Discovery(discovery::Error),
    /// DNS says that there is decidedly no homeserver of this name.
    NoSuchServer,
    /// None of the places where it should be answered.
    Unreachable(Vec<(Box<str>, fetch::Error)>),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(full, after) => write!(f, "{full}, try again in {after:?}"),
            Self::Resting(left) => write!(
                f,
                "the server did not answer lately and is not asked again for {} s",
                left.as_secs() + 1
            ),
            Self::Discovery(error) => error.fmt(f),
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
pub struct Federation {
    fetcher: Fetcher,
    discovery: Discovery,
    overrides: BTreeMap<ServerName, BaseUrl>,
    full_access: FullAccess,
    bulkhead: Bulkhead<ServerName>,
    breakers: Breakers<ServerName>,
    rate: Rate<ServerName>,
}

impl Federation {
    /// `overrides` say where servers are instead of discovery; `places` how many callers may wait for answers.
    pub fn new(
        fetcher: Fetcher,
        overrides: BTreeMap<ServerName, BaseUrl>,
        full_access: FullAccess,
        places: Places,
    ) -> Self {
        Self {
            fetcher,
            discovery: Discovery::default(),
            overrides,
            full_access,
            bulkhead: Bulkhead::new(places),
            breakers: Breakers::default(),
            rate: Rate::new(STRANGER_INTERVAL, STRANGER_BURST, RATED_NAMES),
        }
    }

    /// Asks `target` (path and query) of `server`, wherever that is. Whatever it answers is an answer.
    pub fn get(&self, server: &ServerName, target: &str, limits: Limits) -> Result<Answer, Error> {
        let now = Instant::now();
        let known = self.knows(server);
        if !known {
            self.rate
                .take(server, now)
                .map_err(|wait| Error::Busy(Full::Name, wait))?;
        }
        let _place = self
            .place(server)
            .map_err(|(full, after)| Error::Busy(full, after))?;
        // last, as whoever is let through to try has to report what came of it
        self.breakers.check(server, now).map_err(Error::Resting)?;
        let deadline = now
            + if known {
                LISTED_BUDGET
            } else {
                STRANGER_BUDGET
            };
        let result = match self.overrides.get(server) {
            Some(url) => {
                let target = format!("{}{target}", url.path());
                self.try_each(&[fixed(url)], &target, limits, deadline)
            }
            None => self.discover_and_get(server, target, limits, deadline),
        };
        match &result {
            Ok(_) => self.breakers.success(server),
            Err(Error::Unreachable(tried)) if tried.iter().any(|(_, error)| is_silence(error)) => {
                self.breakers.failure(server, known, Instant::now());
            }
            Err(_) => self.breakers.spared(server, Instant::now()),
        }
        result
    }

    /// A place to wait in on behalf of a user of `server`, for whatever answer; or which were taken, and when to try again.
    pub fn place(&self, server: &ServerName) -> Result<Place<ServerName>, (Full, Duration)> {
        let place = if self.knows(server) {
            self.bulkhead.enter_listed()
        } else {
            self.bulkhead.enter_stranger(server.clone())
        };
        place.map_err(|full| (full, FULL_RETRY))
    }

    /// An administrator who says where a server is vouches for it as much as one who lists it.
    fn knows(&self, server: &ServerName) -> bool {
        self.full_access.lists(server) || self.overrides.contains_key(server)
    }

    fn discover_and_get(
        &self,
        server: &ServerName,
        target: &str,
        limits: Limits,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let trust = if self.full_access.lists(server) {
            Trust::FullAccess
        } else {
            Trust::Stranger
        };
        let started = Instant::now();
        let found = self.find(server, trust, deadline)?;
        let first = self.try_each(&found.routes, target, limits, deadline);
        if !matches!(first, Err(Error::Unreachable(_))) {
            return first;
        }
        // one caller a minute may doubt what is known; the others join its look-up, or have its answer already
        self.discovery.doubt(server, trust, started);
        let again = self.find(server, trust, deadline)?;
        if again.routes == found.routes {
            return first;
        }
        self.try_each(&again.routes, target, limits, deadline)
    }

    fn find(&self, server: &ServerName, trust: Trust, deadline: Instant) -> Result<Found, Error> {
        let found = self
            .discovery
            .find(&self.fetcher, server, trust, deadline)
            .map_err(|error| match error {
                discovery::Error::NoPlace(error) => no_place(&error),
                error @ discovery::Error::Waited => Error::Discovery(error),
            })?;
        log::debug!("discovered server={server} {found}");
        if found.routes.is_empty() {
            Err(Error::NoSuchServer)
        } else {
            Ok(found)
        }
    }

    fn try_each(
        &self,
        routes: &[Route],
        target: &str,
        limits: Limits,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let mut tried = Vec::new();
        for route in routes {
            match self
                .fetcher
                .fetch(route, Request::get(target), limits, deadline)
            {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_ours() => return Err(no_place(&error)),
                Err(error) => tried.push((format!("{}:{}", route.host, route.port).into(), error)),
            }
        }
        Err(Error::Unreachable(tried))
    }
}

/// What the caller is told when we are short of places ourselves.
fn no_place(error: &fetch::Error) -> Error {
    let full = match error {
        fetch::Error::Crowded(_) => Full::Name,
        _ => Full::Service,
    };
    Error::Busy(full, FULL_RETRY)
}

fn fixed(url: &BaseUrl) -> Route {
    Route {
        host: url.host().clone(),
        port: url.port(),
        tls: url.tls().then(|| url.host().clone()),
        authority: url.authority().into(),
        trust: Trust::Administrator,
    }
}

/// Whether the server itself failed to answer; an address that may not be dialled says nothing about it.
fn is_silence(error: &fetch::Error) -> bool {
    !matches!(error, fetch::Error::Denied(..)) && !error.is_ours()
}
