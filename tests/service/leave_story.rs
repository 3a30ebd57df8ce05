//! The life of a delegated leave, as the homeserver sees it.

use serde_json::json;

use crate::call::CallStage;
use crate::delayed::{Answer, Delayed};

/// Longer than a test takes: the delay plays no part in it.
const LONG: u64 = 3_600_000;
/// Short enough to wait for a restart, and longer than it takes a slow machine to hear that somebody has joined.
const SHORT: u64 = 5_000;

fn says(status: &'static str) -> Answer {
    Answer::Says(status, "", json!({"errcode": "M_UNKNOWN"}))
}

#[test]
fn a_leave_is_restarted_while_they_are_connected_and_sent_when_they_are_not() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", SHORT);
    calls.send_webhook("participant_joined", &alice, "PA_1");
    let first = calls.delayed.wait_for(1, "restart", "syd_1");
    let second = calls.delayed.wait_for(2, "restart", "syd_1");
    assert!(second.at.duration_since(first.at).as_millis() >= 3_000);
    calls.send_webhook("participant_left", &alice, "PA_1");
    calls.delayed.wait_for(1, "send", "syd_1");
    calls.service().wait_for_log("leave sent");
    assert_eq!(calls.delayed.actions("syd_1").last().unwrap(), "send");
}

#[test]
fn a_leave_can_be_delegated_alone_by_those_who_are_connected_already() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls
        .sfu()
        .connect(&alice.room_name(), &alice.identity(), Some("PA_1"));
    let reply = calls.delegate(&alice, "syd_1", LONG);
    assert_eq!((reply.status, reply.json()), (200, json!({})));
    calls.delayed.wait_for(1, "restart", "syd_1");
    calls.send_webhook("participant_left", &alice, "PA_1");
    calls.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn clients_of_the_older_endpoint_delegate_as_well() {
    let calls = CallStage::start();
    let alice = calls.stage.homeserver.user("alice");
    let mut body = alice.sfu_get();
    body["delay_id"] = json!("syd_1");
    body["delay_timeout"] = json!(1000);
    assert_eq!(calls.service().post("/sfu/get", &body).status, 200);
    calls.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn who_never_connects_leaves_when_the_delay_is_over() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", 1_000);
    calls.delayed.wait_for(1, "send", "syd_1");
    assert_eq!(calls.delayed.actions("syd_1"), ["send"]);
}

#[test]
fn who_never_got_in_does_not_leave() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", SHORT);
    calls.send_webhook("participant_connection_aborted", &alice, "PA_1");
    calls
        .service()
        .wait_for_log("the participant never connected");
    assert_eq!(calls.delayed.actions("syd_1"), [""; 0]);
}

#[test]
fn who_gets_in_at_the_second_attempt_is_kept_all_the_same() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", LONG);
    calls.send_webhook("participant_connection_aborted", &alice, "PA_1");
    calls.send_webhook("participant_joined", &alice, "PA_2");
    calls.delayed.wait_for(1, "restart", "syd_1");
    calls.send_webhook("participant_left", &alice, "PA_2");
    calls.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn a_late_farewell_of_the_connection_before_does_not_end_the_one_after() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", SHORT);
    calls.send_webhook("participant_joined", &alice, "PA_1");
    calls.send_webhook("participant_joined", &alice, "PA_2");
    calls
        .sfu()
        .connect(&alice.room_name(), &alice.identity(), Some("PA_2"));
    calls.send_webhook("participant_left", &alice, "PA_1");
    calls.delayed.wait_for(2, "restart", "syd_1");
    assert!(!calls.delayed.actions("syd_1").contains(&"send".to_owned()));
    calls.send_webhook("participant_left", &alice, "PA_2");
    calls.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn who_reconnects_under_the_same_name_stays() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", SHORT);
    calls.send_webhook("participant_joined", &alice, "PA_1");
    calls.delayed.wait_for(1, "restart", "syd_1");
    calls.send_webhook_with_reason("participant_left", &alice, "PA_1", "DUPLICATE_IDENTITY");
    calls
        .sfu()
        .connect(&alice.room_name(), &alice.identity(), Some("PA_2"));
    calls.send_webhook("participant_joined", &alice, "PA_2");
    calls.delayed.wait_for(2, "restart", "syd_1");
    assert!(!calls.delayed.actions("syd_1").contains(&"send".to_owned()));
}

#[test]
fn who_is_said_to_reconnect_and_does_not_has_left() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", LONG);
    calls.send_webhook("participant_joined", &alice, "PA_1");
    calls.send_webhook_with_reason("participant_left", &alice, "PA_1", "DUPLICATE_IDENTITY");
    calls.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn a_new_delegation_takes_the_place_of_the_old_one() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls.join(&alice, "syd_old", SHORT);
    calls.send_webhook("participant_joined", &alice, "PA_1");
    calls
        .sfu()
        .connect(&alice.room_name(), &alice.identity(), Some("PA_1"));
    calls.delayed.wait_for(1, "restart", "syd_old");
    assert_eq!(calls.delegate(&alice, "syd_new", SHORT).status, 200);
    let before = calls.delayed.actions("syd_old").len();
    calls.delayed.wait_for(2, "restart", "syd_new");
    calls.send_webhook("participant_left", &alice, "PA_1");
    calls.delayed.wait_for(1, "send", "syd_new");
    assert_eq!(calls.delayed.actions("syd_old").len(), before);
}

#[test]
fn a_leave_that_the_homeserver_does_not_have_is_given_up() {
    for status in [
        "404 Not Found",
        "409 Conflict",
        "401 Unauthorized",
        "403 Forbidden",
    ] {
        let calls = CallStage::start();
        calls.delayed.next(says(status));
        let alice = calls.new_member();
        calls.join(&alice, "syd_1", LONG);
        calls.send_webhook("participant_joined", &alice, "PA_1");
        calls
            .service()
            .wait_for_words(&["leave abandoned", "leave="]);
        calls.send_webhook("participant_left", &alice, "PA_1");
        // somebody else's leave is sent meanwhile, so that one of hers would have been
        let bob = calls.new_member();
        calls.join(&bob, "syd_2", 1_000);
        calls.delayed.wait_for(1, "send", "syd_2");
        assert_eq!(calls.delayed.actions("syd_1"), ["restart"], "{status}");
    }
}

#[test]
fn a_leave_that_was_sent_already_is_sent() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", LONG);
    calls.send_webhook("participant_joined", &alice, "PA_1");
    calls.delayed.wait_for(1, "restart", "syd_1");
    calls.delayed.next(says("404 Not Found"));
    calls.send_webhook("participant_left", &alice, "PA_1");
    calls
        .service()
        .wait_for_log("the homeserver had sent it already");
}

#[test]
fn a_homeserver_that_is_down_for_a_while_gets_the_leave_when_it_is_back() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", LONG);
    calls.delayed.always(Some(Answer::Closes));
    calls.send_webhook("participant_joined", &alice, "PA_1");
    calls.delayed.wait_for(2, "restart", "syd_1");
    calls.delayed.always(Some(says("502 Bad Gateway")));
    calls.send_webhook("participant_left", &alice, "PA_1");
    calls.delayed.wait_for(2, "send", "syd_1");
    calls.delayed.always(None);
    calls.service().wait_for_log("leave sent");
    let calls = calls.delayed.calls();
    let done = calls.iter().filter(|call| call.status.starts_with("200"));
    assert_eq!(done.count(), 1, "{calls:?}");
}

#[test]
fn a_homeserver_that_hangs_holds_up_no_other_leave_than_its_own() {
    let calls = CallStage::start();
    let (alice, bob) = (calls.new_member(), calls.new_member());
    calls.join(&alice, "syd_1", LONG);
    calls.join(&bob, "syd_2", LONG);
    calls.send_webhook("participant_joined", &alice, "PA_1");
    calls.delayed.wait_for(1, "restart", "syd_1");
    // her next call hangs, and his does not wait for it
    calls.delayed.next(Answer::Hangs);
    calls.send_webhook("participant_left", &alice, "PA_1");
    calls.delayed.wait_for(1, "send", "syd_1");
    calls.send_webhook("participant_joined", &bob, "PA_2");
    calls.delayed.wait_for(1, "restart", "syd_2");
}

#[test]
fn a_homeserver_that_is_too_busy_is_left_the_time_that_it_asks_for_and_its_administrator_is_told_why()
 {
    let calls = CallStage::start();
    let limit = json!({"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 1500});
    let callers: Vec<_> = (0..5).map(|_| calls.new_member()).collect();
    for (n, caller) in callers.iter().enumerate() {
        calls.join(caller, &format!("syd_{n}"), LONG);
    }
    let too_many = Answer::Says("429 Too Many Requests", "", limit);
    calls.delayed.next(too_many.clone());
    calls.delayed.next(too_many);
    for caller in &callers {
        calls.send_webhook("participant_joined", caller, "PA_1");
    }
    for n in 0..5 {
        calls.delayed.wait_for(1, "restart", &format!("syd_{n}"));
    }
    calls.service().wait_for_log("rc_delayed_event_mgmt");
    let all = calls.delayed.calls();
    let refused = all
        .iter()
        .position(|c| c.status.starts_with("429"))
        .unwrap();
    let next = all[refused..].iter().find(|c| c.status.starts_with("200"));
    let waited = next.unwrap().at.duration_since(all[refused].at);
    assert!(waited.as_millis() >= 1_400, "{waited:?} {all:?}");
    // they leave, and that does not wait for anybody's restart
    for (n, caller) in callers.iter().enumerate() {
        calls.send_webhook("participant_left", caller, "PA_1");
        calls.delayed.wait_for(1, "send", &format!("syd_{n}"));
    }
    let log = calls.service().log();
    assert_eq!(log.matches("rc_delayed_event_mgmt").count(), 1, "{log}");
}

#[test]
fn without_webhooks_the_sfu_is_asked() {
    let calls = CallStage::start_with(Delayed::start(), |settings| {
        settings.set("LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS", "1")
    });
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", LONG);
    let (room, identity) = (alice.room_name(), alice.identity());
    calls.sfu().connect(&room, &identity, Some("PA_1"));
    calls.delayed.wait_for(1, "restart", "syd_1");
    calls.sfu().wait_for_looks(calls.sfu().looks().len(), 2);
    assert_eq!(calls.delayed.actions("syd_1"), ["restart"]);
    calls.sfu().connect(&room, &identity, None);
    calls.delayed.wait_for(1, "send", "syd_1");
}
