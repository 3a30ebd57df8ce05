//! A leave restored from any record is stored as the same record, ends within a day or so, and does not act without end.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::{
    Leave, LeaveAction, LeaveEvent, ParticipantIdentity, ParticipantKey, RoomName, UnixMillis,
};

const NOW: UnixMillis = UnixMillis::from_millis(1_800_000_000_000);

fuzz_target!(|text: &str| {
    let key = || ParticipantKey {
        room: RoomName::new("r".into()).expect("a name"),
        identity: ParticipantIdentity::new("a".into()).expect("a name"),
    };
    let Ok(Some(mut leave)) = Leave::restore(key(), text, None, NOW) else {
        return;
    };
    let record = leave.to_record().expect("a leave that has not ended");
    let again = Leave::restore(key(), &record, None, NOW);
    let again = again.expect("a valid record").expect("a leave that has not ended");
    assert_eq!(again.to_record(), Some(record));
    // without any other event it ends
    let mut now = NOW;
    for _ in 0..10_000 {
        let actions = leave.step(&LeaveEvent::Tick, now);
        let mut wake_at = None;
        for action in &actions {
            match action {
                LeaveAction::Finish(_) => return,
                LeaveAction::WakeAt(time) => wake_at = Some(*time),
                LeaveAction::Restart(by) => {
                    assert!(by.duration_since(now) <= Duration::from_secs(24 * 3600));
                }
                // a running call or check needs no wake-up
                LeaveAction::Send | LeaveAction::CheckPresence => {}
            }
        }
        match wake_at {
            Some(time) => now = time.max(UnixMillis::from_millis(now.as_millis() + 1)),
            None => return assert!(!actions.is_empty(), "nothing to wait for"),
        }
    }
});
