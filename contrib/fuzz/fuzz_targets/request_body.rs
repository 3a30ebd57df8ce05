//! A parsed body of the Matrix endpoints matches the JSON that it comes from; no name in it is empty, too long or unprintable.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::proxied_members;
use livekit_token_service::internal::{
    RequestedParticipant, parse_delegate_delayed_leave, parse_get_token, parse_sfu_get,
};

fn is_valid(text: &str) -> bool {
    (1..=255).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// The member of a proxied request is that of the body, in one of the two dialects.
fn check_proxied_members(bytes: &[u8]) {
    for member in proxied_members(bytes).into_iter().flatten() {
        let body: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
        let (id, object) = (&body["member_id"], &body["member"]);
        assert!(is_valid(&member.id) && member.device.as_deref().is_none_or(is_valid));
        assert_eq!(member.by_member_id, !id.is_null());
        assert!(id.is_null() || *id == *member.id);
        assert!(object.is_null() || object["id"] == *member.id);
        assert_eq!(object["claimed_device_id"].as_str(), member.device.as_deref());
        assert!(member.by_member_id || member.device.is_some());
    }
}

fuzz_target!(|bytes: &[u8]| {
    check_proxied_members(bytes);
    for (parse, room) in [(parse_get_token as fn(&[u8]) -> _, "room_id"), (parse_sfu_get, "room")] {
        let Ok(request) = parse(bytes) else {
            continue;
        };
        let body: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
        assert_eq!(body[room].as_str(), Some(request.room.as_str()));
        assert!(is_valid(request.room.as_str()) && is_valid(request.slot.as_str()));
        assert!((1..=255).contains(&request.server_name.len()));
        match &request.participant {
            RequestedParticipant::Member {
                claimed_user,
                device,
                member,
            } => {
                assert!((1..=255).contains(&claimed_user.len()));
                assert!(is_valid(device.as_str()) && is_valid(member.as_str()));
            }
            RequestedParticipant::Device(device) => assert!(is_valid(device.as_str())),
        }
        let is_set = |name| body.get(name).is_some_and(|value| !value.is_null());
        assert_eq!(is_set("delay_id"), request.delayed_leave.is_some());
        assert_eq!(is_set("delay_timeout"), request.delayed_leave.is_some());
        if let Some(leave) = &request.delayed_leave {
            assert_eq!(body["delay_id"].as_str(), Some(leave.delay_id.as_str()));
            assert!(is_valid(leave.delay_id.as_str()));
            let timeout = &body["delay_timeout"];
            let digits = timeout.as_str().map_or(timeout.to_string(), str::to_owned);
            let ms: u64 = digits.parse().expect("a number");
            assert!(ms > 0 && leave.timeout == Duration::from_millis(ms));
        }
        // a delegation alone has the same body, with a delayed leave
        let delegated = parse_delegate_delayed_leave(bytes).ok();
        if room == "room_id" {
            assert_eq!(delegated.map(|(_, leave)| leave), request.delayed_leave);
        }
    }
});
