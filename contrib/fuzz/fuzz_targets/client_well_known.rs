//! Whatever a well-known document says, it leads to the host that it names, by https, or nowhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::client_base;
use livekit_token_service::internal::ServerName;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    let Some(base) = client_base(bytes) else {
        return;
    };
    let document: Value = serde_json::from_slice(bytes).expect("JSON");
    let url = document["m.homeserver"]["base_url"]
        .as_str()
        .expect("a string");
    assert!(base.tls() && url[..8].eq_ignore_ascii_case("https://"));
    // all that follows the scheme is the host, its port and a path, and nothing of it is anything else
    let rest = &url[8..];
    let authority = &rest[..rest.find('/').unwrap_or(rest.len())];
    let port = |name: &ServerName| name.port().unwrap_or(443);
    let named = ServerName::parse(authority).expect("a server name");
    let dialled = ServerName::parse(&base.authority()).expect("a server name");
    assert!(
        named.host().eq_ignore_ascii_case(dialled.host())
            || named.ip() == dialled.ip() && named.ip().is_some()
    );
    assert_eq!(
        (port(&named), base.port()),
        (port(&dialled), port(&dialled))
    );
    let path = base.path();
    assert!(path.is_empty() || path.starts_with('/') && !path.ends_with('/'));
    assert!(
        !path.contains(['?', '#'])
            && !path.contains(char::is_whitespace)
            && !path.contains(char::is_control)
    );
});
