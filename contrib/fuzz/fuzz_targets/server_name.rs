//! A server name keeps its bytes, and its host is an IP literal or a DNS name that neither a URL parser nor a resolver reads as
//! something else.
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
    // getaddrinfo parses numeric labels as an address, as inet_aton does
    let number = |label: &str| match label.strip_prefix("0x").or(label.strip_prefix("0X")) {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => !label.is_empty() && label.bytes().all(|b| b.is_ascii_digit()),
    };
    if name.ip().is_none() {
        assert!(!host.split('.').all(number), "{host} is an address");
    }
});
