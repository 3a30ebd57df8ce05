//! The two dialects of application-service mode: `member_id` of the latest MSC4195, and `member: {id, claimed_device_id}` of matrix-js-sdk 43,
//! matrix-widget-api 1.19 and lk-jwt-service 0.7.

use serde_json::{Value, json};

use crate::appservice_setup::{
    AppServiceSetup, DELEGATE_PATH, FakeResponse, ROOM, SERVER_PATH, USER_PATH, hs_token_header,
    json_response, origin_header, relay_response, send_joined, user_header, wait_until,
};
use crate::call::post_webhook;
use crate::client::Reply;
use crate::jwt;
use crate::request::Request;
use crate::settings::SECRET;

const ALICE: &str = "@alice:own.example";
const BOB: &str = "@bob:b.org";
const DEVICE: &str = "DEVICE123";
const CHECK_INTERVAL: &str = "LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS";

fn unstable(path: &str) -> String {
    path.replace("/v1/", "/unstable/io.element.msc4195/")
}

/// A valid body of any of the three endpoints, without a member.
fn body_without_member(setup: &AppServiceSetup) -> Value {
    let mut body = setup.token_request();
    body.as_object_mut().unwrap().remove("member_id");
    body["user_id"] = BOB.into();
    body["delay_id"] = "syd_1".into();
    body
}

fn with_member_id(mut body: Value) -> Value {
    body["member_id"] = "m".into();
    body
}

fn with_member(mut body: Value) -> Value {
    body["member"] = json!({ "id": "m", "claimed_device_id": DEVICE });
    body
}

/// The LiveKit room of every request here.
fn room_name() -> String {
    jwt::hash(&[ROOM, "m.call#ROOM"])
}

fn sub(reply: &Reply) -> String {
    let claims = jwt::claims(&reply.jwt(), SECRET);
    assert_eq!(claims["video"]["room"], room_name());
    claims["sub"].as_str().unwrap().to_owned()
}

fn post(setup: &AppServiceSetup, path: &str, body: &Value) -> Reply {
    let caller = match path.contains("/federation/") {
        true => origin_header("b.org"),
        false => user_header(ALICE),
    };
    setup.post(path, &[hs_token_header(), caller], body)
}

#[test]
fn the_dialect_determines_the_identity_on_both_token_endpoints() {
    let setup = AppServiceSetup::start();
    let body = body_without_member(&setup);
    for (path, user) in [(USER_PATH, ALICE), (SERVER_PATH, BOB)] {
        for path in [path.to_owned(), unstable(path)] {
            let identity = |body: &Value| sub(&post(&setup, &path, body));
            let by_id = jwt::hash(&[user, "m"]);
            let by_device = jwt::hash(&[user, DEVICE, "m"]);
            assert_eq!(identity(&with_member_id(body.clone())), by_id, "{path}");
            assert_eq!(identity(&with_member(body.clone())), by_device, "{path}");
            let both = with_member_id(with_member(body.clone()));
            assert_eq!(identity(&both), by_id, "{path}");
        }
    }
}

#[test]
fn a_member_that_is_incomplete_or_ambiguous_is_refused_by_every_endpoint() {
    let setup = AppServiceSetup::start();
    let body = body_without_member(&setup);
    let mut without_device = body.clone();
    without_device["member"] = json!({ "id": "m" });
    let mut without_id = body.clone();
    without_id["member"] = json!({ "claimed_device_id": DEVICE });
    let mut ambiguous = with_member(body.clone());
    ambiguous["member_id"] = "other".into();
    for (body, errcode, field) in [
        (&without_device, "M_BAD_JSON", "member.claimed_device_id"),
        (&without_id, "M_BAD_JSON", "member.id"),
        (&body, "M_BAD_JSON", "member_id"),
        (&ambiguous, "M_INVALID_PARAM", "member_id"),
    ] {
        for path in [USER_PATH, SERVER_PATH, DELEGATE_PATH] {
            for path in [path.to_owned(), unstable(path)] {
                let reply = post(&setup, &path, body);
                assert_eq!(
                    reply.status_and_errcode(),
                    (400, errcode.into()),
                    "{path} {body}"
                );
                let error = reply.json()["error"].as_str().unwrap().to_owned();
                assert!(error.starts_with(&format!("{field}: ")), "{error}");
            }
        }
    }
    assert!(setup.requests().is_empty());
}

/// The body that the homeserver is to post to the other homeserver.
fn relayed_body(request: &Request) -> Value {
    let relayed: Value = serde_json::from_slice(&request.body).unwrap();
    relayed["body"].clone()
}

fn relayed_bodies(setup: &AppServiceSetup) -> Vec<Value> {
    let requests = setup.requests();
    let relays = requests.iter().filter(|r| r.path().ends_with("/fed_proxy"));
    relays.map(relayed_body).collect()
}

/// The response of a service that knows only bodies with `field`.
fn respond_if_known(request: &Request, field: &str) -> FakeResponse {
    match relayed_body(request).get(field) {
        Some(_) => relay_response(200, &json!({ "jwt": "a.b.c" })),
        None => relay_response(400, &json!({ "errcode": "M_BAD_JSON", "error": "x" })),
    }
}

const KNOWS_MEMBER: FakeResponse =
    FakeResponse::Computed(|request| respond_if_known(request, "member"));
const KNOWS_MEMBER_ID: FakeResponse =
    FakeResponse::Computed(|request| respond_if_known(request, "member_id"));

/// The body as it is to be relayed: with the member in one dialect.
fn expected_relay(with: fn(Value) -> Value) -> Value {
    with(
        json!({ "user_id": ALICE, "url": "wss://sfu.b.org", "room_id": ROOM, "slot_id": "m.call#ROOM" }),
    )
}

#[test]
fn a_request_is_relayed_in_the_dialect_of_the_client_and_after_a_400_once_in_the_other() {
    let both: fn(Value) -> Value = |body| with_member_id(with_member(body));
    let (by_id, by_device) = (expected_relay(with_member_id), expected_relay(with_member));
    for (with, remote, relays) in [
        (
            with_member as fn(Value) -> Value,
            KNOWS_MEMBER,
            vec![&by_device],
        ),
        (with_member, KNOWS_MEMBER_ID, vec![&by_device, &by_id]),
        (with_member_id, KNOWS_MEMBER_ID, vec![&by_id]),
        (both, KNOWS_MEMBER_ID, vec![&by_id]),
        (both, KNOWS_MEMBER, vec![&by_id, &by_device]),
    ] {
        let setup = AppServiceSetup::start();
        setup.set_relay_response(remote);
        let mut body = with(body_without_member(&setup));
        body["server_name"] = "b.org".into();
        body["url"] = "wss://sfu.b.org".into();
        assert_eq!(setup.request_as_alice(&body).jwt(), "a.b.c");
        let relayed = relayed_bodies(&setup);
        assert_eq!(relayed.iter().collect::<Vec<_>>(), relays);
        assert!(setup.sfu.calls().is_empty(), "no local room");
    }
}

#[test]
fn a_400_is_relayed_if_the_other_dialect_is_impossible_or_refused_as_well() {
    let setup = AppServiceSetup::start();
    let ask = |with: fn(Value) -> Value| {
        let mut body = with(body_without_member(&setup));
        body["server_name"] = "b.org".into();
        let before = setup.relay_calls();
        let result = setup.request_as_alice(&body).status_and_errcode();
        (result, setup.relay_calls() - before)
    };
    let refused = || (400, "M_INVALID_PARAM".to_owned());
    setup.set_relay_response(KNOWS_MEMBER);
    assert_eq!(ask(with_member_id), (refused(), 1), "the device is unknown");
    for errcode in ["M_INVALID_PARAM", "M_BAD_JSON"] {
        let refusal = json!({ "errcode": errcode });
        setup.set_relay_response(relay_response(400, &refusal));
        assert_eq!(ask(with_member), (refused(), 2), "{errcode}");
    }
    // other refusals say nothing of the dialect
    for (status, errcode, result) in [
        (403, "M_FORBIDDEN", (403, "M_FORBIDDEN".to_owned())),
        (500, "M_UNKNOWN", (502, "M_UNKNOWN".to_owned())),
    ] {
        let refusal = json!({ "errcode": errcode });
        setup.set_relay_response(relay_response(status, &refusal));
        assert_eq!(ask(with_member), (result, 1), "{status}");
    }
    let refusal = json!({ "errcode": "M_INVALID_PARAM" });
    setup.set_relay_response(json_response("400 Bad Request", &refusal));
    let failed = (502, "M_UNKNOWN".to_owned());
    assert_eq!(ask(with_member), (failed, 1), "of the local homeserver");
}

#[test]
fn members_of_both_dialects_are_removed_from_the_call() {
    let setup = AppServiceSetup::start_with(|settings| settings.set(CHECK_INTERVAL, "3600"));
    let body = body_without_member(&setup);
    let connect = |path, body: &Value| {
        let participant = [room_name(), sub(&post(&setup, path, body))];
        let [room, identity] = &participant;
        setup.sfu.set_connection(room, identity, Some("PA_1"));
        participant
    };
    let mut expected = [
        connect(USER_PATH, &with_member(body.clone())),
        connect(USER_PATH, &with_member_id(body.clone())),
        connect(SERVER_PATH, &with_member(body.clone())),
        connect(SERVER_PATH, &with_member_id(body.clone())),
    ];
    setup.set_joined(false);
    let banned = [ALICE, BOB].map(|user| {
        json!({
            "type": "m.room.member", "room_id": ROOM, "state_key": user, "sender": "@admin:own.example",
            "content": { "membership": "ban" },
        })
    });
    assert_eq!(setup.push_events(&json!(banned)).status, 200);
    let mut removed = setup.sfu.wait_for_removals(expected.len());
    removed.sort();
    expected.sort();
    assert_eq!(removed, expected);
    // and again when the participant joins with the older token
    let [room, identity] = [room_name(), jwt::hash(&[ALICE, DEVICE, "m"])];
    setup.sfu.set_connection(&room, &identity, Some("PA_2"));
    send_joined(&setup.service, "EV_1", &room, &identity, &Value::Null);
    let removed = setup.sfu.wait_for_removals(expected.len() + 1);
    assert_eq!(removed.last(), Some(&[room, identity]));
}

/// Sends the webhook `participant_left` of the connection `PA_1`.
fn send_left(setup: &AppServiceSetup, id: &str, identity: &str) {
    let event = json!({
        "event": "participant_left", "id": id, "createdAt": jwt::now().to_string(),
        "room": { "name": room_name(), "sid": "RM_1" },
        "participant": { "sid": "PA_1", "identity": identity, "state": "DISCONNECTED" },
    });
    let reply = post_webhook(&setup.service, event.to_string().as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[test]
fn a_delegated_leave_belongs_to_the_identity_of_its_dialect_and_needs_no_url() {
    let setup = AppServiceSetup::start();
    let event = json!({ "room_id": ROOM, "delay_ms": 3_600_000 });
    for id in ["syd_1", "syd_2", "syd_3"] {
        for (action, response) in [
            ("", &event),
            ("/restart", &json!({})),
            ("/send", &json!({})),
        ] {
            let path_end = format!("/delayed_events/{id}{action}").leak();
            setup.set_response(path_end, json_response("200 OK", response));
        }
    }
    let calls = |id: &str, action: &str| {
        let path_end = format!("/delayed_events/{id}/{action}");
        setup.count_requests(&path_end)
    };
    let delegate = |path: &str, id: &str, body: &Value| {
        let mut body = body.clone();
        body["delay_id"] = id.into();
        post(&setup, path, &body)
    };
    let body = body_without_member(&setup);
    let mut foreign = with_member(body.clone());
    foreign["url"] = "wss://sfu.example.net".into();
    let refused = (400, "M_INVALID_PARAM".to_owned());
    assert_eq!(
        delegate(DELEGATE_PATH, "syd_1", &foreign).status_and_errcode(),
        refused
    );
    for url in [json!(""), json!(1)] {
        foreign["url"] = url;
        let result = delegate(DELEGATE_PATH, "syd_1", &foreign).status_and_errcode();
        assert_eq!(result, (400, "M_BAD_JSON".into()));
    }
    let mut no_url = body.clone();
    no_url.as_object_mut().unwrap().remove("url");
    let mut null_url = body.clone();
    null_url["url"] = Value::Null;
    let (by_id, by_device) = (jwt::hash(&[ALICE, "m"]), jwt::hash(&[ALICE, DEVICE, "m"]));
    let unstable = unstable(DELEGATE_PATH);
    for (path, id, body, identity) in [
        (DELEGATE_PATH, "syd_1", with_member(no_url), &by_device),
        (DELEGATE_PATH, "syd_2", with_member_id(null_url), &by_id),
        (&*unstable, "syd_3", with_member(body), &by_device),
    ] {
        setup
            .sfu
            .set_connection(&room_name(), identity, Some("PA_1"));
        let reply = delegate(path, id, &body);
        assert_eq!((reply.status, reply.json()), (200, json!({})), "{reply:?}");
        let joined = format!("EV_joined_{id}");
        send_joined(
            &setup.service,
            &joined,
            &room_name(),
            identity,
            &Value::Null,
        );
        wait_until(|| calls(id, "restart") > 0, "a restart");
        assert_eq!(calls(id, "send"), 0, "the participant is connected");
        setup.sfu.set_connection(&room_name(), identity, None);
        send_left(&setup, &format!("EV_left_{id}"), identity);
        wait_until(|| calls(id, "send") == 1, "the leave");
    }
}
