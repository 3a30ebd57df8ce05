//! Webhooks are repeated and arrive in any order: the connection that they name decides, not their order.

use serde_json::{Value, json};

use crate::call::{CallSetup, post_webhook, webhook_authorization, webhook_body};
use crate::webhook_signature::post_with_fields;

/// A delay in milliseconds whose restarts a test waits for; longer than a webhook takes on a slow machine.
const SHORT: u64 = 5_000;
const HOUR: u64 = 3_600_000;

#[test]
fn a_repeated_webhook_is_accepted_and_has_no_effect() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", HOUR);
    let joined = webhook_body("participant_joined", &alice, "PA_1");
    let id = joined["id"].as_str().unwrap();
    let body = joined.to_string();
    let fields = format!(
        "Authorization: {}\r\n",
        webhook_authorization(body.as_bytes())
    );
    for _ in 0..5 {
        // the SFU repeats a webhook with the same signature
        assert_eq!(
            post_with_fields(setup.service(), &fields, body.as_bytes()).status,
            200
        );
    }
    setup.delayed.wait_for(1, "restart", "syd_1");
    setup.send_webhook("participant_left", &alice, "PA_1");
    setup.delayed.wait_for(1, "send", "syd_1");
    assert_eq!(setup.delayed.actions("syd_1"), ["restart", "send"]);
    let log = setup.service().log();
    let field = format!(" id={id} ");
    let lines = log.lines().filter(|line| line.contains(&field)).count();
    assert_eq!(lines, 1, "lines about {id}:\n{log}");
}

#[test]
fn a_late_participant_left_of_an_earlier_connection_has_no_effect() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup
        .sfu()
        .set_connection(&alice.room_name(), &alice.identity(), Some("PA_2"));
    setup.join(&alice, "syd_1", SHORT);
    setup.send_webhook("participant_joined", &alice, "PA_1");
    setup.send_webhook("participant_joined", &alice, "PA_2");
    setup.send_webhook("participant_left", &alice, "PA_1");
    let before = setup.delayed.actions("syd_1").len();
    setup.delayed.wait_for(before + 2, "restart", "syd_1");
    setup
        .sfu()
        .set_connection(&alice.room_name(), &alice.identity(), None);
    setup.send_webhook("participant_left", &alice, "PA_2");
    setup.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn participant_left_before_participant_joined_is_a_leave() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", SHORT);
    setup.send_webhook("participant_left", &alice, "PA_1");
    setup.send_webhook("participant_joined", &alice, "PA_1");
    setup.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn a_late_room_finished_of_an_earlier_room_has_no_effect() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup
        .sfu()
        .set_connection(&alice.room_name(), &alice.identity(), Some("PA_1"));
    setup.join(&alice, "syd_1", SHORT);
    setup.send_webhook("participant_joined", &alice, "PA_1");
    let mut finished = webhook_body("room_finished", &alice, "PA_1");
    finished["participant"] = Value::Null;
    let reply = post_webhook(setup.service(), finished.to_string().as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
    let before = setup.delayed.actions("syd_1").len();
    setup.delayed.wait_for(before + 2, "restart", "syd_1");
    let actions = setup.delayed.actions("syd_1");
    assert!(!actions.contains(&"send".to_owned()), "{actions:?}");
    // after a disconnect it has
    setup
        .sfu()
        .set_connection(&alice.room_name(), &alice.identity(), None);
    finished["id"] = json!("EV_again");
    let reply = post_webhook(setup.service(), finished.to_string().as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
    setup.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn unknown_events_and_fields_are_accepted() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", HOUR);
    for body in [
        json!({}),
        json!({"event": "egress_started", "egressInfo": {"egressId": "EG_1"}, "id": "EV_e1", "createdAt": "1"}),
        json!({"event": "from_the_future", "id": 7, "room": [], "participant": "unknown"}),
        json!({"event": "participant_left", "id": "EV_e2"}),
        json!({"event": "participant_left", "id": "EV_e3", "room": {"name": "no such room"}, "participant": {"identity": "unknown"}}),
    ] {
        let reply = post_webhook(setup.service(), body.to_string().as_bytes());
        assert_eq!(reply.status, 200, "{body}: {reply:?}");
    }
    let mut joined = webhook_body("participant_joined", &alice, "PA_1");
    joined["room"]["creationTime"] = json!("1692627281");
    joined["room"]["fromTheFuture"] = json!({"a": [1, null]});
    joined["participant"]["kind"] = json!("FROM_THE_FUTURE");
    joined["participant"]["disconnectReason"] = json!(4711);
    joined["createdAt"] = json!(1_692_985_556);
    let reply = post_webhook(setup.service(), joined.to_string().as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
    setup.delayed.wait_for(1, "restart", "syd_1");
}
