//! Calls of the service to the SFU.

use serde_json::Value;

use crate::request::Request;

/// A call, with the claims of its access token.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) claims: Value,
}

/// `CreateRoomRequest` (LiveKit protocol, `livekit_room.proto`). Absent numbers are 0.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct CreateRoom {
    pub(crate) name: String,
    pub(crate) empty_timeout: u64,
    pub(crate) max_participants: u64,
    pub(crate) departure_timeout: u64,
}

impl Call {
    /// The body as a `CreateRoomRequest`. Panics if it is not one.
    pub(crate) fn create_room(&self) -> CreateRoom {
        let mut room = CreateRoom::default();
        let mut rest = self.request.body.as_slice();
        while !rest.is_empty() {
            let tag = varint(&mut rest);
            match (tag >> 3, tag & 7) {
                (1, 2) => {
                    let length = usize::try_from(varint(&mut rest)).unwrap();
                    let (name, tail) = rest.split_at(length);
                    room.name = String::from_utf8(name.to_vec()).unwrap();
                    rest = tail;
                }
                (2, 0) => room.empty_timeout = varint(&mut rest),
                (3, 0) => room.max_participants = varint(&mut rest),
                (10, 0) => room.departure_timeout = varint(&mut rest),
                other => panic!("field {other:?} in {self:?}"),
            }
        }
        room
    }

    /// The body as a `RoomParticipantIdentity`.
    pub(super) fn room_and_identity(&self) -> [String; 2] {
        let mut names = [String::new(), String::new()];
        let mut rest = self.request.body.as_slice();
        while !rest.is_empty() {
            let tag = varint(&mut rest);
            assert_eq!(tag & 7, 2, "{self:?}");
            let length = usize::try_from(varint(&mut rest)).unwrap();
            let (name, tail) = rest.split_at(length);
            names[usize::try_from(tag >> 3).unwrap() - 1] = String::from_utf8(name.into()).unwrap();
            rest = tail;
        }
        names
    }
}

fn varint(rest: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first().unwrap();
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a varint of more than 64 bits");
}
