//! Key sets of issuers and files: each accepted key is in the document with its id, is public and strong, and is for the algorithm
//! that it is selected for; no forged signature is valid.
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

fn bytes(jwk: &Value, parameter: &str) -> Vec<u8> {
    let text = jwk[parameter].as_str().expect("a parameter of the key");
    URL_SAFE_NO_PAD.decode(text).expect("base64url")
}

fuzz_target!(|content: &[u8]| {
    let Ok(keys) = KeySet::parse(content) else {
        return;
    };
    assert!((1..=64).contains(&keys.count()));
    assert!(keys.select(JwsAlgorithm::Hs256, None).is_err());
    let Ok(document) = serde_json::from_slice::<Value>(content) else {
        // one key in PEM form, which matches every id
        assert_eq!(keys.count(), 1);
        assert!(!String::from_utf8_lossy(content).contains("PRIVATE KEY-----"));
        let has_key =
            |(algorithm, ..): &&(JwsAlgorithm, _, _)| keys.select(*algorithm, Some("x")).is_ok();
        assert_eq!(PUBLIC.iter().filter(has_key).count(), 1);
        return;
    };
    let all = document["keys"].as_array().expect("a list");
    assert!(keys.count() <= all.len());
    assert!(
        all.iter()
            .all(|jwk| jwk.get("d").is_none() && jwk.get("k").is_none())
    );
    for id in all.iter().filter_map(|jwk| jwk["kid"].as_str()) {
        assert!(keys.select(JwsAlgorithm::Hs256, Some(id)).is_err());
        for (algorithm, alg, kty) in PUBLIC {
            let Ok(key) = keys.select(algorithm, Some(id)) else {
                continue;
            };
            assert!(
                !key.verify_signature(b"message", b"")
                    && !key.verify_signature(b"message", &[0; 64])
            );
            assert!(!key.verify_signature(b"message", &[0; 256]));
            // a key without an id is selected if no key has the id
            let key_id = key.id();
            let is_same = |jwk: &&Value| jwk["kty"] == kty && jwk["kid"].as_str() == key_id;
            let Some(jwk) = all.iter().find(is_same) else {
                panic!("{key:?} is not in the set");
            };
            if all.iter().filter(is_same).count() > 1 {
                continue;
            }
            assert!(["sig"].map(Some).contains(&jwk["use"].as_str()) || jwk["use"].is_null());
            let algorithm = jwk["alg"].as_str();
            assert!(
                algorithm.is_none_or(|name| name == alg || (alg == "EdDSA" && name == "Ed25519"))
            );
            match kty {
                "RSA" => assert!(bytes(jwk, "n").len() >= 256 && bytes(jwk, "e").len() <= 5),
                "EC" => assert_eq!((bytes(jwk, "x").len(), bytes(jwk, "y").len()), (32, 32)),
                _ => assert_eq!(bytes(jwk, "x").len(), 32),
            }
        }
    }
});
