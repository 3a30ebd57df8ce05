//! The homeserver that has this service for an application service: who is in its rooms (MSC4502), and other homeservers through it
//! (MSC4512).

mod api;
mod diagnostics;
mod response;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::api::{DELAYED_EVENTS, FED_PROXY, IS_JOINED, VersionedEndpoint};
pub(crate) use self::diagnostics::{ForwardingCheck, PingResult};
pub(crate) use self::response::{RelayResponse, ScheduledDelayedEvent};
use crate::matrix::id::{DelayId, RoomId, ServerName, UserId};
use crate::matrix::registration::AppServiceSecret;
use crate::net::base_url::BaseUrl;
use crate::net::http_client::{FetchLimits, FetchRequest, FetchResponse, Fetcher, HttpRoute};
use crate::net::permits::MAX_CALLS_PER_SUBNET;
use crate::util::metrics;
use crate::util::single_flight::SingleFlight;
use crate::util::text::percent_encode;
use crate::util::ttl_cache::TtlCache;

/// For a question that the homeserver answers out of its own database, in all.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
const LIMITS: FetchLimits = FetchLimits {
    kind: "appservice",
    connect_timeout: Duration::from_secs(3),
    head_timeout: Duration::from_secs(5),
    body_timeout: Duration::from_secs(3),
    // a delayed event with its content; an event has 64 KiB at most, escaped in JSON perhaps more
    max_body: 128 * 1024,
    max_subnet_calls: MAX_CALLS_PER_SUBNET,
};
/// For a question that it passes on to another one.
const RELAY_TIMEOUT: Duration = Duration::from_secs(16);
const RELAY_LIMITS: FetchLimits = FetchLimits {
    kind: "fed_proxy",
    connect_timeout: Duration::from_secs(3),
    head_timeout: Duration::from_secs(14),
    body_timeout: Duration::from_secs(3),
    // a token has less than 2 KiB
    max_body: 64 * 1024,
    max_subnet_calls: MAX_CALLS_PER_SUBNET,
};
/// How long it is believed that somebody is in a room; clients ask for several things in a row.
const JOINED_TTL: Duration = Duration::from_secs(5);
/// The same of somebody who is not, short: they may join next.
const NOT_JOINED_TTL: Duration = Duration::from_secs(1);
/// Memberships that are remembered, at some 300 bytes: those of a minute of joins.
const MAX_CACHED_MEMBERSHIPS: usize = 4096;

/// Why the homeserver did not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Error {
    /// It did not answer: why not.
    Unreachable(String),
    /// It is there, but what it answers comes too late or is too much.
    IncompleteResponse(String),
    /// It does not let us ask: status and errcode.
    Refused(u16, String),
    /// It does not know what was asked.
    Unsupported(&'static str),
    /// It answered with something else: status.
    UnexpectedResponse(u16),
    /// It, or we, have enough to do.
    Busy,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(
                f,
                "the homeserver does not answer at {why} (LIVEKIT_HS_URL says where it is)"
            ),
            Self::IncompleteResponse(why) => write!(f, "no answer of the homeserver at {why}"),
            Self::Refused(status, errcode) => write!(
                f,
                "the homeserver refuses our as_token with status {status} {errcode} (its registration has to be the one here, with \
                 the scope and the users that generate-registration writes)"
            ),
            Self::Unsupported(msc) => write!(
                f,
                "the homeserver does not know {msc} (of Synapse: 1.163 or newer, with it among its experimental_features)"
            ),
            Self::UnexpectedResponse(status) => {
                write!(
                    f,
                    "the homeserver's answer of status {status} makes no sense"
                )
            }
            Self::Busy => f.write_str(
                "too many questions to the homeserver under way, or it says so itself (429)",
            ),
        }
    }
}

impl std::error::Error for Error {}

/// A user who is in a room, as our homeserver says. Nothing but [`Homeserver::joined`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JoinedUser(UserId);

impl JoinedUser {
    /// Who it is.
    pub(crate) fn id(&self) -> &UserId {
        &self.0
    }

    /// A user for the tests of the rooms that need one.
    #[cfg(test)]
    pub(crate) fn for_test(id: &str) -> Self {
        Self(UserId::parse(id).unwrap())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum MembershipSubject {
    User(UserId),
    Server(ServerName),
}

type MembershipKey = (RoomId, MembershipSubject);

/// Our homeserver.
#[derive(Debug)]
pub(crate) struct HomeserverClient {
    fetcher: Fetcher,
    name: ServerName,
    url: BaseUrl,
    route: HttpRoute,
    as_token: AppServiceSecret,
    /// Which of [`IS_JOINED`], [`FED_PROXY`] and [`DELAYED_EVENTS`] it knows by their stable names, as was found out by asking.
    uses_stable_prefix: [AtomicBool; 3],
    membership_cache: TtlCache<MembershipKey, bool>,
    in_flight: SingleFlight<MembershipKey, Result<bool, Error>>,
}

impl HomeserverClient {
    /// The one called `name`, whose client-server API is at `url`, and which knows us by `as_token`.
    pub(crate) fn new(
        fetcher: Fetcher,
        name: ServerName,
        url: BaseUrl,
        as_token: AppServiceSecret,
    ) -> Self {
        let route = HttpRoute::administrator_url(&url);
        Self {
            fetcher,
            name,
            url,
            route,
            as_token,
            uses_stable_prefix: Default::default(),
            membership_cache: TtlCache::new(MAX_CACHED_MEMBERSHIPS),
            in_flight: SingleFlight::new(),
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &ServerName {
        &self.name
    }

    /// The user, if they are in the room; what is known of it may be 5 s old. Many who ask the same cause one question. Ends by
    /// `deadline`, and after 8 s at the latest.
    pub(crate) fn check_joined(
        &self,
        room: &RoomId,
        user: &UserId,
        deadline: Instant,
    ) -> Result<Option<JoinedUser>, Error> {
        let joined =
            self.lookup_membership(room, MembershipSubject::User(user.clone()), deadline)?;
        Ok(joined.then(|| JoinedUser(user.clone())))
    }

    /// Whether any user of `server` is in the room; as old as what [`Self::joined`] says.
    pub(crate) fn is_server_joined(
        &self,
        room: &RoomId,
        server: &ServerName,
        deadline: Instant,
    ) -> Result<bool, Error> {
        self.lookup_membership(room, MembershipSubject::Server(server.clone()), deadline)
    }

    /// Whether the user is in the room at this moment.
    pub(crate) fn is_joined_uncached(&self, room: &RoomId, user: &UserId) -> Result<bool, Error> {
        let membership = (room.clone(), MembershipSubject::User(user.clone()));
        self.fetch_membership(&membership, Instant::now() + CALL_TIMEOUT)
    }

    /// Posts `body` to `path` of another homeserver, in our homeserver's name. Whatever that one answers is an answer. Ends by
    /// `deadline`, and after 16 s at the latest.
    pub(crate) fn relay(
        &self,
        to: &ServerName,
        path: &str,
        body: &Value,
        deadline: Instant,
    ) -> Result<RelayResponse, Error> {
        let body =
            json!({ "destination": to.as_str(), "method": "POST", "path": path, "body": body });
        let answer = self.call(
            &FED_PROXY,
            "appservice/fed_proxy",
            Some(body.to_string().as_bytes()),
            RELAY_LIMITS,
            deadline.min(Instant::now() + RELAY_TIMEOUT),
        )?;
        response::parse_relay_response(&answer)
    }

    /// A delayed event of one of its users, if they have such a one (MSC4140). Ends by `deadline`, and after 8 s at the latest.
    pub(crate) fn get_delayed_event(
        &self,
        user: &UserId,
        id: &DelayId,
        deadline: Instant,
    ) -> Result<Option<ScheduledDelayedEvent>, Error> {
        let deadline = deadline.min(Instant::now() + CALL_TIMEOUT);
        let target = format!(
            "delayed_events/{}?user_id={}",
            percent_encode(id.as_str()),
            percent_encode(user.as_str())
        );
        let answer = self.call(&DELAYED_EVENTS, &target, None, LIMITS, deadline)?;
        response::parse_delayed_event(&answer)
    }

    /// Whoever only hears that somebody else's question has failed asks once more, together with all others who have.
    fn lookup_membership(
        &self,
        room: &RoomId,
        who: MembershipSubject,
        deadline: Instant,
    ) -> Result<bool, Error> {
        let membership = (room.clone(), who);
        let known = self.membership_cache.get(&membership, Instant::now());
        metrics::count_cache_lookup("membership", known.is_some());
        if let Some(known) = known {
            return Ok(known);
        }
        let deadline = deadline.min(Instant::now() + CALL_TIMEOUT);
        let asked = Cell::new(false);
        let share = || {
            let ask = || {
                // somebody else may have asked since
                let known = self.membership_cache.get(&membership, Instant::now());
                known.map(Ok).unwrap_or_else(|| {
                    asked.set(true);
                    self.fetch_membership(&membership, deadline)
                })
            };
            let answer = self.in_flight.run_or_join(&membership, deadline, ask);
            answer.unwrap_or(Err(Error::Busy))
        };
        match share() {
            Err(_) if !asked.get() && Instant::now() < deadline => share(),
            answer => answer,
        }
    }

    fn fetch_membership(
        &self,
        membership: &MembershipKey,
        deadline: Instant,
    ) -> Result<bool, Error> {
        let (room, who) = membership;
        let query = match who {
            MembershipSubject::User(user) => format!("mxid={}", percent_encode(user.as_str())),
            MembershipSubject::Server(server) => {
                format!("server_name={}", percent_encode(server.as_str()))
            }
        };
        let target = format!("rooms/{}/is_joined?{query}", percent_encode(room.as_str()));
        let answer = self.call(&IS_JOINED, &target, None, LIMITS, deadline)?;
        let joined = response::parse_is_joined(&answer)?;
        let now = Instant::now();
        let lasting = if joined { JOINED_TTL } else { NOT_JOINED_TTL };
        self.membership_cache
            .insert(membership.clone(), joined, now + lasting);
        Ok(joined)
    }

    /// Asks by the name of the MSC and by the stable one, of which the one that it knew last comes first.
    fn call(
        &self,
        api: &VersionedEndpoint,
        target: &str,
        post: Option<&[u8]>,
        limits: FetchLimits,
        deadline: Instant,
    ) -> Result<FetchResponse, Error> {
        let known = &self.uses_stable_prefix[api.index];
        let first = known.load(Ordering::Relaxed);
        for by_stable_name in [first, !first] {
            let version = if by_stable_name {
                api.stable_prefix
            } else {
                api.unstable_prefix
            };
            let path = format!("{version}/{target}");
            let answer = self.fetch(&path, Some(&self.as_token), post, limits, deadline)?;
            if !response::is_unknown_path(&answer) {
                known.store(by_stable_name, Ordering::Relaxed);
                return Ok(answer);
            }
        }
        Err(Error::Unsupported(api.name))
    }

    /// Asks at a path below that of its client-server API.
    fn fetch(
        &self,
        path: &str,
        token: Option<&AppServiceSecret>,
        post: Option<&[u8]>,
        limits: FetchLimits,
        deadline: Instant,
    ) -> Result<FetchResponse, Error> {
        let target = format!("{}/_matrix/client/{path}", self.url.path());
        let authorization = token.map(AppServiceSecret::authorization_header);
        let request = FetchRequest {
            target: &target,
            authorization: authorization.as_deref(),
            post: post.map(|body| ("application/json", body)),
        };
        let answer = self.fetcher.fetch(&self.route, request, limits, deadline);
        answer.map_err(|error| {
            let why = || format!("{}: {error}", self.url);
            match &error {
                error if error.is_local_overload() => Error::Busy,
                error if error.is_response_failure() => Error::IncompleteResponse(why()),
                _ => Error::Unreachable(why()),
            }
        })
    }
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::matrix::appservice::response::fuzzing::{joined, relayed};
}
