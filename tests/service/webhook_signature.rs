//! A webhook is accepted only with a current signature of the SFU for its exact body; all others get the same 401.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::call::{CallMember, CallSetup, webhook_authorization, webhook_body};
use crate::client::{Reply, raw};
use crate::fake_delayed_events::FakeDelayedEvents;
use crate::jwt;
use crate::process::Service;
use crate::settings::{KEY, NEVER_LOGGED, SECRET, Settings};

/// Longest accepted body in bytes.
const MAX_BODY: usize = 64 * 1024;
/// Delay of the delegated leaves in milliseconds: none is due during a test.
const HOUR: u64 = 3_600_000;

/// Posts a webhook with these header lines.
pub(crate) fn post_with_fields(service: &Service, fields: &str, body: &[u8]) -> Reply {
    raw(service.address(), &request_bytes(fields, body))
}

/// The request of a webhook with these header lines.
pub(crate) fn request_bytes(fields: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut request = format!(
        "POST /sfu_webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/webhook+json\r\n{fields}Content-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// The claims of the SFU's token for a body.
fn claims(body: &[u8]) -> Value {
    let now = jwt::now();
    let hash = STANDARD.encode(Sha256::digest(body));
    json!({"iss": KEY, "nbf": now, "exp": now + 300, "sha256": hash})
}

/// The header line with a token in which one claim is changed, or removed for null.
fn header_with_claim(body: &[u8], name: &str, value: Value) -> String {
    let mut claims = claims(body);
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    format!("Authorization: {}\r\n", jwt::signed(&claims, SECRET))
}

/// A connected member who has delegated the leave `syd_1`.
fn connected_member(setup: &CallSetup) -> CallMember {
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", HOUR);
    setup.send_webhook("participant_joined", &alice, "PA_1");
    setup.delayed.wait_for(1, "restart", "syd_1");
    alice
}

#[test]
fn a_webhook_without_a_valid_signature_ends_no_call() {
    let setup = CallSetup::start();
    let alice = connected_member(&setup);
    let left = webhook_body("participant_left", &alice, "PA_1").to_string();
    let body = left.as_bytes();
    let now = jwt::now();
    let hash: &[u8] = &Sha256::digest(body);
    let header = |token: &str| format!("Authorization: {token}\r\n");
    let valid = webhook_authorization(body);
    let (message, _) = valid.rsplit_once('.').unwrap();
    let none_header = json!({"alg": "none", "typ": "JWT"}).to_string();
    let none = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(none_header);
    let unsigned = format!("{none}.{}.", message.split_once('.').unwrap().1);
    // a participant's access token
    let token_request = alice.user.get_token();
    let access_token = setup.service().post("/get_token", &token_request).jwt();
    let two_headers = format!("{}{}", header(&access_token), header(&valid));
    for (what, fields) in [
        ("no Authorization", String::new()),
        ("an empty Authorization", header("")),
        ("Bearer alone", header("Bearer")),
        ("Basic", header("Basic dXNlcjpwYXNz")),
        ("an access token", header(&access_token)),
        (
            "an access token with Bearer",
            header(&format!("Bearer {access_token}")),
        ),
        ("no signature", header(&format!("{message}."))),
        ("alg none", header(&unsigned)),
        ("another secret", header(&jwt::signed(&claims(body), "x"))),
        ("two headers", two_headers),
        (
            "an unknown key",
            header_with_claim(body, "iss", json!("APIother")),
        ),
        ("no key", header_with_claim(body, "iss", Value::Null)),
        ("no hash", header_with_claim(body, "sha256", Value::Null)),
        (
            "an empty hash",
            header_with_claim(body, "sha256", json!("")),
        ),
        (
            "the hash of an empty body",
            header_with_claim(body, "sha256", claims(b"")["sha256"].clone()),
        ),
        (
            "a hash in base64url",
            header_with_claim(body, "sha256", json!(URL_SAFE.encode([0xff; 32]))),
        ),
        (
            "half a hash",
            header_with_claim(body, "sha256", json!(STANDARD.encode(&hash[..16]))),
        ),
        (
            "no padding",
            header_with_claim(body, "sha256", json!(STANDARD_NO_PAD.encode(hash))),
        ),
        (
            "a hash that is a list",
            header_with_claim(body, "sha256", json!([STANDARD.encode(hash)])),
        ),
        ("expired", header_with_claim(body, "exp", json!(now - 120))),
        ("no expiry", header_with_claim(body, "exp", Value::Null)),
        (
            "not valid yet",
            header_with_claim(body, "nbf", json!(now + 600)),
        ),
    ] {
        let reply = post_with_fields(setup.service(), &fields, body);
        assert!([400, 401].contains(&reply.status), "{what}: {reply:?}");
        if what != "two headers" {
            assert_eq!(
                reply.status_and_errcode(),
                (401, "M_UNAUTHORIZED".into()),
                "{what}"
            );
        }
    }
    for other in [
        &left.replace("PA_1", "PA_2"),
        &format!("{left}\n"),
        "",
        "{}",
    ] {
        let reply = post_with_fields(setup.service(), &header(&valid), other.as_bytes());
        assert_eq!(reply.status, 401, "{other}: {reply:?}");
    }
    // a later webhook is handled: the refused ones have had no effect until then
    let bob = setup.new_member();
    setup.join(&bob, "syd_2", HOUR);
    setup.send_webhook("participant_joined", &bob, "PA_9");
    setup.delayed.wait_for(1, "restart", "syd_2");
    assert_eq!(setup.delayed.actions("syd_1"), ["restart"]);
    // nor is the event id used up
    assert_eq!(
        post_with_fields(setup.service(), &header(&valid), body).status,
        200
    );
    setup.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn webhooks_signed_with_any_configured_key_are_accepted() {
    let second = format!("{NEVER_LOGGED}-second-secret-of-enough-length");
    let keys = format!("{KEY}: {SECRET}, APIsecond: {second}");
    let setup = CallSetup::start_with(FakeDelayedEvents::start(), |settings: Settings| {
        settings
            .unset("LIVEKIT_KEY")
            .unset("LIVEKIT_SECRET")
            .set("LIVEKIT_KEYS", keys)
    });
    let alice = connected_member(&setup);
    let body = webhook_body("participant_left", &alice, "PA_1").to_string();
    let mut claims = claims(body.as_bytes());
    claims["iss"] = json!("APIsecond");
    for (scheme, secret, status) in [("", SECRET, 401), ("bearer ", &second, 200)] {
        let token = jwt::signed(&claims, secret);
        let fields = format!("Authorization: {scheme}{token}\r\n");
        let reply = post_with_fields(setup.service(), &fields, body.as_bytes());
        assert_eq!(reply.status, status, "{reply:?}");
    }
    setup.delayed.wait_for(1, "send", "syd_1");
}

#[test]
fn the_reason_of_a_refusal_is_logged_without_the_token() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    let body = webhook_body("participant_left", &alice, "PA_1").to_string();
    let fields = header_with_claim(body.as_bytes(), "iss", json!("APIother"));
    let reply = post_with_fields(setup.service(), &fields, body.as_bytes());
    assert_eq!(reply.status, 401);
    let line = setup.service().wait_for_line_with(&["sfu_webhook", "401"]);
    assert!(line.contains("unknown API key"), "{line}");
    let response = String::from_utf8_lossy(&reply.body);
    assert!(
        !response.contains("key"),
        "no reason for the client: {response}"
    );
    let token = fields.trim_start_matches("Authorization: ").trim();
    assert!(!setup.service().log().contains(token));
}

#[test]
fn the_longest_body_is_accepted_and_a_longer_one_refused() {
    let setup = CallSetup::start();
    let alice = connected_member(&setup);
    let mut left = webhook_body("participant_left", &alice, "PA_1");
    let length_without_text = left.to_string().len() + r#","metadata":"""#.len();
    left["metadata"] = json!("x".repeat(MAX_BODY - length_without_text));
    let body = left.to_string();
    assert_eq!(body.len(), MAX_BODY);
    let longer = format!("{body} ");
    let header = |body: &str| {
        format!(
            "Authorization: {}\r\n",
            webhook_authorization(body.as_bytes())
        )
    };
    let reply = post_with_fields(setup.service(), &header(&longer), longer.as_bytes());
    assert_eq!(reply.status_and_errcode(), (413, "M_TOO_LARGE".into()));
    let reply = post_with_fields(setup.service(), &header(&body), body.as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
    setup.delayed.wait_for(1, "send", "syd_1");
}
