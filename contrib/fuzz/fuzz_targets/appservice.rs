//! Responses and transactions of the homeserver: only `joined: true` is a membership, only the text of a JWT is relayed as a token, and
//! every departure has an event in the transaction.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::{is_joined_response, relayed_token};
use livekit_token_service::internal::parse_departures;
use serde_json::Value;

fuzz_target!(|input: (u16, &[u8])| {
    let (status, body) = input;
    let status = if status % 2 == 0 { 200 } else { status };
    let json: Option<Value> = serde_json::from_slice(body).ok();
    if let (Ok(departures), Some(json)) = (parse_departures(body), &json) {
        for departure in departures {
            let (room, user) = (departure.room_id.as_str(), departure.user_id.as_str());
            let matches = |event: &Value| event["room_id"] == room && event["state_key"] == user;
            let events = json["events"].as_array().expect("a list");
            // serde parses a struct from a list as well
            assert!(events.iter().any(|event| matches(event) || event.is_array()));
        }
    }
    if is_joined_response(status, body) {
        assert_eq!((status, &json.as_ref().expect("JSON")["joined"]), (200, &Value::Bool(true)));
    }
    if let Some(token) = relayed_token(status, body) {
        let json = json.expect("JSON");
        assert_eq!(status, 200);
        assert_eq!(json["status"], 200);
        assert_eq!(json["content"]["jwt"], *token);
        assert!(token.len() <= 8192);
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b)));
    }
});
