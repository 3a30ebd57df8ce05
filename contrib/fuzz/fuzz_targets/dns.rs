//! An accepted DNS message answers the query, and another parser finds the same records in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::srv_answer;
use simple_dns::Packet;

const NAME: &str = "_matrix-fed._tcp.example.org";

fuzz_target!(|bytes: &[u8]| {
    let Some(targets) = srv_answer(bytes, 7, NAME) else {
        return;
    };
    assert_eq!(bytes[..2], [0, 7]);
    assert_eq!(bytes[2] & 0x80, 0x80);
    assert!(
        bytes
            .windows(11)
            .any(|w| w.eq_ignore_ascii_case(b"_matrix-fed"))
    );
    let packet = Packet::parse(bytes).expect("parsed before");
    assert!(targets.len() <= packet.answers.len().min(64));
    assert!(targets.iter().all(|(host, _)| host.len() <= 1024));
    // the message answers no other name or id
    assert!(srv_answer(bytes, 8, NAME).is_none());
    assert!(srv_answer(bytes, 7, "_matrix._tcp.example.org").is_none());
});
