//! The life of a delegated leave, as the homeserver sees it.

use crate::callers::Calls;

#[test]
fn a_leave_is_restarted_while_they_are_connected_and_sent_when_they_are_not() {
    let calls = Calls::begin();
    let alice = calls.caller();
    calls.joins(&alice, "syd_1", 2_000);
    calls.told("participant_joined", &alice, "PA_1");
    let first = calls.delayed.wait_for(1, "restart", "syd_1");
    let second = calls.delayed.wait_for(2, "restart", "syd_1");
    assert!(second.at.duration_since(first.at).as_millis() >= 1_300);
    calls.told("participant_left", &alice, "PA_1");
    calls.delayed.wait_for(1, "send", "syd_1");
    calls.service().wait_for_log("sent leave=");
    assert_eq!(calls.delayed.actions("syd_1").last().unwrap(), "send");
}
