//! The life of a delegated leave, as its homeserver sees it.

use std::time::Instant;

use serde_json::json;

use crate::call::CallStage;
use crate::fake_delayed_events::{DelayedReply, FakeDelayedEvents};

/// A delay in milliseconds that does not end during a test.
const LONG: u64 = 3_600_000;
/// A delay whose restarts a test waits for; longer than a webhook takes on a slow machine.
const SHORT: u64 = 5_000;

fn error(status: &'static str) -> DelayedReply {
    DelayedReply::Send(status, "", json!({"errcode": "M_UNKNOWN"}))
}

#[test]
fn a_leave_is_restarted_while_the_participant_is_connected_and_sent_afterwards() {
    let stage = CallStage::start();
    let alice = stage.new_member();
    stage.join(&alice, "syd_1", SHORT);
    let before_first = Instant::now();
    stage.send_webhook("participant_joined", &alice, "PA_1");
    stage.delayed.wait_for(1, "restart", "syd_1");
    let second = stage.delayed.wait_for(2, "restart", "syd_1");
    // not before 72 % of the delay
    let after = second.received_at.duration_since(before_first);
    assert!(after.as_millis() >= 3_600, "{after:?}");
    stage.send_webhook("participant_left", &alice, "PA_1");
    stage.delayed.wait_for(1, "send", "syd_1");
    stage.service().wait_for_log("leave sent");
    assert_eq!(stage.delayed.actions("syd_1").last().unwrap(), "send");
}

#[test]
fn a_participant_who_is_connected_already_can_delegate_a_leave() {
    let stage = CallStage::start();
    let alice = stage.new_member();
    stage
        .sfu()
        .set_connection(&alice.room_name(), &alice.identity(), Some("PA_1"));
    let reply = stage.delegate(&alice, "syd_1", LONG);
    assert_eq!((reply.status, reply.json()), (200, json!({})));
    stage.delayed.wait_for(1, "restart", "syd_1");
    stage.send_webhook("participant_left", &alice, "PA_1");
    stage.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn the_older_endpoint_delegates_leaves_too() {
    let stage = CallStage::start();
    let alice = stage.stage.homeserver.user("alice");
    let mut body = alice.sfu_get();
    body["delay_id"] = json!("syd_1");
    body["delay_timeout"] = json!(1000);
    assert_eq!(stage.service().post("/sfu/get", &body).status, 200);
    stage.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn the_leave_of_a_participant_who_never_connects_is_sent_after_the_delay() {
    let stage = CallStage::start();
    let alice = stage.new_member();
    stage.join(&alice, "syd_1", 1_000);
    stage.delayed.wait_for(1, "send", "syd_1");
    assert_eq!(stage.delayed.actions("syd_1"), ["send"]);
}

#[test]
fn no_leave_is_sent_after_an_aborted_connection_attempt() {
    let stage = CallStage::start();
    let alice = stage.new_member();
    stage.join(&alice, "syd_1", SHORT);
    stage.send_webhook("participant_connection_aborted", &alice, "PA_1");
    stage
        .service()
        .wait_for_log("the participant never connected");
    assert_eq!(stage.delayed.actions("syd_1"), [""; 0]);
}

#[test]
fn a_second_connection_attempt_can_succeed() {
    let stage = CallStage::start();
    let alice = stage.new_member();
    stage.join(&alice, "syd_1", LONG);
    stage.send_webhook("participant_connection_aborted", &alice, "PA_1");
    stage.send_webhook("participant_joined", &alice, "PA_2");
    stage.delayed.wait_for(1, "restart", "syd_1");
    stage.send_webhook("participant_left", &alice, "PA_2");
    stage.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn a_late_participant_left_of_the_previous_connection_is_ignored() {
    let stage = CallStage::start();
    let alice = stage.new_member();
    stage.join(&alice, "syd_1", SHORT);
    stage.send_webhook("participant_joined", &alice, "PA_1");
    stage.send_webhook("participant_joined", &alice, "PA_2");
    stage
        .sfu()
        .set_connection(&alice.room_name(), &alice.identity(), Some("PA_2"));
    stage.send_webhook("participant_left", &alice, "PA_1");
    stage.delayed.wait_for(2, "restart", "syd_1");
    assert!(!stage.delayed.actions("syd_1").contains(&"send".to_owned()));
    stage.send_webhook("participant_left", &alice, "PA_2");
    stage.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn a_participant_who_reconnects_does_not_leave() {
    let stage = CallStage::start();
    let alice = stage.new_member();
    stage.join(&alice, "syd_1", SHORT);
    stage.send_webhook("participant_joined", &alice, "PA_1");
    stage.delayed.wait_for(1, "restart", "syd_1");
    stage.send_webhook_with_reason("participant_left", &alice, "PA_1", "DUPLICATE_IDENTITY");
    stage
        .sfu()
        .set_connection(&alice.room_name(), &alice.identity(), Some("PA_2"));
    stage.send_webhook("participant_joined", &alice, "PA_2");
    stage.delayed.wait_for(2, "restart", "syd_1");
    assert!(!stage.delayed.actions("syd_1").contains(&"send".to_owned()));
}

#[test]
fn a_replaced_connection_without_a_new_one_is_a_leave() {
    let stage = CallStage::start();
    let alice = stage.new_member();
    stage.join(&alice, "syd_1", LONG);
    stage.send_webhook("participant_joined", &alice, "PA_1");
    stage.send_webhook_with_reason("participant_left", &alice, "PA_1", "DUPLICATE_IDENTITY");
    stage.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn a_new_delegation_replaces_the_old_one() {
    let stage = CallStage::start();
    let alice = stage.new_member();
    stage.join(&alice, "syd_old", SHORT);
    stage.send_webhook("participant_joined", &alice, "PA_1");
    stage
        .sfu()
        .set_connection(&alice.room_name(), &alice.identity(), Some("PA_1"));
    stage.delayed.wait_for(1, "restart", "syd_old");
    assert_eq!(stage.delegate(&alice, "syd_new", SHORT).status, 200);
    let before = stage.delayed.actions("syd_old").len();
    stage.delayed.wait_for(2, "restart", "syd_new");
    stage.send_webhook("participant_left", &alice, "PA_1");
    stage.delayed.wait_for(1, "send", "syd_new");
    assert_eq!(stage.delayed.actions("syd_old").len(), before);
}

#[test]
fn a_leave_that_the_homeserver_denies_is_abandoned() {
    for status in [
        "404 Not Found",
        "409 Conflict",
        "401 Unauthorized",
        "403 Forbidden",
    ] {
        let stage = CallStage::start();
        stage.delayed.reply_next(error(status));
        let alice = stage.new_member();
        stage.join(&alice, "syd_1", LONG);
        stage.send_webhook("participant_joined", &alice, "PA_1");
        stage
            .service()
            .wait_for_words(&["leave abandoned", "leave="]);
        stage.send_webhook("participant_left", &alice, "PA_1");
        // when another leave has been sent, alice's would have been too
        let bob = stage.new_member();
        stage.join(&bob, "syd_2", 1_000);
        stage.delayed.wait_for(1, "send", "syd_2");
        assert_eq!(stage.delayed.actions("syd_1"), ["restart"], "{status}");
    }
}

#[test]
fn a_leave_that_the_homeserver_sent_itself_counts_as_sent() {
    let stage = CallStage::start();
    let alice = stage.new_member();
    stage.join(&alice, "syd_1", LONG);
    stage.send_webhook("participant_joined", &alice, "PA_1");
    stage.delayed.wait_for(1, "restart", "syd_1");
    stage.delayed.reply_next(error("404 Not Found"));
    stage.send_webhook("participant_left", &alice, "PA_1");
    stage
        .service()
        .wait_for_log("the homeserver had sent it already");
}

#[test]
fn calls_to_a_homeserver_that_is_down_are_retried() {
    let stage = CallStage::start();
    let alice = stage.new_member();
    stage.join(&alice, "syd_1", LONG);
    stage.delayed.reply_always(Some(DelayedReply::Close));
    stage.send_webhook("participant_joined", &alice, "PA_1");
    stage.delayed.wait_for(2, "restart", "syd_1");
    stage.delayed.reply_always(Some(error("502 Bad Gateway")));
    stage.send_webhook("participant_left", &alice, "PA_1");
    stage.delayed.wait_for(2, "send", "syd_1");
    stage.delayed.reply_always(None);
    stage.service().wait_for_log("leave sent");
    let calls = stage.delayed.calls();
    let done = calls.iter().filter(|call| call.status.starts_with("200"));
    assert_eq!(done.count(), 1, "{calls:?}");
}

#[test]
fn a_call_that_hangs_does_not_delay_another_leave() {
    let stage = CallStage::start();
    let (alice, bob) = (stage.new_member(), stage.new_member());
    stage.join(&alice, "syd_1", LONG);
    stage.join(&bob, "syd_2", LONG);
    stage.send_webhook("participant_joined", &alice, "PA_1");
    stage.delayed.wait_for(1, "restart", "syd_1");
    // the next call hangs; bob's leave does not wait for it
    stage.delayed.reply_next(DelayedReply::Hang);
    stage.send_webhook("participant_left", &alice, "PA_1");
    stage.delayed.wait_for(1, "send", "syd_1");
    stage.send_webhook("participant_joined", &bob, "PA_2");
    stage.delayed.wait_for(1, "restart", "syd_2");
}

#[test]
fn a_rate_limit_is_obeyed_and_reported_once() {
    let stage = CallStage::start();
    let limit = json!({"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 1500});
    let members: Vec<_> = (0..5).map(|_| stage.new_member()).collect();
    for (n, member) in members.iter().enumerate() {
        stage.join(member, &format!("syd_{n}"), LONG);
    }
    let too_many = DelayedReply::Send("429 Too Many Requests", "", limit);
    stage.delayed.reply_next(too_many.clone());
    stage.delayed.reply_next(too_many);
    let before_first = Instant::now();
    for member in &members {
        stage.send_webhook("participant_joined", member, "PA_1");
    }
    for n in 0..5 {
        stage.delayed.wait_for(1, "restart", &format!("syd_{n}"));
    }
    stage.service().wait_for_log("rc_delayed_event_mgmt");
    let all = stage.delayed.calls();
    let refused = all
        .iter()
        .position(|c| c.status.starts_with("429"))
        .unwrap();
    let next = all[refused..].iter().find(|c| c.status.starts_with("200"));
    let pause = next.unwrap().received_at.duration_since(before_first);
    assert!(pause.as_millis() >= 1_500, "{pause:?} {all:?}");
    // sends do not wait for restarts
    for (n, member) in members.iter().enumerate() {
        stage.send_webhook("participant_left", member, "PA_1");
        stage.delayed.wait_for(1, "send", &format!("syd_{n}"));
    }
    let log = stage.service().log();
    assert_eq!(log.matches("rc_delayed_event_mgmt").count(), 1, "{log}");
}

#[test]
fn without_webhooks_presence_checks_find_joins_and_leaves() {
    let stage = CallStage::start_with(FakeDelayedEvents::start(), |settings| {
        settings.set("LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS", "1")
    });
    let alice = stage.new_member();
    stage.join(&alice, "syd_1", LONG);
    let (room, identity) = (alice.room_name(), alice.identity());
    stage.sfu().set_connection(&room, &identity, Some("PA_1"));
    stage.delayed.wait_for(1, "restart", "syd_1");
    stage
        .sfu()
        .wait_for_presence_checks(stage.sfu().presence_checks().len(), 2);
    assert_eq!(stage.delayed.actions("syd_1"), ["restart"]);
    stage.sfu().set_connection(&room, &identity, None);
    stage.delayed.wait_for(1, "send", "syd_1");
}
