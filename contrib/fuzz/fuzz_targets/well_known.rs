//! A server well-known document yields the server name that it contains; a redirect yields an https URL or none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::{delegation, redirect};
use livekit_token_service::internal::ServerName;

fuzz_target!(|bytes: &[u8]| {
    if let Some(name) = delegation(bytes) {
        let document: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
        assert_eq!(document["m.server"].as_str(), Some(name.as_str()));
    }
    let Ok(location) = std::str::from_utf8(bytes) else {
        return;
    };
    let Some((authority, target)) = redirect("a.example", "/.well-known/matrix/server", location)
    else {
        return;
    };
    assert!(
        target.starts_with('/') && target.bytes().all(|b| b.is_ascii_graphic()),
        "{target:?}"
    );
    // another host is part of the location, without user name and path
    if authority != "a.example" {
        assert!(location.contains(&authority));
        let scheme = location
            .get(..8)
            .is_some_and(|start| start.eq_ignore_ascii_case("https://"));
        assert!(scheme || location.starts_with("//"), "{location:?}");
        if ServerName::parse(&authority).is_ok() {
            assert!(!authority.contains(['@', '/', '?', '#']));
        }
    }
});
