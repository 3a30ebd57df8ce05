//! Application-service mode: a wish that our homeserver passes on becomes a LiveKit token (MSC4195, over MSC4502 and MSC4512).
//!
//! The homeserver shows its token, and only then is it believed about who asks; whoever asks has to be in the Matrix room, and only
//! then is there an identity to sign for. For another server's SFU, that server's service is asked through the homeserver.

mod doorkeeper;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::json;

pub use self::doorkeeper::{Doorkeeper, LocalUser, Origin, Shown};
use crate::delegation::{self, Delegation};
use crate::guests::{Guest, Guests, TooMany};
use crate::leave::{Key, Order};
use crate::livekit::room_service::{self, RoomService};
use crate::livekit::token::{AccessToken, ApiKey, Claims, Participation};
use crate::matrix::appservice::{self, Homeserver, JoinedUser, Relayed};
use crate::matrix::id::{DelayId, MemberId, RoomId, ServerName, SlotId, UserId};
use crate::matrix::registration::SharedToken;
use crate::net::base_url::BaseUrl;
use crate::net::bulkhead::PerKey;
use crate::{alias, clock};

/// Wishes of one other homeserver's users that may be under way: the others' are not to wait for them.
const PER_ORIGIN: usize = 8;

/// A place in a call: parsed, not believed.
#[derive(Debug)]
pub struct Place {
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
#[derive(Debug)]
pub enum Granted {
    /// A token for our SFU.
    Ours(AccessToken, Key),
    /// Another server's token for its own.
    Theirs(Box<str>),
}

/// Why there is none.
#[derive(Debug)]
pub enum Error {
    /// The caller shows no token of the homeserver.
    NotAuthenticated,
    /// It shows another token.
    NotTheHomeserver,
    /// The homeserver does not say who asks, or says what it cannot mean.
    NoCaller(&'static str),
    /// The user is not in the Matrix room.
    NotJoined(UserId),
    /// The other server has nobody in the Matrix room.
    ServerNotJoined(ServerName),
    /// A homeserver speaks for a user of another one.
    NotOfOrigin(UserId, ServerName),
    /// The SFU is not ours.
    NotOurs(String),
    /// Our homeserver did not say.
    Homeserver(appservice::Error),
    /// The other server's service refused, as it may: 403.
    TheyForbid(ServerName),
    /// It finds that something is wrong: 400.
    TheyFindInvalid(ServerName),
    /// It, or our homeserver on the way to it, failed: status and errcode.
    TheyFail(ServerName, u16, String),
    /// No place is free.
    Busy,
    /// All places are taken by guests who are in calls.
    TooMany(TooMany),
    /// The SFU did not create the room.
    RoomNotCreated(room_service::Error),
    /// The user has no such delayed event in the Matrix room.
    NoSuchEvent(UserId),
    /// Their leave was not taken on.
    LeaveNotTaken(delegation::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAuthenticated => f.write_str("no Authorization with the hs_token"),
            Self::NotTheHomeserver => f.write_str(
                "not our hs_token (the homeserver's registration has to be the one here)",
            ),
            Self::NoCaller(why) => write!(f, "the homeserver does not say who asks: {why}"),
            Self::NotJoined(user) => write!(f, "{user} is not in the Matrix room"),
            Self::ServerNotJoined(server) => write!(f, "{server} has nobody in the Matrix room"),
            Self::NotOfOrigin(user, origin) => write!(f, "{origin} speaks for {user}"),
            Self::NotOurs(url) => write!(f, "the SFU {url:?} is not ours (LIVEKIT_URL is)"),
            Self::Homeserver(error) => error.fmt(f),
            Self::TheyForbid(server) => write!(f, "the service of {server} forbids it"),
            Self::TheyFindInvalid(server) => write!(f, "the service of {server} finds it invalid"),
            Self::TheyFail(server, status, errcode) => write!(
                f,
                "no token from the service of {server}: status {status} {errcode:?}"
            ),
            Self::Busy => f.write_str("no place is free"),
            Self::TooMany(error) => error.fmt(f),
            Self::RoomNotCreated(error) => error.fmt(f),
            Self::NoSuchEvent(user) => {
                write!(f, "{user} has no such delayed event in the Matrix room")
            }
            Self::LeaveNotTaken(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<appservice::Error> for Error {
    fn from(error: appservice::Error) -> Self {
        match error {
            appservice::Error::Busy => Self::Busy,
            error => Self::Homeserver(error),
        }
    }
}

/// How tokens are made out.
#[derive(Debug)]
pub struct Terms {
    /// Signs the tokens.
    pub key: ApiKey,
    /// How long they are valid.
    pub lifetime: Duration,
    /// `LIVEKIT_URL`: the SFU as clients name it.
    pub url: String,
    /// Requests that may wait for other servers at once.
    pub places: usize,
}

/// Everything that is needed for it.
#[derive(Debug)]
pub struct AppService {
    homeserver: Arc<Homeserver>,
    doorkeeper: Doorkeeper,
    rooms: Arc<RoomService>,
    delegation: Delegation,
    guests: Guests,
    terms: Terms,
    url: Option<BaseUrl>,
    under_way: Arc<PerKey<()>>,
    origins: Arc<PerKey<ServerName>>,
}

impl AppService {
    /// Puts it together. The homeserver is known by `hs_token`.
    pub fn new(
        homeserver: Arc<Homeserver>,
        hs_token: SharedToken,
        rooms: Arc<RoomService>,
        delegation: Delegation,
        guests: Guests,
        terms: Terms,
    ) -> Self {
        Self {
            doorkeeper: Doorkeeper::new(hs_token, homeserver.name().clone()),
            homeserver,
            rooms,
            delegation,
            guests,
            url: BaseUrl::parse(&terms.url).ok(),
            terms,
            under_way: PerKey::new(),
            origins: PerKey::new(),
        }
    }

    /// Knows the homeserver, and whom it speaks for.
    pub fn doorkeeper(&self) -> &Doorkeeper {
        &self.doorkeeper
    }

    /// A token for one of our users: for our SFU, or for that of `server`, whose service is asked by `path`. Waits for our
    /// homeserver, and for the SFU or the other server.
    pub fn token(
        &self,
        user: &LocalUser,
        server: Option<&ServerName>,
        place: &Place,
        path: &str,
    ) -> Result<Granted, Error> {
        let _place = self
            .under_way
            .enter((), self.terms.places)
            .ok_or(Error::Busy)?;
        match server.filter(|server| *server != self.homeserver.name()) {
            None => {
                self.is_ours(&place.url)?;
                let joined = self.joined(user.id(), place)?;
                self.grant(&joined, place, true)
            }
            Some(server) => {
                let joined = self.joined(user.id(), place)?;
                self.relay(&joined, server, place, path)
            }
        }
    }

    /// A token for a user of another homeserver, for our SFU.
    pub fn token_for(
        &self,
        origin: &Origin,
        user: &UserId,
        place: &Place,
    ) -> Result<Granted, Error> {
        if user.server() != origin.name() {
            return Err(Error::NotOfOrigin(user.clone(), origin.name().clone()));
        }
        self.is_ours(&place.url)?;
        let at_once = PER_ORIGIN.min(self.terms.places);
        let _one = self
            .origins
            .enter(origin.name().clone(), at_once)
            .ok_or(Error::Busy)?;
        let _place = self
            .under_way
            .enter((), self.terms.places)
            .ok_or(Error::Busy)?;
        let joined = self.joined(user, place)?;
        self.grant(&joined, place, false)
    }

    /// Takes on the leave of one of our users, whose delayed event is looked up rather than believed. Gives its name in the log.
    pub fn delegate(&self, user: &LocalUser, place: &Place, delay: &DelayId) -> Result<u32, Error> {
        self.is_ours(&place.url)?;
        let _place = self
            .under_way
            .enter((), self.terms.places)
            .ok_or(Error::Busy)?;
        let joined = self.joined(user.id(), place)?;
        let event = self.homeserver.delayed_event(user.id(), delay)?;
        let event = event.filter(|event| event.room == place.room.as_str());
        let event = event.ok_or_else(|| Error::NoSuchEvent(user.id().clone()))?;
        self.delegation
            .check(self.homeserver.name())
            .map_err(Error::LeaveNotTaken)?;
        let order = Order {
            user: user.id().clone(),
            delay: delay.clone(),
            timeout: event.delay,
        };
        self.delegation
            .delegate(key(&joined, place), order)
            .map_err(Error::LeaveNotTaken)
    }

    /// Has whoever may have left looked at, at once. Gives in how many places of calls they are.
    pub fn doubt(&self, guest: &Guest) -> usize {
        self.guests.doubt(guest)
    }

    fn joined(&self, user: &UserId, place: &Place) -> Result<JoinedUser, Error> {
        let joined = self.homeserver.joined(&place.room, user)?;
        joined.ok_or_else(|| {
            self.doubt(&Guest {
                room: place.room.clone(),
                user: user.clone(),
            });
            Error::NotJoined(user.clone())
        })
    }

    /// Clients have the SFU's URL from each other, who may write its slash or not.
    fn is_ours(&self, url: &str) -> Result<(), Error> {
        let same = || self.url.is_some() && BaseUrl::parse(url).ok() == self.url;
        if url == self.terms.url || same() {
            Ok(())
        } else {
            Err(Error::NotOurs(url.to_owned()))
        }
    }

    /// Has a room for them, and remembers them before they can come; whoever gets no token takes nobody's place.
    fn grant(&self, user: &JoinedUser, place: &Place, local: bool) -> Result<Granted, Error> {
        let key = key(user, place);
        let guest = Guest {
            room: place.room.clone(),
            user: user.id().clone(),
        };
        self.rooms
            .create(&key.room)
            .map_err(Error::RoomNotCreated)?;
        let sealed = self.guests.seal(&key, &guest);
        self.guests
            .admit(key.clone(), guest)
            .map_err(Error::TooMany)?;
        let may = Participation {
            can_publish: local,
            can_subscribe: true,
            can_update_own_metadata: false,
        };
        let now = clock::unix(SystemTime::now());
        let claims = Claims::join(key.identity.clone(), &key.room, may).carrying(&sealed);
        let token = claims.sign(&self.terms.key, now, self.terms.lifetime);
        Ok(Granted::Ours(token, key))
    }

    /// A server that has nobody in the room has no SFU for it, and is not asked.
    fn relay(
        &self,
        user: &JoinedUser,
        server: &ServerName,
        place: &Place,
        path: &str,
    ) -> Result<Granted, Error> {
        if !self.homeserver.has_server(&place.room, server)? {
            return Err(Error::ServerNotJoined(server.clone()));
        }
        let body = json!({
            "user_id": user.id().as_str(),
            "url": place.url,
            "room_id": place.room.as_str(),
            "slot_id": place.slot.as_str(),
            "member_id": place.member.as_str(),
        });
        match self.homeserver.relay(server, path, &body)? {
            Relayed::Token(token) => Ok(Granted::Theirs(token)),
            Relayed::Forbidden => Err(Error::TheyForbid(server.clone())),
            Relayed::Invalid => Err(Error::TheyFindInvalid(server.clone())),
            Relayed::Else(status, errcode) => Err(Error::TheyFail(server.clone(), status, errcode)),
        }
    }
}

fn key(user: &JoinedUser, place: &Place) -> Key {
    Key {
        room: alias::room_name(&place.room, &place.slot),
        identity: alias::member_identity(user, &place.member),
    }
}
