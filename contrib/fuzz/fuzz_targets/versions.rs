//! A server has no delayed events only if its versions response says `false`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::support;
use livekit_token_service::internal::{DelayedEventPath, DelayedEventSupport};
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    let Some(parsed) = support(bytes) else {
        return;
    };
    let document: Value = serde_json::from_slice(bytes).expect("JSON");
    let features = document["unstable_features"]
        .as_object()
        .expect("an object");
    let feature = |name: &str| features.get(name).and_then(Value::as_bool);
    let (stable, unstable) = (
        feature("org.matrix.msc4140.stable"),
        feature("org.matrix.msc4140"),
    );
    match parsed {
        DelayedEventSupport::Unsupported => {
            assert!(unstable == Some(false) && stable != Some(true))
        }
        DelayedEventSupport::Supported(DelayedEventPath::Stable) => assert_eq!(stable, Some(true)),
        DelayedEventSupport::Supported(path) => {
            assert_eq!((path, unstable), (DelayedEventPath::Unstable, Some(true)))
        }
    }
});
