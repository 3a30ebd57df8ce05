//! The life of a delegated leave, as its homeserver sees it.

use std::time::Instant;

use serde_json::json;

use crate::call::CallSetup;
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
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", SHORT);
    let before_first = Instant::now();
    setup.send_webhook("participant_joined", &alice, "PA_1");
    setup.delayed.wait_for(1, "restart", "syd_1");
    let second = setup.delayed.wait_for(2, "restart", "syd_1");
    // not before 72 % of the delay
    let after = second.received_at.duration_since(before_first);
    assert!(after.as_millis() >= 3_600, "{after:?}");
    setup.send_webhook("participant_left", &alice, "PA_1");
    setup.delayed.wait_for(1, "send", "syd_1");
    setup.service().wait_for_log("leave sent");
    assert_eq!(setup.delayed.actions("syd_1").last().unwrap(), "send");
}

#[test]
fn a_participant_who_is_connected_already_can_delegate_a_leave() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup
        .sfu()
        .set_connection(&alice.room_name(), &alice.identity(), Some("PA_1"));
    let reply = setup.delegate(&alice, "syd_1", LONG);
    assert_eq!((reply.status, reply.json()), (200, json!({})));
    setup.delayed.wait_for(1, "restart", "syd_1");
    setup.send_webhook("participant_left", &alice, "PA_1");
    setup.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn the_older_endpoint_delegates_leaves_too() {
    let setup = CallSetup::start();
    let alice = setup.setup.homeserver.user("alice");
    let mut body = alice.sfu_get();
    body["delay_id"] = json!("syd_1");
    body["delay_timeout"] = json!(1000);
    assert_eq!(setup.service().post("/sfu/get", &body).status, 200);
    setup.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn the_leave_of_a_participant_who_never_connects_is_sent_after_the_delay() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", 1_000);
    setup.delayed.wait_for(1, "send", "syd_1");
    assert_eq!(setup.delayed.actions("syd_1"), ["send"]);
}

#[test]
fn no_leave_is_sent_after_an_aborted_connection_attempt() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", SHORT);
    setup.send_webhook("participant_connection_aborted", &alice, "PA_1");
    setup
        .service()
        .wait_for_log("the participant never connected");
    assert_eq!(setup.delayed.actions("syd_1"), [""; 0]);
}

#[test]
fn a_second_connection_attempt_can_succeed() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", LONG);
    setup.send_webhook("participant_connection_aborted", &alice, "PA_1");
    setup.send_webhook("participant_joined", &alice, "PA_2");
    setup.delayed.wait_for(1, "restart", "syd_1");
    setup.send_webhook("participant_left", &alice, "PA_2");
    setup.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn a_late_participant_left_of_the_previous_connection_is_ignored() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", SHORT);
    setup.send_webhook("participant_joined", &alice, "PA_1");
    setup.send_webhook("participant_joined", &alice, "PA_2");
    setup
        .sfu()
        .set_connection(&alice.room_name(), &alice.identity(), Some("PA_2"));
    setup.send_webhook("participant_left", &alice, "PA_1");
    setup.delayed.wait_for(2, "restart", "syd_1");
    assert!(!setup.delayed.actions("syd_1").contains(&"send".to_owned()));
    setup.send_webhook("participant_left", &alice, "PA_2");
    setup.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn a_participant_who_reconnects_does_not_leave() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", SHORT);
    setup.send_webhook("participant_joined", &alice, "PA_1");
    setup.delayed.wait_for(1, "restart", "syd_1");
    setup.send_webhook_with_reason("participant_left", &alice, "PA_1", "DUPLICATE_IDENTITY");
    setup
        .sfu()
        .set_connection(&alice.room_name(), &alice.identity(), Some("PA_2"));
    setup.send_webhook("participant_joined", &alice, "PA_2");
    setup.delayed.wait_for(2, "restart", "syd_1");
    assert!(!setup.delayed.actions("syd_1").contains(&"send".to_owned()));
}

#[test]
fn a_replaced_connection_without_a_new_one_is_a_leave() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", LONG);
    setup.send_webhook("participant_joined", &alice, "PA_1");
    setup.send_webhook_with_reason("participant_left", &alice, "PA_1", "DUPLICATE_IDENTITY");
    setup.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn a_new_delegation_replaces_the_old_one() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup.join(&alice, "syd_old", SHORT);
    setup.send_webhook("participant_joined", &alice, "PA_1");
    setup
        .sfu()
        .set_connection(&alice.room_name(), &alice.identity(), Some("PA_1"));
    setup.delayed.wait_for(1, "restart", "syd_old");
    assert_eq!(setup.delegate(&alice, "syd_new", SHORT).status, 200);
    let before = setup.delayed.actions("syd_old").len();
    setup.delayed.wait_for(2, "restart", "syd_new");
    setup.send_webhook("participant_left", &alice, "PA_1");
    setup.delayed.wait_for(1, "send", "syd_new");
    assert_eq!(setup.delayed.actions("syd_old").len(), before);
}

#[test]
fn a_leave_that_the_homeserver_denies_is_abandoned() {
    for status in [
        "404 Not Found",
        "409 Conflict",
        "401 Unauthorized",
        "403 Forbidden",
    ] {
        let setup = CallSetup::start();
        setup.delayed.reply_next(error(status));
        let alice = setup.new_member();
        setup.join(&alice, "syd_1", LONG);
        setup.send_webhook("participant_joined", &alice, "PA_1");
        setup
            .service()
            .wait_for_line_with(&["leave abandoned", "leave="]);
        setup.send_webhook("participant_left", &alice, "PA_1");
        // when another leave has been sent, alice's would have been too
        let bob = setup.new_member();
        setup.join(&bob, "syd_2", 1_000);
        setup.delayed.wait_for(1, "send", "syd_2");
        assert_eq!(setup.delayed.actions("syd_1"), ["restart"], "{status}");
    }
}

#[test]
fn a_leave_that_the_homeserver_sent_itself_counts_as_sent() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", LONG);
    setup.send_webhook("participant_joined", &alice, "PA_1");
    setup.delayed.wait_for(1, "restart", "syd_1");
    setup.delayed.reply_next(error("404 Not Found"));
    setup.send_webhook("participant_left", &alice, "PA_1");
    setup
        .service()
        .wait_for_log("the homeserver had sent it already");
}

#[test]
fn calls_to_a_homeserver_that_is_down_are_retried() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", LONG);
    setup.delayed.reply_always(Some(DelayedReply::Close));
    setup.send_webhook("participant_joined", &alice, "PA_1");
    setup.delayed.wait_for(2, "restart", "syd_1");
    setup.delayed.reply_always(Some(error("502 Bad Gateway")));
    setup.send_webhook("participant_left", &alice, "PA_1");
    setup.delayed.wait_for(2, "send", "syd_1");
    setup.delayed.reply_always(None);
    setup.service().wait_for_log("leave sent");
    let calls = setup.delayed.calls();
    let done = calls.iter().filter(|call| call.status.starts_with("200"));
    assert_eq!(done.count(), 1, "{calls:?}");
}

#[test]
fn a_call_that_hangs_does_not_delay_another_leave() {
    let setup = CallSetup::start();
    let (alice, bob) = (setup.new_member(), setup.new_member());
    setup.join(&alice, "syd_1", LONG);
    setup.join(&bob, "syd_2", LONG);
    setup.send_webhook("participant_joined", &alice, "PA_1");
    setup.delayed.wait_for(1, "restart", "syd_1");
    // the next call hangs; bob's leave does not wait for it
    setup.delayed.reply_next(DelayedReply::Hang);
    setup.send_webhook("participant_left", &alice, "PA_1");
    setup.delayed.wait_for(1, "send", "syd_1");
    setup.send_webhook("participant_joined", &bob, "PA_2");
    setup.delayed.wait_for(1, "restart", "syd_2");
}

#[test]
fn a_rate_limit_is_obeyed_and_reported_once() {
    let setup = CallSetup::start();
    let limit = json!({"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 1500});
    let members: Vec<_> = (0..5).map(|_| setup.new_member()).collect();
    for (n, member) in members.iter().enumerate() {
        setup.join(member, &format!("syd_{n}"), LONG);
    }
    let too_many = DelayedReply::Send("429 Too Many Requests", "", limit);
    setup.delayed.reply_next(too_many.clone());
    setup.delayed.reply_next(too_many);
    let before_first = Instant::now();
    for member in &members {
        setup.send_webhook("participant_joined", member, "PA_1");
    }
    for n in 0..5 {
        setup.delayed.wait_for(1, "restart", &format!("syd_{n}"));
    }
    setup.service().wait_for_log("rc_delayed_event_mgmt");
    let all = setup.delayed.calls();
    let refused = all
        .iter()
        .position(|c| c.status.starts_with("429"))
        .unwrap();
    let next = all[refused..].iter().find(|c| c.status.starts_with("200"));
    let pause = next.unwrap().received_at.duration_since(before_first);
    assert!(pause.as_millis() >= 1_500, "{pause:?} {all:?}");
    // sends do not wait for restarts
    for (n, member) in members.iter().enumerate() {
        setup.send_webhook("participant_left", member, "PA_1");
        setup.delayed.wait_for(1, "send", &format!("syd_{n}"));
    }
    let log = setup.service().log();
    assert_eq!(log.matches("rc_delayed_event_mgmt").count(), 1, "{log}");
}

#[test]
fn without_webhooks_presence_checks_find_joins_and_leaves() {
    let setup = CallSetup::start_with(FakeDelayedEvents::start(), |settings| {
        settings.set("LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS", "1")
    });
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", LONG);
    let (room, identity) = (alice.room_name(), alice.identity());
    setup.sfu().set_connection(&room, &identity, Some("PA_1"));
    setup.delayed.wait_for(1, "restart", "syd_1");
    setup
        .sfu()
        .wait_for_presence_checks(setup.sfu().presence_checks().len(), 2);
    assert_eq!(setup.delayed.actions("syd_1"), ["restart"]);
    setup.sfu().set_connection(&room, &identity, None);
    setup.delayed.wait_for(1, "send", "syd_1");
}
