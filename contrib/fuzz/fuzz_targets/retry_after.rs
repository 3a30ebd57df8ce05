//! The delay that a 429 asks for is at most five minutes, and that of the header if the body has none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::retry_after;
use std::time::{Duration, UNIX_EPOCH};

const MAX_DELAY: Duration = Duration::from_secs(300);

fuzz_target!(|bytes: &[u8]| {
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let end = bytes
        .iter()
        .position(|b| *b == b'\n')
        .unwrap_or(bytes.len());
    let (header, body) = bytes.split_at(end);
    let Ok(header) = std::str::from_utf8(header) else {
        return;
    };
    let header_only = retry_after(header, b"", now);
    let both = retry_after(header, body, now);
    for delay in [header_only, both].into_iter().flatten() {
        assert!(delay <= MAX_DELAY);
    }
    assert!(both >= header_only);
    let text = header.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && header.is_ascii() {
        let seconds = text.parse().unwrap_or(u64::MAX);
        if let Some(delay) = header_only {
            assert_eq!(delay, Duration::from_secs(seconds).min(MAX_DELAY));
        }
    }
});
