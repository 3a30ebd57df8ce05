//! The body of a webhook: the SFU's own JSON of its messages, read as leniently as its SDKs do.

use serde_json::{Map, Value};

use super::{Kind, Webhook};
use crate::json;
use crate::livekit::sealed::{self, Sealed};
use crate::livekit::token::{Identity, RoomName, Sid};

/// Longest id of an event in bytes; the SFU's have 15. A longer one is cut, for it is only compared.
const MAX_ID: usize = 255;
/// Longest reason that is kept, in bytes; the longest known has 21.
const MAX_REASON: usize = 64;
/// The SFU's names for its reasons (livekit_models.proto, `DisconnectReason`), as some senders write only their numbers.
const REASONS: [&str; 16] = [
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
pub(super) enum Content {
    /// Something that matters here.
    Matters(Webhook),
    /// Another event, or one about nobody that we could know.
    Other,
}

/// Reads a body; nothing if it is no JSON object.
///
/// Fields that are absent have their default, fields of a wrong type count as absent: the signature was good, so it is the SFU's
/// word, of a version that may know more than we do.
pub(super) fn read(body: &[u8]) -> Option<Content> {
    let event = json::object::<Map<String, Value>>(body)?;
    Some(matters(&event).map_or(Content::Other, Content::Matters))
}

fn matters(event: &Map<String, Value>) -> Option<Webhook> {
    let kind = match event.get("event")?.as_str()? {
        "participant_joined" => Kind::Joined,
        "participant_left" => Kind::Left,
        "participant_connection_aborted" => Kind::Aborted,
        "room_finished" => Kind::RoomFinished,
        _ => return None,
    };
    let room = text(event.get("room")?, "name")?;
    let participant = match kind {
        Kind::Joined | Kind::Left | Kind::Aborted => event.get("participant"),
        Kind::RoomFinished => None,
    };
    let reason = participant.and_then(|who| who.get("disconnectReason"));
    let attributes = participant.and_then(|who| who.get("attributes"));
    let sealed = attributes.and_then(|all| text(all, sealed::ATTRIBUTE));
    let participant = match (kind, participant) {
        (Kind::RoomFinished, _) => None,
        (_, Some(who)) => {
            let identity = Identity::new(text(who, "identity")?.to_owned()).ok()?;
            let sid = text(who, "sid").and_then(|sid| Sid::new(sid.to_owned()).ok());
            Some((identity, sid))
        }
        (_, None) => return None,
    };
    Some(Webhook {
        id: event
            .get("id")
            .and_then(Value::as_str)
            .map_or(String::new(), |id| cut(id, MAX_ID)),
        kind,
        room: RoomName::new(room.to_owned()).ok()?,
        participant,
        sealed: sealed.and_then(Sealed::parse),
        reason: reason.and_then(reason_of),
    })
}

fn text<'a>(of: &'a Value, name: &str) -> Option<&'a str> {
    of.get(name)?.as_str()
}

/// A reason by its name, or by its number.
fn reason_of(value: &Value) -> Option<String> {
    match value {
        Value::String(name) if name.bytes().all(|b| b.is_ascii_graphic()) => {
            Some(cut(name, MAX_REASON))
        }
        Value::Number(number) => {
            let number = number.as_u64()?;
            let known = usize::try_from(number).ok().and_then(|n| REASONS.get(n));
            Some(known.map_or_else(|| number.to_string(), ToString::to_string))
        }
        _ => None,
    }
}

/// The start of a text, at most `most` bytes of it.
fn cut(text: &str, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
