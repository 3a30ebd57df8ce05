//! LiveKit's RoomService, as far as we need it: Twirp over HTTP with protobuf bodies, which is what every SFU and every double of
//! one reads.

mod message;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use super::access_token::{Claims, SharedApiKeys};
use super::sealed_attribute::SealedAttribute;
use crate::livekit::id::{ParticipantIdentity, ParticipantSid, RoomName};
use crate::net::base_url::BaseUrl;
use crate::net::http_client;
use crate::net::http_client::{FetchLimits, FetchRequest, FetchResponse, Fetcher, HttpRoute};
use crate::net::permits::MAX_CALLS_PER_SUBNET;
use crate::util::json;

/// For one call in all. It is tried once: the client asks again sooner than a second try would help.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const LIMITS: FetchLimits = FetchLimits {
    kind: "sfu",
    connect_timeout: Duration::from_secs(5),
    head_timeout: Duration::from_secs(8),
    body_timeout: Duration::from_secs(3),
    // a room's description has some 200 bytes; a proxy's error page may be longer
    max_body: 64 * 1024,
    max_subnet_calls: MAX_CALLS_PER_SUBNET,
};
/// The same for lists, in which a participant has 1 or 2 KiB, and a room less.
const LIST_LIMITS: FetchLimits = FetchLimits {
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
const PROBE_ROOM_NAME: &str = "livekit-token-service asks whether you are well";
/// Characters of the SFU's own words that reach the log.
const MAX_ERROR_TEXT_CHARS: usize = 200;

/// Why the SFU did not do it.
#[derive(Debug)]
pub(crate) enum Error {
    /// The SFU did not answer.
    Unreachable(Box<str>, Box<http_client::Error>),
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
pub enum ParticipantPresence {
    /// They are, on this connection, if the SFU says which.
    Present(Option<ParticipantSid>),
    /// They are decidedly not.
    Absent,
}

/// Somebody in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParticipantInfo {
    /// Who they are.
    pub identity: ParticipantIdentity,
    /// What their token carries for us, or what somebody has put there in its place.
    pub sealed_attribute: Option<SealedAttribute>,
}

/// The SFU's API.
#[derive(Debug)]
pub(crate) struct RoomServiceClient {
    fetcher: Fetcher,
    url: BaseUrl,
    route: HttpRoute,
    api_keys: SharedApiKeys,
}

impl RoomServiceClient {
    /// The API at `url`, called with tokens that the first of `keys` signs.
    pub(crate) fn new(fetcher: Fetcher, url: BaseUrl, keys: impl Into<SharedApiKeys>) -> Self {
        let route = HttpRoute::administrator_url(&url);
        Self {
            fetcher,
            url,
            route,
            api_keys: keys.into(),
        }
    }

    /// Creates a room; one that exists already stays as it is.
    pub(crate) fn create_room(&self, room: &RoomName) -> Result<(), Error> {
        let message = message::encode_create_room(room, EMPTY_TIMEOUT, DEPARTURE_TIMEOUT);
        let answer = self.call("CreateRoom", &Claims::create_room(), &message)?;
        check_status(&answer)
    }

    /// Looks whether `identity` is in `room`. An error says nothing about that.
    pub(crate) fn get_participant(
        &self,
        room: &RoomName,
        identity: &ParticipantIdentity,
    ) -> Result<ParticipantPresence, Error> {
        let message = message::encode_room_participant(room, identity);
        let answer = self.call("GetParticipant", &Claims::room_admin(room), &message)?;
        if is_not_found(&answer) {
            return Ok(ParticipantPresence::Absent);
        }
        check_status(&answer)?;
        Ok(ParticipantPresence::Present(
            message::decode_participant_sid(&answer.body),
        ))
    }

    /// Puts `identity` out of `room`, whether they are in it or not.
    pub(crate) fn remove_participant(
        &self,
        room: &RoomName,
        identity: &ParticipantIdentity,
    ) -> Result<(), Error> {
        let message = message::encode_room_participant(room, identity);
        let answer = self.call("RemoveParticipant", &Claims::room_admin(room), &message)?;
        if is_not_found(&answer) {
            return Ok(());
        }
        check_status(&answer)
    }

    /// Whether the SFU answers and takes our key: asks for a room that nobody has.
    pub(crate) fn probe(&self) -> Result<(), Error> {
        // a name of that length is a valid one
        let nobodys = RoomName::new(PROBE_ROOM_NAME.into()).unwrap_or_else(|_| unreachable!());
        let message = message::encode_list_rooms(&[nobodys]);
        check_status(&self.call("ListRooms", &Claims::list_rooms(), &message)?)
    }

    /// Which of `names` are rooms that exist. No names mean all rooms: an SFU with more than some thousands of
    /// them, 4 MiB, says too much.
    pub(crate) fn list_rooms(&self, names: &[RoomName]) -> Result<Vec<RoomName>, Error> {
        let message = message::encode_list_rooms(names);
        let answer =
            self.call_with_limits("ListRooms", &Claims::list_rooms(), &message, LIST_LIMITS)?;
        check_status(&answer)?;
        message::decode_room_names(&answer.body)
            .ok_or_else(|| Error::Refused(answer.status, "not a list of rooms".into()))
    }

    /// Who is in `room`; nobody if there is no such room. More than some thousands of them, 4 MiB, are too much.
    pub(crate) fn list_participants(&self, room: &RoomName) -> Result<Vec<ParticipantInfo>, Error> {
        let (message, may) = (
            message::encode_list_participants(room),
            Claims::room_admin(room),
        );
        let answer = self.call_with_limits("ListParticipants", &may, &message, LIST_LIMITS)?;
        if is_not_found(&answer) {
            return Ok(Vec::new());
        }
        check_status(&answer)?;
        message::decode_participants(&answer.body)
            .ok_or_else(|| Error::Refused(answer.status, "not a list of participants".into()))
    }

    fn call(&self, method: &str, claims: &Claims, message: &[u8]) -> Result<FetchResponse, Error> {
        self.call_with_limits(method, claims, message, LIMITS)
    }

    /// Makes one call with a token of its own.
    fn call_with_limits(
        &self,
        method: &str,
        claims: &Claims,
        message: &[u8],
        limits: FetchLimits,
    ) -> Result<FetchResponse, Error> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let token = claims.sign(self.api_keys.get().signing(), now, TOKEN_LIFETIME);
        let authorization = format!("Bearer {}", token.expose());
        let target = format!("{}/twirp/livekit.RoomService/{method}", self.url.path());
        let request = FetchRequest {
            target: &target,
            authorization: Some(&authorization),
            post: Some(("application/protobuf", message)),
        };
        let answer =
            self.fetcher
                .fetch(&self.route, request, limits, Instant::now() + CALL_TIMEOUT);
        answer.map_err(|error| {
            let url = self.url.to_string().into();
            Error::Unreachable(url, Box::new(error))
        })
    }
}

fn check_status(answer: &FetchResponse) -> Result<(), Error> {
    match answer.status {
        200 => Ok(()),
        401 | 403 => Err(Error::KeyRefused(error_text(&answer.body))),
        status => Err(Error::Refused(status, error_text(&answer.body))),
    }
}

#[derive(Deserialize)]
struct TwirpError {
    code: String,
    #[serde(default)]
    msg: String,
}

/// Whether the SFU itself says that nobody is there. A 404 of a proxy, or of another service at this address, says nothing.
fn is_not_found(answer: &FetchResponse) -> bool {
    let code = || json::parse_object::<TwirpError>(&answer.body).map(|twirp| twirp.code);
    answer.status == 404 && code().as_deref() == Some("not_found")
}

/// What the SFU says: Twirp's JSON, or the middleware's plain text.
fn error_text(body: &[u8]) -> String {
    let text = match json::parse_object::<TwirpError>(body) {
        Some(TwirpError { code, msg }) => format!("{code}: {msg}"),
        None => String::from_utf8_lossy(body).into_owned(),
    };
    text.trim().chars().take(MAX_ERROR_TEXT_CHARS).collect()
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use super::message::fuzzing::{participant_sid, participants, room_names};
}
