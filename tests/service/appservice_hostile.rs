//! Application-service mode against impostors of the homeserver, users who request tokens of others, and failing homeservers.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::appservice_setup::{
    AS_TOKEN, AppServiceSetup, FakeResponse, HS_TOKEN, SERVER_PATH, USER_PATH, hs_token_header,
    origin_header, relay_response, user_header,
};
use crate::settings::KEY;

const ALICE: &str = "@alice:own.example";
/// Time after which Synapse gives up on its application service.
const SYNAPSE_TIMEOUT: Duration = Duration::from_secs(30);

fn forbidden() -> (u16, String) {
    (403, "M_FORBIDDEN".into())
}

fn failed() -> (u16, String) {
    (502, "M_UNKNOWN".into())
}

#[test]
fn a_request_without_the_hs_token_is_refused() {
    let setup = AppServiceSetup::start();
    let body = setup.token_request();
    let mut bobs_body = body.clone();
    bobs_body["user_id"] = "@bob:b.org".into();
    let half = &HS_TOKEN[..HS_TOKEN.len() - 1];
    for (authorization, status) in [
        (vec![], 401),
        (vec!["Authorization: Bearer".to_owned()], 401),
        (vec![format!("Authorization: {HS_TOKEN}")], 401),
        (vec![format!("Authorization: Basic {HS_TOKEN}")], 401),
        (vec![format!("Authorization: Bearer {half}")], 403),
        (vec![format!("Authorization: Bearer {HS_TOKEN}x")], 403),
        (vec![format!("Authorization: Bearer {AS_TOKEN}")], 403),
    ] {
        let with = |field: String| [authorization.clone(), vec![field]].concat();
        let replies = [
            setup.post(USER_PATH, &with(user_header(ALICE)), &body),
            setup.post(SERVER_PATH, &with(origin_header("b.org")), &bobs_body),
            setup.post("/_matrix/app/v1/ping", &authorization, &json!({})),
        ];
        for reply in replies {
            assert_eq!(reply.status, status, "{authorization:?} {reply:?}");
        }
    }
    let twice = [hs_token_header(), hs_token_header(), user_header(ALICE)];
    assert_eq!(setup.post(USER_PATH, &twice, &body).status, 401);
    let in_query = format!("{USER_PATH}?access_token={HS_TOKEN}");
    assert_eq!(
        setup.post(&in_query, &[user_header(ALICE)], &body).status,
        401
    );
    assert!(setup.requests().is_empty() && setup.sfu.calls().is_empty());
}

#[test]
fn each_path_requires_its_own_identity_header_once() {
    let setup = AppServiceSetup::start();
    let (alice, b_org) = (user_header(ALICE), origin_header("b.org"));
    for (path, identities) in [
        (USER_PATH, vec![]),
        (USER_PATH, vec![b_org.clone()]),
        (USER_PATH, vec![alice.clone(), b_org.clone()]),
        (USER_PATH, vec![alice.clone(), alice.clone()]),
        (USER_PATH, vec![user_header("@alice:other.example")]),
        (USER_PATH, vec![user_header("alice")]),
        (USER_PATH, vec![user_header("")]),
        (SERVER_PATH, vec![]),
        (SERVER_PATH, vec![alice.clone()]),
        (SERVER_PATH, vec![alice.clone(), b_org.clone()]),
        (SERVER_PATH, vec![b_org.clone(), origin_header("c.org")]),
        (SERVER_PATH, vec![origin_header("own.example")]),
        (SERVER_PATH, vec![origin_header("127.1")]),
    ] {
        let fields = [vec![hs_token_header()], identities].concat();
        for user in [ALICE, "@bob:b.org"] {
            let mut body = setup.token_request();
            body["user_id"] = user.into();
            let reply = setup.post(path, &fields, &body);
            assert_eq!(reply.status_and_errcode(), forbidden(), "{path} {fields:?}");
        }
    }
    assert!(setup.requests().is_empty() && setup.sfu.calls().is_empty());
}

#[test]
fn a_token_is_for_the_authenticated_user_and_the_local_sfu() {
    let setup = AppServiceSetup::start();
    let mut body = setup.token_request();
    body["user_id"] = "@victim:own.example".into();
    let alice = crate::jwt::claims(
        &setup.request_as_alice(&body).jwt(),
        crate::settings::SECRET,
    );
    let plain = crate::jwt::claims(
        &setup.request_as_alice(&setup.token_request()).jwt(),
        crate::settings::SECRET,
    );
    assert_eq!((&alice["sub"], &alice["iss"]), (&plain["sub"], &json!(KEY)));
    assert_eq!(alice["video"]["canPublish"], true);
    let bob = setup.request_from_server("b.org", "@bob:b.org").jwt();
    let bob = crate::jwt::claims(&bob, crate::settings::SECRET);
    assert_ne!(bob["sub"], alice["sub"]);
    for (claims, can_publish) in [(&alice, true), (&bob, false)] {
        let video = &claims["video"];
        assert_eq!(video["canPublish"], can_publish);
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
            setup.request_from_server(origin, user).status_and_errcode(),
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
        let mut body = setup.token_request();
        body["url"] = url.into();
        let invalid = (400, "M_INVALID_PARAM".to_owned());
        assert_eq!(
            setup.request_as_alice(&body).status_and_errcode(),
            invalid,
            "{url}"
        );
    }
}

#[test]
fn a_malformed_request_causes_no_call() {
    let setup = AppServiceSetup::start();
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
        let mut body = setup.token_request();
        body[name] = value;
        assert_eq!(
            setup.request_as_alice(&body).status_and_errcode(),
            (400, "M_BAD_JSON".into()),
            "{body}"
        );
    }
    assert!(setup.requests().is_empty());
}

#[test]
fn a_request_for_another_server_is_relayed_and_one_for_the_local_server_is_not() {
    let setup = AppServiceSetup::start();
    let mut body = setup.token_request();
    body["server_name"] = "own.example".into();
    assert_eq!(setup.request_as_alice(&body).status, 200);
    assert_eq!(setup.relay_calls(), 0);
    body["server_name"] = "b.org".into();
    body["url"] = "wss://sfu.b.org".into();
    assert_eq!(setup.request_as_alice(&body).jwt(), "a.b.c");
    let requests = setup.requests();
    let relayed = requests
        .iter()
        .find(|request| request.path().ends_with("/fed_proxy"))
        .unwrap();
    let relayed: serde_json::Value = serde_json::from_slice(&relayed.body).unwrap();
    assert_eq!(
        (&relayed["destination"], &relayed["path"]),
        (&json!("b.org"), &json!(SERVER_PATH))
    );
    assert_eq!(relayed["body"]["user_id"], ALICE);
    assert_eq!(relayed["body"]["url"], "wss://sfu.b.org");
    assert_eq!(setup.sfu.calls().len(), 1, "no local room for another SFU");
}

#[test]
fn responses_of_another_homeserver_become_one_of_two_refusals_or_a_failure() {
    let setup = AppServiceSetup::start();
    let mut body = setup.token_request();
    body["server_name"] = "b.org".into();
    let refusal = |errcode: &str| json!({ "errcode": errcode, "error": "never repeated" });
    let megabytes = format!(
        r#"{{"status":200,"content":{{"jwt":"{}"}}}}"#,
        "a".repeat(10 << 20)
    );
    let invalid = (400, "M_INVALID_PARAM".to_owned());
    for (response, expected) in [
        (relay_response(403, &refusal("M_FORBIDDEN")), forbidden()),
        (relay_response(400, &refusal("M_INVALID_PARAM")), invalid),
        (relay_response(500, &refusal("M_UNKNOWN")), failed()),
        (relay_response(404, &refusal("M_UNRECOGNIZED")), failed()),
        (relay_response(401, &refusal("M_FORBIDDEN")), failed()),
        (relay_response(200, &json!(null)), failed()),
        (relay_response(200, &json!({ "jwt": "a\"b" })), failed()),
        (FakeResponse::Body("200 OK", b"<html>".to_vec()), failed()),
        (
            FakeResponse::Body("200 OK", megabytes.into_bytes()),
            failed(),
        ),
        (
            FakeResponse::Body("502 Bad Gateway", b"{}".to_vec()),
            failed(),
        ),
        (
            FakeResponse::Body("404 Not Found", br#"{"errcode":"M_UNRECOGNIZED"}"#.to_vec()),
            failed(),
        ),
        (FakeResponse::Close, failed()),
        (FakeResponse::Hang, failed()),
    ] {
        setup.set_relay_response(response);
        let start = Instant::now();
        let reply = setup.request_as_alice(&body);
        assert_eq!(reply.status_and_errcode(), expected);
        assert!(start.elapsed() < SYNAPSE_TIMEOUT, "{:?}", start.elapsed());
        assert!(
            !String::from_utf8_lossy(&reply.body).contains("repeated"),
            "{reply:?}"
        );
    }
}

#[test]
fn no_token_is_issued_without_a_membership_response() {
    let setup = AppServiceSetup::start();
    for (number, response) in [
        FakeResponse::Body("500 Broken", b"{}".to_vec()),
        FakeResponse::Body("200 OK", b"{}".to_vec()),
        FakeResponse::Body("200 OK", br#"{"joined":"true"}"#.to_vec()),
        FakeResponse::Body("403 Forbidden", br#"{"errcode":"M_FORBIDDEN"}"#.to_vec()),
        FakeResponse::Body("200 OK", vec![b' '; 10 << 20]),
        FakeResponse::Close,
        FakeResponse::Hang,
    ]
    .into_iter()
    .enumerate()
    {
        setup.set_membership_response(response);
        let mut body = setup.token_request();
        body["room_id"] = format!("!{number}:own.example").into();
        let start = Instant::now();
        assert_eq!(
            setup.request_as_alice(&body).status_and_errcode(),
            failed(),
            "{number}"
        );
        assert!(start.elapsed() < SYNAPSE_TIMEOUT);
    }
    setup.set_joined(false);
    assert_eq!(
        setup
            .request_as_alice(&setup.token_request())
            .status_and_errcode(),
        forbidden()
    );
    assert_eq!(
        setup
            .request_from_server("b.org", "@bob:b.org")
            .status_and_errcode(),
        forbidden()
    );
    assert!(setup.sfu.calls().is_empty(), "no room is created");
}

#[test]
fn faults_of_other_servers_are_logged_as_info_and_those_of_the_homeserver_as_errors() {
    let setup = AppServiceSetup::start();
    let mut body = setup.token_request();
    body["server_name"] = "b.org".into();
    for (response, cause) in [
        (FakeResponse::Body("200 OK", vec![b' '; 10 << 20]), "larger"),
        (
            FakeResponse::Body("200 OK", b"[[[[".to_vec()),
            "unexpected response",
        ),
        (
            relay_response(429, &json!({ "errcode": "M_LIMIT_EXCEEDED" })),
            "429",
        ),
    ] {
        setup.set_relay_response(response);
        assert_eq!(setup.request_as_alice(&body).status_and_errcode(), failed());
        let words = ["level=info", ALICE, "the service of b.org", cause];
        setup.service.wait_for_line_with(&words);
    }
    assert!(!setup.service.log().contains("level=error"));
    setup.set_relay_response(FakeResponse::Close);
    assert_eq!(setup.request_as_alice(&body).status_and_errcode(), failed());
    setup
        .service
        .wait_for_line_with(&["level=error", "LIVEKIT_HS_URL"]);
}
