//! JWTs and hashed names, verified without code of the service.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The claims of a token that `secret` signed with HS256. Panics if the token is invalid.
pub(crate) fn claims(jwt: &str, secret: &str) -> Value {
    let segments: Vec<&str> = jwt.split('.').collect();
    let [header, claims, signature] = segments[..] else {
        panic!("{} segments in {jwt}", segments.len());
    };
    assert_eq!(
        decoded(header),
        serde_json::json!({"alg": "HS256", "typ": "JWT"}),
        "the header has these parameters only"
    );
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("{header}.{claims}").as_bytes());
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    mac.verify_slice(&signature)
        .unwrap_or_else(|_| panic!("signature of {jwt}"));
    decoded(claims)
}

/// Signs a token with HS256.
pub(crate) fn signed(claims: &Value, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(message.as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
    format!("{message}.{signature}")
}

/// A room name or identity (MSC4195): unpadded base64 of the SHA-256 of the canonical JSON array of `parts`.
pub(crate) fn hash(parts: &[&str]) -> String {
    let canonical = serde_json::to_string(parts).unwrap();
    STANDARD_NO_PAD.encode(Sha256::digest(canonical.as_bytes()))
}

/// Now, in seconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

fn decoded(segment: &str) -> Value {
    let bytes = URL_SAFE_NO_PAD
        .decode(segment)
        .unwrap_or_else(|error| panic!("segment {segment}: {error}"));
    serde_json::from_slice(&bytes).unwrap()
}
