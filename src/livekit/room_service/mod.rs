//! Client of LiveKit's RoomService API: Twirp over HTTP with protobuf bodies, which every SFU and every test server accepts.

mod message;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::access_token::{Claims, SharedApiKeys};
use super::sealed_attribute::SealedAttribute;
use crate::livekit::id::{ParticipantIdentity, ParticipantKey, ParticipantSid, RoomName};
use crate::net::base_url::BaseUrl;
use crate::net::http_client::{self, FetchLimits, FetchRequest, FetchResponse, Fetcher, HttpRoute};
use crate::util::text::truncate_chars;
use crate::util::{clock, json};

/// Timeout of a call. A call is made once: clients repeat their request sooner than a second attempt would help.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const LIMITS: FetchLimits = FetchLimits::new("sfu");
/// Limits of calls that return lists: a participant has 1 to 2 KiB, a room less.
const LIST_LIMITS: FetchLimits = FetchLimits {
    max_body: 4 * 1024 * 1024,
    ..LIMITS
};
/// Lifetime of the token of one call, which is used at once.
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// Seconds after which the SFU closes a new room that no participant has joined.
const EMPTY_TIMEOUT: u32 = 300;
/// Seconds after which the SFU closes a room that the last participant has left.
const DEPARTURE_TIMEOUT: u32 = 20;
/// Room name that the readiness probe asks for. Not a name derived from a Matrix room: those have 43 characters.
const PROBE_ROOM_NAME: &str = "livekit-token-service readiness probe";
/// Longest error text of the SFU in the log, in characters.
const MAX_ERROR_TEXT_CHARS: usize = 200;
/// Content type of Twirp's protobuf messages, of calls and of their responses (Twirp wire protocol, "Responses").
const PROTOBUF: &str = "application/protobuf";

/// The reason why a call has failed.
#[derive(Debug)]
pub(crate) enum Error {
    /// No response: URL and cause.
    Unreachable(Box<str>, Box<http_client::Error>),
    /// The SFU refuses the API key: the SFU's text.
    KeyRefused(String),
    /// Another error: HTTP status and the SFU's text.
    Refused(u16, String),
    /// A success of a server that is not an SFU: URL, and what was expected and found.
    NotSfu(Box<str>, String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(url, error) => {
                write!(
                    f,
                    "the SFU does not respond at {url}: {error} (set LIVEKIT_API_URL to where this host reaches the SFU)"
                )
            }
            Self::KeyRefused(reason) => {
                write!(
                    f,
                    "the SFU refuses the API key: {reason} (LIVEKIT_KEY and LIVEKIT_SECRET have to be among its keys)"
                )
            }
            Self::Refused(status, reason) => {
                write!(f, "the SFU refused with status {status}: {reason}")
            }
            Self::NotSfu(url, difference) => {
                write!(
                    f,
                    "the response at {url} is not an SFU's: {difference} (is LIVEKIT_API_URL the SFU's address?)"
                )
            }
        }
    }
}

impl std::error::Error for Error {}

/// Whether a participant is in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParticipantPresence {
    /// Connected, with the id of the connection if the SFU names it.
    Present(Option<ParticipantSid>),
    /// Not connected, by an explicit response of the SFU.
    Absent,
}

/// A connected participant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParticipantInfo {
    pub identity: ParticipantIdentity,
    /// Not authentic: a client can be allowed to change its own attributes.
    pub sealed_attribute: Option<SealedAttribute>,
}

#[derive(Debug)]
pub(crate) struct RoomServiceClient {
    fetcher: Fetcher,
    url: BaseUrl,
    route: HttpRoute,
    api_keys: SharedApiKeys,
}

impl RoomServiceClient {
    /// A client of the API at `url`, whose calls carry tokens of the signing key.
    pub(crate) fn new(fetcher: Fetcher, url: BaseUrl, api_keys: impl Into<SharedApiKeys>) -> Self {
        let route = HttpRoute::administrator_url(&url);
        Self {
            fetcher,
            url,
            route,
            api_keys: api_keys.into(),
        }
    }

    /// Creates a room. An existing room is not changed.
    pub(crate) fn create_room(&self, room: &RoomName) -> Result<(), Error> {
        let message = message::encode_create_room(room, EMPTY_TIMEOUT, DEPARTURE_TIMEOUT);
        let response = self.call("CreateRoom", &Claims::create_room(), &message)?;
        self.check_success(&response)?;
        match message::decode_room_name(&response.body) {
            Some(name) if name == room.as_str() => Ok(()),
            Some(name) => {
                let name = truncate_chars(&name, MAX_ERROR_TEXT_CHARS).escape_debug();
                Err(self.not_sfu(format!("expected room {room}, found room \"{name}\"")))
            }
            None => Err(self.not_sfu(format!("expected room {room}, found no room"))),
        }
    }

    /// Looks up a participant. An error means that the presence is unknown.
    pub(crate) fn get_participant(
        &self,
        key: &ParticipantKey,
    ) -> Result<ParticipantPresence, Error> {
        let message = message::encode_room_participant(key);
        let response = self.call("GetParticipant", &Claims::room_admin(&key.room), &message)?;
        if is_not_found(&response) {
            return Ok(ParticipantPresence::Absent);
        }
        self.check_success(&response)?;
        Ok(ParticipantPresence::Present(
            message::decode_participant_sid(&response.body),
        ))
    }

    /// Removes a participant from a room; no error if the participant is not in it.
    pub(crate) fn remove_participant(&self, key: &ParticipantKey) -> Result<(), Error> {
        let message = message::encode_room_participant(key);
        let response = self.call(
            "RemoveParticipant",
            &Claims::room_admin(&key.room),
            &message,
        )?;
        if is_not_found(&response) {
            return Ok(());
        }
        self.check_success(&response)
    }

    /// Checks that the SFU responds and accepts the API key, by a list of one room that does not exist.
    pub(crate) fn probe(&self) -> Result<(), Error> {
        let room = RoomName::new(PROBE_ROOM_NAME.into()).unwrap_or_else(|_| unreachable!());
        let message = message::encode_list_rooms(Some(&room));
        let response = self.call("ListRooms", &Claims::list_rooms(), &message)?;
        self.decode_rooms(&response).map(drop)
    }

    /// The names of all rooms. Fails if the list exceeds 4 MiB: some ten thousand rooms.
    pub(crate) fn list_rooms(&self) -> Result<Vec<RoomName>, Error> {
        let message = message::encode_list_rooms(None);
        let response =
            self.call_with_limits("ListRooms", &Claims::list_rooms(), &message, LIST_LIMITS)?;
        self.decode_rooms(&response)
    }

    fn decode_rooms(&self, response: &FetchResponse) -> Result<Vec<RoomName>, Error> {
        self.check_success(response)?;
        message::decode_room_names(&response.body)
            .ok_or_else(|| self.not_sfu("expected a list of rooms, found other bytes"))
    }

    /// The participants of `room`; empty if the room does not exist. Fails if the list exceeds 4 MiB: some thousand participants.
    pub(crate) fn list_participants(&self, room: &RoomName) -> Result<Vec<ParticipantInfo>, Error> {
        let message = message::encode_list_participants(room);
        let claims = Claims::room_admin(room);
        let response = self.call_with_limits("ListParticipants", &claims, &message, LIST_LIMITS)?;
        if is_not_found(&response) {
            return Ok(Vec::new());
        }
        self.check_success(&response)?;
        message::decode_participants(&response.body)
            .ok_or_else(|| self.not_sfu("expected a list of participants, found other bytes"))
    }

    /// Checks that a response is a success, and that an SFU may have sent it: another server can answer every request with 200.
    fn check_success(&self, response: &FetchResponse) -> Result<(), Error> {
        match response.status {
            200 => {}
            401 | 403 => return Err(Error::KeyRefused(error_text(&response.body))),
            status => return Err(Error::Refused(status, error_text(&response.body))),
        }
        let content_type = response.headers.get("content-type");
        let content_type = content_type.map(|value| String::from_utf8_lossy(value.as_bytes()));
        let found = match content_type.as_deref() {
            Some(value) if is_media_type(value, PROTOBUF) => return Ok(()),
            Some(value) => {
                let web_page = is_media_type(value, "text/html").then_some(", a web page");
                let value = truncate_chars(value, MAX_ERROR_TEXT_CHARS).escape_debug();
                format!("found \"{value}\"{}", web_page.unwrap_or_default())
            }
            None => "found none".to_owned(),
        };
        Err(self.not_sfu(format!("expected content type {PROTOBUF}, {found}")))
    }

    fn not_sfu(&self, difference: impl Into<String>) -> Error {
        Error::NotSfu(self.url.to_string().into(), difference.into())
    }

    fn call(&self, method: &str, claims: &Claims, message: &[u8]) -> Result<FetchResponse, Error> {
        self.call_with_limits(method, claims, message, LIMITS)
    }

    /// Makes a call with a token for this call alone.
    fn call_with_limits(
        &self,
        method: &str,
        claims: &Claims,
        message: &[u8],
        limits: FetchLimits,
    ) -> Result<FetchResponse, Error> {
        let now = clock::unix_seconds_now();
        let token = claims.sign(self.api_keys.get().signing(), now, TOKEN_LIFETIME);
        let authorization = format!("Bearer {}", token.expose());
        let target = format!("{}/twirp/livekit.RoomService/{method}", self.url.path());
        let request = FetchRequest {
            target: &target,
            authorization: Some(&authorization),
            post: Some((PROTOBUF, message)),
        };
        let response =
            self.fetcher
                .fetch(&self.route, request, limits, Instant::now() + CALL_TIMEOUT);
        response.map_err(|error| {
            let url = self.url.to_string().into();
            Error::Unreachable(url, Box::new(error))
        })
    }
}

/// Whether a `Content-Type` names this type, with any parameters (RFC 9110, section 8.3.1).
fn is_media_type(content_type: &str, expected: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case(expected)
}

#[derive(Deserialize)]
struct TwirpError {
    code: String,
    #[serde(default)]
    msg: String,
}

/// Whether the SFU itself reports that the participant or room does not exist. A 404 of a proxy, or of another service at this
/// address, proves nothing.
fn is_not_found(response: &FetchResponse) -> bool {
    let code = || json::parse_object::<TwirpError>(&response.body).map(|error| error.code);
    response.status == 404 && code().as_deref() == Some("not_found")
}

/// The SFU's error text: Twirp's JSON, or plain text of its middleware.
fn error_text(body: &[u8]) -> String {
    let text = match json::parse_object::<TwirpError>(body) {
        Some(TwirpError { code, msg }) => format!("{code}: {msg}"),
        None => String::from_utf8_lossy(body).into_owned(),
    };
    truncate_chars(text.trim(), MAX_ERROR_TEXT_CHARS).to_owned()
}

#[cfg(fuzzing)]
pub(crate) mod fuzzing {
    pub use super::message::fuzzing::{participant_sid, participants, room_names};
}
