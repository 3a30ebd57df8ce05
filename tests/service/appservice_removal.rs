//! A user who leaves a Matrix room, or is banned, is removed from its call: by a check on joining, at intervals, and at once after an event
//! or a refused request.

use serde_json::{Value, json};

use crate::appservice_setup::{
    AppServiceSetup, EVENTS_PATH, HS_TOKEN, ROOM, bearer_header, hs_token_header, send_joined,
    wait_until,
};
use crate::client::raw;
use crate::jwt;
use crate::settings::{SECRET, Settings};

const ALICE: &str = "@alice:own.example";
const CHECK_INTERVAL: &str = "LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS";

/// With no regular check during the test.
fn without_regular_checks(settings: Settings) -> Settings {
    settings.set(CHECK_INTERVAL, "3600")
}

/// Gets a token for alice and connects her. Returns LiveKit room and identity.
fn connect_alice(setup: &AppServiceSetup) -> [String; 2] {
    let reply = setup.request_as_alice(&setup.token_request());
    let claims = jwt::claims(&reply.jwt(), SECRET);
    let names = [&claims["video"]["room"], &claims["sub"]];
    let names = names.map(|name| name.as_str().unwrap().to_owned());
    setup.sfu.set_connection(&names[0], &names[1], Some("PA_1"));
    names
}

fn member_event(room: &str, user: &str, membership: &str) -> Value {
    json!({
        "type": "m.room.member", "room_id": room, "state_key": user, "sender": "@admin:own.example",
        "content": { "membership": membership }, "event_id": "$x", "origin_server_ts": 1,
    })
}

#[test]
fn a_banned_user_is_removed_by_a_regular_check() {
    let setup = AppServiceSetup::start_with(|s| s.set(CHECK_INTERVAL, "1"));
    let alice = connect_alice(&setup);
    wait_until(|| setup.membership_calls() > 2, "regular checks");
    setup.set_joined(false);
    // again after each reconnection, even without a webhook
    for times in 1..=3 {
        assert_eq!(setup.sfu.wait_for_removals(times).last(), Some(&alice));
        setup.sfu.set_connection(&alice[0], &alice[1], Some("PA_1"));
    }
    setup
        .service
        .wait_for_line_with(&["participant removed", ALICE, ROOM]);
}

#[test]
fn the_log_line_of_a_removal_has_a_field_for_each_fact() {
    let setup = AppServiceSetup::start_with(|settings| {
        without_regular_checks(settings).set("LIVEKIT_LOG_FORMAT", "json")
    });
    let [room, identity] = connect_alice(&setup);
    setup.set_joined(false);
    setup.push_events(&json!([member_event(ROOM, ALICE, "ban")]));
    let line = setup.service.wait_for_log("participant removed");
    let line: Value = serde_json::from_str(&line).unwrap();
    let fields = ["msg", "user", "matrix_room", "room", "identity"];
    assert_eq!(
        fields.map(|name| line[name].as_str().unwrap()),
        ["participant removed", ALICE, ROOM, &*room, &*identity]
    );
    assert_eq!(
        (&line["count"], &line["level"]),
        (&json!(1), &json!("info"))
    );
}

#[test]
fn a_banned_user_who_joins_with_an_older_token_is_removed() {
    let setup = AppServiceSetup::start_with(without_regular_checks);
    let alice = connect_alice(&setup);
    setup.set_joined(false);
    let [room, identity] = &alice;
    for times in 1..=2 {
        setup.sfu.set_connection(room, identity, Some("PA_1"));
        let id = format!("EV_{times}");
        send_joined(&setup.service, &id, room, identity, &Value::Null);
        assert_eq!(setup.sfu.wait_for_removals(times).last(), Some(&alice));
    }
}

#[test]
fn a_departure_event_causes_a_check_and_is_no_proof() {
    let setup = AppServiceSetup::start_with(without_regular_checks);
    let alice = connect_alice(&setup);
    assert_eq!(setup.membership_calls(), 1);
    let irrelevant = [
        member_event(ROOM, ALICE, "join"),
        member_event(ROOM, "@bob:own.example", "ban"),
        member_event("!other:own.example", ALICE, "leave"),
        json!({ "type": "m.room.message", "room_id": ROOM, "content": { "membership": "leave" } }),
        json!([[{}]]),
    ];
    let reply = setup.push_events(&json!(irrelevant));
    assert_eq!((reply.status, reply.json()), (200, json!({})));
    let push = |membership| {
        let events = json!([member_event(ROOM, ALICE, membership)]);
        assert_eq!(setup.push_events(&events).status, 200);
    };
    push("leave");
    wait_until(|| setup.membership_calls() > 1, "a check");
    setup.set_joined(false);
    push("ban");
    assert_eq!(setup.sfu.wait_for_removals(1), [alice]);
    assert_eq!(
        setup.membership_calls(),
        3,
        "one check for each relevant event"
    );
}

#[test]
fn a_user_refused_a_token_for_having_left_is_removed_at_once() {
    let setup = AppServiceSetup::start_with(without_regular_checks);
    let alice = connect_alice(&setup);
    setup.set_joined(false);
    let body = setup.token_request();
    // the membership is cached for some seconds
    wait_until(
        || setup.request_as_alice(&body).status == 403,
        "a refused token request",
    );
    assert_eq!(setup.sfu.wait_for_removals(1), [alice]);
}

#[test]
fn only_the_homeserver_can_push_events_and_only_with_put() {
    let setup = AppServiceSetup::start_with(without_regular_checks);
    connect_alice(&setup);
    let path = format!("{EVENTS_PATH}1");
    let body = json!({ "events": [member_event(ROOM, ALICE, "ban")] });
    for (fields, status) in [
        (vec![], 401),
        (vec![format!("Authorization: {HS_TOKEN}")], 401),
        (vec![bearer_header("guessed")], 403),
    ] {
        let reply = setup.request("PUT", &path, &fields, &body);
        assert_eq!(reply.status, status, "{fields:?}");
    }
    for method in ["POST", "GET", "DELETE", "OPTIONS"] {
        let reply = setup.request(method, &path, &[hs_token_header()], &body);
        assert_eq!(reply.status, 405, "{method}");
    }
    for body in [json!([]), json!({}), json!({ "events": {} })] {
        let reply = setup.request("PUT", &path, &[hs_token_header()], &body);
        assert_eq!(reply.status, 400, "{body}");
    }
    assert_eq!(setup.membership_calls(), 1, "no event was accepted");
}

#[test]
fn a_large_transaction_is_accepted_from_the_homeserver_alone_and_bounded() {
    let setup = AppServiceSetup::start_with(without_regular_checks);
    let alice = connect_alice(&setup);
    setup.set_joined(false);
    let message = json!({ "type": "m.room.message", "room_id": ROOM, "content": { "body": "x".repeat(60_000) } });
    let mut events = vec![message; 200];
    events.push(member_event(ROOM, ALICE, "ban"));
    let reply = setup.push_events(&json!(events));
    assert_eq!((reply.status, reply.json()), (200, json!({})));
    assert_eq!(setup.sfu.wait_for_removals(1), [alice]);

    for _ in 0..10 {
        assert_eq!(setup.push_events(&json!(events)).status, 200);
    }
    let peak = setup.service.peak_memory();
    assert!(peak < 120 << 10, "{peak} kB for transactions of 12 MB");

    let path = format!("{EVENTS_PATH}2");
    let announce = |fields: &[String], path: &str, length: usize| {
        let fields = fields.join("\r\n");
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\nContent-Length: {length}\r\n\r\n"
        );
        raw(setup.service.address(), head.as_bytes()).status
    };
    let (own, guessed) = (hs_token_header(), bearer_header("guessed"));
    assert_eq!(
        announce(std::slice::from_ref(&own), &path, (16 << 20) + 1),
        413
    );
    let length = (64 << 10) + 1;
    assert_eq!(announce(std::slice::from_ref(&guessed), &path, length), 413);
    assert_eq!(announce(&["X-Other: x".into()], &path, length), 413);
    let ping = announce(std::slice::from_ref(&own), "/_matrix/app/v1/ping", length);
    assert_eq!(ping, 413);
    assert_eq!(
        announce(&[guessed, own], &path, length),
        413,
        "the first header counts"
    );
}
