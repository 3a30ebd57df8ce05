//! A body that is understood holds what was understood; nothing that was is empty, long or unprintable.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::exchange::Participant;
use livekit_token_service::http::request::{get_token, sfu_get};

fn fits(text: &str) -> bool {
    (1..=255).contains(&text.len()) && !text.chars().any(char::is_control)
}

fuzz_target!(|bytes: &[u8]| {
    for (parse, room) in [(get_token as fn(&[u8]) -> _, "room_id"), (sfu_get, "room")] {
        let Ok(request) = parse(bytes) else {
            continue;
        };
        let body: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
        assert_eq!(body[room].as_str(), Some(request.room.as_str()));
        assert!(fits(request.room.as_str()) && fits(request.slot.as_str()));
        assert!((1..=255).contains(&request.server.len()));
        match &request.participant {
            Participant::Member {
                claimed_user,
                device,
                member,
            } => {
                assert!((1..=255).contains(&claimed_user.len()));
                assert!(fits(device.as_str()) && fits(member.as_str()));
            }
            Participant::Device(device) => assert!(fits(device.as_str())),
        }
        let delayed = |name| body.get(name).is_some_and(|value| !value.is_null());
        assert!(!delayed("delay_id") && !delayed("delay_timeout"));
    }
});
