//! No bytes are a JWT of the application's login unless its key has signed them; and what it has signed is accepted only if
//! algorithm, issuer, audience and dates are right by another reading.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::CallerName;
use livekit_token_service::internal::KeySet;
use livekit_token_service::internal::{JwtIssuer, JwtIssuers, KeySource};
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
    let keys = KeySource::Fixed(KeySet::secret(SECRET).expect("long enough"));
    let name = CallerName::parse("fuzz").expect("a name");
    let issuers = JwtIssuers::new(vec![JwtIssuer::new(
        name,
        ISSUER.into(),
        AUDIENCE.into(),
        keys,
    )]);
    assert!(!issuers.would_wait(&String::from_utf8_lossy(bytes), NOW));

    let good = signed(
        br#"{"alg":"HS256"}"#,
        br#"{"iss":"https://login.example","aud":"livekit","exp":1800000000}"#,
    );
    assert!(issuers.verify(&good, NOW).is_ok());
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(issuers.verify(text, NOW).is_err(), "forged: {text}");
        for segment in 0..3 {
            let mut parts: Vec<&str> = good.split('.').collect();
            if parts[segment] != text {
                parts[segment] = text;
                assert!(
                    issuers.verify(&parts.join("."), NOW).is_err(),
                    "forged: {parts:?}"
                );
            }
        }
    }

    // header and claims of the fuzzer's, signed as they are
    let end = bytes
        .iter()
        .position(|b| *b == b'\n')
        .unwrap_or(bytes.len());
    let (header, claims) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    let Ok((_, said)) = issuers.verify(&signed(header, claims), NOW) else {
        return;
    };
    let header: Value = serde_json::from_slice(header).expect("JSON");
    assert_eq!(header["alg"], "HS256");
    assert!(header.get("crit").is_none());
    let claims: Value = serde_json::from_slice(claims).expect("JSON");
    assert_eq!(Value::Object(said), claims);
    assert_eq!(claims["iss"], ISSUER);
    let audience = &claims["aud"];
    let among = |all: &Vec<Value>| all.iter().any(|one| one == AUDIENCE);
    assert!(audience == AUDIENCE || audience.as_array().is_some_and(among));
    let now = NOW as f64;
    assert!(seconds(&claims, "exp").expect("an end") > now - 60.0);
    for begin in ["nbf", "iat"] {
        assert!(seconds(&claims, begin).is_none_or(|begin| begin < now + 61.0));
    }
});
