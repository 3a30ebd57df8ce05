//! Requests to delegate a leave, and why they are refused.

use serde_json::{Value, json};

use crate::call::{CallStage, post_webhook};
use crate::fake_delayed_events::{DelayedReply, FakeDelayedEvents};
use crate::sfu::SfuBehavior;
use crate::stage::{LOOPBACK, Stage, User};

/// A delay in milliseconds that does not end during a test.
const LONG: u64 = 3_600_000;

fn with_delay(mut body: Value) -> Value {
    body["delay_id"] = json!("syd_1");
    body["delay_timeout"] = json!(LONG);
    body
}

/// The verdicts of the three endpoints on a user's delegation.
fn verdicts(stage: &Stage, user: impl Fn() -> User) -> [(u16, String); 3] {
    let post = |path, body| stage.service.post(path, &with_delay(body)).verdict();
    [
        post("/get_token", user().get_token()),
        post("/sfu/get", user().sfu_get()),
        post("/delegate_delayed_leave", user().get_token()),
    ]
}

fn all(status: u16, errcode: &str) -> [(u16, String); 3] {
    [0; 3].map(|_| (status, errcode.to_owned()))
}

#[test]
fn a_request_without_a_delay_is_refused() {
    let stage = Stage::full_access();
    let reply = stage.service.request("POST", "/delegate_delayed_leave");
    assert_eq!(reply.verdict(), (400, "M_NOT_JSON".to_owned()));
    let reply = stage.service.request("GET", "/delegate_delayed_leave");
    assert_eq!(reply.status, 405);
    let user = stage.homeserver.user("alice");
    let reply = stage
        .service
        .post("/delegate_delayed_leave", &user.get_token());
    assert_eq!(reply.verdict(), (400, "M_BAD_JSON".to_owned()));
}

#[test]
fn users_with_restricted_access_cannot_delegate() {
    let stage = Stage::restricted();
    let [get_token, sfu_get, delegate] = verdicts(&stage, || stage.homeserver.user("alice"));
    assert_eq!(get_token, (400, "M_BAD_JSON".to_owned()));
    assert_eq!(sfu_get, (400, "M_BAD_JSON".to_owned()));
    assert_eq!(delegate, (403, "M_FORBIDDEN".to_owned()));
}

#[test]
fn a_user_cannot_delegate_for_another() {
    let stage = CallStage::start();
    let stage = &stage.stage;
    let got = verdicts(stage, || {
        stage.homeserver.user_with_unknown_token("mallory")
    });
    assert_eq!(got, all(401, "M_UNAUTHORIZED"));
    let mut body = with_delay(stage.homeserver.user("mallory").get_token());
    body["member"]["claimed_user_id"] = json!(stage.homeserver.user("alice").id);
    let reply = stage.service.post("/delegate_delayed_leave", &body);
    assert_eq!(reply.verdict(), (401, "M_UNAUTHORIZED".to_owned()));
}

#[test]
fn a_homeserver_without_delayed_events_is_refused_before_a_room_is_created() {
    let features = json!({"org.matrix.msc4140": false});
    let versions = json!({"versions": ["v1.11"], "unstable_features": features});
    let no = DelayedReply::Send("200 OK", "", versions);
    let calls = CallStage::start_with(FakeDelayedEvents::with_versions(no), |settings| settings);
    let stage = &calls.stage;
    let got = verdicts(stage, || stage.homeserver.user("alice"));
    assert_eq!(got, all(400, "M_BAD_JSON"));
    assert!(stage.sfu.calls().is_empty());
    stage.service.wait_for_words(&["refused", "MSC4140"]);
    // without a leave there is a token
    assert_eq!(stage.get_token(&stage.homeserver.user("alice")).status, 200);
}

#[test]
fn a_homeserver_without_a_valid_versions_response_is_accepted() {
    for versions in [
        DelayedReply::Send("404 Not Found", "", json!({})),
        DelayedReply::Send("200 OK", "", json!({"versions": ["v1.11"]})),
        DelayedReply::Send("200 OK", "", json!("text")),
        DelayedReply::Send("500 Internal Server Error", "", json!({})),
    ] {
        let stage = CallStage::start_with(FakeDelayedEvents::with_versions(versions), |settings| {
            settings
        });
        let alice = stage.new_member();
        stage.join(&alice, "syd_1", LONG);
        stage.send_webhook("participant_joined", &alice, "PA_1");
        stage.delayed.wait_for(1, "restart", "syd_1");
    }
}

#[test]
fn a_homeserver_without_client_api_is_refused_before_a_room_is_created() {
    // this fake has no client-server API, and no well-known file for it
    let stage = Stage::full_access_with(SfuBehavior::Serves, |settings| {
        settings.set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
    });
    let got = verdicts(&stage, || stage.homeserver.user("alice"));
    assert_eq!(got, all(400, "M_BAD_JSON"));
    assert!(stage.sfu.calls().is_empty());
}

#[test]
fn a_user_has_at_most_a_hundred_leaves() {
    let stage = CallStage::start();
    let delegate = |n: u32| {
        let alice = stage.member_of("alice", &format!("member{n}"));
        stage.delegate(&alice, &format!("syd_{n}"), LONG)
    };
    for n in 0..100 {
        assert_eq!(delegate(n).status, 200, "{n}");
    }
    let reply = delegate(100);
    assert_eq!(reply.verdict(), (429, "M_LIMIT_EXCEEDED".to_owned()));
    assert!(reply.header("retry-after").is_some());
    // a leave that exists can be replaced
    assert_eq!(delegate(7).status, 200);
    let alice = stage.member_of("alice", "member101");
    let body = alice.body("syd_101", json!(LONG));
    let reply = stage.service().post("/get_token", &body);
    assert_eq!(reply.verdict(), (400, "M_BAD_JSON".to_owned()));
    let bob = stage.new_member();
    assert_eq!(stage.delegate(&bob, "syd_bob", LONG).status, 200);
}

#[test]
fn log_lines_of_a_leave_have_its_id() {
    let stage = CallStage::start();
    let alice = stage.new_member();
    stage.join(&alice, "syd_1", LONG);
    let line = stage.service().wait_for_words(&["token issued", "leave="]);
    let (_, rest) = line.split_once("leave=").unwrap();
    let name = format!("leave={}", &rest[..8]);
    assert!(name[6..].bytes().all(|b| b.is_ascii_hexdigit()), "{line}");
    stage.send_webhook("participant_joined", &alice, "PA_1");
    stage
        .service()
        .wait_for_words(&["leave call finished", "call=restart", &name]);
    stage.send_webhook_with_reason("participant_left", &alice, "PA_1", "CLIENT_INITIATED");
    stage.service().wait_for_words(&["leave sent", &name]);
    for words in [
        ["token issued", name.as_str()],
        ["connected", &name],
        ["disconnected", "CLIENT_INITIATED"],
    ] {
        stage.service().wait_for_words(&words);
    }
}

#[test]
fn webhooks_about_other_participants_are_accepted() {
    let stage = CallStage::start();
    let other = stage.new_member();
    for event in [
        "participant_joined",
        "participant_left",
        "room_finished",
        "track_published",
    ] {
        stage.send_webhook(event, &other, "PA_1");
    }
    let unknown = json!({"event": "egress_started", "id": "EV_unknown"});
    let reply = post_webhook(stage.service(), unknown.to_string().as_bytes());
    assert_eq!(reply.status, 200);
    assert_eq!(stage.service().request("GET", "/sfu_webhook").status, 405);
}
