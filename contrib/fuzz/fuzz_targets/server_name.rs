//! What is a server name is one byte for byte, and its host can neither be an address in disguise nor anything that a URL
//! would take for more than a host.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::matrix::id::{ServerName, UserId};
use std::net::{IpAddr, ToSocketAddrs};

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
    // what no parser takes for an address must not be one for getaddrinfo: all digits, dots and hexadecimal marks
    let number = |label: &str| label.bytes().all(|b| b.is_ascii_digit()) || label.starts_with("0x");
    if name.ip().is_none() && host.split('.').all(number) {
        assert!((host, 1).to_socket_addrs().is_err(), "{host} is an address");
    }
});
