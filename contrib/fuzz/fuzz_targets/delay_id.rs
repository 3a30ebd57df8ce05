//! No `delay_id` gets out of its segment of the path, however often and by whom it is decoded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::restart_target;
use livekit_token_service::internal::DelayId;

const BEFORE: &str = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/";

fn decode(text: &str) -> Vec<u8> {
    let (bytes, mut decoded) = (text.as_bytes(), Vec::new());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => (decoded.push(byte), at += 3),
            None => (decoded.push(bytes[at]), at += 1),
        };
    }
    decoded
}

fuzz_target!(|text: &str| {
    let Ok(id) = DelayId::parse(text) else {
        return;
    };
    let target = restart_target(&id);
    let inside = target
        .strip_prefix(BEFORE)
        .and_then(|rest| rest.strip_suffix("/restart"))
        .expect("the one action on the one id");
    assert!(
        inside
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b))
    );
    assert_eq!(decode(inside), text.as_bytes());
    // a proxy that decodes, and then walks the path
    assert!(
        !text
            .split(['/', '\\'])
            .any(|segment| segment == ".." || segment == ".")
    );
    assert!(!text.contains(char::is_control));
});
