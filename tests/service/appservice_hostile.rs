//! Application-service mode among those who pose as the homeserver, users who ask for what is not theirs, and homeservers that fail.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::appservice_homeserver::{
    AS_TOKEN, Answer, Beside, HS_TOKEN, SERVER_PATH, USER_PATH, bearer, of_server, of_user, relayed,
};
use crate::settings::KEY;

const ALICE: &str = "@alice:own.example";
/// What Synapse gives its application service; ours must have answered by then.
const SYNAPSE_WAITS: Duration = Duration::from_secs(30);

fn forbidden() -> (u16, String) {
    (403, "M_FORBIDDEN".into())
}

fn failed() -> (u16, String) {
    (502, "M_UNKNOWN".into())
}

#[test]
fn whoever_has_no_hs_token_is_nobody() {
    let beside = Beside::start();
    let place = beside.place();
    let mut of_bob = place.clone();
    of_bob["user_id"] = "@bob:b.org".into();
    let half = &HS_TOKEN[..HS_TOKEN.len() - 1];
    for (shown, status) in [
        (vec![], 401),
        (vec!["Authorization: Bearer".to_owned()], 401),
        (vec![format!("Authorization: {HS_TOKEN}")], 401),
        (vec![format!("Authorization: Basic {HS_TOKEN}")], 401),
        (vec![format!("Authorization: Bearer {half}")], 403),
        (vec![format!("Authorization: Bearer {HS_TOKEN}x")], 403),
        (vec![format!("Authorization: Bearer {AS_TOKEN}")], 403),
    ] {
        let with = |field: String| [shown.clone(), vec![field]].concat();
        let replies = [
            beside.post(USER_PATH, &with(of_user(ALICE)), &place),
            beside.post(SERVER_PATH, &with(of_server("b.org")), &of_bob),
            beside.post("/_matrix/app/v1/ping", &shown, &json!({})),
        ];
        for reply in replies {
            assert_eq!(reply.status, status, "{shown:?} {reply:?}");
        }
    }
    let twice = [bearer(), bearer(), of_user(ALICE)];
    assert_eq!(beside.post(USER_PATH, &twice, &place).status, 401);
    let ours = format!("{USER_PATH}?access_token={HS_TOKEN}");
    assert_eq!(beside.post(&ours, &[of_user(ALICE)], &place).status, 401);
    assert!(beside.seen().is_empty() && beside.sfu.calls().is_empty());
}

#[test]
fn each_path_takes_the_name_of_its_own_kind_and_only_one() {
    let beside = Beside::start();
    let (alice, b) = (of_user(ALICE), of_server("b.org"));
    for (path, names) in [
        (USER_PATH, vec![]),
        (USER_PATH, vec![b.clone()]),
        (USER_PATH, vec![alice.clone(), b.clone()]),
        (USER_PATH, vec![alice.clone(), alice.clone()]),
        (USER_PATH, vec![of_user("@alice:other.example")]),
        (USER_PATH, vec![of_user("alice")]),
        (USER_PATH, vec![of_user("")]),
        (SERVER_PATH, vec![]),
        (SERVER_PATH, vec![alice.clone()]),
        (SERVER_PATH, vec![alice.clone(), b.clone()]),
        (SERVER_PATH, vec![b.clone(), of_server("c.org")]),
        (SERVER_PATH, vec![of_server("own.example")]),
        (SERVER_PATH, vec![of_server("127.1")]),
    ] {
        let fields = [vec![bearer()], names].concat();
        for user in [ALICE, "@bob:b.org"] {
            let mut body = beside.place();
            body["user_id"] = user.into();
            let reply = beside.post(path, &fields, &body);
            assert_eq!(reply.verdict(), forbidden(), "{path} {fields:?}");
        }
    }
    assert!(beside.seen().is_empty() && beside.sfu.calls().is_empty());
}

#[test]
fn a_token_is_for_the_one_who_asks_and_for_our_sfu() {
    let beside = Beside::start();
    let mut body = beside.place();
    body["user_id"] = "@victim:own.example".into();
    let alice = crate::jwt::claims(&beside.for_alice(&body).jwt(), crate::settings::SECRET);
    let plain = crate::jwt::claims(
        &beside.for_alice(&beside.place()).jwt(),
        crate::settings::SECRET,
    );
    assert_eq!((&alice["sub"], &alice["iss"]), (&plain["sub"], &json!(KEY)));
    assert_eq!(alice["video"]["canPublish"], true);
    let bob = beside.for_server("b.org", "@bob:b.org").jwt();
    let bob = crate::jwt::claims(&bob, crate::settings::SECRET);
    assert_ne!(bob["sub"], alice["sub"]);
    for (claims, may_publish) in [(&alice, true), (&bob, false)] {
        let video = &claims["video"];
        assert_eq!(video["canPublish"], may_publish);
        assert_eq!(
            (&video["roomCreate"], &video["hidden"]),
            (&json!(false), &json!(false))
        );
        assert_ne!(video["canUpdateOwnMetadata"], true);
        assert!(claims["exp"].as_u64().unwrap() - claims["nbf"].as_u64().unwrap() <= 660);
    }
    for (origin, user) in [
        ("b.org", ALICE),
        ("b.org", "@bob:c.org"),
        ("b.org", "@bob:b.org:8448"),
        ("b.org:8448", "@bob:b.org"),
        ("b.org", "@bob:B.org"),
    ] {
        assert_eq!(
            beside.for_server(origin, user).verdict(),
            forbidden(),
            "{origin} {user}"
        );
    }
    for url in [
        "wss://sfu.example.net",
        "x",
        "http://127.0.0.1:1",
        "javascript:x",
    ] {
        let mut body = beside.place();
        body["url"] = url.into();
        let invalid = (400, "M_INVALID_PARAM".to_owned());
        assert_eq!(beside.for_alice(&body).verdict(), invalid, "{url}");
    }
}

#[test]
fn an_ill_formed_wish_reaches_nobody() {
    let beside = Beside::start();
    for (name, value) in [
        ("room_id", json!("..")),
        ("room_id", json!("!a/../../b")),
        ("room_id", json!(1)),
        ("slot_id", json!("")),
        ("member_id", json!(null)),
        ("url", json!("w".repeat(3000))),
        ("server_name", json!("127.1")),
        ("server_name", json!(["b.org"])),
    ] {
        let mut body = beside.place();
        body[name] = value;
        assert_eq!(
            beside.for_alice(&body).verdict(),
            (400, "M_BAD_JSON".into()),
            "{body}"
        );
    }
    assert!(beside.seen().is_empty());
}

#[test]
fn another_s_service_is_asked_for_its_sfu_but_never_our_own_homeserver() {
    let beside = Beside::start();
    let mut body = beside.place();
    body["server_name"] = "own.example".into();
    assert_eq!(beside.for_alice(&body).status, 200);
    assert_eq!(beside.relayed(), 0);
    body["server_name"] = "b.org".into();
    body["url"] = "wss://sfu.b.org".into();
    assert_eq!(beside.for_alice(&body).jwt(), "a.b.c");
    let seen = beside.seen();
    let sent = seen
        .iter()
        .find(|request| request.path().ends_with("/fed_proxy"))
        .unwrap();
    let sent: serde_json::Value = serde_json::from_slice(&sent.body).unwrap();
    assert_eq!(
        (&sent["destination"], &sent["path"]),
        (&json!("b.org"), &json!(SERVER_PATH))
    );
    assert_eq!(sent["body"]["user_id"], ALICE);
    assert_eq!(sent["body"]["url"], "wss://sfu.b.org");
    assert_eq!(beside.sfu.calls().len(), 1, "no room for another's SFU");
}

#[test]
fn what_another_homeserver_answers_is_passed_on_as_two_refusals_or_as_a_failure() {
    let beside = Beside::start();
    let mut body = beside.place();
    body["server_name"] = "b.org".into();
    let refusal = |errcode: &str| json!({ "errcode": errcode, "error": "never repeated" });
    let megabytes = format!(
        r#"{{"status":200,"content":{{"jwt":"{}"}}}}"#,
        "a".repeat(10 << 20)
    );
    let invalid = (400, "M_INVALID_PARAM".to_owned());
    for (answer, expected) in [
        (relayed(403, &refusal("M_FORBIDDEN")), forbidden()),
        (relayed(400, &refusal("M_INVALID_PARAM")), invalid),
        (relayed(500, &refusal("M_UNKNOWN")), failed()),
        (relayed(404, &refusal("M_UNRECOGNIZED")), failed()),
        (relayed(401, &refusal("M_FORBIDDEN")), failed()),
        (relayed(200, &json!(null)), failed()),
        (relayed(200, &json!({ "jwt": "a\"b" })), failed()),
        (Answer::Says("200 OK", b"<html>".to_vec()), failed()),
        (Answer::Says("200 OK", megabytes.into_bytes()), failed()),
        (Answer::Says("502 Bad Gateway", b"{}".to_vec()), failed()),
        (
            Answer::Says("404 Not Found", br#"{"errcode":"M_UNRECOGNIZED"}"#.to_vec()),
            failed(),
        ),
        (Answer::Closes, failed()),
        (Answer::Hangs, failed()),
    ] {
        beside.relays(answer);
        let before = Instant::now();
        let reply = beside.for_alice(&body);
        assert_eq!(reply.verdict(), expected);
        assert!(before.elapsed() < SYNAPSE_WAITS, "{:?}", before.elapsed());
        assert!(
            !String::from_utf8_lossy(&reply.body).contains("repeated"),
            "{reply:?}"
        );
    }
}

#[test]
fn a_homeserver_that_does_not_say_lets_nobody_in() {
    let beside = Beside::start();
    for (number, answer) in [
        Answer::Says("500 Broken", b"{}".to_vec()),
        Answer::Says("200 OK", b"{}".to_vec()),
        Answer::Says("200 OK", br#"{"joined":"true"}"#.to_vec()),
        Answer::Says("403 Forbidden", br#"{"errcode":"M_FORBIDDEN"}"#.to_vec()),
        Answer::Says("200 OK", vec![b' '; 10 << 20]),
        Answer::Closes,
        Answer::Hangs,
    ]
    .into_iter()
    .enumerate()
    {
        beside.memberships(answer);
        let mut body = beside.place();
        body["room_id"] = format!("!{number}:own.example").into();
        let before = Instant::now();
        assert_eq!(beside.for_alice(&body).verdict(), failed(), "{number}");
        assert!(before.elapsed() < SYNAPSE_WAITS);
    }
    beside.memberships(Answer::Says("200 OK", br#"{"joined":false}"#.to_vec()));
    assert_eq!(beside.for_alice(&beside.place()).verdict(), forbidden());
    assert_eq!(
        beside.for_server("b.org", "@bob:b.org").verdict(),
        forbidden()
    );
    assert!(beside.sfu.calls().is_empty(), "no room for nobody");
}

#[test]
fn another_server_s_fault_is_told_as_such_and_only_our_homeserver_s_own_is_an_error() {
    let beside = Beside::start();
    let mut body = beside.place();
    body["server_name"] = "b.org".into();
    for (answer, cause) in [
        (Answer::Says("200 OK", vec![b' '; 10 << 20]), "larger"),
        (
            Answer::Says("200 OK", b"[[[[".to_vec()),
            "unexpected response",
        ),
        (
            relayed(429, &json!({ "errcode": "M_LIMIT_EXCEEDED" })),
            "429",
        ),
    ] {
        beside.relays(answer);
        assert_eq!(beside.for_alice(&body).verdict(), failed());
        let told = ["level=info", ALICE, "the service of b.org", cause];
        beside.service.wait_for_words(&told);
    }
    assert!(!beside.service.log().contains("level=error"));
    beside.relays(Answer::Closes);
    assert_eq!(beside.for_alice(&body).verdict(), failed());
    beside
        .service
        .wait_for_words(&["level=error", "LIVEKIT_HS_URL"]);
}
