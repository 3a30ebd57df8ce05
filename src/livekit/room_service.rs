//! LiveKit's RoomService, as far as we need it: Twirp over HTTP with protobuf bodies.
//!
//! The one message is encoded here in a few lines; `prost` would bring seven crates and a code generator for it.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::json;
use crate::livekit::token::{ApiKey, Claims, Identity, RoomName, Sid};
use crate::net::base_url::BaseUrl;
use crate::net::bulkhead::PER_NEIGHBOURHOOD;
use crate::net::fetch::{self, Fetcher, Limits, Request, Route};

/// For one call in all. It is tried once: the client asks again sooner than a second try would help.
const BUDGET: Duration = Duration::from_secs(10);
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    head: Duration::from_secs(8),
    body: Duration::from_secs(3),
    // a room's description has some 200 bytes; a proxy's error page may be longer
    max_body: 64 * 1024,
    neighbours: PER_NEIGHBOURHOOD,
};
/// The call's own token is used at once.
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// Seconds that a room lasts before anyone joins it.
const EMPTY_TIMEOUT: u32 = 300;
/// Seconds that a room lasts after the last one left.
const DEPARTURE_TIMEOUT: u32 = 20;
/// Characters of the SFU's own words that reach the log.
const MAX_REASON: usize = 200;

/// Why a room was not created.
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
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let token = Claims::create_room().sign(&self.key, now, TOKEN_LIFETIME);
        let authorization = format!("Bearer {}", token.expose());
        let target = format!("{}/twirp/livekit.RoomService/CreateRoom", self.url.path());
        let body = create_room_request(room);
        let request = Request {
            target: &target,
            authorization: Some(&authorization),
            post: Some(("application/protobuf", &body)),
        };
        let answer = self
            .fetcher
            .fetch(&self.route, request, LIMITS, Instant::now() + BUDGET);
        let answer = answer.map_err(|error| {
            let url = self.url.to_string().into();
            Error::Unreachable(url, Box::new(error))
        })?;
        match answer.status {
            200 => Ok(()),
            401 | 403 => Err(Error::KeyRefused(reason(&answer.body))),
            status => Err(Error::Refused(status, reason(&answer.body))),
        }
    }

    /// Looks whether `identity` is in `room`. An error says nothing about that.
    pub fn get_participant(
        &self,
        _room: &RoomName,
        _identity: &Identity,
    ) -> Result<Presence, Error> {
        Err(Error::Refused(501, "not there yet".into()))
    }
}

/// `livekit.CreateRoomRequest`: name = 1, empty_timeout = 2, departure_timeout = 10.
fn create_room_request(room: &RoomName) -> Vec<u8> {
    let mut message = Vec::with_capacity(room.as_str().len() + 10);
    put_field(&mut message, 1, 2);
    put_varint(
        &mut message,
        u32::try_from(room.as_str().len()).unwrap_or_else(|_| unreachable!()),
    );
    message.extend_from_slice(room.as_str().as_bytes());
    for (field, value) in [(2, EMPTY_TIMEOUT), (10, DEPARTURE_TIMEOUT)] {
        put_field(&mut message, field, 0);
        put_varint(&mut message, value);
    }
    message
}

/// A field's number and wire type (0 = varint, 2 = bytes).
fn put_field(message: &mut Vec<u8>, number: u32, wire_type: u32) {
    put_varint(message, number << 3 | wire_type);
}

fn put_varint(message: &mut Vec<u8>, mut value: u32) {
    while value > 0x7f {
        message.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    message.push(value.to_le_bytes()[0]);
}

/// What the SFU says: Twirp's JSON, or the middleware's plain text.
fn reason(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Twirp {
        code: String,
        msg: String,
    }
    let text = match json::object::<Twirp>(body) {
        Some(Twirp { code, msg }) => format!("{code}: {msg}"),
        None => String::from_utf8_lossy(body).into_owned(),
    };
    text.trim().chars().take(MAX_REASON).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_what_protoc_would_write() {
        let message = create_room_request(&RoomName::new("abc".into()).unwrap());
        assert_eq!(
            message,
            [0x0a, 3, b'a', b'b', b'c', 0x10, 0xac, 0x02, 0x50, 20]
        );
        let long = create_room_request(&RoomName::new("a".repeat(256)).unwrap());
        assert_eq!(long[..3], [0x0a, 0x80, 0x02]);
    }

    #[test]
    fn the_sfus_words_are_short_and_plain() {
        assert_eq!(
            reason(br#"{"code":"unauthenticated","msg":"permissions denied"}"#),
            "unauthenticated: permissions denied"
        );
        assert_eq!(reason(b"invalid token\n"), "invalid token");
        assert_eq!(reason(&[b'x'; 5000]).len(), MAX_REASON);
    }
}
