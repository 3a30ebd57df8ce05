//! Registration files: a valid one has two different tokens that fit a header, and the prefix.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::AppServiceRegistration;

fuzz_target!(|text: &str| {
    let Ok(registration) = AppServiceRegistration::parse(text) else {
        return;
    };
    assert_ne!(registration.as_token, registration.hs_token);
    for secret in [registration.as_token, registration.hs_token] {
        let header = secret.authorization_header();
        let token = header.strip_prefix("Bearer ").expect("a scheme");
        assert!((1..=512).contains(&token.len()) && secret.matches(token));
        assert!(token.bytes().all(|b| b.is_ascii_graphic()));
    }
    assert!(text.contains("rtc/livekit") || text.contains('\\'));
});
