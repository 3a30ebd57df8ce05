//! Whoever leaves the Matrix room, or is banned from it, is put out of the call: when they come, now and then, and at once when there
//! is a reason to ask.

use serde_json::{Value, json};

use crate::appservice_homeserver::{
    Beside, EVENTS_PATH, HS_TOKEN, ROOM, bearer, bearer_of, says, wait_until,
};
use crate::call::post_webhook;
use crate::client::raw;
use crate::jwt;
use crate::settings::{SECRET, Settings};

const ALICE: &str = "@alice:own.example";

/// Nobody is looked at only because time has passed.
fn unhurried(settings: Settings) -> Settings {
    settings.set("LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS", "3600")
}

/// Has alice in the call: LiveKit room and identity.
fn in_call(beside: &Beside) -> [String; 2] {
    let claims = jwt::claims(&beside.for_alice(&beside.place()).jwt(), SECRET);
    let names = [&claims["video"]["room"], &claims["sub"]];
    let names = names.map(|name| name.as_str().unwrap().to_owned());
    beside.sfu.connect(&names[0], &names[1], Some("PA_1"));
    names
}

fn is_gone(beside: &Beside) {
    beside.memberships(says("200 OK", &json!({ "joined": false })));
}

fn member(room: &str, user: &str, membership: &str) -> Value {
    json!({
        "type": "m.room.member", "room_id": room, "state_key": user, "sender": "@admin:own.example",
        "content": { "membership": membership }, "event_id": "$x", "origin_server_ts": 1,
    })
}

#[test]
fn whoever_is_banned_is_removed_by_looking_now_and_then() {
    let beside = Beside::start_with(|s| s.set("LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS", "1"));
    let alice = in_call(&beside);
    wait_until(|| beside.memberships_asked() > 2, "nobody looks");
    is_gone(&beside);
    // as long as they may come back they are looked for, though nobody tells that they are there
    for times in 1..=3 {
        assert_eq!(beside.sfu.wait_for_removals(times).last(), Some(&alice));
        beside.sfu.connect(&alice[0], &alice[1], Some("PA_1"));
    }
    beside
        .service
        .wait_for_words(&["participant removed", ALICE, ROOM]);
}

#[test]
fn whoever_comes_with_a_token_from_before_the_ban_is_removed() {
    let beside = Beside::start_with(unhurried);
    let alice = in_call(&beside);
    is_gone(&beside);
    for times in 1..=2 {
        beside.sfu.connect(&alice[0], &alice[1], Some("PA_1"));
        let joined = json!({
            "event": "participant_joined", "id": format!("EV_{times}"), "createdAt": jwt::now().to_string(),
            "room": { "name": alice[0], "sid": "RM_1" },
            "participant": { "sid": "PA_1", "identity": alice[1], "state": "ACTIVE" },
        });
        assert_eq!(
            post_webhook(&beside.service, joined.to_string().as_bytes()).status,
            200
        );
        assert_eq!(beside.sfu.wait_for_removals(times).last(), Some(&alice));
    }
}

#[test]
fn an_event_that_somebody_has_left_is_a_reason_to_ask_and_not_believed() {
    let beside = Beside::start_with(unhurried);
    let alice = in_call(&beside);
    assert_eq!(beside.memberships_asked(), 1);
    let elsewhere = [
        member(ROOM, ALICE, "join"),
        member(ROOM, "@bob:own.example", "ban"),
        member("!other:own.example", ALICE, "leave"),
        json!({ "type": "m.room.message", "room_id": ROOM, "content": { "membership": "leave" } }),
        json!([[{}]]),
    ];
    let reply = beside.push(&json!(elsewhere));
    assert_eq!((reply.status, reply.json()), (200, json!({})));
    assert_eq!(
        beside.push(&json!([member(ROOM, ALICE, "leave")])).status,
        200
    );
    wait_until(|| beside.memberships_asked() > 1, "nobody asks");
    is_gone(&beside);
    let pushed = beside.push(&json!([member(ROOM, ALICE, "ban")]));
    assert_eq!(pushed.status, 200);
    assert_eq!(beside.sfu.wait_for_removals(1), [alice]);
    assert_eq!(
        beside.memberships_asked(),
        3,
        "one question for each reason"
    );
}

#[test]
fn whoever_is_refused_a_token_for_having_left_is_removed_at_once() {
    let beside = Beside::start_with(unhurried);
    let alice = in_call(&beside);
    is_gone(&beside);
    let place = beside.place();
    // for some seconds it is believed that they are there
    wait_until(|| beside.for_alice(&place).status == 403, "they get tokens");
    assert_eq!(beside.sfu.wait_for_removals(1), [alice]);
}

#[test]
fn only_the_homeserver_may_push_and_only_by_put() {
    let beside = Beside::start_with(unhurried);
    in_call(&beside);
    let path = format!("{EVENTS_PATH}1");
    let body = json!({ "events": [member(ROOM, ALICE, "ban")] });
    for (fields, status) in [
        (vec![], 401),
        (vec![format!("Authorization: {HS_TOKEN}")], 401),
        (vec![bearer_of("guessed")], 403),
    ] {
        let reply = beside.ask("PUT", &path, &fields, &body);
        assert_eq!(reply.status, status, "{fields:?}");
    }
    for method in ["POST", "GET", "DELETE", "OPTIONS"] {
        let reply = beside.ask(method, &path, &[bearer()], &body);
        assert_eq!(reply.status, 405, "{method}");
    }
    for body in [json!([]), json!({}), json!({ "events": {} })] {
        let reply = beside.ask("PUT", &path, &[bearer()], &body);
        assert_eq!(reply.status, 400, "{body}");
    }
    assert_eq!(beside.memberships_asked(), 1, "nobody had a reason to ask");
}

#[test]
fn a_large_transaction_is_taken_of_the_homeserver_alone_and_bounded() {
    let beside = Beside::start_with(unhurried);
    let alice = in_call(&beside);
    is_gone(&beside);
    let message = json!({ "type": "m.room.message", "room_id": ROOM, "content": { "body": "x".repeat(60_000) } });
    let mut events = vec![message; 200];
    events.push(member(ROOM, ALICE, "ban"));
    let reply = beside.push(&json!(events));
    assert_eq!((reply.status, reply.json()), (200, json!({})));
    assert_eq!(beside.sfu.wait_for_removals(1), [alice]);

    for _ in 0..10 {
        assert_eq!(beside.push(&json!(events)).status, 200);
    }
    let peak = beside.service.peak_memory();
    assert!(peak < 120 << 10, "{peak} kB for what is 12 MB each time");

    let path = format!("{EVENTS_PATH}2");
    let announced = |fields: &[String], path: &str, length: usize| {
        let fields = fields.join("\r\n");
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\nContent-Length: {length}\r\n\r\n"
        );
        raw(beside.service.address(), head.as_bytes()).status
    };
    assert_eq!(announced(&[bearer()], &path, (16 << 20) + 1), 413);
    let more = (64 << 10) + 1;
    assert_eq!(announced(&[bearer_of("guessed")], &path, more), 413);
    assert_eq!(announced(&["X-Nothing: x".into()], &path, more), 413);
    assert_eq!(announced(&[bearer()], "/_matrix/app/v1/ping", more), 413);
    let two = [bearer_of("guessed"), bearer()];
    assert_eq!(announced(&two, &path, more), 413, "the first one counts");
}
