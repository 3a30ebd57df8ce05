//! A registration that is taken has two tokens that fit a header and differ, and stand in the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::AppServiceRegistration;

fuzz_target!(|text: &str| {
    let Ok(registration) = AppServiceRegistration::read(text) else {
        return;
    };
    assert_ne!(registration.as_token, registration.hs_token);
    for token in [registration.as_token, registration.hs_token] {
        assert!((1..=512).contains(&token.length()));
        let shown = token.bearer();
        let shown = shown.strip_prefix("Bearer ").expect("a scheme");
        assert!(shown.bytes().all(|b| b.is_ascii_graphic()) && token.is(shown));
    }
    assert!(text.contains("rtc/livekit") || text.contains('\\'));
});
