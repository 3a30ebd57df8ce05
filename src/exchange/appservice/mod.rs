//! Application-service mode: a wish that our homeserver passes on becomes a LiveKit token (MSC4195, over MSC4502 and MSC4512).
//!
//! The homeserver shows its token, and only then is it believed about who asks; whoever asks has to be in the Matrix room, and only
//! then is there an identity to sign for. For another server's SFU, that server's service is asked through the homeserver.

mod authenticator;
mod relay;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use self::authenticator::{
    AppServiceAuthenticator, LocalUser, OriginServer, ProxiedCredentials,
};
pub(crate) use self::relay::{RelayError, RelayFailure};
use self::relay::{RelayQueue, RelayRequest};
use crate::delegation::leave::DelegationRequest;
use crate::delegation::{self, DelegationService};
use crate::livekit::access_token::{AccessToken, ApiKey, Claims, JoinPermissions};
use crate::livekit::id::ParticipantKey;
use crate::livekit::room_service::{self, RoomServiceClient};
use crate::matrix::appservice::{self, HomeserverClient, JoinedUser};
use crate::matrix::id::{DelayId, MemberId, RoomId, ServerName, SlotId, UserId};
use crate::matrix::livekit_names;
use crate::matrix::registration::AppServiceSecret;
use crate::membership::{Membership, ParticipantQuotaExceeded, TrackedParticipant};
use crate::net::base_url::BaseUrl;
use crate::net::fair_queue::FairQueue;
use crate::net::permits::{KeyedPermit, KeyedPermitPool};
use crate::util::clock;
use crate::util::rate_limiter::RateLimiter;

/// For a wish in all, but for the SFU, which is the last to be asked. Synapse gives us 30 s, of which 5 s may have gone before there was
/// a worker for it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(22);
const MINUTE: Duration = Duration::from_secs(60);
/// Wishes of one other homeserver's users that may be under way: the others' are not to wait for them.
const MAX_ACTIVE_PER_ORIGIN: usize = 8;
/// The same with those that wait until they may: in a meeting all of them ask us at once.
const MAX_QUEUED_PER_ORIGIN: usize = 32;
/// How long they wait; with what comes after it, their own homeserver still waits for the answer.
const ORIGIN_QUEUE_TIMEOUT: Duration = Duration::from_secs(4);

/// Tokens for our SFU in a minute: of one user, who needs one for each call and device, and of one other homeserver's users. Each may cost
/// the SFU a room.
const USER_TOKENS_PER_MINUTE: u32 = 120;
const ORIGIN_TOKENS_PER_MINUTE: u32 = 1200;
/// Those who are counted so.
const MAX_RATE_KEYS: usize = 4096;
/// Characters of a URL that are said of one that is not ours.
const MAX_LOGGED_URL_CHARS: usize = 100;

/// A place in a call: parsed, not believed.
#[derive(Debug)]
pub(crate) struct CallMembership {
    /// The SFU, as clients are told it.
    pub url: String,
    /// The Matrix room.
    pub room: RoomId,
    /// The slot within it.
    pub slot: SlotId,
    /// The member's id.
    pub member: MemberId,
}

/// What was asked for.
pub(crate) enum AppServiceToken {
    /// A token for our SFU.
    Issued(AccessToken, ParticipantKey),
    /// Another server's token for its own.
    Relayed(Box<str>),
}

impl fmt::Debug for AppServiceToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Issued(..) => "Ours(hidden)",
            Self::Relayed(_) => "Theirs(hidden)",
        })
    }
}

/// Why there is none.
#[derive(Debug)]
pub(crate) enum Error {
    /// The caller shows no token of the homeserver.
    NotAuthenticated,
    /// It shows another token.
    WrongHsToken,
    /// The homeserver does not say who asks, or says what it cannot mean.
    InvalidProxyHeaders(&'static str),
    /// The user is not in the Matrix room.
    UserNotJoined(UserId),
    /// The other server has nobody in the Matrix room.
    ServerNotJoined(ServerName),
    /// A homeserver speaks for a user of another one.
    OriginMismatch(UserId, ServerName),
    /// The SFU is not ours.
    UnknownLiveKitUrl(String),
    /// Our homeserver did not say.
    Homeserver(appservice::Error),
    /// The other server's service has given no token.
    RelayFailed(Box<RelayError>),
    /// No place is free: in all, or for what is between us and this server.
    Busy(Option<ServerName>),
    /// The user, or their homeserver, has had too many tokens lately: when they may come again.
    RateLimited(UserId, Duration),
    /// All places are taken by guests who are in calls.
    ParticipantLimit(ParticipantQuotaExceeded),
    /// The SFU did not create the room.
    RoomNotCreated(room_service::Error),
    /// The user has no such delayed event in the Matrix room.
    DelayedEventNotFound(UserId),
    /// Their leave was not taken on.
    DelegationFailed(delegation::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAuthenticated => f.write_str("no Authorization with the hs_token"),
            Self::WrongHsToken => f.write_str(
                "not our hs_token (the homeserver's registration has to be the one here)",
            ),
            Self::InvalidProxyHeaders(why) => {
                write!(f, "the homeserver does not say who asks: {why}")
            }
            Self::UserNotJoined(user) => write!(f, "{user} is not in the Matrix room"),
            Self::ServerNotJoined(server) => write!(f, "{server} has nobody in the Matrix room"),
            Self::OriginMismatch(user, origin) => write!(f, "{origin} speaks for {user}"),
            Self::UnknownLiveKitUrl(url) => {
                write!(f, "the SFU {url:?} is not ours (LIVEKIT_URL is)")
            }
            Self::Homeserver(error) => error.fmt(f),
            Self::RelayFailed(error) => error.fmt(f),
            Self::Busy(None) => f.write_str("no place is free"),
            Self::Busy(Some(server)) => {
                write!(f, "no place is free for what {server} is asked or asks")
            }
            Self::RateLimited(user, _) => write!(
                f,
                "more than {USER_TOKENS_PER_MINUTE} tokens a minute for {user}, or {ORIGIN_TOKENS_PER_MINUTE} for users of their homeserver"
            ),
            Self::ParticipantLimit(error) => error.fmt(f),
            Self::RoomNotCreated(error) => error.fmt(f),
            Self::DelayedEventNotFound(user) => {
                write!(f, "{user} has no such delayed event in the Matrix room")
            }
            Self::DelegationFailed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<appservice::Error> for Error {
    fn from(error: appservice::Error) -> Self {
        Self::Homeserver(error)
    }
}

/// How tokens are made out.
#[derive(Debug)]
pub(crate) struct AppServiceExchangeSettings {
    /// Signs the tokens.
    pub api_key: ApiKey,
    /// How long they are valid.
    pub token_lifetime: Duration,
    /// `LIVEKIT_URL`: the SFU as clients name it.
    pub livekit_url: String,
    /// Requests that may wait for other servers at once.
    pub max_permits: usize,
}

/// Everything that is needed for it.
#[derive(Debug)]
pub(crate) struct AppServiceExchange {
    homeserver: Arc<HomeserverClient>,
    authenticator: AppServiceAuthenticator,
    room_service: Arc<RoomServiceClient>,
    delegation: DelegationService,
    participants: Membership,
    settings: AppServiceExchangeSettings,
    livekit_base_url: Option<BaseUrl>,
    permits: Arc<KeyedPermitPool<()>>,
    remote_permits: Arc<KeyedPermitPool<()>>,
    user_rate_limiter: RateLimiter<UserId>,
    origin_rate_limiter: RateLimiter<ServerName>,
    relay_queue: RelayQueue,
    origin_queue: Arc<FairQueue<ServerName>>,
}

impl AppServiceExchange {
    /// Puts it together. The homeserver is known by `hs_token`.
    pub(crate) fn new(
        homeserver: Arc<HomeserverClient>,
        hs_token: AppServiceSecret,
        rooms: Arc<RoomServiceClient>,
        delegation: DelegationService,
        guests: Membership,
        terms: AppServiceExchangeSettings,
    ) -> Self {
        Self {
            authenticator: AppServiceAuthenticator::new(hs_token, homeserver.name().clone()),
            homeserver,
            room_service: rooms,
            delegation,
            participants: guests,
            livekit_base_url: BaseUrl::parse(&terms.livekit_url).ok(),
            permits: KeyedPermitPool::new(),
            remote_permits: KeyedPermitPool::new(),
            user_rate_limiter: RateLimiter::new(
                MINUTE / USER_TOKENS_PER_MINUTE,
                USER_TOKENS_PER_MINUTE,
                MAX_RATE_KEYS,
            ),
            origin_rate_limiter: RateLimiter::new(
                MINUTE / ORIGIN_TOKENS_PER_MINUTE,
                ORIGIN_TOKENS_PER_MINUTE,
                MAX_RATE_KEYS,
            ),
            relay_queue: RelayQueue::new(max_remote_permits(terms.max_permits)),
            origin_queue: FairQueue::new(
                max_remote_permits(terms.max_permits),
                MAX_QUEUED_PER_ORIGIN,
            ),
            settings: terms,
        }
    }

    /// Knows the homeserver, and whom it speaks for.
    pub(crate) fn authenticator(&self) -> &AppServiceAuthenticator {
        &self.authenticator
    }

    /// A token for one of our users: for our SFU, or for that of `server`, whose service is asked by `path`. Waits for our
    /// homeserver, and for the SFU or the other server.
    pub(crate) fn issue_client_token(
        &self,
        user: &LocalUser,
        server: Option<&ServerName>,
        place: &CallMembership,
        path: &str,
    ) -> Result<AppServiceToken, Error> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let server = server.filter(|server| *server != self.homeserver.name());
        let relay = server
            .map(|server| self.relay_queue.enqueue(server))
            .transpose()?;
        let _among_others = relay
            .as_ref()
            .map(|_| self.acquire_remote_permit())
            .transpose()?;
        let _place = self.acquire_permit()?;
        let Some(relay) = relay else {
            self.check_livekit_url(&place.url)?;
            let joined = self.require_joined(user.id(), place, deadline)?;
            return self.issue_local_token(&joined, place, true);
        };
        let wish = RelayRequest {
            user: &self.require_joined(user.id(), place, deadline)?,
            membership: place,
            path,
            deadline,
        };
        relay
            .send(&self.homeserver, &wish)
            .map(AppServiceToken::Relayed)
    }

    /// A token for a user of another homeserver, for our SFU.
    pub(crate) fn issue_federation_token(
        &self,
        origin: &OriginServer,
        user: &UserId,
        place: &CallMembership,
    ) -> Result<AppServiceToken, Error> {
        if user.server() != origin.name() {
            return Err(Error::OriginMismatch(user.clone(), origin.name().clone()));
        }
        self.check_livekit_url(&place.url)?;
        let (now, crowded) = (Instant::now(), || Error::Busy(Some(origin.name().clone())));
        let line = self.origin_queue.join(origin.name().clone());
        let mut line = line.map_err(|_| crowded())?;
        let _among_others = self.acquire_remote_permit()?;
        let _place = self.acquire_permit()?;
        let turn = line.acquire(|| MAX_ACTIVE_PER_ORIGIN, now + ORIGIN_QUEUE_TIMEOUT);
        let _turn = turn.map_err(|_| crowded())?;
        let joined = self.require_joined(user, place, now + REQUEST_TIMEOUT)?;
        self.issue_local_token(&joined, place, false)
    }

    /// Takes on the leave of one of our users, whose delayed event is looked up rather than believed. Gives its name in the log.
    pub(crate) fn delegate_leave(
        &self,
        user: &LocalUser,
        place: &CallMembership,
        delay: &DelayId,
    ) -> Result<u32, Error> {
        self.check_livekit_url(&place.url)?;
        let (_place, deadline) = (self.acquire_permit()?, Instant::now() + REQUEST_TIMEOUT);
        let joined = self.require_joined(user.id(), place, deadline)?;
        let event = self
            .homeserver
            .get_delayed_event(user.id(), delay, deadline)?;
        let event = event.filter(|event| event.room_id == place.room.as_str());
        let event = event.ok_or_else(|| Error::DelayedEventNotFound(user.id().clone()))?;
        self.delegation
            .check_support(self.homeserver.name())
            .map_err(Error::DelegationFailed)?;
        let order = DelegationRequest {
            user: user.id().clone(),
            delay_id: delay.clone(),
            timeout: event.delay,
        };
        self.delegation
            .delegate(participant_key(&joined, place), order)
            .map_err(Error::DelegationFailed)
    }

    /// Has whoever may have left looked at, at once. Gives in how many places of calls they are.
    pub(crate) fn recheck_participant(&self, guest: &TrackedParticipant) -> usize {
        self.participants.recheck(guest)
    }

    fn acquire_permit(&self) -> Result<KeyedPermit<()>, Error> {
        let place = self.permits.try_acquire((), self.settings.max_permits);
        place.ok_or(Error::Busy(None))
    }

    fn acquire_remote_permit(&self) -> Result<KeyedPermit<()>, Error> {
        let place = self
            .remote_permits
            .try_acquire((), max_remote_permits(self.settings.max_permits));
        place.ok_or(Error::Busy(None))
    }

    fn require_joined(
        &self,
        user: &UserId,
        place: &CallMembership,
        deadline: Instant,
    ) -> Result<JoinedUser, Error> {
        let joined = self.homeserver.check_joined(&place.room, user, deadline)?;
        joined.ok_or_else(|| {
            self.recheck_participant(&TrackedParticipant {
                room_id: place.room.clone(),
                user_id: user.clone(),
            });
            Error::UserNotJoined(user.clone())
        })
    }

    /// Clients have the SFU's URL from each other, who may write its slash or not, or its port.
    fn check_livekit_url(&self, url: &str) -> Result<(), Error> {
        let ours = self.livekit_base_url.as_ref();
        let same = || {
            ours.is_some_and(|ours| {
                BaseUrl::parse(url).is_ok_and(|url| ours.is_equivalent_to(&url))
            })
        };
        if url == self.settings.livekit_url || same() {
            Ok(())
        } else {
            Err(Error::UnknownLiveKitUrl(
                url.chars().take(MAX_LOGGED_URL_CHARS).collect(),
            ))
        }
    }

    /// Whether they have not had too many tokens lately.
    fn check_rate(&self, user: &UserId, local: bool) -> Result<(), Error> {
        let now = Instant::now();
        let of_user = self.user_rate_limiter.try_acquire(user, now);
        let of_origin = || self.origin_rate_limiter.try_acquire(user.server(), now);
        let paced = of_user.and_then(|()| if local { Ok(()) } else { of_origin() });
        paced.map_err(|after| Error::RateLimited(user.clone(), after))
    }

    /// Has a room for them, and remembers them before they can come; whoever gets no token takes nobody's place.
    fn issue_local_token(
        &self,
        user: &JoinedUser,
        place: &CallMembership,
        local: bool,
    ) -> Result<AppServiceToken, Error> {
        self.check_rate(user.id(), local)?;
        let key = participant_key(user, place);
        let guest = TrackedParticipant {
            room_id: place.room.clone(),
            user_id: user.id().clone(),
        };
        self.room_service
            .create_room(&key.room)
            .map_err(Error::RoomNotCreated)?;
        let sealed = self.participants.seal_attribute(&key, &guest);
        self.participants
            .record_issued_token(key.clone(), guest)
            .map_err(Error::ParticipantLimit)?;
        let may = JoinPermissions {
            can_publish: local,
            can_subscribe: true,
            can_update_own_metadata: false,
        };
        let now = clock::unix_seconds_now();
        let claims =
            Claims::join(key.identity.clone(), &key.room, may).with_sealed_attribute(&sealed);
        let token = claims.sign(&self.settings.api_key, now, self.settings.token_lifetime);
        Ok(AppServiceToken::Issued(token, key))
    }
}

/// How many of so many places wishes for other servers' SFUs and those of other servers' users may take together: the rest is for our
/// own users and our own SFU.
fn max_remote_permits(places: usize) -> usize {
    (places * 3 / 4).max(1)
}

fn participant_key(user: &JoinedUser, place: &CallMembership) -> ParticipantKey {
    ParticipantKey {
        room: livekit_names::derive_room_name(&place.room, &place.slot),
        identity: livekit_names::derive_member_identity(user, &place.member),
    }
}
