//! A leave that comes back from the journal is written there as it is, is sent within bounds, and does nothing without end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::delegation::leave::{Action, Event, Key, Leave, Time};
use livekit_token_service::livekit::access_token::{Identity, RoomName};
use std::time::Duration;

const NOW: u64 = 1_800_000_000_000;

fuzz_target!(|text: &str| {
    let now = Time::from_millis(NOW);
    let key = || Key {
        room: RoomName::new("r".into()).expect("a name"),
        identity: Identity::new("a".into()).expect("a name"),
    };
    let Ok(Some(mut leave)) = Leave::restore(key(), text, None, now) else {
        return;
    };
    let record = leave.record().expect("it goes on");
    let again = Leave::restore(key(), &record, None, now);
    let again = again.expect("our own record").expect("it goes on");
    assert_eq!(again.record(), Some(record));
    // nobody says anything more: it ends by itself, soon after a day at the latest
    let mut at = now;
    for _ in 0..10_000 {
        let actions = leave.step(&Event::Tick, at);
        let mut wake = None;
        for action in &actions {
            match action {
                Action::Finish(_) => return,
                Action::Wake(time) => wake = Some(*time),
                Action::Restart(by) => assert!(by.since(at) <= Duration::from_secs(24 * 3600)),
                // an action that is with somebody needs no wake-up of its own
                Action::Send | Action::LookUp => {}
            }
        }
        match wake {
            Some(time) => at = time.max(Time::from_millis(at.as_millis() + 1)),
            None => return assert!(!actions.is_empty(), "nothing to wait for"),
        }
    }
});
