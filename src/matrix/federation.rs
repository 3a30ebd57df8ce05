//! A bounded GET to a homeserver that a caller named: who may be asked, how often, and by how many at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::matrix::discovery::{self, Discovery, Found};
use crate::matrix::id::ServerName;
use crate::memo::Memo;
use crate::net::address::{Trust, is_public, party};
use crate::net::base_url::BaseUrl;
use crate::net::breaker::{Attempt, Breakers};
use crate::net::bulkhead::{
    Bulkhead, Full, PER_KNOWN_NEIGHBOURHOOD, PER_KNOWN_STRANGER, PER_STRANGER, Place, Places,
};
use crate::net::fetch::{self, Answer, Fetcher, Limits, Request, Route};
use crate::net::rate::Rate;

/// For a call to a stranger's server in all, discovery included. Element Call gives up after some 30 s.
const STRANGER_BUDGET: Duration = Duration::from_secs(15);
/// For a call to a listed server in all.
const LISTED_BUDGET: Duration = Duration::from_secs(25);
/// Calls that one address causes to one stranger's server: a burst for those behind one router, and one each interval.
const CLIENT_BURST: u32 = 20;
const CLIENT_INTERVAL: Duration = Duration::from_millis(500);
/// Calls to one stranger's server, whoever causes them: what it can be made to answer through us.
const NAME_BURST: u32 = 200;
const NAME_INTERVAL: Duration = Duration::from_millis(20);
/// How long a server that has answered counts as one that does.
const KNOWN_FOR: Duration = Duration::from_secs(600);
/// Names that are remembered as such.
const KNOWN_NAMES: usize = 1024;
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
    listed: BTreeSet<ServerName>,
    bulkhead: Bulkhead<ServerName>,
    breakers: Breakers<ServerName>,
    rate: Rate<ServerName>,
    client_rate: Rate<(IpAddr, ServerName)>,
    answering: Memo<ServerName, ()>,
}

impl Federation {
    /// `overrides` say where servers are instead of discovery, and `places` how many callers may wait for answers. Servers
    /// that the administrator has `listed` may be on private addresses.
    pub fn new(
        fetcher: Fetcher,
        overrides: BTreeMap<ServerName, BaseUrl>,
        listed: BTreeSet<ServerName>,
        places: Places,
    ) -> Self {
        Self {
            fetcher,
            discovery: Discovery::default(),
            overrides,
            listed,
            bulkhead: Bulkhead::new(places),
            breakers: Breakers::default(),
            rate: Rate::new(NAME_INTERVAL, NAME_BURST, RATED_NAMES),
            client_rate: Rate::new(CLIENT_INTERVAL, CLIENT_BURST, RATED_NAMES),
            answering: Memo::new(KNOWN_NAMES),
        }
    }

    /// Asks `target` (path and query) of `server`, wherever that is, for a client at `client`. Whatever it answers is an answer.
    pub fn get(
        &self,
        server: &ServerName,
        target: &str,
        limits: Limits,
        client: Option<IpAddr>,
    ) -> Result<Answer, Error> {
        let now = Instant::now();
        let known = self.knows(server);
        let (_place, limits) = self.admit(server, limits, client, now)?;
        // last, as whoever is let through to try has to report what came of it
        let attempt = self.breakers.attempt(server, now).map_err(Error::Resting)?;
        let budget = if known {
            LISTED_BUDGET
        } else {
            STRANGER_BUDGET
        };
        let deadline = now + budget;
        let result = match self.overrides.get(server) {
            Some(url) => {
                let target = format!("{}{target}", url.path());
                self.try_each(&[Route::to(url)], &target, limits, deadline)
            }
            None => self.discover_and_get(server, target, limits, deadline),
        };
        self.remember(attempt, server, known, &result);
        result
    }

    /// A place for the call, and its limits: a server that has answered lately may have more calls at once.
    fn admit(
        &self,
        server: &ServerName,
        limits: Limits,
        client: Option<IpAddr>,
        now: Instant,
    ) -> Result<(Place<ServerName>, Limits), Error> {
        if !self.knows(server) {
            self.check_rates(server, client, now)?;
        }
        let place = self.place_at(server);
        let place = place.map_err(|(full, after)| Error::Busy(full, after))?;
        let answers = self.answering.recall(server, now).is_some();
        let neighbours = if answers {
            PER_KNOWN_NEIGHBOURHOOD
        } else {
            limits.neighbours
        };
        Ok((
            place,
            Limits {
                neighbours,
                ..limits
            },
        ))
    }

    /// What the outcome says about the server.
    fn remember(
        &self,
        attempt: Attempt<'_, ServerName>,
        server: &ServerName,
        known: bool,
        result: &Result<Answer, Error>,
    ) {
        let now = Instant::now();
        match result {
            Ok(_) => {
                attempt.succeeded();
                if !known {
                    self.answering
                        .learn(server.clone(), (), now + KNOWN_FOR, now);
                }
            }
            Err(Error::Unreachable(tried)) if tried.iter().any(|(_, error)| error.is_silence()) => {
                attempt.failed(known, now);
                self.answering.forget(server);
            }
            Err(_) => {}
        }
    }

    /// A place to wait in on behalf of a user of `server`, for an answer that is not their server's; or which places were
    /// taken, and when to try again.
    pub fn place(&self, server: &ServerName) -> Result<Place<ServerName>, (Full, Duration)> {
        let place = if self.knows(server) {
            self.bulkhead.enter_listed()
        } else {
            self.bulkhead.enter_anybody()
        };
        place.map_err(|full| (full, FULL_RETRY))
    }

    /// A place to wait in for an answer of `server` itself: one of few, if it is a stranger; or which places were taken, and when
    /// to try again.
    pub fn place_at(&self, server: &ServerName) -> Result<Place<ServerName>, (Full, Duration)> {
        let place = if self.knows(server) {
            self.bulkhead.enter_listed()
        } else {
            let most = match self.answering.recall(server, Instant::now()) {
                Some(()) => PER_KNOWN_STRANGER,
                None => PER_STRANGER,
            };
            self.bulkhead.enter_stranger(server.clone(), most)
        };
        place.map_err(|full| (full, FULL_RETRY))
    }

    /// Private addresses are proxies or routers: they have no rate of their own.
    fn check_rates(
        &self,
        server: &ServerName,
        client: Option<IpAddr>,
        now: Instant,
    ) -> Result<(), Error> {
        let public = client.filter(|ip| is_public(*ip));
        let by_client = public.map(|ip| self.client_rate.take(&(party(ip), server.clone()), now));
        by_client
            .unwrap_or(Ok(()))
            .and_then(|()| self.rate.take(server, now))
            .map_err(|wait| Error::Busy(Full::Rate, wait))
    }

    /// Whether the administrator lists a server or says where it is, and so vouches for it.
    pub fn knows(&self, server: &ServerName) -> bool {
        self.listed.contains(server) || self.overrides.contains_key(server)
    }

    fn discover_and_get(
        &self,
        server: &ServerName,
        target: &str,
        limits: Limits,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let trust = if self.listed.contains(server) {
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
                discovery::Error::Waited => Error::Busy(Full::Service, FULL_RETRY),
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
        fetch::Error::Crowded(_) => Full::Neighbourhood,
        _ => Full::LookUps,
    };
    Error::Busy(full, FULL_RETRY)
}
