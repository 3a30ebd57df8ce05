//! LiveKit's RoomService, as far as we need it: Twirp over HTTP with protobuf bodies, which is what every SFU and every double of
//! one reads.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::json;
use crate::livekit::sealed::Sealed;
use crate::livekit::token::{ApiKey, Claims, Identity, RoomName, Sid};
use crate::net::base_url::BaseUrl;
use crate::net::bulkhead::PER_NEIGHBOURHOOD;
use crate::net::fetch::{self, Answer, Fetcher, Limits, Request, Route};

mod message;

/// For one call in all. It is tried once: the client asks again sooner than a second try would help.
const BUDGET: Duration = Duration::from_secs(10);
const LIMITS: Limits = Limits {
    kind: "sfu",
    connect: Duration::from_secs(5),
    head: Duration::from_secs(8),
    body: Duration::from_secs(3),
    // a room's description has some 200 bytes; a proxy's error page may be longer
    max_body: 64 * 1024,
    neighbours: PER_NEIGHBOURHOOD,
};
/// The same for lists, in which a participant has 1 or 2 KiB, and a room less.
const LIST_LIMITS: Limits = Limits {
    max_body: 4 * 1024 * 1024,
    ..LIMITS
};
/// The call's own token is used at once.
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// Seconds that a room lasts before anyone joins it.
const EMPTY_TIMEOUT: u32 = 300;
/// Seconds that a room lasts after the last one left.
const DEPARTURE_TIMEOUT: u32 = 20;
/// No alias of a Matrix room: those are 43 characters long.
const NOBODYS_ROOM: &str = "livekit-token-service asks whether you are well";
/// Characters of the SFU's own words that reach the log.
const MAX_REASON: usize = 200;

/// Why the SFU did not do it.
#[derive(Debug)]
pub enum Error {
    /// The SFU did not answer.
    Unreachable(Box<str>, Box<fetch::Error>),
    /// It does not accept our API key.
    KeyRefused(String),
    /// It refused for another reason: status and its own words.
    Refused(u16, String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(url, error) => {
                write!(
                    f,
                    "the SFU does not answer at {url}: {error} (LIVEKIT_API_URL says where to reach it from here)"
                )
            }
            Self::KeyRefused(reason) => {
                write!(
                    f,
                    "the SFU refuses our API key: {reason} (LIVEKIT_KEY and LIVEKIT_SECRET have to be among its keys)"
                )
            }
            Self::Refused(status, reason) => {
                write!(f, "the SFU refused with status {status}: {reason}")
            }
        }
    }
}

impl std::error::Error for Error {}

/// Whether somebody is in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// They are, on this connection, if the SFU says which.
    Here(Option<Sid>),
    /// They are decidedly not.
    NotFound,
}

/// Somebody in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Participant {
    /// Who they are.
    pub identity: Identity,
    /// What their token carries for us, or what somebody has put there in its place.
    pub sealed: Option<Sealed>,
}

/// The SFU's API.
#[derive(Debug)]
pub struct RoomService {
    fetcher: Fetcher,
    url: BaseUrl,
    route: Route,
    key: ApiKey,
}

impl RoomService {
    /// The API at `url`, called with tokens signed by `key`.
    pub fn new(fetcher: Fetcher, url: BaseUrl, key: ApiKey) -> Self {
        let route = Route::to(&url);
        Self {
            fetcher,
            url,
            route,
            key,
        }
    }

    /// Creates a room; one that exists already stays as it is.
    pub fn create(&self, room: &RoomName) -> Result<(), Error> {
        let message = message::create_room(room, EMPTY_TIMEOUT, DEPARTURE_TIMEOUT);
        let answer = self.call("CreateRoom", &Claims::create_room(), &message)?;
        accepted(&answer)
    }

    /// Looks whether `identity` is in `room`. An error says nothing about that.
    pub fn get_participant(&self, room: &RoomName, identity: &Identity) -> Result<Presence, Error> {
        let message = message::room_participant(room, identity);
        let answer = self.call("GetParticipant", &Claims::administer(room), &message)?;
        if is_not_found(&answer) {
            return Ok(Presence::NotFound);
        }
        accepted(&answer)?;
        Ok(Presence::Here(message::participant_sid(&answer.body)))
    }

    /// Puts `identity` out of `room`, whether they are in it or not.
    pub fn remove_participant(&self, room: &RoomName, identity: &Identity) -> Result<(), Error> {
        let message = message::room_participant(room, identity);
        let answer = self.call("RemoveParticipant", &Claims::administer(room), &message)?;
        if is_not_found(&answer) {
            return Ok(());
        }
        accepted(&answer)
    }

    /// Whether the SFU answers and takes our key: asks for a room that nobody has.
    pub fn check(&self) -> Result<(), Error> {
        // a name of that length is a valid one
        let nobodys = RoomName::new(NOBODYS_ROOM.into()).unwrap_or_else(|_| unreachable!());
        let message = message::list_rooms(&[nobodys]);
        accepted(&self.call("ListRooms", &Claims::list_rooms(), &message)?)
    }

    /// Which of `names` are rooms that exist. No names mean all rooms: an SFU with more than some thousands of
    /// them, 4 MiB, says too much.
    pub fn list_rooms(&self, names: &[RoomName]) -> Result<Vec<RoomName>, Error> {
        let message = message::list_rooms(names);
        let answer = self.call_for("ListRooms", &Claims::list_rooms(), &message, LIST_LIMITS)?;
        accepted(&answer)?;
        message::room_names(&answer.body)
            .ok_or_else(|| Error::Refused(answer.status, "not a list of rooms".into()))
    }

    /// Who is in `room`; nobody if there is no such room. More than some thousands of them, 4 MiB, are too much.
    pub fn list_participants(&self, room: &RoomName) -> Result<Vec<Participant>, Error> {
        let (message, may) = (message::list_participants(room), Claims::administer(room));
        let answer = self.call_for("ListParticipants", &may, &message, LIST_LIMITS)?;
        if is_not_found(&answer) {
            return Ok(Vec::new());
        }
        accepted(&answer)?;
        message::participants(&answer.body)
            .ok_or_else(|| Error::Refused(answer.status, "not a list of participants".into()))
    }

    fn call(&self, method: &str, claims: &Claims, message: &[u8]) -> Result<Answer, Error> {
        self.call_for(method, claims, message, LIMITS)
    }

    /// Makes one call with a token of its own.
    fn call_for(
        &self,
        method: &str,
        claims: &Claims,
        message: &[u8],
        limits: Limits,
    ) -> Result<Answer, Error> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let token = claims.sign(&self.key, now, TOKEN_LIFETIME);
        let authorization = format!("Bearer {}", token.expose());
        let target = format!("{}/twirp/livekit.RoomService/{method}", self.url.path());
        let request = Request {
            target: &target,
            authorization: Some(&authorization),
            post: Some(("application/protobuf", message)),
        };
        let answer = self
            .fetcher
            .fetch(&self.route, request, limits, Instant::now() + BUDGET);
        answer.map_err(|error| {
            let url = self.url.to_string().into();
            Error::Unreachable(url, Box::new(error))
        })
    }
}

fn accepted(answer: &Answer) -> Result<(), Error> {
    match answer.status {
        200 => Ok(()),
        401 | 403 => Err(Error::KeyRefused(reason(&answer.body))),
        status => Err(Error::Refused(status, reason(&answer.body))),
    }
}

#[derive(Deserialize)]
struct Twirp {
    code: String,
    #[serde(default)]
    msg: String,
}

/// Whether the SFU itself says that nobody is there. A 404 of a proxy, or of another service at this address, says nothing.
fn is_not_found(answer: &Answer) -> bool {
    let code = || json::object::<Twirp>(&answer.body).map(|twirp| twirp.code);
    answer.status == 404 && code().as_deref() == Some("not_found")
}

/// What the SFU says: Twirp's JSON, or the middleware's plain text.
fn reason(body: &[u8]) -> String {
    let text = match json::object::<Twirp>(body) {
        Some(Twirp { code, msg }) => format!("{code}: {msg}"),
        None => String::from_utf8_lossy(body).into_owned(),
    };
    text.trim().chars().take(MAX_REASON).collect()
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use super::message::fuzzing::{participant_sid, participants, room_names};
}

#[cfg(test)]
mod tests;
