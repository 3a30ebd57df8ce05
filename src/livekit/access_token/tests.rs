//! `tests/vectors/livekit.json`: tokens signed by LiveKit's SDKs, and tokens with the results of its verifiers.

use serde_json::Value;
use sha2::Digest;

use super::verification::{CLOCK_LEEWAY, MAX_ACCESS_TOKEN_BYTES, decode_segment};
use super::*;

fn vectors() -> (Value, ApiKey, u64) {
    let all: Value =
        serde_json::from_str(include_str!("../../../tests/vectors/livekit.json")).unwrap();
    let key = ApiKey::new(
        all["api_key"].as_str().unwrap(),
        all["api_secret"].as_str().unwrap(),
    );
    let now = all["now"].as_u64().unwrap();
    (all, key, now)
}

/// The token of a webhook with `body` that is sent at `now`.
pub(crate) fn webhook_token(key: &ApiKey, body: &[u8], now: u64) -> String {
    let hash = base64::engine::general_purpose::STANDARD.encode(sha2::Sha256::digest(body));
    let claims = serde_json::json!({"iss": key.id(), "nbf": now, "exp": now + 300, "sha256": hash});
    let segments = [JWT_HEADER.to_owned(), claims.to_string()].map(|s| URL_SAFE_NO_PAD.encode(s));
    key.sign(&segments.join("."))
}

fn claims_of(token: &str) -> Value {
    decode_segment(token.split('.').nth(1).unwrap()).unwrap()
}

/// The claims of a vector, if [`Claims::join`] can express its input.
fn join_claims(input: &Value) -> Option<Claims> {
    let video = input["video"].as_object()?;
    let supported = ["roomJoin", "room", "canPublish", "canSubscribe"];
    if input
        .as_object()?
        .keys()
        .any(|k| !["identity", "ttl_s", "video"].contains(&k.as_str()))
        || video.keys().any(|k| !supported.contains(&k.as_str()))
    {
        return None;
    }
    let identity = ParticipantIdentity::new(input["identity"].as_str()?.to_owned()).unwrap();
    let room = RoomName::new(video["room"].as_str()?.to_owned()).unwrap();
    let flag = |name| video.get(name).and_then(Value::as_bool).unwrap_or(true);
    let permissions = JoinPermissions {
        can_publish: flag("canPublish"),
        can_subscribe: flag("canSubscribe"),
        can_update_own_metadata: false,
    };
    Some(Claims::join(identity, &room, permissions))
}

#[test]
fn signatures_equal_those_of_every_sdk() {
    let (all, key, now) = vectors();
    let mut seen = 0;
    for vector in all["tokens"].as_array().unwrap() {
        for (sdk, token_by_sdk) in vector["by_sdk"].as_object().unwrap() {
            let segment = |name: &str| URL_SAFE_NO_PAD.encode(token_by_sdk[name].as_str().unwrap());
            let message = format!("{}.{}", segment("header_json"), segment("claims_json"));
            let token = token_by_sdk["token"].as_str().unwrap();
            assert_eq!(key.sign(&message), token, "{} by {sdk}", vector["id"]);
            let verified = verify(token, std::slice::from_ref(&key), now);
            assert_eq!(
                verified.map(|v| v.identity.filter(|id| !id.is_empty())),
                Ok(vector["input"]["identity"].as_str().map(str::to_owned)),
                "{} by {sdk}",
                vector["id"]
            );
            seen += 1;
        }
    }
    assert_eq!(seen, 44);
}

#[test]
fn claims_equal_those_of_the_sdks() {
    let (all, key, now) = vectors();
    let mut seen = 0;
    for vector in all["tokens"].as_array().unwrap() {
        let Some(claims) = join_claims(&vector["input"]) else {
            continue;
        };
        let Some(ttl) = vector["input"]["ttl_s"].as_u64() else {
            continue;
        };
        let token = claims.sign(&key, now, Duration::from_secs(ttl));
        let ours = claims_of(token.expose());
        let theirs = &vector["by_sdk"]["go_emulated"]["claims"];
        for claim in ["iss", "sub", "nbf", "exp"] {
            assert_eq!(ours[claim], theirs[claim], "{claim} of {}", vector["id"]);
        }
        let on = Value::Bool(true);
        let off = Value::Bool(false);
        for (grant, absent) in [
            ("room", &Value::Null),
            ("roomJoin", &off),
            ("roomCreate", &off),
            ("hidden", &off),
            ("roomAdmin", &off),
            ("canPublish", &on),
            ("canSubscribe", &on),
            ("canUpdateOwnMetadata", &off),
        ] {
            let read = |claims: &'_ Value| claims["video"].get(grant).unwrap_or(absent).clone();
            assert_eq!(read(&ours), read(theirs), "{grant} of {}", vector["id"]);
        }
        seen += 1;
    }
    assert!(seen >= 1, "no vector fits Claims::join");
}

#[test]
fn verification_agrees_with_the_sfu_or_is_stricter_for_a_reason() {
    let (all, key, now) = vectors();
    let stricter = [
        ("exp_string", "RFC 7519: times are numbers"),
        ("nbf_float", "the SFU writes integers"),
        (
            "b64_false",
            "RFC 7515: unknown critical extensions are refused",
        ),
    ];
    for vector in all["verify"].as_array().unwrap() {
        let id = vector["id"].as_str().unwrap();
        let ours = verify(
            vector["token"].as_str().unwrap(),
            std::slice::from_ref(&key),
            now,
        );
        let sfu = vector["results"]["go_emulated"]["ok"].as_bool().unwrap();
        let expected = sfu && !stricter.iter().any(|(name, _)| *name == id);
        assert_eq!(ours.is_ok(), expected, "{id}: {ours:?}");
    }
}

#[test]
fn a_refused_token_has_a_reason() {
    let (all, key, now) = vectors();
    let keys = std::slice::from_ref(&key);
    let error_of = |id: &str| {
        let vectors = all["verify"].as_array().unwrap();
        let token = vectors.iter().find(|v| v["id"] == id).unwrap()["token"]
            .as_str()
            .unwrap();
        verify(token, keys, now).unwrap_err()
    };
    assert_eq!(error_of("alg_none"), AccessTokenError::Algorithm);
    assert_eq!(error_of("wrong_iss"), AccessTokenError::UnknownKey);
    assert_eq!(error_of("tampered_payload"), AccessTokenError::Signature);
    assert_eq!(error_of("sig_empty"), AccessTokenError::Signature);
    assert_eq!(error_of("exp_60s_ago"), AccessTokenError::Expired);
    assert_eq!(error_of("two_segments"), AccessTokenError::Malformed);
    let token = Claims::create_room().sign(&key, now + CLOCK_LEEWAY + 1, Duration::from_secs(10));
    assert_eq!(
        verify(token.expose(), keys, now),
        Err(AccessTokenError::NotYetValid)
    );
    assert_eq!(
        verify(&"a".repeat(MAX_ACCESS_TOKEN_BYTES + 1), keys, now),
        Err(AccessTokenError::Malformed)
    );
}

#[test]
fn names_are_bounded_and_secrets_are_absent_from_debug_output() {
    assert!(RoomName::new("r".repeat(256)).is_ok());
    assert!(RoomName::new("r".repeat(257)).is_err());
    assert!(ParticipantIdentity::new(String::new()).is_err());
    assert!(ParticipantIdentity::new("a\u{1b}".to_owned()).is_err());
    let key = ApiKey::new("APIkey", "hush-hush");
    let token = Claims::create_room().sign(&key, 1, Duration::from_secs(1));
    let debug = format!("{key:?} {token:?}");
    assert!(!debug.contains("hush") && !debug.contains("eyJ"), "{debug}");
}
