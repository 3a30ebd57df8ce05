//! The SFU repeats itself, and what it says arrives in any order: the connection that is spoken of decides, not the order.

use serde_json::{Value, json};

use crate::call::{CallStage, post_webhook, webhook_authorization, webhook_body};
use crate::webhook_signature::post;

/// A delay that is restarted every one or two seconds.
const SHORT: u64 = 2_000;
const HOUR: u64 = 3_600_000;

#[test]
fn a_repeat_is_answered_and_not_worked_on() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", HOUR);
    let joined = webhook_body("participant_joined", &alice, "PA_1");
    let id = joined["id"].as_str().unwrap();
    let body = joined.to_string();
    let fields = format!(
        "Authorization: {}\r\n",
        webhook_authorization(body.as_bytes())
    );
    for _ in 0..5 {
        // the SFU signs once and sends the very same again
        assert_eq!(post(calls.service(), &fields, body.as_bytes()).status, 200);
    }
    calls.delayed.wait_for(1, "restart", "syd_1");
    calls.send_webhook("participant_left", &alice, "PA_1");
    calls.delayed.wait_for(1, "send", "syd_1");
    assert_eq!(calls.delayed.actions("syd_1"), ["restart", "send"]);
    let log = calls.service().log();
    let field = format!(" id={id} ");
    let worked = log.lines().filter(|line| line.contains(&field)).count();
    assert_eq!(worked, 1, "lines about {id}:\n{log}");
}

#[test]
fn a_late_end_of_an_earlier_connection_ends_nothing() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls
        .sfu()
        .connect(&alice.room_name(), &alice.identity(), Some("PA_2"));
    calls.join(&alice, "syd_1", SHORT);
    calls.send_webhook("participant_joined", &alice, "PA_1");
    calls.send_webhook("participant_joined", &alice, "PA_2");
    calls.send_webhook("participant_left", &alice, "PA_1");
    let before = calls.delayed.actions("syd_1").len();
    calls.delayed.wait_for(before + 2, "restart", "syd_1");
    calls
        .sfu()
        .connect(&alice.room_name(), &alice.identity(), None);
    calls.send_webhook("participant_left", &alice, "PA_2");
    calls.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn who_has_left_before_they_are_said_to_have_come_is_gone() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", SHORT);
    calls.send_webhook("participant_left", &alice, "PA_1");
    calls.send_webhook("participant_joined", &alice, "PA_1");
    calls.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn a_room_that_finishes_late_is_not_the_one_that_they_are_in() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls
        .sfu()
        .connect(&alice.room_name(), &alice.identity(), Some("PA_1"));
    calls.join(&alice, "syd_1", SHORT);
    calls.send_webhook("participant_joined", &alice, "PA_1");
    let mut finished = webhook_body("room_finished", &alice, "PA_1");
    finished["participant"] = Value::Null;
    let reply = post_webhook(calls.service(), finished.to_string().as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
    let before = calls.delayed.actions("syd_1").len();
    calls.delayed.wait_for(before + 2, "restart", "syd_1");
    let actions = calls.delayed.actions("syd_1");
    assert!(!actions.contains(&"send".to_owned()), "{actions:?}");
    // the next time it is
    calls
        .sfu()
        .connect(&alice.room_name(), &alice.identity(), None);
    finished["id"] = json!("EV_again");
    let reply = post_webhook(calls.service(), finished.to_string().as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
    calls.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn what_a_later_sfu_may_tell_is_taken_in() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", HOUR);
    for body in [
        json!({}),
        json!({"event": "egress_started", "egressInfo": {"egressId": "EG_1"}, "id": "EV_e1", "createdAt": "1"}),
        json!({"event": "from_the_future", "id": 7, "room": [], "participant": "nobody"}),
        json!({"event": "participant_left", "id": "EV_e2"}),
        json!({"event": "participant_left", "id": "EV_e3", "room": {"name": "no such room"}, "participant": {"identity": "nobody"}}),
    ] {
        let reply = post_webhook(calls.service(), body.to_string().as_bytes());
        assert_eq!(reply.status, 200, "{body}: {reply:?}");
    }
    let mut joined = webhook_body("participant_joined", &alice, "PA_1");
    joined["room"]["creationTime"] = json!("1692627281");
    joined["room"]["fromTheFuture"] = json!({"a": [1, null]});
    joined["participant"]["kind"] = json!("FROM_THE_FUTURE");
    joined["participant"]["disconnectReason"] = json!(4711);
    joined["createdAt"] = json!(1_692_985_556);
    let reply = post_webhook(calls.service(), joined.to_string().as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
    calls.delayed.wait_for(1, "restart", "syd_1");
}
