//! Application-service mode: a request that our homeserver passes on is exchanged for a LiveKit access token (MSC4195, over
//! MSC4502 and MSC4512).
//!
//! The homeserver authenticates by the `hs_token` and states which user or homeserver sends the request. The user has to be joined
//! to the Matrix room. For the SFU of another homeserver, our homeserver relays the request to the service there.

mod authenticator;
mod relay;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use self::authenticator::{
    AppServiceAuthenticator, HomeserverProof, HsTokenError, LocalUser, OriginServer, ProxyHeaders,
};
pub(crate) use self::relay::{MscVersion, RelayError, RelayFailure};
use self::relay::{RelayQueue, RelayRequest};
use super::{DelegatedLeave, TokenIssuer};
use crate::delegation;
use crate::delegation::leave::DelegationRequest;
use crate::livekit::access_token::{AccessToken, Claims, JoinPermissions};
use crate::livekit::id::{ParticipantIdentity, ParticipantKey};
use crate::livekit::room_service;
use crate::matrix::appservice::{self, HomeserverClient, JoinedUser};
use crate::matrix::id::{
    DelayId, DeviceId, MemberId, RoomId, RoomMember, ServerName, SlotId, UserId,
};
use crate::matrix::livekit_names;
use crate::membership::{Membership, ParticipantQuotaExceeded};
use crate::net::base_url::BaseUrl;
use crate::net::permits::{FairQueue, Semaphore, SemaphorePermit};
use crate::util::rate_limiter::{Rate, RateLimiter};
use crate::util::text::truncate_chars;

/// Deadline of one request, without the final call to the SFU. Synapse waits 30 s for the response, up to 5 s of which may pass before
/// a worker takes the request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(22);
/// Requests in progress for the users of one other homeserver, so that they leave permits for the rest.
const MAX_ACTIVE_PER_ORIGIN: usize = 8;
/// Requests of one other homeserver's users, in progress or queued: at the start of a call they arrive together.
const MAX_QUEUED_PER_ORIGIN: usize = 32;
/// Longest wait in that queue. With the work that follows, the other homeserver still waits for the response.
const ORIGIN_QUEUE_TIMEOUT: Duration = Duration::from_secs(4);

/// Tokens for our SFU per minute and user, who needs one for each call and device. Each may cost the SFU a room.
const USER_TOKENS_PER_MINUTE: u32 = 120;
/// Tokens for our SFU per minute and other homeserver.
const ORIGIN_TOKENS_PER_MINUTE: u32 = 1200;
/// Keys of each of the two rate limiters.
const MAX_RATE_KEYS: usize = 4096;
/// Characters of an unknown SFU's URL that reach the log.
const MAX_LOGGED_URL_CHARS: usize = 100;

/// A membership in a call, parsed and not verified.
#[derive(Debug)]
pub(crate) struct CallMembership {
    /// The Matrix room.
    pub room: RoomId,
    /// The slot within the room.
    pub slot: SlotId,
    pub member: CallMember,
}

/// The member of the slot, in one of the two dialects in use. Other clients compute the LiveKit identity from the member event as the
/// client's dialect says, so that the dialect of a request determines the identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CallMember {
    /// `member_id`, of the latest MSC4195.
    MemberId {
        id: MemberId,
        /// Known if the request has the field `member` as well. Not part of the identity.
        device: Option<DeviceId>,
    },
    /// `member: {id, claimed_device_id}`, of the earlier MSC4195: matrix-js-sdk 43, matrix-widget-api 1.19, lk-jwt-service 0.7.
    Member { id: MemberId, device: DeviceId },
}

impl CallMember {
    fn derive_identity(&self, user: &JoinedUser) -> ParticipantIdentity {
        match self {
            Self::MemberId { id, .. } => livekit_names::derive_member_identity(user, id),
            Self::Member { id, device } => livekit_names::derive_device_identity(user, device, id),
        }
    }

    /// The member in the other dialect, of which `member` needs a device.
    fn in_other_dialect(&self) -> Option<Self> {
        match self.clone() {
            Self::MemberId { id, device } => device.map(|device| Self::Member { id, device }),
            Self::Member { id, device } => Some(Self::MemberId {
                id,
                device: Some(device),
            }),
        }
    }
}

/// A request of our homeserver's user for a token, parsed and not verified.
#[derive(Debug)]
pub(crate) struct ClientTokenRequest {
    /// The homeserver that the SFU belongs to, if the client names one.
    pub server: Option<ServerName>,
    /// The SFU's URL as clients know it.
    pub url: String,
    pub membership: CallMembership,
}

/// A request of another homeserver for a token for its user, parsed and not verified.
#[derive(Debug)]
pub(crate) struct FederationTokenRequest {
    pub user: UserId,
    /// The SFU's URL as clients know it.
    pub url: String,
    pub membership: CallMembership,
}

/// A request of our homeserver's user to take over a delayed leave, parsed and not verified.
#[derive(Debug)]
pub(crate) struct ClientDelegateRequest {
    /// The SFU's URL as clients know it. Our SFU is meant without one: the widget action of MSC4533 has none.
    pub url: Option<String>,
    pub membership: CallMembership,
    pub delay_id: DelayId,
}

/// The access token that a request results in.
pub(crate) enum AppServiceToken {
    /// For our SFU, signed here.
    Issued(AccessToken, ParticipantKey),
    /// For another homeserver's SFU, signed by the service there.
    Relayed(Box<str>),
}

impl fmt::Debug for AppServiceToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Issued(..) => "Issued(hidden)",
            Self::Relayed(_) => "Relayed(hidden)",
        })
    }
}

/// Why a request fails.
#[derive(Debug)]
pub(crate) enum Error {
    /// The request is not authenticated as one of our homeserver.
    NotAuthenticated(HsTokenError),
    /// The homeserver's headers do not identify the user or the homeserver that sends the request.
    InvalidProxyHeaders(&'static str),
    /// The user is not joined to the Matrix room.
    UserNotJoined(UserId),
    /// No user of the other homeserver is joined to the Matrix room.
    ServerNotJoined(ServerName),
    /// A homeserver asks for a token for another homeserver's user.
    OriginMismatch(UserId, ServerName),
    /// The URL does not belong to our SFU.
    UnknownLiveKitUrl(String),
    /// A call to our homeserver failed.
    Homeserver(appservice::Error),
    /// The other homeserver's service issued no token.
    RelayFailed(Box<RelayError>),
    /// No permit available: at all, or for requests to or from this homeserver.
    Busy(Option<ServerName>),
    /// The user or their homeserver exceeded a rate limit; retry after the duration.
    RateLimited(UserId, Duration),
    /// The participant table is full of connected participants.
    ParticipantLimit(ParticipantQuotaExceeded),
    /// The SFU did not create the room.
    RoomNotCreated(room_service::Error),
    /// The user has no such delayed event in the Matrix room.
    DelayedEventNotFound(UserId),
    /// The delayed leave was not taken over.
    DelegationFailed(delegation::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAuthenticated(error) => error.fmt(f),
            Self::InvalidProxyHeaders(error) => f.write_str(error),
            Self::UserNotJoined(user) => write!(f, "{user} is not joined to the Matrix room"),
            Self::ServerNotJoined(server) => {
                write!(f, "no user of {server} is joined to the Matrix room")
            }
            Self::OriginMismatch(user, origin) => {
                write!(
                    f,
                    "{user} is not a user of {origin}, which sends the request"
                )
            }
            Self::UnknownLiveKitUrl(url) => {
                write!(
                    f,
                    "url: expected that of our SFU (LIVEKIT_URL), found {url:?}"
                )
            }
            Self::Homeserver(error) => error.fmt(f),
            Self::RelayFailed(error) => error.fmt(f),
            Self::Busy(None) => f.write_str("no permit available"),
            Self::Busy(Some(server)) => {
                write!(f, "no permit available for requests to or from {server}")
            }
            Self::RateLimited(user, _) => write!(
                f,
                "more than {USER_TOKENS_PER_MINUTE} tokens a minute for {user}, \
                 or {ORIGIN_TOKENS_PER_MINUTE} for the users of their homeserver"
            ),
            Self::ParticipantLimit(error) => error.fmt(f),
            Self::RoomNotCreated(error) => write!(f, "room not created: {error}"),
            Self::DelayedEventNotFound(user) => {
                write!(f, "{user} has no such delayed event in the Matrix room")
            }
            Self::DelegationFailed(error) => write!(f, "leave not delegated: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<HsTokenError> for Error {
    fn from(error: HsTokenError) -> Self {
        Self::NotAuthenticated(error)
    }
}

impl From<appservice::Error> for Error {
    fn from(error: appservice::Error) -> Self {
        Self::Homeserver(error)
    }
}

/// Queues, permits and rate limits of all requests. They outlast a reload of the settings.
#[derive(Debug)]
pub(crate) struct AppServiceLimits {
    /// For every request.
    permits: Semaphore,
    /// For requests to and from other homeservers. The rest is for our own users and our own SFU.
    remote_permits: Semaphore,
    user_rate_limiter: RateLimiter<UserId>,
    origin_rate_limiter: RateLimiter<ServerName>,
    relay_queue: RelayQueue,
    origin_queue: Arc<FairQueue<ServerName>>,
}

impl AppServiceLimits {
    /// Lets `max_permits` requests wait for other servers at once.
    pub(crate) fn new(max_permits: usize) -> Self {
        let max_remote = (max_permits * 3 / 4).max(1);
        Self {
            permits: Semaphore::new(max_permits),
            remote_permits: Semaphore::new(max_remote),
            user_rate_limiter: RateLimiter::new(MAX_RATE_KEYS),
            origin_rate_limiter: RateLimiter::new(MAX_RATE_KEYS),
            relay_queue: RelayQueue::new(max_remote),
            origin_queue: FairQueue::new(max_remote, MAX_QUEUED_PER_ORIGIN),
        }
    }

    fn acquire(&self) -> Result<SemaphorePermit, Error> {
        self.permits.try_acquire().ok_or(Error::Busy(None))
    }

    fn acquire_remote(&self) -> Result<[SemaphorePermit; 2], Error> {
        let remote = self.remote_permits.try_acquire().ok_or(Error::Busy(None))?;
        Ok([remote, self.acquire()?])
    }

    fn check_rate(&self, user: &UserId, local: bool) -> Result<(), Error> {
        let now = Instant::now();
        let rate = Rate::per_minute(USER_TOKENS_PER_MINUTE);
        let mut checked = self.user_rate_limiter.try_acquire(user, rate, now);
        if checked.is_ok() && !local {
            let (origin, rate) = (user.server(), Rate::per_minute(ORIGIN_TOKENS_PER_MINUTE));
            checked = self.origin_rate_limiter.try_acquire(origin, rate, now);
        }
        checked.map_err(|after| Error::RateLimited(user.clone(), after))
    }
}

/// Exchanges requests of our homeserver for access tokens.
#[derive(Debug)]
pub(crate) struct AppServiceExchange {
    pub authenticator: AppServiceAuthenticator,
    homeserver: Arc<HomeserverClient>,
    issuer: TokenIssuer,
    membership: Membership,
    livekit_url: String,
    livekit_base_url: Option<BaseUrl>,
    limits: Arc<AppServiceLimits>,
}

impl AppServiceExchange {
    /// `livekit_url` is `LIVEKIT_URL`, the SFU as clients know it.
    pub(crate) fn new(
        authenticator: AppServiceAuthenticator,
        homeserver: Arc<HomeserverClient>,
        issuer: TokenIssuer,
        membership: Membership,
        livekit_url: String,
        limits: Arc<AppServiceLimits>,
    ) -> Self {
        Self {
            authenticator,
            homeserver,
            issuer,
            membership,
            livekit_base_url: BaseUrl::parse(&livekit_url).ok(),
            livekit_url,
            limits,
        }
    }

    /// Issues a token to a user of our homeserver: for our SFU, or for the SFU of another server, whose service then issues it at the path
    /// of `version`. Waits for our homeserver, and for the SFU or the other service.
    pub(crate) fn issue_client_token(
        &self,
        user: &LocalUser,
        request: &ClientTokenRequest,
        version: MscVersion,
    ) -> Result<AppServiceToken, Error> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let (membership, server) = (&request.membership, request.server.as_ref());
        let Some(server) = server.filter(|server| *server != self.homeserver.name()) else {
            let _permit = self.limits.acquire()?;
            self.check_livekit_url(&request.url)?;
            let joined = self.require_joined(user.id(), membership, deadline)?;
            return self.issue_local_token(&joined, membership, true);
        };
        let queued = self.limits.relay_queue.enqueue(server)?;
        let _permits = self.limits.acquire_remote()?;
        let request = RelayRequest {
            user: &self.require_joined(user.id(), membership, deadline)?,
            url: &request.url,
            membership,
            version,
            deadline,
        };
        let token = queued.send(&self.homeserver, &request)?;
        Ok(AppServiceToken::Relayed(token))
    }

    /// Issues a token for our SFU to another homeserver's user.
    pub(crate) fn issue_federation_token(
        &self,
        origin: &OriginServer,
        request: &FederationTokenRequest,
    ) -> Result<AppServiceToken, Error> {
        let (user, membership, origin) = (&request.user, &request.membership, origin.name());
        if user.server() != origin {
            return Err(Error::OriginMismatch(user.clone(), origin.clone()));
        }
        self.check_livekit_url(&request.url)?;
        let (now, busy) = (Instant::now(), |_| Error::Busy(Some(origin.clone())));
        let queued = self.limits.origin_queue.join(origin.clone());
        let mut queued = queued.map_err(busy)?;
        let _permits = self.limits.acquire_remote()?;
        let active = queued.acquire(|| MAX_ACTIVE_PER_ORIGIN, now + ORIGIN_QUEUE_TIMEOUT);
        let _active = active.map_err(busy)?;
        let joined = self.require_joined(user, membership, now + REQUEST_TIMEOUT)?;
        self.issue_local_token(&joined, membership, false)
    }

    /// Takes over a delayed leave of our homeserver's user; its room and delay come from the homeserver.
    pub(crate) fn delegate_leave(
        &self,
        user: &LocalUser,
        request: &ClientDelegateRequest,
    ) -> Result<DelegatedLeave, Error> {
        let (membership, delay_id) = (&request.membership, &request.delay_id);
        if let Some(url) = &request.url {
            self.check_livekit_url(url)?;
        }
        let _permit = self.limits.acquire()?;
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let user = user.id();
        let joined = self.require_joined(user, membership, deadline)?;
        let event = self
            .homeserver
            .get_delayed_event(user, delay_id, deadline)?;
        let event = event.filter(|event| event.room_id == membership.room.as_str());
        let event = event.ok_or_else(|| Error::DelayedEventNotFound(user.clone()))?;
        let supported = self.issuer.delegation.check_support(self.homeserver.name());
        supported.map_err(Error::DelegationFailed)?;
        let request = DelegationRequest {
            delay_id: delay_id.clone(),
            timeout: event.delay,
        };
        let participant = participant_key(&joined, membership);
        let started = self.issuer.delegate(participant, user, request);
        started.map_err(Error::DelegationFailed)
    }

    fn require_joined(
        &self,
        user: &UserId,
        membership: &CallMembership,
        deadline: Instant,
    ) -> Result<JoinedUser, Error> {
        let joined = self
            .homeserver
            .check_joined(&membership.room, user, deadline)?;
        joined.ok_or_else(|| {
            // the user may have left during a call
            self.membership.recheck(&RoomMember {
                room_id: membership.room.clone(),
                user_id: user.clone(),
            });
            Error::UserNotJoined(user.clone())
        })
    }

    /// Clients learn the URL from each other, and may write it with another slash or port notation.
    fn check_livekit_url(&self, url: &str) -> Result<(), Error> {
        let is_equivalent =
            |own: &BaseUrl| BaseUrl::parse(url).is_ok_and(|url| own.is_equivalent_to(&url));
        if url == self.livekit_url || self.livekit_base_url.as_ref().is_some_and(is_equivalent) {
            return Ok(());
        }
        let logged = truncate_chars(url, MAX_LOGGED_URL_CHARS);
        Err(Error::UnknownLiveKitUrl(logged.to_owned()))
    }

    /// Creates the room, records the participant before they can connect, and signs.
    fn issue_local_token(
        &self,
        user: &JoinedUser,
        membership: &CallMembership,
        local: bool,
    ) -> Result<AppServiceToken, Error> {
        self.limits.check_rate(user.id(), local)?;
        let key = participant_key(user, membership);
        let participant = RoomMember {
            room_id: membership.room.clone(),
            user_id: user.id().clone(),
        };
        let created = self.issuer.create_room(&key);
        created.map_err(Error::RoomNotCreated)?;
        let sealed = self.membership.seal_attribute(&key, &participant);
        let recorded = self
            .membership
            .record_issued_token(key.clone(), participant);
        recorded.map_err(Error::ParticipantLimit)?;
        let permissions = JoinPermissions {
            can_publish: local,
            can_subscribe: true,
            can_update_own_metadata: false,
        };
        let claims = Claims::join(key.identity.clone(), &key.room, permissions);
        let token = self.issuer.sign(&claims.with_sealed_attribute(&sealed));
        Ok(AppServiceToken::Issued(token, key))
    }
}

fn participant_key(user: &JoinedUser, membership: &CallMembership) -> ParticipantKey {
    ParticipantKey {
        room: livekit_names::derive_room_name(&membership.room, &membership.slot),
        identity: membership.member.derive_identity(user),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dialect_determines_the_identity() {
        let alice = JoinedUser::for_test("@alice:example.com");
        let id = MemberId::parse("memberABC").unwrap();
        let device = DeviceId::parse("DEVICE123").unwrap();
        let member = CallMember::Member {
            id: id.clone(),
            device: device.clone(),
        };
        // the vectors of the earlier and the latest MSC4195
        let three_parts = "J+T45tGruxc+HrUOqJJlyQSV33m728Cme4+vt8/SWrU";
        let two_parts = "M3VnsLXrkbxIDINXO64u8PZzFyD9ZYFiQULR2dshWYs";
        assert_eq!(member.derive_identity(&alice).as_str(), three_parts);
        for device in [None, Some(device)] {
            let by_id = CallMember::MemberId {
                id: id.clone(),
                device,
            };
            assert_eq!(by_id.derive_identity(&alice).as_str(), two_parts);
        }
    }

    #[test]
    fn the_other_dialect_of_a_member_id_needs_a_device() {
        let id = MemberId::parse("memberABC").unwrap();
        let device = DeviceId::parse("DEVICE123").unwrap();
        let without_device = CallMember::MemberId {
            id: id.clone(),
            device: None,
        };
        assert_eq!(without_device.in_other_dialect(), None);
        let member = CallMember::Member {
            id: id.clone(),
            device: device.clone(),
        };
        let by_id = CallMember::MemberId {
            id,
            device: Some(device),
        };
        assert_eq!(member.in_other_dialect(), Some(by_id.clone()));
        assert_eq!(by_id.in_other_dialect(), Some(member));
    }
}
