//! Lists of all rooms, and of those who are in one.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use serde_json::Value;

use super::{Call, PATIENCE, Sfu, State};

impl Sfu {
    /// From now on whoever holds a token of these claims is in its room, with what the token brings along. Gives room and identity.
    pub(crate) fn enter(&self, claims: &Value) -> [String; 2] {
        let names = [&claims["video"]["room"], &claims["sub"]];
        let names = names.map(|name| name.as_str().unwrap().to_owned());
        let mut carried = self.state.carried.lock().unwrap();
        carried.insert(names.clone().into(), claims["attributes"].clone());
        self.connect(&names[0], &names[1], Some("PA_1"));
        names
    }

    /// Answers 503 when it is asked for a list, or not any more.
    pub(crate) fn keep_lists(&self, kept: bool) {
        self.state.keeps_lists.store(kept, Ordering::SeqCst);
    }

    /// Waits until it was asked for so many lists.
    pub(crate) fn wait_for_lists(&self, count: usize) {
        let lists = self.state.lists.lock().unwrap();
        let few = |lists: &mut Vec<Call>| lists.len() < count;
        let changed = &self.state.changed;
        let waited = changed.wait_timeout_while(lists, PATIENCE, few).unwrap();
        assert!(waited.0.len() >= count, "only {} lists", waited.0.len());
    }
}

/// Whether it asks for all rooms, or for all who are in one.
pub(super) fn is_list(call: &Call) -> bool {
    let (target, names_none) = (&call.request.target, call.request.body.is_empty());
    target.ends_with("/ListParticipants") || target.ends_with("/ListRooms") && names_none
}

impl State {
    /// What the real one would say (`livekit_room.proto`, `livekit_models.proto`).
    pub(super) fn list(&self, call: &Call) -> (&'static str, Vec<u8>) {
        if self.keeps_lists.load(Ordering::SeqCst) {
            let unavailable = br#"{"code":"unavailable","msg":"no"}"#;
            return ("503 Service Unavailable", unavailable.to_vec());
        }
        let (video, present) = (&call.claims["video"], self.present.lock().unwrap());
        if call.request.target.ends_with("/ListRooms") {
            assert_eq!(video["roomList"], true);
            let rooms: BTreeSet<_> = present.keys().map(|(room, _)| room).collect();
            let rooms = rooms.iter().map(|room| field(1, &text(2, room)));
            return ("200 OK", rooms.collect::<Vec<_>>().concat());
        }
        let [room, _] = call.room_and_identity();
        assert_eq!(
            (&video["roomAdmin"], &video["room"]),
            (&true.into(), &room.as_str().into())
        );
        let carried = self.carried.lock().unwrap();
        let mut body = Vec::new();
        for (who, sid) in present.iter().filter(|((of, _), _)| *of == room) {
            let mut info = [text(1, sid), text(2, &who.1), vec![0x18, 2]].concat();
            for (name, value) in carried
                .get(who)
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

fn text(number: u8, text: &str) -> Vec<u8> {
    field(number, text.as_bytes())
}

/// A field of bytes: its number, below 16, their length below 2^14, and the bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let low = u8::try_from(bytes.len() & 0x7f).unwrap() | 0x80;
    let high = u8::try_from(bytes.len() >> 7).unwrap();
    assert!(high < 0x80);
    [&[number << 3 | 2, low, high], bytes].concat()
}
