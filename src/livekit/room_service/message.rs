//! The protobuf messages of the RoomService calls. Written by hand: `prost` would add seven crates and a code generator.

use super::ParticipantInfo;
use crate::livekit::id::{ParticipantIdentity, ParticipantKey, ParticipantSid, RoomName};
use crate::livekit::sealed_attribute::{SEALED_ATTRIBUTE_NAME, SealedAttribute};

/// Wire types of protobuf ("Encoding").
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED32: u64 = 5;

/// `livekit.CreateRoomRequest`: name = 1, empty_timeout = 2, departure_timeout = 10, both in seconds.
pub(super) fn encode_create_room(
    room: &RoomName,
    empty_timeout: u32,
    departure_timeout: u32,
) -> Vec<u8> {
    let mut message = Vec::with_capacity(room.as_str().len() + 10);
    put_string_field(&mut message, 1, room.as_str());
    for (field, value) in [(2, empty_timeout), (10, departure_timeout)] {
        put_tag(&mut message, field, VARINT);
        put_varint(&mut message, value.into());
    }
    message
}

/// `livekit.RoomParticipantIdentity`: room = 1, identity = 2.
pub(super) fn encode_room_participant(key: &ParticipantKey) -> Vec<u8> {
    let (room, identity) = (key.room.as_str(), key.identity.as_str());
    let mut message = Vec::with_capacity(room.len() + identity.len() + 6);
    put_string_field(&mut message, 1, room);
    put_string_field(&mut message, 2, identity);
    message
}

/// `livekit.ListRoomsRequest`: names = 1, repeated; without names the SFU lists all rooms.
pub(super) fn encode_list_rooms(name: Option<&RoomName>) -> Vec<u8> {
    let mut message = Vec::new();
    if let Some(name) = name {
        put_string_field(&mut message, 1, name.as_str());
    }
    message
}

/// `livekit.ListParticipantsRequest`: room = 1.
pub(super) fn encode_list_participants(room: &RoomName) -> Vec<u8> {
    let mut message = Vec::with_capacity(room.as_str().len() + 3);
    put_string_field(&mut message, 1, room.as_str());
    message
}

/// The sid of a `livekit.ParticipantInfo`: sid = 1. `None` if the message has no valid sid, or is malformed.
pub(super) fn decode_participant_sid(message: &[u8]) -> Option<ParticipantSid> {
    let sid = last_string_field(message, 1)?;
    ParticipantSid::new(sid).ok()
}

/// The name of a `livekit.Room`: sid = 1, name = 2. `None` if the message has no name, or is malformed.
pub(super) fn decode_room_name(message: &[u8]) -> Option<String> {
    last_string_field(message, 2)
}

/// The names in a `livekit.ListRoomsResponse`: rooms = 1, repeated, each a `livekit.Room` with name = 2. `None` if malformed.
pub(super) fn decode_room_names(message: &[u8]) -> Option<Vec<RoomName>> {
    let mut names = Vec::new();
    for field in ProtobufFields(message) {
        if let (1, Some(room)) = field? {
            names.extend(decode_room_name(room).and_then(|name| RoomName::new(name).ok()));
        }
    }
    Some(names)
}

/// The participants of a `livekit.ListParticipantsResponse`: participants = 1, repeated, each a `livekit.ParticipantInfo` with
/// identity = 2 and attributes = 15, a map: repeated, each with key = 1 and value = 2. `None` if malformed.
pub(super) fn decode_participants(message: &[u8]) -> Option<Vec<ParticipantInfo>> {
    let mut participants = Vec::new();
    for field in ProtobufFields(message) {
        if let (1, Some(info)) = field?
            && let Some(identity) = last_string_field(info, 2)
            && let Ok(identity) = ParticipantIdentity::new(identity)
        {
            participants.push(ParticipantInfo {
                identity,
                sealed_attribute: decode_sealed_attribute(info),
            });
        }
    }
    Some(participants)
}

fn decode_sealed_attribute(info: &[u8]) -> Option<SealedAttribute> {
    let mut sealed = None;
    for field in ProtobufFields(info) {
        if let (15, Some(entry)) = field?
            && last_string_field(entry, 1).as_deref() == Some(SEALED_ATTRIBUTE_NAME)
        {
            sealed = last_string_field(entry, 2).and_then(|text| SealedAttribute::parse(&text));
        }
    }
    sealed
}

/// The value of a string field. If the field is repeated, the last one counts (protobuf, "Last One Wins").
fn last_string_field(message: &[u8], number: u64) -> Option<String> {
    let mut last = None;
    for field in ProtobufFields(message) {
        match field? {
            (found, Some(bytes)) if found == number => last = Some(bytes),
            _ => {}
        }
    }
    Some(std::str::from_utf8(last?).ok()?.to_owned())
}

/// Iterator over the fields of a message: the number, and the bytes of a length-delimited field. A malformed field yields `None` and
/// ends the iteration.
struct ProtobufFields<'a>(&'a [u8]);

impl<'a> Iterator for ProtobufFields<'a> {
    type Item = Option<(u64, Option<&'a [u8]>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read_field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> ProtobufFields<'a> {
    fn read_field(&mut self) -> Option<(u64, Option<&'a [u8]>)> {
        let tag = self.read_varint()?;
        let bytes = match tag & 7 {
            VARINT => self.read_varint().map(|_| None)?,
            FIXED64 => self.read_bytes(8).map(|_| None)?,
            FIXED32 => self.read_bytes(4).map(|_| None)?,
            LENGTH_DELIMITED => {
                let length = self.read_varint()?;
                Some(self.read_bytes(usize::try_from(length).ok()?)?)
            }
            _ => return None,
        };
        Some((tag >> 3, bytes))
    }

    fn read_bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn read_varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.read_bytes(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

fn put_string_field(message: &mut Vec<u8>, number: u64, text: &str) {
    put_tag(message, number, LENGTH_DELIMITED);
    put_varint(message, text.len() as u64);
    message.extend_from_slice(text.as_bytes());
}

fn put_tag(message: &mut Vec<u8>, number: u64, wire_type: u64) {
    put_varint(message, number << 3 | wire_type);
}

fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        message.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    message.push(value.to_le_bytes()[0]);
}

#[cfg(fuzzing)]
pub(super) mod fuzzing {
    use crate::livekit::id::{ParticipantIdentity, ParticipantSid, RoomName};
    use crate::livekit::sealed_attribute::SealedAttribute;

    /// The sid of an encoded `ParticipantInfo`.
    pub fn participant_sid(message: &[u8]) -> Option<ParticipantSid> {
        super::decode_participant_sid(message)
    }

    /// The rooms of an encoded `ListRoomsResponse`.
    pub fn room_names(message: &[u8]) -> Option<Vec<RoomName>> {
        super::decode_room_names(message)
    }

    /// The participants of an encoded `ListParticipantsResponse`.
    pub fn participants(
        message: &[u8],
    ) -> Option<Vec<(ParticipantIdentity, Option<SealedAttribute>)>> {
        let participants = super::decode_participants(message)?.into_iter();
        Some(
            participants
                .map(|info| (info.identity, info.sealed_attribute))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(name: &str) -> RoomName {
        RoomName::new(name.into()).unwrap()
    }

    #[test]
    fn encoded_messages_equal_those_of_protoc() {
        assert_eq!(
            encode_create_room(&room("abc"), 300, 20),
            [0x0a, 3, b'a', b'b', b'c', 0x10, 0xac, 0x02, 0x50, 20]
        );
        let long = encode_create_room(&room(&"a".repeat(256)), 300, 20);
        assert_eq!(long[..3], [0x0a, 0x80, 0x02]);
        let key = ParticipantKey {
            room: room("r"),
            identity: ParticipantIdentity::new("me".into()).unwrap(),
        };
        assert_eq!(
            encode_room_participant(&key),
            [0x0a, 1, b'r', 0x12, 2, b'm', b'e']
        );
        assert_eq!(encode_list_rooms(Some(&room("a"))), [0x0a, 1, b'a']);
        assert!(encode_list_rooms(None).is_empty());
        assert_eq!(encode_list_participants(&room("r")), [0x0a, 1, b'r']);
    }

    #[test]
    fn the_sid_is_found_among_fields_of_all_wire_types() {
        let mut message = vec![0x18, 0x96, 0x01];
        message.extend([0x0a, 4, b'P', b'A', b'_', b'1']);
        message.extend([0x25, 1, 2, 3, 4]);
        message.extend([0x29, 1, 2, 3, 4, 5, 6, 7, 8]);
        message.extend([0x12, 1, b'i']);
        assert_eq!(
            decode_participant_sid(&message),
            Some(ParticipantSid::new("PA_1".into()).unwrap())
        );
        for malformed in [
            &b""[..],
            b"{\"sid\":\"PA_1\"}",
            &[0x0a],
            &[0x0a, 5, b'P'],
            &[0x0a, 1, 0xff],
            &[0x0a, 0],
            &[0x0a, 1, b'P', 0x1b],
            &[0xff; 20],
            &[
                0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
            ],
        ] {
            assert_eq!(decode_participant_sid(malformed), None, "{malformed:?}");
        }
    }

    #[test]
    fn participants_are_decoded_with_their_sealed_attributes() {
        let entry = |name: &str, value: &str| {
            let mut entry = Vec::new();
            put_string_field(&mut entry, 1, name);
            put_string_field(&mut entry, 2, value);
            entry
        };
        let nested = |number, inner: &[u8]| {
            let mut outer = Vec::new();
            put_tag(&mut outer, number, LENGTH_DELIMITED);
            put_varint(&mut outer, inner.len() as u64);
            [&outer, inner].concat()
        };
        let participant = |name: &str, attributes: &[Vec<u8>]| {
            let mut info = Vec::new();
            put_string_field(&mut info, 1, "PA_1");
            put_string_field(&mut info, 2, name);
            info.extend([0x18, 2]);
            info.extend(attributes.iter().flat_map(|entry| nested(15, entry)));
            nested(1, &info)
        };
        let sealed = entry(SEALED_ATTRIBUTE_NAME, "abc");
        let message = [
            participant("a", &[entry("x", "y"), sealed.clone()]),
            participant("b", &[]),
            participant("c", &[entry("x", "abc")]),
            participant("d", &[entry(SEALED_ATTRIBUTE_NAME, "not of the alphabet")]),
            participant("e", &[vec![0xff], sealed]),
            participant("", &[]),
        ];
        let all = decode_participants(&message.concat()).unwrap();
        let all = all
            .iter()
            .map(|info| (info.identity.as_str(), info.sealed_attribute.as_ref()));
        let abc = SealedAttribute::parse("abc");
        let without = |name| (name, None);
        assert!(all.eq([
            ("a", abc.as_ref()),
            without("b"),
            without("c"),
            without("d"),
            ("e", abc.as_ref())
        ]));
        assert_eq!(decode_participants(b""), Some(vec![]));
        assert_eq!(decode_participants(b"<html>"), None);
    }

    #[test]
    fn the_name_of_a_room_is_decoded() {
        // of livekit-server 1.13.5, shortened to three codecs
        let room = b"\n\x0fRM_TAyT6Czu42zb\x12\x03abc\x18\xac\x02(\x8a\xea\xab\xd8\x062,RXeJoiWmPo3gDg8wwTpD7f2FhSmI8dEYoe6TVNXCr9ZA:\x0c\n\naudio/PCMU:\x0b\n\tvideo/VP8:\x0b\n\tvideo/rtxp\x14x\xda\xe5\xb4\x96\xa24";
        assert_eq!(decode_room_name(room).as_deref(), Some("abc"));
        assert_eq!(decode_room_name(b""), None);
        assert_eq!(decode_room_name(b"\x0a\x03abc"), None);
        assert_eq!(decode_room_name(&room[..room.len() - 1]), None);
        assert_eq!(decode_room_name(b"<!doctype html>"), None);
    }

    #[test]
    fn room_names_are_decoded() {
        let message = [
            0x0a, 5, 0x0a, 0, 0x12, 1, b'a', 0x0a, 0, 0x0a, 3, 0x12, 1, b'b',
        ];
        assert_eq!(
            decode_room_names(&message),
            Some(vec![room("a"), room("b")])
        );
        assert_eq!(decode_room_names(b""), Some(vec![]));
        assert_eq!(decode_room_names(b"<html>"), None);
    }
}
