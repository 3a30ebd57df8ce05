//! Access tokens: no bytes are valid but those that were signed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::{ApiKey, Claims, verify};
use std::time::Duration;

const NOW: u64 = 1_800_000_000;

fuzz_target!(|bytes: &[u8]| {
    let key = ApiKey::new(
        "key",
        "a secret that the fuzzer does not know, of enough length",
    );
    let keys = [key];
    let token = Claims::create_room().sign(&keys[0], NOW, Duration::from_secs(60));
    let valid = token.expose();
    assert!(verify(valid, &keys, NOW).is_ok());
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    assert!(verify(text, &keys, NOW).is_err(), "forged: {text}");
    // one segment replaced
    for segment in 0..3 {
        let mut parts: Vec<&str> = valid.split('.').collect();
        if parts[segment] != text {
            parts[segment] = text;
            assert!(
                verify(&parts.join("."), &keys, NOW).is_err(),
                "forged: {parts:?}"
            );
        }
    }
});
