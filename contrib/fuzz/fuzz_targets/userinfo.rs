//! A userinfo response of a homeserver yields a user of that homeserver or none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::userinfo;
use livekit_token_service::internal::ServerName;

fuzz_target!(|bytes: &[u8]| {
    for server in ["example.com", "example.com:8448", "[2001:db8::1]"] {
        let server = ServerName::parse(server).expect("a name");
        let Some(user) = userinfo(&server, bytes) else {
            continue;
        };
        assert_eq!(user.server(), &server);
        let text = user.as_str();
        assert!(text.starts_with('@') && text.ends_with(&format!(":{server}")));
        assert!(text.len() <= 255 && !text.chars().any(char::is_control));
        // the localpart ends at the first colon
        assert_eq!(text.find(':'), Some(text.len() - server.as_str().len() - 1));
    }
});
