//! Who may hand us a leave, and what the others are told.

use serde_json::{Value, json};

use crate::call::{CallStage, post_webhook};
use crate::delayed::{Answer, Delayed};
use crate::sfu::Conduct;
use crate::stage::{LOOPBACK, Stage, User};

const LONG: u64 = 3_600_000;

fn delayed(mut body: Value) -> Value {
    body["delay_id"] = json!("syd_1");
    body["delay_timeout"] = json!(LONG);
    body
}

/// What each endpoint says to a user who hands over their leave.
fn verdicts(stage: &Stage, user: impl Fn() -> User) -> [(u16, String); 3] {
    let post = |path, body| stage.service.post(path, &delayed(body)).verdict();
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
fn a_probe_without_a_body_finds_that_leaves_can_be_delegated() {
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
fn a_stranger_keeps_their_own_leave() {
    let stage = Stage::restricted();
    let [get_token, sfu_get, delegate] = verdicts(&stage, || stage.homeserver.user("alice"));
    assert_eq!(get_token, (400, "M_BAD_JSON".to_owned()));
    assert_eq!(sfu_get, (400, "M_BAD_JSON".to_owned()));
    assert_eq!(delegate, (403, "M_FORBIDDEN".to_owned()));
}

#[test]
fn nobody_delegates_for_another() {
    let calls = CallStage::start();
    let stage = &calls.stage;
    let got = verdicts(stage, || {
        stage.homeserver.user_with_unknown_token("mallory")
    });
    assert_eq!(got, all(401, "M_UNAUTHORIZED"));
    let mut body = delayed(stage.homeserver.user("mallory").get_token());
    body["member"]["claimed_user_id"] = json!(stage.homeserver.user("alice").id);
    let reply = stage.service.post("/delegate_delayed_leave", &body);
    assert_eq!(reply.verdict(), (401, "M_UNAUTHORIZED".to_owned()));
}

#[test]
fn a_homeserver_that_has_no_delayed_events_is_believed_and_no_room_is_created() {
    let features = json!({"org.matrix.msc4140": false});
    let versions = json!({"versions": ["v1.11"], "unstable_features": features});
    let no = Answer::Says("200 OK", "", versions);
    let calls = CallStage::start_with(Delayed::saying(no), |settings| settings);
    let stage = &calls.stage;
    let got = verdicts(stage, || stage.homeserver.user("alice"));
    assert_eq!(got, all(400, "M_BAD_JSON"));
    assert!(calls.sfu().calls().is_empty());
    stage.service.wait_for_words(&["refused", "MSC4140"]);
    // and without their leave they get in
    assert_eq!(stage.get_token(&stage.homeserver.user("alice")).status, 200);
}

#[test]
fn a_homeserver_that_does_not_say_what_it_has_is_given_the_benefit_of_the_doubt() {
    for versions in [
        Answer::Says("404 Not Found", "", json!({})),
        Answer::Says("200 OK", "", json!({"versions": ["v1.11"]})),
        Answer::Says("200 OK", "", json!("odd")),
        Answer::Says("500 Internal Server Error", "", json!({})),
    ] {
        let calls = CallStage::start_with(Delayed::saying(versions), |settings| settings);
        let alice = calls.new_member();
        calls.join(&alice, "syd_1", LONG);
        calls.send_webhook("participant_joined", &alice, "PA_1");
        calls.delayed.wait_for(1, "restart", "syd_1");
    }
}

#[test]
fn a_homeserver_whose_client_side_is_nowhere_gets_its_leaves_back_before_a_room_is_created() {
    // the fake speaks federation only, and says 404 to its client well-known
    let stage = Stage::full_access_with(Conduct::Serves, |settings| {
        settings.set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
    });
    let got = verdicts(&stage, || stage.homeserver.user("alice"));
    assert_eq!(got, all(400, "M_BAD_JSON"));
    assert!(stage.sfu.calls().is_empty());
}

#[test]
fn a_user_has_a_hundred_leaves_and_others_are_not_kept_from_theirs() {
    let calls = CallStage::start();
    let delegate = |n: u32| {
        let alice = calls.member_of("alice", &format!("member{n}"));
        calls.delegate(&alice, &format!("syd_{n}"), LONG)
    };
    for n in 0..100 {
        assert_eq!(delegate(n).status, 200, "{n}");
    }
    let reply = delegate(100);
    assert_eq!(reply.verdict(), (429, "M_LIMIT_EXCEEDED".to_owned()));
    assert!(reply.header("retry-after").is_some());
    // one more time for a leave that is there
    assert_eq!(delegate(7).status, 200);
    let alice = calls.member_of("alice", "member101");
    let body = alice.body("syd_101", json!(LONG));
    let reply = calls.service().post("/get_token", &body);
    assert_eq!(reply.verdict(), (400, "M_BAD_JSON".to_owned()));
    let bob = calls.new_member();
    assert_eq!(calls.delegate(&bob, "syd_bob", LONG).status, 200);
}

#[test]
fn the_log_tells_a_leaves_story_by_its_name() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", LONG);
    let line = calls.service().wait_for_words(&["token issued", "leave="]);
    let (_, rest) = line.split_once("leave=").unwrap();
    let name = format!("leave={}", &rest[..8]);
    assert!(name[6..].bytes().all(|b| b.is_ascii_hexdigit()), "{line}");
    calls.send_webhook("participant_joined", &alice, "PA_1");
    calls
        .service()
        .wait_for_words(&["leave call finished", "call=restart", &name]);
    calls.send_webhook_with_reason("participant_left", &alice, "PA_1", "CLIENT_INITIATED");
    calls.service().wait_for_words(&["leave sent", &name]);
    for words in [
        ["token issued", name.as_str()],
        ["connected", &name],
        ["disconnected", "CLIENT_INITIATED"],
    ] {
        calls.service().wait_for_words(&words);
    }
}

#[test]
fn a_webhook_of_nobody_who_has_a_leave_is_heard_all_the_same() {
    let calls = CallStage::start();
    let stranger = calls.new_member();
    for event in [
        "participant_joined",
        "participant_left",
        "room_finished",
        "track_published",
    ] {
        calls.send_webhook(event, &stranger, "PA_1");
    }
    let odd = json!({"event": "egress_started", "id": "EV_odd"});
    let reply = post_webhook(calls.service(), odd.to_string().as_bytes());
    assert_eq!(reply.status, 200);
    assert_eq!(calls.service().request("GET", "/sfu_webhook").status, 405);
}
