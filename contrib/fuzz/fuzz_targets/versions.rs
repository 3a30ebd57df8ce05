//! Only a server that says `false` is believed to have no delayed events.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::support;
use livekit_token_service::internal::{DelayedEventPath, DelayedEventSupport};
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    let Some(said) = support(bytes) else {
        return;
    };
    let document: Value = serde_json::from_slice(bytes).expect("JSON");
    let features = document["unstable_features"]
        .as_object()
        .expect("an object");
    let says = |name: &str| features.get(name).and_then(Value::as_bool);
    let (stable, unstable) = (
        says("org.matrix.msc4140.stable"),
        says("org.matrix.msc4140"),
    );
    match said {
        DelayedEventSupport::No => assert!(unstable == Some(false) && stable != Some(true)),
        DelayedEventSupport::Yes(DelayedEventPath::Stable) => assert_eq!(stable, Some(true)),
        DelayedEventSupport::Yes(form) => assert_eq!((form, unstable), (DelayedEventPath::Unstable, Some(true))),
    }
});
