//! Whatever stands in a list of keys, it is understood or refused, and no secret of it is shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::{Config, Environment};

const SECRET: &str = "sEcReT-of-more-than-thirty-two-characters";

fuzz_target!(|text: &str| {
    if text.contains('\0') {
        return;
    }
    let keys = format!("{text}\nlast: {SECRET}");
    let env: Environment = [("LIVEKIT_URL", "ws://sfu.example"), ("LIVEKIT_KEYS", &keys)]
        .into_iter()
        .collect();
    let (config, report) = Config::read(&env);
    let mut shown = format!("{config:?} {report:?}");
    match config {
        Ok(config) => {
            assert!(config.keys.iter().any(|key| key.id() == "last"));
            assert!(
                config
                    .keys
                    .iter()
                    .all(|key| !key.id().is_empty() && !key.id().contains([' ', '\n', ':']))
            );
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            errors.iter().for_each(|error| shown += &error.to_string());
        }
    }
    assert!(!shown.contains(SECRET), "{shown}");
});
