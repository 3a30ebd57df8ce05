//! A body that is understood holds what was understood; nothing that was is empty, long or unprintable.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::RequestedParticipant;
use livekit_token_service::internal::{parse_delegate_delayed_leave, parse_get_token, parse_sfu_get};

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
            RequestedParticipant::Member {
                claimed_user,
                device,
                member,
            } => {
                assert!((1..=255).contains(&claimed_user.len()));
                assert!(fits(device.as_str()) && fits(member.as_str()));
            }
            RequestedParticipant::Device(device) => assert!(fits(device.as_str())),
        }
        let delayed = |name| body.get(name).is_some_and(|value| !value.is_null());
        assert_eq!(delayed("delay_id"), request.delay.is_some());
        assert_eq!(delayed("delay_timeout"), request.delay.is_some());
        if let Some(delay) = &request.delay {
            assert_eq!(body["delay_id"].as_str(), Some(delay.id.as_str()));
            assert!(fits(delay.id.as_str()));
            let timeout = &body["delay_timeout"];
            let digits = timeout.as_str().map_or(timeout.to_string(), str::to_owned);
            let ms: u64 = digits.parse().expect("a number");
            assert!(ms > 0 && delay.timeout == Duration::from_millis(ms));
        }
        // to hand over a leave alone takes the same, and the delay
        let alone = delegate(bytes).ok().map(|(_, delay)| delay.id);
        if room == "room_id" {
            assert_eq!(alone, request.delay.map(|delay| delay.id));
        }
    }
});
