//! A leave that comes back from the journal is written there as it is, is sent within bounds, and does nothing without end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::{LeaveAction, LeaveEvent, ParticipantKey, Leave, UnixMillis};
use livekit_token_service::internal::{ParticipantIdentity, RoomName};
use std::time::Duration;

const NOW: u64 = 1_800_000_000_000;

fuzz_target!(|text: &str| {
    let now = UnixMillis::from_millis(NOW);
    let key = || ParticipantKey {
        room: RoomName::new("r".into()).expect("a name"),
        identity: ParticipantIdentity::new("a".into()).expect("a name"),
    };
    let Ok(Some(mut leave)) = Leave::restore(key(), text, None, now) else {
        return;
    };
    let record = leave.record().expect("an unfinished leave");
    let again = Leave::restore(key(), &record, None, now);
    let again = again.expect("a valid record").expect("an unfinished leave");
    assert_eq!(again.record(), Some(record));
    // without further events the leave ends, soon after a day at the latest
    let mut at = now;
    for _ in 0..10_000 {
        let actions = leave.step(&LeaveEvent::Tick, at);
        let mut wake = None;
        for action in &actions {
            match action {
                LeaveAction::Finish(_) => return,
                LeaveAction::Wake(time) => wake = Some(*time),
                LeaveAction::Restart(by) => assert!(by.since(at) <= Duration::from_secs(24 * 3600)),
                // an action in progress needs no wake-up
                LeaveAction::Send | LeaveAction::LookUp => {}
            }
        }
        match wake {
            Some(time) => at = time.max(UnixMillis::from_millis(at.as_millis() + 1)),
            None => return assert!(!actions.is_empty(), "nothing to wait for"),
        }
    }
});
