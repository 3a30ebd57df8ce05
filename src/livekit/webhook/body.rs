//! The body of a webhook: the SFU's own JSON of its messages, read as leniently as its SDKs do.

use serde_json::{Map, Value};

use super::{WebhookEvent, WebhookEventKind};
use crate::livekit::id::{ParticipantIdentity, ParticipantSid, RoomName};
use crate::livekit::sealed_attribute;
use crate::livekit::sealed_attribute::SealedAttribute;
use crate::util::json;

/// Longest id of an event in bytes; the SFU's have 15. A longer one is cut, for it is only compared.
const MAX_EVENT_ID_BYTES: usize = 255;
/// Longest reason that is kept, in bytes; the longest known has 21.
const MAX_DISCONNECT_REASON_BYTES: usize = 64;
/// The SFU's names for its reasons (livekit_models.proto, `DisconnectReason`), as some senders write only their numbers.
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

/// What a body says.
pub(super) enum WebhookBody {
    /// Something that matters here.
    Relevant(WebhookEvent),
    /// Another event, or one about nobody that we could know.
    Irrelevant,
}

/// Reads a body; nothing if it is no JSON object.
///
/// Fields that are absent have their default, fields of a wrong type count as absent: the signature was good, so it is the SFU's
/// word, of a version that may know more than we do.
pub(super) fn parse_webhook_body(body: &[u8]) -> Option<WebhookBody> {
    let event = json::parse_object::<Map<String, Value>>(body)?;
    Some(parse_relevant_event(&event).map_or(WebhookBody::Irrelevant, WebhookBody::Relevant))
}

fn parse_relevant_event(event: &Map<String, Value>) -> Option<WebhookEvent> {
    let kind = match event.get("event")?.as_str()? {
        "participant_joined" => WebhookEventKind::Joined,
        "participant_left" => WebhookEventKind::Left,
        "participant_connection_aborted" => WebhookEventKind::Aborted,
        "room_finished" => WebhookEventKind::RoomFinished,
        _ => return None,
    };
    let room = string_field(event.get("room")?, "name")?;
    let participant = match kind {
        WebhookEventKind::Joined | WebhookEventKind::Left | WebhookEventKind::Aborted => {
            event.get("participant")
        }
        WebhookEventKind::RoomFinished => None,
    };
    let reason = participant.and_then(|who| who.get("disconnectReason"));
    let attributes = participant.and_then(|who| who.get("attributes"));
    let sealed =
        attributes.and_then(|all| string_field(all, sealed_attribute::SEALED_ATTRIBUTE_NAME));
    let participant = match (kind, participant) {
        (WebhookEventKind::RoomFinished, _) => None,
        (_, Some(who)) => {
            let identity =
                ParticipantIdentity::new(string_field(who, "identity")?.to_owned()).ok()?;
            let sid =
                string_field(who, "sid").and_then(|sid| ParticipantSid::new(sid.to_owned()).ok());
            Some((identity, sid))
        }
        (_, None) => return None,
    };
    Some(WebhookEvent {
        id: event
            .get("id")
            .and_then(Value::as_str)
            .map_or(String::new(), |id| {
                truncate_to_bytes(id, MAX_EVENT_ID_BYTES)
            }),
        kind,
        room: RoomName::new(room.to_owned()).ok()?,
        participant,
        sealed_attribute: sealed.and_then(SealedAttribute::parse),
        disconnect_reason: reason.and_then(parse_disconnect_reason),
    })
}

fn string_field<'a>(of: &'a Value, name: &str) -> Option<&'a str> {
    of.get(name)?.as_str()
}

/// A reason by its name, or by its number.
fn parse_disconnect_reason(value: &Value) -> Option<String> {
    match value {
        Value::String(name) if name.bytes().all(|b| b.is_ascii_graphic()) => {
            Some(truncate_to_bytes(name, MAX_DISCONNECT_REASON_BYTES))
        }
        Value::Number(number) => {
            let number = number.as_u64()?;
            let known = usize::try_from(number)
                .ok()
                .and_then(|n| DISCONNECT_REASONS.get(n));
            Some(known.map_or_else(|| number.to_string(), ToString::to_string))
        }
        _ => None,
    }
}

/// The start of a text, at most `most` bytes of it.
fn truncate_to_bytes(text: &str, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
