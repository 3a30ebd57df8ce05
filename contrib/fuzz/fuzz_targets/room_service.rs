//! Responses of the SFU's RoomService: every decoded name is in the response.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::{participant_sid, participants, room_names};

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

fuzz_target!(|bytes: &[u8]| {
    if let Some(sid) = participant_sid(bytes) {
        assert!((1..=256).contains(&sid.as_str().len()) && contains(bytes, sid.as_str()));
    }
    for name in room_names(bytes).unwrap_or_default() {
        assert!((1..=256).contains(&name.as_str().len()) && contains(bytes, name.as_str()));
    }
    for (identity, sealed) in participants(bytes).unwrap_or_default() {
        assert!(contains(bytes, identity.as_str()));
        if let Some(sealed) = sealed {
            assert!((1..=720).contains(&sealed.as_str().len()) && contains(bytes, sealed.as_str()));
        }
    }
});
