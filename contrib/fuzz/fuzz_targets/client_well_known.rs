//! The base URL of a client well-known document has the https scheme, host, port and path of the document.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::client_base;
use livekit_token_service::internal::ServerName;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    let Some((tls, base_authority, base_port, path)) = client_base(bytes) else {
        return;
    };
    let document: Value = serde_json::from_slice(bytes).expect("JSON");
    let url = document["m.homeserver"]["base_url"]
        .as_str()
        .expect("a string");
    assert!(tls && url[..8].eq_ignore_ascii_case("https://"));
    // after the scheme there are host, port and path only
    let rest = &url[8..];
    let authority = &rest[..rest.find('/').unwrap_or(rest.len())];
    let port = |name: &ServerName| name.port().unwrap_or(443);
    let expected = ServerName::parse(authority).expect("a server name");
    let parsed = ServerName::parse(&base_authority).expect("a server name");
    assert!(
        expected.host().eq_ignore_ascii_case(parsed.host())
            || expected.ip() == parsed.ip() && expected.ip().is_some()
    );
    assert_eq!(
        (port(&expected), base_port),
        (port(&parsed), port(&parsed))
    );
    assert!(path.is_empty() || path.starts_with('/') && !path.ends_with('/'));
    assert!(
        !path.contains(['?', '#'])
            && !path.contains(char::is_whitespace)
            && !path.contains(char::is_control)
    );
});
