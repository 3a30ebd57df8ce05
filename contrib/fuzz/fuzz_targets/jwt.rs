//! JWTs: none is accepted without a signature of the issuer's key, and a signed one only if a second parser finds its algorithm,
//! issuer, audience and time claims right.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::{
    CallerName, JwtIssuer, KeySet, KeySource, needs_key_fetch, verify_jwt,
};
use serde_json::Value;

const NOW: u64 = 1_800_000_000;
const SECRET: &str = "a secret that the fuzzer does not know, of enough length";
const ISSUER: &str = "https://login.example";
const AUDIENCE: &str = "livekit";

fn signed(header: &[u8], claims: &[u8]) -> String {
    let segment = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let message = format!("{}.{}", segment(header), segment(claims));
    let mac = Hmac::<sha2::Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length");
    let tag = mac.chain_update(&message).finalize().into_bytes();
    format!("{message}.{}", segment(&tag))
}

fn seconds(claims: &Value, name: &str) -> Option<f64> {
    claims
        .get(name)
        .map(|value| value.as_f64().expect("a number"))
}

fuzz_target!(|bytes: &[u8]| {
    let issuers = [JwtIssuer {
        name: CallerName::parse("fuzz").expect("a name"),
        issuer: ISSUER.into(),
        audience: AUDIENCE.into(),
        identity_claim: "sub".into(),
        keys: KeySource::Fixed(KeySet::from_secret(SECRET).expect("long enough")),
    }];
    let is_accepted = |token: &str| verify_jwt(token, &issuers, NOW).is_ok();
    assert!(!needs_key_fetch(
        &String::from_utf8_lossy(bytes),
        &issuers,
        NOW
    ));

    let good = signed(
        br#"{"alg":"HS256"}"#,
        br#"{"iss":"https://login.example","aud":"livekit","exp":1800000000}"#,
    );
    assert!(is_accepted(&good));
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(!is_accepted(text), "forged: {text}");
        for segment in 0..3 {
            let mut parts: Vec<&str> = good.split('.').collect();
            if parts[segment] != text {
                parts[segment] = text;
                assert!(!is_accepted(&parts.join(".")), "forged: {parts:?}");
            }
        }
    }

    // a header and claims from the fuzzer, correctly signed
    let end = bytes
        .iter()
        .position(|b| *b == b'\n')
        .unwrap_or(bytes.len());
    let (header, claims) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    let token = signed(header, claims);
    let Ok(jwt) = verify_jwt(&token, &issuers, NOW) else {
        return;
    };
    let header: Value = serde_json::from_slice(header).expect("JSON");
    assert_eq!(header["alg"], "HS256");
    assert!(header.get("crit").is_none());
    let claims: Value = serde_json::from_slice(claims).expect("JSON");
    assert_eq!(Value::Object(jwt.claims), claims);
    assert_eq!(claims["iss"], ISSUER);
    let audience = &claims["aud"];
    let contains = |list: &Vec<Value>| list.iter().any(|one| one == AUDIENCE);
    assert!(audience == AUDIENCE || audience.as_array().is_some_and(contains));
    let now = NOW as f64;
    assert!(seconds(&claims, "exp").expect("required") > now - 60.0);
    for name in ["nbf", "iat"] {
        assert!(seconds(&claims, name).is_none_or(|date| date < now + 61.0));
    }
});
