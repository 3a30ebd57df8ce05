//! Webhooks of the SFU: signature, body and repeats. The SFU sends them repeatedly and out of order.

mod deduplicator;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use self::deduplicator::{EventIdState, WebhookDeduplicator};
use super::access_token::{self, AccessTokenError, SharedApiKeys};
use super::id::{ParticipantIdentity, ParticipantKey, ParticipantSid, RoomName};
use super::sealed_attribute::{SEALED_ATTRIBUTE_NAME, SealedAttribute};
use crate::util::auth::{constant_time_eq, parse_bearer};
use crate::util::text::truncate_bytes;

/// Longest event id in bytes; the SFU's have 15. A longer id is truncated.
const MAX_EVENT_ID_BYTES: usize = 255;
/// Longest disconnect reason in bytes; the longest known reason has 21.
const MAX_DISCONNECT_REASON_BYTES: usize = 64;
/// `DisconnectReason` (livekit_models.proto) by number: some senders write the number instead of the name.
const DISCONNECT_REASONS: [&str; 16] = [
    "UNKNOWN_REASON",
    "CLIENT_INITIATED",
    "DUPLICATE_IDENTITY",
    "SERVER_SHUTDOWN",
    "PARTICIPANT_REMOVED",
    "ROOM_DELETED",
    "STATE_MISMATCH",
    "JOIN_FAILURE",
    "MIGRATION",
    "SIGNAL_CLOSE",
    "ROOM_CLOSED",
    "USER_UNAVAILABLE",
    "USER_REJECTED",
    "SIP_TRUNK_FAILURE",
    "CONNECTION_TIMEOUT",
    "MEDIA_FAILURE",
];

/// An event of the SFU that this service acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebhookEvent {
    /// A connection of a participant has changed.
    Participant {
        /// The change.
        change: ConnectionChange,
        /// The participant.
        key: ParticipantKey,
        /// The connection, if the SFU names it.
        sid: Option<ParticipantSid>,
        /// The participant's sealed attribute. Not authentic: a client can be allowed to change its own attributes.
        sealed_attribute: Option<SealedAttribute>,
        /// `disconnectReason` as the SFU spells it: at most 64 visible ASCII characters.
        disconnect_reason: Option<String>,
    },
    /// `room_finished`: the room is empty and closed. The event can be minutes late, when a new room of the same name is in use.
    RoomFinished(RoomName),
}

/// What has happened to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionChange {
    /// `participant_joined`.
    Joined,
    /// `participant_left`.
    Left,
    /// `participant_connection_aborted`: the connection was never established.
    Aborted,
}

/// A webhook with a valid signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebhookDelivery {
    /// A new event. The caller handles it and then calls [`WebhookReceiver::mark_processed`] or [`WebhookReceiver::mark_failed`].
    New {
        /// The SFU's id of the event, the same for its repeats; at most 255 bytes, empty if the SFU names none.
        id: String,
        /// The event.
        event: WebhookEvent,
    },
    /// A repeat of an event that is being handled, and may still fail. The SFU has to repeat it again.
    InProgress,
    /// A repeat of an event that was handled.
    Duplicate,
    /// An event that this service does not act on.
    Ignored,
}

/// The reason why a webhook is refused. The response is a 401 for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// No Authorization header.
    MissingAuthorization,
    /// The token is not valid.
    InvalidToken(AccessTokenError),
    /// The token has no `sha256` claim, such as a token for joining a room.
    MissingBodyHash,
    /// The token's `sha256` claim is the hash of another body.
    BodyHashMismatch,
    /// The body is not a JSON object.
    MalformedBody,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingAuthorization => f.write_str("webhook without Authorization header"),
            Self::InvalidToken(AccessTokenError::UnknownKey) => f.write_str(
                "webhook: token names an unknown API key (the key in the SFU's webhook settings has to be among LIVEKIT_KEYS)",
            ),
            Self::InvalidToken(error @ (AccessTokenError::Expired | AccessTokenError::NotYetValid)) => {
                write!(f, "webhook: {error} (the clocks of the SFU and of this host have to agree)")
            }
            Self::InvalidToken(error) => write!(f, "webhook: {error}"),
            Self::MissingBodyHash => f.write_str("webhook: token has no hash of a body"),
            Self::BodyHashMismatch => f.write_str("webhook: token has the hash of another body"),
            Self::MalformedBody => f.write_str("webhook: body is not a JSON object"),
        }
    }
}

impl std::error::Error for Error {}

/// Verifies, parses and deduplicates webhooks.
#[derive(Debug)]
pub struct WebhookReceiver {
    api_keys: SharedApiKeys,
    deduplicator: WebhookDeduplicator,
}

impl WebhookReceiver {
    /// Accepts webhooks that are signed with any of `api_keys`.
    pub fn new(api_keys: impl Into<SharedApiKeys>) -> Self {
        Self {
            api_keys: api_keys.into(),
            deduplicator: WebhookDeduplicator::default(),
        }
    }

    /// Verifies and parses a webhook at `now` (seconds since 1970). `authorization` is the header's value, with or without `Bearer`.
    ///
    /// # Errors
    /// The SFU has not signed `body`, or `body` is not a JSON object.
    pub fn receive(
        &self,
        authorization: Option<&str>,
        body: &[u8],
        now: u64,
    ) -> Result<WebhookDelivery, Error> {
        self.verify_signature(authorization, body, now)?;
        let body = parse_body(body).ok_or(Error::MalformedBody)?;
        let Some(event) = parse_event(&body) else {
            return Ok(WebhookDelivery::Ignored);
        };
        let id = body.get("id").and_then(Value::as_str).unwrap_or_default();
        let id = truncate_bytes(id, MAX_EVENT_ID_BYTES).to_owned();
        Ok(match self.deduplicator.begin(&id, Instant::now()) {
            EventIdState::New => WebhookDelivery::New { id, event },
            EventIdState::InProgress => WebhookDelivery::InProgress,
            EventIdState::Processed => WebhookDelivery::Duplicate,
        })
    }

    /// Records that the event was handled: its repeats are duplicates for 15 minutes.
    pub fn mark_processed(&self, id: &str) {
        self.deduplicator.mark_processed(id);
    }

    /// Records that the event was not handled: its next repeat is new.
    pub fn mark_failed(&self, id: &str) {
        self.deduplicator.mark_failed(id);
    }

    fn verify_signature(
        &self,
        authorization: Option<&str>,
        body: &[u8],
        now: u64,
    ) -> Result<(), Error> {
        // LiveKit sends the token without a scheme
        let token = authorization
            .map(|field| parse_bearer(field).unwrap_or(field.trim()))
            .filter(|token| !token.is_empty())
            .ok_or(Error::MissingAuthorization)?;
        let claims = access_token::verify(token, self.api_keys.get().all(), now)
            .map_err(Error::InvalidToken)?;
        let hash = claims
            .sha256
            .filter(|hash| !hash.is_empty())
            .ok_or(Error::MissingBodyHash)?;
        let hash = STANDARD.decode(hash).map_err(|_| Error::BodyHashMismatch)?;
        if constant_time_eq(&hash, &Sha256::digest(body)) {
            Ok(())
        } else {
            Err(Error::BodyHashMismatch)
        }
    }
}

fn parse_body(body: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(body).ok()
}

/// Parses an event that this service acts on.
///
/// Fields of a wrong type count as absent, as for the SFU's SDKs: the body is authentic, and a newer SFU may write more than is
/// known here.
fn parse_event(body: &Map<String, Value>) -> Option<WebhookEvent> {
    let event = body.get("event")?.as_str()?;
    let room = RoomName::new(string_field(body.get("room")?, "name")?.to_owned()).ok()?;
    let change = match event {
        "participant_joined" => ConnectionChange::Joined,
        "participant_left" => ConnectionChange::Left,
        "participant_connection_aborted" => ConnectionChange::Aborted,
        "room_finished" => return Some(WebhookEvent::RoomFinished(room)),
        _ => return None,
    };
    let participant = body.get("participant")?;
    let identity = string_field(participant, "identity")?.to_owned();
    let sealed_attribute = participant
        .get("attributes")
        .and_then(|attributes| string_field(attributes, SEALED_ATTRIBUTE_NAME))
        .and_then(SealedAttribute::parse);
    Some(WebhookEvent::Participant {
        change,
        key: ParticipantKey {
            room,
            identity: ParticipantIdentity::new(identity).ok()?,
        },
        sid: string_field(participant, "sid")
            .and_then(|sid| ParticipantSid::new(sid.to_owned()).ok()),
        sealed_attribute,
        disconnect_reason: participant
            .get("disconnectReason")
            .and_then(parse_disconnect_reason),
    })
}

fn string_field<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str()
}

/// Parses the name or the number of a reason.
fn parse_disconnect_reason(value: &Value) -> Option<String> {
    match value {
        Value::String(name) if name.bytes().all(|b| b.is_ascii_graphic()) => {
            Some(truncate_bytes(name, MAX_DISCONNECT_REASON_BYTES).to_owned())
        }
        Value::Number(number) => {
            let number = number.as_u64()?;
            let name = usize::try_from(number)
                .ok()
                .and_then(|n| DISCONNECT_REASONS.get(n));
            Some(name.map_or_else(|| number.to_string(), ToString::to_string))
        }
        _ => None,
    }
}

#[cfg(fuzzing)]
pub(crate) mod fuzzing {
    /// The event of a body whose signature is valid, if this service acts on it; an error if the body is not a JSON object.
    pub fn webhook_event(body: &[u8]) -> Result<Option<super::WebhookEvent>, ()> {
        Ok(super::parse_event(&super::parse_body(body).ok_or(())?))
    }
}
