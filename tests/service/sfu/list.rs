//! `ListRooms` and `ListParticipants`.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use serde_json::Value;

use super::{Call, FakeSfu, State};

impl FakeSfu {
    /// Connects the participant of an access token with these claims. Returns room and identity.
    pub(crate) fn connect_participant(&self, claims: &Value) -> [String; 2] {
        let names = [&claims["video"]["room"], &claims["sub"]];
        let names = names.map(|name| name.as_str().unwrap().to_owned());
        let mut attributes = self.state.attributes.lock().unwrap();
        attributes.insert(names.clone().into(), claims["attributes"].clone());
        self.set_connection(&names[0], &names[1], Some("PA_1"));
        names
    }

    /// Sets whether lists are refused with 503.
    pub(crate) fn refuse_lists(&self, refuse: bool) {
        self.state.refuses_lists.store(refuse, Ordering::SeqCst);
    }

    /// Waits for `count` calls for a list.
    pub(crate) fn wait_for_lists(&self, count: usize) {
        self.state.wait_for_calls(&self.state.lists, count);
    }
}

/// Whether the call lists all rooms, or all participants of one.
pub(super) fn is_list(call: &Call) -> bool {
    let (target, lists_all) = (&call.request.target, call.request.body.is_empty());
    target.ends_with("/ListParticipants") || target.ends_with("/ListRooms") && lists_all
}

impl State {
    /// The response of a real SFU (`livekit_room.proto`, `livekit_models.proto`).
    pub(super) fn list(&self, call: &Call) -> (&'static str, Vec<u8>) {
        if self.refuses_lists.load(Ordering::SeqCst) {
            let unavailable = br#"{"code":"unavailable","msg":"no"}"#;
            return ("503 Service Unavailable", unavailable.to_vec());
        }
        let (video, connected) = (&call.claims["video"], self.connected.lock().unwrap());
        if call.request.target.ends_with("/ListRooms") {
            assert_eq!(video["roomList"], true);
            let rooms: BTreeSet<_> = connected.keys().map(|(room, _)| room).collect();
            let rooms = rooms.iter().map(|room| field(1, &text(2, room)));
            return ("200 OK", rooms.collect::<Vec<_>>().concat());
        }
        let [room, _] = call.room_and_identity();
        assert_eq!(
            (&video["roomAdmin"], &video["room"]),
            (&true.into(), &room.as_str().into())
        );
        let attributes = self.attributes.lock().unwrap();
        let mut body = Vec::new();
        for (participant, sid) in connected.iter().filter(|((name, _), _)| *name == room) {
            let mut info = [text(1, sid), text(2, &participant.1), vec![0x18, 2]].concat();
            for (name, value) in attributes
                .get(participant)
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
            {
                let entry = [text(1, name), text(2, value.as_str().unwrap())].concat();
                info.extend(field(15, &entry));
            }
            body.extend(field(1, &info));
        }
        ("200 OK", body)
    }
}

/// A `livekit.Room`: sid = 1, name = 2.
pub(super) fn room(name: &str) -> Vec<u8> {
    [text(1, "RM_1"), text(2, name)].concat()
}

fn text(number: u8, text: &str) -> Vec<u8> {
    field(number, text.as_bytes())
}

/// A protobuf field of bytes: its number, below 16, the length, below 2^14, and the bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let low = u8::try_from(bytes.len() & 0x7f).unwrap() | 0x80;
    let high = u8::try_from(bytes.len() >> 7).unwrap();
    assert!(high < 0x80);
    [&[number << 3 | 2, low, high], bytes].concat()
}
