//! Whatever a homeserver answers or pushes: only `joined: true` is a membership, only the text of a JWT is relayed as a token, and
//! every departure comes from an event of the transaction.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::{joined, relayed};
use livekit_token_service::internal::parse_departures;
use serde_json::Value;

fuzz_target!(|input: (u16, &[u8])| {
    let (status, body) = input;
    let status = if status % 2 == 0 { 200 } else { status };
    let read: Option<Value> = serde_json::from_slice(body).ok();
    if let (Ok(departures), Some(read)) = (parse_departures(body), &read) {
        for departure in departures {
            let (room, user) = (departure.room_id.as_str(), departure.user_id.as_str());
            let matches = |event: &Value| event["room_id"] == room && event["state_key"] == user;
            let events = read["events"].as_array().expect("a list");
            // serde reads a struct from a list as well
            assert!(events.iter().any(|event| matches(event) || event.is_array()));
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
