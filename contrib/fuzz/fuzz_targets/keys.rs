//! A list of API keys is parsed or refused, and no report or error shows a secret of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::{Config, Environment, Mode};

const SECRET: &str = "sEcReT-of-more-than-thirty-two-characters";

fuzz_target!(|text: &str| {
    if text.contains('\0') {
        return;
    }
    let keys = format!("{text}\nlast: {SECRET}");
    let env: Environment = [("LIVEKIT_URL", "ws://sfu.example"), ("LIVEKIT_KEYS", &keys)]
        .into_iter()
        .collect();
    let (config, report) = Config::read(&env, Mode::Serve);
    let mut output = format!("{config:?} {report:?}");
    match config {
        Ok(config) => {
            let keys = config.sfu_keys.keys.all();
            assert!(keys.iter().any(|key| key.id() == "last"));
            let is_valid = |id: &str| !id.is_empty() && !id.contains([' ', '\n', ':']);
            assert!(keys.iter().all(|key| is_valid(key.id())));
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            errors.iter().for_each(|error| output += &error.to_string());
        }
    }
    assert!(!output.contains(SECRET), "{output}");
});
