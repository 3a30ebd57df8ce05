//! What is a server name is one byte for byte, and its host can neither be an address in disguise nor anything that a URL
//! would take for more than a host.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::{ServerName, UserId};
use std::net::IpAddr;

fuzz_target!(|text: &str| {
    if let Ok(user) = UserId::parse(text) {
        assert_eq!(
            text.split_once(':').map(|(_, server)| server),
            Some(user.server().as_str())
        );
    }
    let Ok(name) = ServerName::parse(text) else {
        return;
    };
    assert_eq!(name.as_str(), text);
    let host = name.host();
    assert!(
        host.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b))
    );
    match name.port() {
        Some(port) => assert!(text.starts_with(host) && text.ends_with(&port.to_string())),
        None => assert_eq!(host, text),
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    assert_eq!(bare.parse::<IpAddr>().ok(), name.ip());
    // what getaddrinfo would read as an address without asking anybody, as inet_aton does
    let number = |label: &str| match label.strip_prefix("0x").or(label.strip_prefix("0X")) {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => !label.is_empty() && label.bytes().all(|b| b.is_ascii_digit()),
    };
    if name.ip().is_none() {
        assert!(!host.split('.').all(number), "{host} is an address");
    }
});
