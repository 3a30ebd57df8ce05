//! Whatever a homeserver answers or pushes, only a clear yes is a membership, only what looks like a token is passed on as one, and
//! only a member event that is no join is a departure.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::{joined, relayed};
use livekit_token_service::internal::parse_departures;
use serde_json::Value;

fuzz_target!(|input: (u16, &[u8])| {
    let (status, body) = input;
    let status = if status % 2 == 0 { 200 } else { status };
    let read: Option<Value> = serde_json::from_slice(body).ok();
    if let (Ok(departures), Some(read)) = (departures(body), &read) {
        for guest in departures {
            let is = |event: &Value| {
                let (room, user) = (guest.room.as_str(), guest.user.as_str());
                event["room_id"] == room && event["state_key"] == user
            };
            let lists = |event: &Value| event.is_array();
            let events = read["events"].as_array().expect("a list");
            assert!(events.iter().any(|event| is(event) || lists(event)));
        }
    }
    if joined(status, body) {
        assert_eq!((status, &read.as_ref().expect("JSON")["joined"]), (200, &Value::Bool(true)));
    }
    if let Some(token) = relayed(status, body) {
        let read = read.expect("JSON");
        assert_eq!(status, 200);
        assert_eq!(read["status"], 200);
        assert_eq!(read["content"]["jwt"], *token);
        assert!(token.len() <= 8192);
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b)));
    }
});
