//! A valid response to CONNECT has a bounded head, and a success has nothing after it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::connect_answer;

fuzz_target!(|input: &[u8]| {
    if let Some((status, length)) = connect_answer(input) {
        assert!(input.starts_with(b"HTTP/1.") || input.starts_with(b"\r") || input.starts_with(b"\n"));
        assert!(length <= input.len() && length <= 8 * 1024);
        if (200..300).contains(&status) {
            assert_eq!(length, input.len());
        }
    }
});
