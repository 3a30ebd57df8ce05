//! Whatever a key server or a file says, a key that is taken from it stands there under that name, is public, strong, and meant
//! for the one algorithm that it is used with; and nothing is signed by it that its owner has not signed.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::{JwsAlgorithm, KeySet};
use serde_json::Value;

const PUBLIC: [(JwsAlgorithm, &str, &str); 3] = [
    (JwsAlgorithm::Rs256, "RS256", "RSA"),
    (JwsAlgorithm::Es256, "ES256", "EC"),
    (JwsAlgorithm::EdDsa, "EdDSA", "OKP"),
];

fn bytes(jwk: &Value, part: &str) -> Vec<u8> {
    let text = jwk[part].as_str().expect("a part of the key");
    URL_SAFE_NO_PAD.decode(text).expect("base64url")
}

fuzz_target!(|content: &[u8]| {
    let Ok(keys) = KeySet::parse(content) else {
        return;
    };
    assert!((1..=64).contains(&keys.count()));
    assert!(keys.pick(JwsAlgorithm::Hs256, None).is_err());
    let Ok(document) = serde_json::from_slice::<Value>(content) else {
        // one key in PEM form, which any id means
        assert_eq!(keys.count(), 1);
        assert!(!String::from_utf8_lossy(content).contains("PRIVATE KEY-----"));
        let fits = |(algorithm, ..): &&(JwsAlgorithm, _, _)| keys.pick(*algorithm, Some("x")).is_ok();
        assert_eq!(PUBLIC.iter().filter(fits).count(), 1);
        return;
    };
    let all = document["keys"].as_array().expect("a list");
    assert!(keys.count() <= all.len());
    assert!(
        all.iter()
            .all(|jwk| jwk.get("d").is_none() && jwk.get("k").is_none())
    );
    for id in all.iter().filter_map(|jwk| jwk["kid"].as_str()) {
        assert!(keys.pick(JwsAlgorithm::Hs256, Some(id)).is_err());
        for (algorithm, alg, kty) in PUBLIC {
            let Ok(key) = keys.pick(algorithm, Some(id)) else {
                continue;
            };
            assert!(!key.has_signed(b"message", b"") && !key.has_signed(b"message", &[0; 64]));
            assert!(!key.has_signed(b"message", &[0; 256]));
            // where there is none of this name, one without a name may stand in
            let name = key.id();
            let right = |jwk: &&Value| jwk["kty"] == kty && jwk["kid"].as_str() == name;
            let Some(jwk) = all.iter().find(right) else {
                panic!("{key:?} is not in the set");
            };
            if all.iter().filter(right).count() > 1 {
                continue;
            }
            assert!(["sig"].map(Some).contains(&jwk["use"].as_str()) || jwk["use"].is_null());
            let named = jwk["alg"].as_str();
            assert!(
                named.is_none_or(|named| named == alg || (alg == "EdDSA" && named == "Ed25519"))
            );
            match kty {
                "RSA" => assert!(bytes(jwk, "n").len() >= 256 && bytes(jwk, "e").len() <= 5),
                "EC" => assert_eq!((bytes(jwk, "x").len(), bytes(jwk, "y").len()), (32, 32)),
                _ => assert_eq!(bytes(jwk, "x").len(), 32),
            }
        }
    }
});
