//! Responses of the Matrix endpoints and the claims of their access tokens: identity, room, lifetime.

use serde_json::json;

use crate::homeserver::FakeHomeserver;
use crate::jwt;
use crate::settings::{KEY, SECRET};
use crate::setup::{TestSetup, User};
use crate::sfu::SfuBehaviour;

/// Tolerance for `nbf` and `exp` in seconds, because the test takes time.
const SLACK: i64 = 10;

#[test]
fn the_response_is_the_unchanged_url_and_the_access_token() {
    for url in [
        "wss://sfu.example.com",
        "wss://sfu.example.com/",
        "ws://sfu.example.com:7880/livekit/sfu/",
        "https://sfu.example.com:443/sfu",
    ] {
        let setup = TestSetup::restricted_with(|settings| settings.set("LIVEKIT_URL", url));
        let user = setup.homeserver.user("alice");
        for reply in [setup.get_token(&user), setup.sfu_get(&user)] {
            assert_eq!(reply.status, 200, "{reply:?}");
            let body = reply.json();
            assert_eq!(body["url"], url);
            assert_eq!(body.as_object().unwrap().len(), 2, "url and jwt: {body}");
            let content_type = reply.header("content-type").unwrap();
            assert!(content_type.starts_with("application/json"), "{reply:?}");
        }
    }
}

#[test]
fn the_claims_are_those_of_the_specification() {
    let setup = TestSetup::restricted();
    let user = setup.homeserver.user("alice");
    let identity = jwt::hash(&[&user.id, "DEVICE123", "memberABC"]);
    let literal = format!("{}:DEVICE123", user.id);
    let modern = jwt::hash(&["!roomid:example.com", "slot1234"]);
    let legacy = jwt::hash(&["!roomid:example.com", "m.call#ROOM"]);
    for (reply, identity, room) in [
        (setup.get_token(&user), identity, modern),
        (setup.sfu_get(&user), literal, legacy),
    ] {
        let now = jwt::now();
        let claims = jwt::claims(&reply.jwt(), SECRET);
        assert_eq!(claims["iss"], KEY);
        assert_eq!(claims["sub"], identity);
        let nbf = claims["nbf"].as_i64().unwrap();
        let exp = claims["exp"].as_i64().unwrap();
        assert!((now - SLACK..=now).contains(&nbf), "{now} {claims}");
        assert!(
            (now + 3600 - SLACK..=now + 3600 + SLACK).contains(&exp),
            "{claims}"
        );
        // the Python SDK rejects `aud`; `jti` would be a fallback for the identity
        for absent in ["aud", "jti", "crit"] {
            assert_eq!(claims.get(absent), None, "{claims}");
        }
        let video = &claims["video"];
        assert_eq!(video["room"], room);
        assert_eq!(video["roomJoin"], true);
        assert_eq!(video["canPublish"], true);
        assert_eq!(video["canSubscribe"], true);
        for never in [
            "roomCreate",
            "hidden",
            "roomAdmin",
            "roomList",
            "roomRecord",
            "ingressAdmin",
            "recorder",
            "agent",
            "canUpdateOwnMetadata",
        ] {
            let grant = &video[never];
            assert!(grant.is_null() || *grant == false, "{never} in {claims}");
        }
        assert!(!claims.to_string().contains("null"), "{claims}");
    }
}

/// The first two vectors of MSC4195, through the service; the third is for application-service mode.
#[test]
fn room_and_identity_match_the_vectors_of_the_specification() {
    const ROOM: &str = "O8437W3+jmzMVjoIP3tNwbm+XxHQk2iKpOA7aqw3qSc";
    const IDENTITY: &str = "J+T45tGruxc+HrUOqJJlyQSV33m728Cme4+vt8/SWrU";
    let setup = stage_with_override_for_example_com();
    let user = setup.homeserver.user("alice");

    let claims = jwt::claims(&setup.get_token(&user).jwt(), SECRET);
    assert_eq!(claims["video"]["room"], ROOM);
    assert_eq!(claims["sub"], IDENTITY);

    let claims = jwt::claims(&setup.sfu_get(&user).jwt(), SECRET);
    assert_eq!(claims["sub"], "@alice:example.com:DEVICE123");

    // the hash function of this suite, against all three vectors
    assert_eq!(jwt::hash(&["!roomid:example.com", "slot1234"]), ROOM);
    assert_eq!(
        jwt::hash(&["@alice:example.com", "DEVICE123", "memberABC"]),
        IDENTITY
    );
    assert_eq!(
        jwt::hash(&["@alice:example.com", "memberABC"]),
        "M3VnsLXrkbxIDINXO64u8PZzFyD9ZYFiQULR2dshWYs"
    );
}

#[test]
fn hashed_names_escape_exactly_what_canonical_json_escapes() {
    let setup = TestSetup::restricted();
    for odd in [
        "<&>",
        "quote\" backslash\\ slash/",
        "line\u{2028}separator paragraph\u{2029}",
        "Grüße 🎥 日本",
    ] {
        let user = setup.homeserver.user("alice");
        let mut body = user.get_token();
        body["room_id"] = json!(odd);
        body["slot_id"] = json!(odd);
        body["member"]["id"] = json!(odd);
        body["member"]["claimed_device_id"] = json!(odd);
        let reply = setup.service.post("/get_token", &body);
        let claims = jwt::claims(&reply.jwt(), SECRET);
        assert_eq!(claims["video"]["room"], jwt::hash(&[odd, odd]), "{odd:?}");
        assert_eq!(claims["sub"], jwt::hash(&[&user.id, odd, odd]), "{odd:?}");
    }
}

#[test]
fn the_user_is_the_one_that_the_homeserver_names() {
    let setup = TestSetup::restricted();
    let user = setup.homeserver.user("bob");
    let claims = jwt::claims(&setup.sfu_get(&user).jwt(), SECRET);
    let name = setup.homeserver.name();
    assert_eq!(claims["sub"], format!("@bob:{name}:DEVICE123"));
}

/// Server names are compared byte by byte.
#[test]
fn a_homeserver_cannot_name_a_user_of_another_server() {
    let setup = stage_with_override_for_example_com();
    for subject in [
        "@alice:EXAMPLE.com",
        "@alice:example.com:8448",
        "@alice:example.com.",
        "@alice:matrix.example.com",
        "@alice:evil.example:example.com",
        "@:example.com@",
        "alice:example.com",
        "@aliceexample.com",
        "@alice:",
        "",
    ] {
        let user = User::new("alice", "example.com");
        setup.homeserver.set_userinfo(&user.token, subject);
        for reply in [setup.get_token(&user), setup.sfu_get(&user)] {
            assert_eq!(reply.status, 401, "{subject:?} {reply:?}");
        }
    }
    let alice = setup.homeserver.user("alice");
    assert_eq!(setup.sfu_get(&alice).status, 200);
}

fn stage_with_override_for_example_com() -> TestSetup {
    let homeserver = FakeHomeserver::well_behaved().with_name("example.com");
    let over = format!("example.com=https://localhost:{}", homeserver.port());
    TestSetup::with(homeserver, SfuBehaviour::Serves, |settings| {
        settings.set("LIVEKIT_FEDERATION_URL_OVERRIDES", over)
    })
}
