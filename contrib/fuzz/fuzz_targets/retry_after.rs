//! However a server asks us to wait, it is for five minutes at most, and for as long as the header says if that is less and the
//! body says nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::retry_after;
use std::time::{Duration, UNIX_EPOCH};

const LONGEST: Duration = Duration::from_secs(300);

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
    let alone = retry_after(header, b"", now);
    let both = retry_after(header, body, now);
    for wait in [alone, both].into_iter().flatten() {
        assert!(wait <= LONGEST);
    }
    assert!(both >= alone);
    let text = header.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && header.is_ascii() {
        let seconds = text.parse().unwrap_or(u64::MAX);
        if let Some(wait) = alone {
            assert_eq!(wait, Duration::from_secs(seconds).min(LONGEST));
        }
    }
});
