//! Application-service mode: a wish that our homeserver passes on becomes a LiveKit token (MSC4195, over MSC4502 and MSC4512).
//!
//! The homeserver shows its token, and only then is it believed about who asks; whoever asks has to be in the Matrix room, and only
//! then is there an identity to sign for. For another server's SFU, that server's service is asked through the homeserver.

mod doorkeeper;
mod relay;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

pub use self::doorkeeper::{Doorkeeper, LocalUser, Origin, Shown};
pub use self::relay::{NotRelayed, Why};
use self::relay::{Relays, Wish};
use crate::delegation::{self, Delegation};
use crate::guests::{Guest, Guests, TooMany};
use crate::leave::{Key, Order};
use crate::livekit::room_service::{self, RoomService};
use crate::livekit::token::{AccessToken, ApiKey, Claims, Participation};
use crate::matrix::appservice::{self, Homeserver, JoinedUser};
use crate::matrix::id::{DelayId, MemberId, RoomId, ServerName, SlotId, UserId};
use crate::matrix::registration::SharedToken;
use crate::net::base_url::BaseUrl;
use crate::net::bulkhead::{KeyPlace, PerKey};
use crate::net::lines::Lines;
use crate::net::rate::Rate;
use crate::{alias, clock};

/// For a wish in all, but for the SFU, which is the last to be asked. Synapse gives us 30 s, of which 5 s may have gone before there was
/// a worker for it.
const BUDGET: Duration = Duration::from_secs(22);
const MINUTE: Duration = Duration::from_secs(60);
/// Wishes of one other homeserver's users that may be under way: the others' are not to wait for them.
const PER_ORIGIN: usize = 8;
/// The same with those that wait until they may: in a meeting all of them ask us at once.
const PER_ORIGIN_WAITING: usize = 32;
/// How long they wait; with what comes after it, their own homeserver still waits for the answer.
const PATIENCE: Duration = Duration::from_secs(4);

/// Tokens for our SFU in a minute: of one user, who needs one for each call and device, and of one other homeserver's users. Each may cost
/// the SFU a room.
const PER_USER_A_MINUTE: u32 = 120;
const PER_ORIGIN_A_MINUTE: u32 = 1200;
/// Those who are counted so.
const COUNTED: usize = 4096;
/// Characters of a URL that are said of one that is not ours.
const MAX_SHOWN: usize = 100;

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
pub enum Granted {
    /// A token for our SFU.
    Ours(AccessToken, Key),
    /// Another server's token for its own.
    Theirs(Box<str>),
}

impl fmt::Debug for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours(..) => "Ours(hidden)",
            Self::Theirs(_) => "Theirs(hidden)",
        })
    }
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
    /// The other server's service has given no token.
    NotRelayed(Box<NotRelayed>),
    /// No place is free: in all, or for what is between us and this server.
    Busy(Option<ServerName>),
    /// The user, or their homeserver, has had too many tokens lately: when they may come again.
    TooOften(UserId, Duration),
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
            Self::NotRelayed(error) => error.fmt(f),
            Self::Busy(None) => f.write_str("no place is free"),
            Self::Busy(Some(server)) => {
                write!(f, "no place is free for what {server} is asked or asks")
            }
            Self::TooOften(user, _) => write!(
                f,
                "more than {PER_USER_A_MINUTE} tokens a minute for {user}, or {PER_ORIGIN_A_MINUTE} for users of their homeserver"
            ),
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
        Self::Homeserver(error)
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
    with_others: Arc<PerKey<()>>,
    pace_of_users: Rate<UserId>,
    pace_of_origins: Rate<ServerName>,
    relays: Relays,
    origins: Arc<Lines<ServerName>>,
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
            under_way: PerKey::new(),
            with_others: PerKey::new(),
            pace_of_users: Rate::new(MINUTE / PER_USER_A_MINUTE, PER_USER_A_MINUTE, COUNTED),
            pace_of_origins: Rate::new(MINUTE / PER_ORIGIN_A_MINUTE, PER_ORIGIN_A_MINUTE, COUNTED),
            relays: Relays::new(of_others(terms.places)),
            origins: Lines::new(of_others(terms.places), PER_ORIGIN_WAITING),
            terms,
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
        let deadline = Instant::now() + BUDGET;
        let server = server.filter(|server| *server != self.homeserver.name());
        let relay = server.map(|server| self.relays.join(server)).transpose()?;
        let _among_others = relay
            .as_ref()
            .map(|_| self.enter_with_others())
            .transpose()?;
        let _place = self.enter()?;
        let Some(relay) = relay else {
            self.is_ours(&place.url)?;
            let joined = self.joined(user.id(), place, deadline)?;
            return self.grant(&joined, place, true);
        };
        let wish = Wish {
            user: &self.joined(user.id(), place, deadline)?,
            place,
            path,
            deadline,
        };
        relay.ask(&self.homeserver, &wish).map(Granted::Theirs)
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
        let (now, crowded) = (Instant::now(), || Error::Busy(Some(origin.name().clone())));
        let line = self.origins.join(origin.name().clone());
        let mut line = line.map_err(|_| crowded())?;
        let _among_others = self.enter_with_others()?;
        let _place = self.enter()?;
        let turn = line.turn(|| PER_ORIGIN, now + PATIENCE);
        let _turn = turn.map_err(|_| crowded())?;
        let joined = self.joined(user, place, now + BUDGET)?;
        self.grant(&joined, place, false)
    }

    /// Takes on the leave of one of our users, whose delayed event is looked up rather than believed. Gives its name in the log.
    pub fn delegate(&self, user: &LocalUser, place: &Place, delay: &DelayId) -> Result<u32, Error> {
        self.is_ours(&place.url)?;
        let (_place, deadline) = (self.enter()?, Instant::now() + BUDGET);
        let joined = self.joined(user.id(), place, deadline)?;
        let event = self.homeserver.delayed_event(user.id(), delay, deadline)?;
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

    fn enter(&self) -> Result<KeyPlace<()>, Error> {
        let place = self.under_way.enter((), self.terms.places);
        place.ok_or(Error::Busy(None))
    }

    fn enter_with_others(&self) -> Result<KeyPlace<()>, Error> {
        let place = self.with_others.enter((), of_others(self.terms.places));
        place.ok_or(Error::Busy(None))
    }

    fn joined(&self, user: &UserId, place: &Place, deadline: Instant) -> Result<JoinedUser, Error> {
        let joined = self.homeserver.joined(&place.room, user, deadline)?;
        joined.ok_or_else(|| {
            self.doubt(&Guest {
                room: place.room.clone(),
                user: user.clone(),
            });
            Error::NotJoined(user.clone())
        })
    }

    /// Clients have the SFU's URL from each other, who may write its slash or not, or its port.
    fn is_ours(&self, url: &str) -> Result<(), Error> {
        let ours = self.url.as_ref();
        let same =
            || ours.is_some_and(|ours| BaseUrl::parse(url).is_ok_and(|url| ours.means(&url)));
        if url == self.terms.url || same() {
            Ok(())
        } else {
            Err(Error::NotOurs(url.chars().take(MAX_SHOWN).collect()))
        }
    }

    /// Whether they have not had too many tokens lately.
    fn is_paced(&self, user: &UserId, local: bool) -> Result<(), Error> {
        let now = Instant::now();
        let of_user = self.pace_of_users.take(user, now);
        let of_origin = || self.pace_of_origins.take(user.server(), now);
        let paced = of_user.and_then(|()| if local { Ok(()) } else { of_origin() });
        paced.map_err(|after| Error::TooOften(user.clone(), after))
    }

    /// Has a room for them, and remembers them before they can come; whoever gets no token takes nobody's place.
    fn grant(&self, user: &JoinedUser, place: &Place, local: bool) -> Result<Granted, Error> {
        self.is_paced(user.id(), local)?;
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
}

/// How many of so many places wishes for other servers' SFUs and those of other servers' users may take together: the rest is for our
/// own users and our own SFU.
fn of_others(places: usize) -> usize {
    (places * 3 / 4).max(1)
}

fn key(user: &JoinedUser, place: &Place) -> Key {
    Key {
        room: alias::room_name(&place.room, &place.slot),
        identity: alias::member_identity(user, &place.member),
    }
}
