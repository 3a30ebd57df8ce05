//! Only what the SFU has signed, as it stands and lately, is believed; everyone else gets one and the same 401.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::call::{CallMember, CallStage, webhook_authorization, webhook_body};
use crate::client::{Reply, raw};
use crate::fake_delayed_events::FakeDelayedEvents;
use crate::jwt;
use crate::process::Service;
use crate::settings::{KEY, NEVER_LOGGED, SECRET, Settings};

/// What the door takes of a body, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// The leave of the tests: long enough for nothing to happen by itself.
const HOUR: u64 = 3_600_000;

/// Posts a webhook with these header lines.
pub(crate) fn post(service: &Service, fields: &str, body: &[u8]) -> Reply {
    raw(service.address(), &written(fields, body))
}

/// The bytes of a webhook with these header lines.
pub(crate) fn written(fields: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut request = format!(
        "POST /sfu_webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/webhook+json\r\n{fields}Content-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// The claims that the SFU makes for a body.
fn claims(body: &[u8]) -> Value {
    let now = jwt::now();
    let hash = STANDARD.encode(Sha256::digest(body));
    json!({"iss": KEY, "nbf": now, "exp": now + 300, "sha256": hash})
}

/// As the SFU's, with one claim changed or removed.
fn but(body: &[u8], name: &str, value: Value) -> String {
    let mut claims = claims(body);
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    format!("Authorization: {}\r\n", jwt::signed(&claims, SECRET))
}

/// Alice, connected.
fn connected(calls: &CallStage) -> CallMember {
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", HOUR);
    calls.send_webhook("participant_joined", &alice, "PA_1");
    calls.delayed.wait_for(1, "restart", "syd_1");
    alice
}

#[test]
fn nobody_but_the_sfu_can_end_a_call() {
    let calls = CallStage::start();
    let alice = connected(&calls);
    let left = webhook_body("participant_left", &alice, "PA_1").to_string();
    let body = left.as_bytes();
    let now = jwt::now();
    let hash: &[u8] = &Sha256::digest(body);
    let of = |token: &str| format!("Authorization: {token}\r\n");
    let good = webhook_authorization(body);
    let (message, _) = good.rsplit_once('.').unwrap();
    let forged = json!({"alg": "none", "typ": "JWT"}).to_string();
    let none = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(forged);
    let unsigned = format!("{none}.{}.", message.split_once('.').unwrap().1);
    // a participant's own token, which each of them has
    let body_of_token = alice.user.get_token();
    let join = calls.service().post("/get_token", &body_of_token).jwt();
    let two = format!("{}{}", of(&join), of(&good));
    for (what, fields) in [
        ("no Authorization", String::new()),
        ("an empty one", of("")),
        ("Bearer alone", of("Bearer")),
        ("Basic", of("Basic dXNlcjpwYXNz")),
        ("a token to join with", of(&join)),
        ("the same as a bearer", of(&format!("Bearer {join}"))),
        ("no signature", of(&format!("{message}."))),
        ("alg none", of(&unsigned)),
        ("another secret", of(&jwt::signed(&claims(body), "x"))),
        ("two of them", two),
        ("an unknown key", but(body, "iss", json!("APIother"))),
        ("no key", but(body, "iss", Value::Null)),
        ("no hash", but(body, "sha256", Value::Null)),
        ("an empty hash", but(body, "sha256", json!(""))),
        (
            "a hash of nothing",
            but(body, "sha256", claims(b"")["sha256"].clone()),
        ),
        (
            "a hash in URL letters",
            but(body, "sha256", json!(URL_SAFE.encode([0xff; 32]))),
        ),
        (
            "half a hash",
            but(body, "sha256", json!(STANDARD.encode(&hash[..16]))),
        ),
        (
            "no padding",
            but(body, "sha256", json!(STANDARD_NO_PAD.encode(hash))),
        ),
        (
            "a hash that is a list",
            but(body, "sha256", json!([STANDARD.encode(hash)])),
        ),
        ("expired", but(body, "exp", json!(now - 120))),
        ("without an end", but(body, "exp", Value::Null)),
        ("not valid yet", but(body, "nbf", json!(now + 600))),
    ] {
        let reply = post(calls.service(), &fields, body);
        assert!([400, 401].contains(&reply.status), "{what}: {reply:?}");
        if what != "two of them" {
            assert_eq!(reply.verdict(), (401, "M_UNAUTHORIZED".into()), "{what}");
        }
    }
    for other in [
        &left.replace("PA_1", "PA_2"),
        &format!("{left}\n"),
        "",
        "{}",
    ] {
        let reply = post(calls.service(), &of(&good), other.as_bytes());
        assert_eq!(reply.status, 401, "{other}: {reply:?}");
    }
    // whatever they would have caused has happened before this
    let bob = calls.new_member();
    calls.join(&bob, "syd_2", HOUR);
    calls.send_webhook("participant_joined", &bob, "PA_9");
    calls.delayed.wait_for(1, "restart", "syd_2");
    assert_eq!(calls.delayed.actions("syd_1"), ["restart"]);
    // and the id is not used up
    assert_eq!(post(calls.service(), &of(&good), body).status, 200);
    calls.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn every_key_that_we_know_signs_webhooks() {
    let second = format!("{NEVER_LOGGED}-second-secret-of-enough-length");
    let keys = format!("{KEY}: {SECRET}, APIsecond: {second}");
    let calls = CallStage::start_with(FakeDelayedEvents::start(), |settings: Settings| {
        settings
            .unset("LIVEKIT_KEY")
            .unset("LIVEKIT_SECRET")
            .set("LIVEKIT_KEYS", keys)
    });
    let alice = connected(&calls);
    let body = webhook_body("participant_left", &alice, "PA_1").to_string();
    let mut claims = claims(body.as_bytes());
    claims["iss"] = json!("APIsecond");
    for (scheme, secret, status) in [("", SECRET, 401), ("bearer ", &second, 200)] {
        let token = jwt::signed(&claims, secret);
        let fields = format!("Authorization: {scheme}{token}\r\n");
        let reply = post(calls.service(), &fields, body.as_bytes());
        assert_eq!(reply.status, status, "{reply:?}");
    }
    calls.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn why_a_webhook_is_refused_is_in_the_log_and_no_token_is() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    let body = webhook_body("participant_left", &alice, "PA_1").to_string();
    let fields = but(body.as_bytes(), "iss", json!("APIother"));
    let reply = post(calls.service(), &fields, body.as_bytes());
    assert_eq!(reply.status, 401);
    let line = calls.service().wait_for_words(&["sfu_webhook", "401"]);
    assert!(line.contains("unknown API key"), "{line}");
    let shown = String::from_utf8_lossy(&reply.body).into_owned();
    assert!(!shown.contains("key"), "the client learns nothing: {shown}");
    let token = fields.trim_start_matches("Authorization: ").trim();
    assert!(!calls.service().log().contains(token));
}

#[test]
fn a_body_may_be_as_long_as_the_door_takes() {
    let calls = CallStage::start();
    let alice = connected(&calls);
    let mut left = webhook_body("participant_left", &alice, "PA_1");
    let bare = left.to_string().len() + r#","metadata":"""#.len();
    left["metadata"] = json!("x".repeat(MAX_BODY - bare));
    let body = left.to_string();
    assert_eq!(body.len(), MAX_BODY);
    let longer = format!("{body} ");
    let of = |body: &str| {
        format!(
            "Authorization: {}\r\n",
            webhook_authorization(body.as_bytes())
        )
    };
    let reply = post(calls.service(), &of(&longer), longer.as_bytes());
    assert_eq!(reply.verdict(), (413, "M_TOO_LARGE".into()));
    let reply = post(calls.service(), &of(&body), body.as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
    calls.delayed.wait_for(1, "send", "syd_1");
}
