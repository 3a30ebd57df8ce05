//! Requests to delegate a leave, and why they are refused.

use serde_json::{Value, json};

use crate::call::{CallSetup, post_webhook};
use crate::client::forwarded;
use crate::fake_delayed_events::{DelayedReply, FakeDelayedEvents};
use crate::setup::{LOOPBACK, TestSetup, User};
use crate::sfu::SfuBehaviour;

/// A delay in milliseconds that does not end during a test.
const LONG: u64 = 3_600_000;

fn with_delay(mut body: Value) -> Value {
    body["delay_id"] = json!("syd_1");
    body["delay_timeout"] = json!(LONG);
    body
}

/// Status and errcode of the three endpoints on a user's delegation.
fn statuses_and_errcodes(setup: &TestSetup, user: impl Fn() -> User) -> [(u16, String); 3] {
    let post = |path, body| {
        setup
            .service
            .post(path, &with_delay(body))
            .status_and_errcode()
    };
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
    let setup = TestSetup::full_access();
    let reply = setup.service.request("POST", "/delegate_delayed_leave");
    assert_eq!(reply.status_and_errcode(), (400, "M_NOT_JSON".to_owned()));
    let reply = setup.service.request("GET", "/delegate_delayed_leave");
    assert_eq!(reply.status, 405);
    let user = setup.homeserver.user("alice");
    let reply = setup
        .service
        .post("/delegate_delayed_leave", &user.get_token());
    assert_eq!(reply.status_and_errcode(), (400, "M_BAD_JSON".to_owned()));
}

/// Element Call sends it twice at every join.
#[test]
fn a_capability_probe_has_no_rate_limit_and_no_line_above_debug() {
    let rate = 3;
    let start = |level: &str| {
        TestSetup::full_access_with(SfuBehaviour::Serves, |settings| {
            settings
                .set("LIVEKIT_RATE_PER_ADDRESS", rate.to_string())
                .set("LIVEKIT_LOG_LEVEL", level)
        })
    };
    let probe = |setup: &TestSetup| {
        let fields = "Host: x\r\nX-Forwarded-For: 8.8.8.8\r\nContent-Length: 0";
        let bytes = format!("POST /delegate_delayed_leave HTTP/1.1\r\n{fields}\r\n\r\n");
        setup.service.raw(bytes.as_bytes()).status_and_errcode()
    };
    let no_json = (400, "M_NOT_JSON".to_owned());
    let setup = start("info");
    for _ in 0..4 * rate {
        assert_eq!(probe(&setup), no_json);
    }
    // no probe has used up the limit of the address, and requests with a body do
    let post = |body: Value| {
        let bytes = forwarded("8.8.8.8", "/delegate_delayed_leave", &body);
        setup.service.raw(&bytes).status
    };
    assert!((0..rate).all(|_| post(json!({})) == 400));
    assert!((0..1000).any(|_| post(json!({})) == 429));
    assert_eq!(probe(&setup), no_json);
    let log = setup.service.wait_for_line_with(&["requests refused"]);
    assert!(!log.contains("capability probe"), "{log}");
    assert!(!setup.service.log().contains("capability probe"));
    let setup = start("debug");
    assert_eq!(probe(&setup), no_json);
    let words = ["level=debug", "request refused", "capability probe"];
    setup.service.wait_for_line_with(&words);
}

#[test]
fn users_with_restricted_access_cannot_delegate() {
    let setup = TestSetup::restricted();
    let [get_token, sfu_get, delegate] =
        statuses_and_errcodes(&setup, || setup.homeserver.user("alice"));
    assert_eq!(get_token, (400, "M_BAD_JSON".to_owned()));
    assert_eq!(sfu_get, (400, "M_BAD_JSON".to_owned()));
    assert_eq!(delegate, (403, "M_FORBIDDEN".to_owned()));
}

#[test]
fn a_user_cannot_delegate_for_another() {
    let setup = CallSetup::start();
    let setup = &setup.setup;
    let got = statuses_and_errcodes(setup, || {
        setup.homeserver.user_with_unknown_token("mallory")
    });
    assert_eq!(got, all(401, "M_UNAUTHORIZED"));
    let mut body = with_delay(setup.homeserver.user("mallory").get_token());
    body["member"]["claimed_user_id"] = json!(setup.homeserver.user("alice").id);
    let reply = setup.service.post("/delegate_delayed_leave", &body);
    assert_eq!(
        reply.status_and_errcode(),
        (401, "M_UNAUTHORIZED".to_owned())
    );
}

#[test]
fn a_homeserver_without_delayed_events_is_refused_before_a_room_is_created() {
    let features = json!({"org.matrix.msc4140": false});
    let versions = json!({"versions": ["v1.11"], "unstable_features": features});
    let no = DelayedReply::Send("200 OK", "", versions);
    let calls = CallSetup::start_with(FakeDelayedEvents::with_versions(no), |settings| settings);
    let setup = &calls.setup;
    let got = statuses_and_errcodes(setup, || setup.homeserver.user("alice"));
    assert_eq!(got, all(400, "M_BAD_JSON"));
    assert!(setup.sfu.calls().is_empty());
    setup.service.wait_for_line_with(&["refused", "MSC4140"]);
    // without a leave there is a token
    assert_eq!(setup.get_token(&setup.homeserver.user("alice")).status, 200);
}

#[test]
fn a_homeserver_without_a_valid_versions_response_is_accepted() {
    for versions in [
        DelayedReply::Send("404 Not Found", "", json!({})),
        DelayedReply::Send("200 OK", "", json!({"versions": ["v1.11"]})),
        DelayedReply::Send("200 OK", "", json!("text")),
        DelayedReply::Send("500 Internal Server Error", "", json!({})),
    ] {
        let setup = CallSetup::start_with(FakeDelayedEvents::with_versions(versions), |settings| {
            settings
        });
        let alice = setup.new_member();
        setup.join(&alice, "syd_1", LONG);
        setup.send_webhook("participant_joined", &alice, "PA_1");
        setup.delayed.wait_for(1, "restart", "syd_1");
    }
}

#[test]
fn a_homeserver_without_client_api_is_refused_before_a_room_is_created() {
    // this fake has no client-server API, and no well-known file for it
    let setup = TestSetup::full_access_with(SfuBehaviour::Serves, |settings| {
        settings.set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
    });
    let got = statuses_and_errcodes(&setup, || setup.homeserver.user("alice"));
    assert_eq!(got, all(400, "M_BAD_JSON"));
    assert!(setup.sfu.calls().is_empty());
}

#[test]
fn a_user_has_at_most_a_hundred_leaves() {
    let setup = CallSetup::start();
    let delegate = |n: u32| {
        let alice = setup.member_of("alice", &format!("member{n}"));
        setup.delegate(&alice, &format!("syd_{n}"), LONG)
    };
    for n in 0..100 {
        assert_eq!(delegate(n).status, 200, "{n}");
    }
    let reply = delegate(100);
    assert_eq!(
        reply.status_and_errcode(),
        (429, "M_LIMIT_EXCEEDED".to_owned())
    );
    assert!(reply.header("retry-after").is_some());
    // a leave that exists can be replaced
    assert_eq!(delegate(7).status, 200);
    let alice = setup.member_of("alice", "member101");
    let body = alice.body("syd_101", json!(LONG));
    let reply = setup.service().post("/get_token", &body);
    assert_eq!(reply.status_and_errcode(), (400, "M_BAD_JSON".to_owned()));
    let bob = setup.new_member();
    assert_eq!(setup.delegate(&bob, "syd_bob", LONG).status, 200);
}

#[test]
fn log_lines_of_a_leave_have_its_id() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", LONG);
    let line = setup
        .service()
        .wait_for_line_with(&["token issued", "leave="]);
    let (_, rest) = line.split_once("leave=").unwrap();
    let name = format!("leave={}", &rest[..8]);
    assert!(name[6..].bytes().all(|b| b.is_ascii_hexdigit()), "{line}");
    setup.send_webhook("participant_joined", &alice, "PA_1");
    setup
        .service()
        .wait_for_line_with(&["leave call finished", "call=restart", &name]);
    setup.send_webhook_with_reason("participant_left", &alice, "PA_1", "CLIENT_INITIATED");
    setup.service().wait_for_line_with(&["leave sent", &name]);
    for words in [
        ["token issued", name.as_str()],
        ["connected", &name],
        ["disconnected", "CLIENT_INITIATED"],
    ] {
        setup.service().wait_for_line_with(&words);
    }
}

#[test]
fn webhooks_about_other_participants_are_accepted() {
    let setup = CallSetup::start();
    let other = setup.new_member();
    for event in [
        "participant_joined",
        "participant_left",
        "room_finished",
        "track_published",
    ] {
        setup.send_webhook(event, &other, "PA_1");
    }
    let unknown = json!({"event": "egress_started", "id": "EV_unknown"});
    let reply = post_webhook(setup.service(), unknown.to_string().as_bytes());
    assert_eq!(reply.status, 200);
    assert_eq!(setup.service().request("GET", "/sfu_webhook").status, 405);
}
