//! Client of the homeserver whose application service this is: memberships of rooms (MSC4502), requests to other homeservers
//! (MSC4512) and delayed events (MSC4140).

mod diagnostics;
mod response;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(crate) use self::diagnostics::{ForwardingCheck, PingResult};
use self::response::HomeserverResponse;
pub(crate) use self::response::{RelayResponse, ScheduledDelayedEvent};
use crate::matrix::id::{DelayId, RoomId, ServerName, UserId};
use crate::matrix::registration::AppServiceSecret;
use crate::net::base_url::BaseUrl;
use crate::net::http_client::{FetchLimits, FetchRequest, Fetcher, HttpRoute};
use crate::util::metrics;
use crate::util::text::percent_encode;
use crate::util::ttl_cache::FetchCache;

/// Timeout of a call that the homeserver answers from its own database.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
const LIMITS: FetchLimits = FetchLimits {
    connect_timeout: Duration::from_secs(3),
    head_timeout: Duration::from_secs(5),
    // a delayed event with its content: an event has at most 64 KiB, and more with the escapes of JSON
    max_body: 128 * 1024,
    ..FetchLimits::new("appservice")
};
/// Timeout of a call for which the homeserver calls another server.
const RELAY_TIMEOUT: Duration = Duration::from_secs(16);
const RELAY_LIMITS: FetchLimits = FetchLimits {
    connect_timeout: Duration::from_secs(3),
    head_timeout: Duration::from_secs(14),
    ..FetchLimits::new("fed_proxy")
};
/// How long a user or server counts as joined: clients make several requests in a row.
const JOINED_TTL: Duration = Duration::from_secs(5);
/// How long a user or server counts as not joined: shorter, as the user may join next.
const NOT_JOINED_TTL: Duration = Duration::from_secs(1);
/// Cached memberships, with about 300 bytes each: those of a minute of joins.
const MAX_CACHED_MEMBERSHIPS: usize = 4096;

/// The reason why a call has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Error {
    /// No response: URL and cause.
    Unreachable(String),
    /// The response is late or too large: URL and cause.
    IncompleteResponse(String),
    /// The homeserver refuses the `as_token`: status and errcode.
    Refused(u16, String),
    /// The homeserver does not implement an MSC: its name.
    Unsupported(&'static str),
    /// The response is none that the MSC describes: status.
    UnexpectedResponse(u16),
    /// A limit of concurrent calls is reached, or the homeserver limits the rate.
    Busy,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(reason) => write!(
                f,
                "the homeserver does not respond at {reason} (set LIVEKIT_HS_URL to its URL)"
            ),
            Self::IncompleteResponse(reason) => {
                write!(f, "no complete response of the homeserver at {reason}")
            }
            Self::Refused(status, errcode) => write!(
                f,
                "the homeserver refuses the as_token with status {status} {errcode} (the homeserver and this service need the same \
                 registration, with the scope and the users that generate-registration writes)"
            ),
            Self::Unsupported(msc) => write!(
                f,
                "the homeserver does not support {msc} (Synapse: 1.163 or newer, with the MSC among its experimental_features)"
            ),
            Self::UnexpectedResponse(status) => write!(
                f,
                "unexpected response of the homeserver with status {status}"
            ),
            Self::Busy => f.write_str(
                "too many concurrent calls to the homeserver, or the homeserver limits the rate (429)",
            ),
        }
    }
}

impl std::error::Error for Error {}

/// A user whom the homeserver has confirmed as a member of a room. Only [`HomeserverClient::check_joined`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JoinedUser(UserId);

impl JoinedUser {
    pub(crate) fn id(&self) -> &UserId {
        &self.0
    }

    #[cfg(test)]
    pub(crate) fn for_test(id: &str) -> Self {
        Self(UserId::parse(id).unwrap())
    }
}

/// A user, or any user of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum MembershipSubject {
    User(UserId),
    Server(ServerName),
}

type MembershipKey = (RoomId, MembershipSubject);

/// An API of an MSC, which has other paths once the MSC is stable.
#[derive(Debug)]
struct MscEndpoint {
    name: &'static str,
    unstable_prefix: &'static str,
    stable_prefix: &'static str,
    /// Whether the homeserver has last answered at the stable prefix, which is then tried first.
    stable: AtomicBool,
}

impl MscEndpoint {
    fn new(name: &'static str, unstable_prefix: &'static str, stable_prefix: &'static str) -> Self {
        Self {
            name,
            unstable_prefix,
            stable_prefix,
            stable: AtomicBool::new(false),
        }
    }
}

/// Client of the homeserver.
#[derive(Debug)]
pub(crate) struct HomeserverClient {
    fetcher: Fetcher,
    name: ServerName,
    url: BaseUrl,
    route: HttpRoute,
    as_token: AppServiceSecret,
    is_joined: MscEndpoint,
    fed_proxy: MscEndpoint,
    delayed_events: MscEndpoint,
    memberships: FetchCache<MembershipKey, bool, Error>,
}

impl HomeserverClient {
    /// A client of the homeserver `name`, whose client-server API is at `url`.
    pub(crate) fn new(
        fetcher: Fetcher,
        name: ServerName,
        url: BaseUrl,
        as_token: AppServiceSecret,
    ) -> Self {
        Self {
            fetcher,
            name,
            route: HttpRoute::administrator_url(&url),
            url,
            as_token,
            is_joined: MscEndpoint::new("is_joined (MSC4502)", "unstable/io.element.msc4502", "v3"),
            fed_proxy: MscEndpoint::new("fed_proxy (MSC4512)", "unstable/io.element.msc4512", "v1"),
            delayed_events: MscEndpoint::new(
                "delayed events (MSC4140)",
                "unstable/org.matrix.msc4140",
                "v1",
            ),
            memberships: FetchCache::new(MAX_CACHED_MEMBERSHIPS),
        }
    }

    pub(crate) fn name(&self) -> &ServerName {
        &self.name
    }

    /// The user, if joined to the room up to 5 s ago. Ends by `deadline`, and after 8 s at the latest.
    pub(crate) fn check_joined(
        &self,
        room: &RoomId,
        user: &UserId,
        deadline: Instant,
    ) -> Result<Option<JoinedUser>, Error> {
        let subject = MembershipSubject::User(user.clone());
        let joined = self.lookup_membership(room, subject, deadline)?;
        Ok(joined.then(|| JoinedUser(user.clone())))
    }

    /// Whether any user of `server` was joined to the room up to 5 s ago. Ends by `deadline`, and after 8 s at the latest.
    pub(crate) fn is_server_joined(
        &self,
        room: &RoomId,
        server: &ServerName,
        deadline: Instant,
    ) -> Result<bool, Error> {
        self.lookup_membership(room, MembershipSubject::Server(server.clone()), deadline)
    }

    /// Whether the user is joined to the room now. Ends after 8 s at the latest.
    pub(crate) fn is_joined_uncached(&self, room: &RoomId, user: &UserId) -> Result<bool, Error> {
        let key = (room.clone(), MembershipSubject::User(user.clone()));
        let (joined, ttl) = self.fetch_membership(&key, Instant::now() + CALL_TIMEOUT)?;
        self.memberships.insert(key, joined, ttl);
        Ok(joined)
    }

    /// Has the homeserver post `body` to `path` of another homeserver; any response of that one is a [`RelayResponse`]. Ends by
    /// `deadline`, and after 16 s at the latest.
    pub(crate) fn relay(
        &self,
        destination: &ServerName,
        path: &str,
        body: &Value,
        deadline: Instant,
    ) -> Result<RelayResponse, Error> {
        let body = json!({ "destination": destination.as_str(), "method": "POST", "path": path, "body": body });
        let response = self.call(
            &self.fed_proxy,
            "appservice/fed_proxy",
            Some(body.to_string().as_bytes()),
            RELAY_LIMITS,
            deadline.min(Instant::now() + RELAY_TIMEOUT),
        )?;
        response.parse_relay()
    }

    /// A delayed event of a local user (MSC4140); `None` if the user has no such event. Ends by `deadline`, and after 8 s at the
    /// latest.
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
        self.call(&self.delayed_events, &target, None, LIMITS, deadline)?
            .parse_delayed_event()
    }

    fn lookup_membership(
        &self,
        room: &RoomId,
        subject: MembershipSubject,
        deadline: Instant,
    ) -> Result<bool, Error> {
        let key = (room.clone(), subject);
        let cached = self.memberships.get(&key);
        metrics::count_cache_lookup("membership", cached.is_some());
        if let Some(joined) = cached {
            return Ok(joined);
        }
        let deadline = deadline.min(Instant::now() + CALL_TIMEOUT);
        let fetched = self
            .memberships
            .get_or_fetch(&key, deadline, || self.fetch_membership(&key, deadline));
        fetched.unwrap_or(Err(Error::Busy))
    }

    /// The membership, and how long it may be cached.
    fn fetch_membership(
        &self,
        (room, subject): &MembershipKey,
        deadline: Instant,
    ) -> Result<(bool, Duration), Error> {
        let (parameter, value) = match subject {
            MembershipSubject::User(user) => ("mxid", user.as_str()),
            MembershipSubject::Server(server) => ("server_name", server.as_str()),
        };
        let target = format!(
            "rooms/{}/is_joined?{parameter}={}",
            percent_encode(room.as_str()),
            percent_encode(value)
        );
        let response = self.call(&self.is_joined, &target, None, LIMITS, deadline)?;
        let joined = response.parse_is_joined()?;
        Ok((joined, if joined { JOINED_TTL } else { NOT_JOINED_TTL }))
    }

    /// Calls an endpoint at its stable or unstable prefix, and at the other one if the homeserver does not know the path.
    fn call(
        &self,
        endpoint: &MscEndpoint,
        target: &str,
        post: Option<&[u8]>,
        limits: FetchLimits,
        deadline: Instant,
    ) -> Result<HomeserverResponse, Error> {
        let stable_first = endpoint.stable.load(Ordering::Relaxed);
        for stable in [stable_first, !stable_first] {
            let prefix = if stable {
                endpoint.stable_prefix
            } else {
                endpoint.unstable_prefix
            };
            let path = format!("{prefix}/{target}");
            let response = self.fetch(&path, Some(&self.as_token), post, limits, deadline)?;
            if !response.is_unknown_path() {
                endpoint.stable.store(stable, Ordering::Relaxed);
                return Ok(response);
            }
        }
        Err(Error::Unsupported(endpoint.name))
    }

    /// Calls a path of the client-server API.
    fn fetch(
        &self,
        path: &str,
        token: Option<&AppServiceSecret>,
        post: Option<&[u8]>,
        limits: FetchLimits,
        deadline: Instant,
    ) -> Result<HomeserverResponse, Error> {
        let target = format!("{}/_matrix/client/{path}", self.url.path());
        let request = FetchRequest {
            target: &target,
            authorization: token.map(AppServiceSecret::authorization_header),
            post: post.map(|body| ("application/json", body)),
        };
        match self.fetcher.fetch(&self.route, request, limits, deadline) {
            Ok(response) => Ok(response.into()),
            Err(error) if error.is_local_overload() => Err(Error::Busy),
            Err(error) => {
                let reason = format!("{}: {error}", self.url);
                Err(match error.is_response_failure() {
                    true => Error::IncompleteResponse(reason),
                    false => Error::Unreachable(reason),
                })
            }
        }
    }
}

#[cfg(fuzzing)]
pub(crate) mod fuzzing {
    pub use super::response::fuzzing::{is_joined_response, relayed_token};
}
