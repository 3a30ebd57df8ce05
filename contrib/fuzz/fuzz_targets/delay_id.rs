//! A `delay_id` stays within its segment of the request path, also after a proxy has decoded the path.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::restart_target;
use livekit_token_service::internal::DelayId;

const BEFORE: &str = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/";

fn decode(text: &str) -> Vec<u8> {
    let (bytes, mut decoded) = (text.as_bytes(), Vec::new());
    let mut index = 0;
    while index < bytes.len() {
        let hex = text
            .get(index + 1..index + 3)
            .filter(|_| bytes[index] == b'%');
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => (decoded.push(byte), index += 3),
            None => (decoded.push(bytes[index]), index += 1),
        };
    }
    decoded
}

fuzz_target!(|text: &str| {
    let Ok(id) = DelayId::parse(text) else {
        return;
    };
    let target = restart_target(&id);
    let segment = target
        .strip_prefix(BEFORE)
        .and_then(|rest| rest.strip_suffix("/restart"))
        .expect("one id and the action");
    assert!(
        segment
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b))
    );
    assert_eq!(decode(segment), text.as_bytes());
    // a proxy that decodes the path and resolves dot segments
    assert!(
        !text
            .split(['/', '\\'])
            .any(|part| part == ".." || part == ".")
    );
    assert!(!text.contains(char::is_control));
});
