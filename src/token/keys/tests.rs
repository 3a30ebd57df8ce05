//! Key sets of issuers and administrators; `tests/vectors/jwt_issuer.json` has keys made by other implementations.

use serde_json::json;

use super::*;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../tests/vectors/jwt_issuer.json")).unwrap()
}

fn jwk(id: &str) -> Value {
    vectors()["keys"][id]["jwk"].clone()
}

/// Parses a set with this key and a usable one with the id `usable`.
fn with_a_usable_key(key: Value) -> KeySet {
    let mut usable = jwk("ed25519");
    usable["kid"] = "usable".into();
    KeySet::parse_jwks(json!({"keys": [key, usable]}).to_string().as_bytes()).unwrap()
}

#[test]
fn every_key_has_one_algorithm() {
    let all: Vec<Value> = ["rsa", "p256", "ed25519"].map(jwk).into();
    let keys = KeySet::parse_jwks(json!({"keys": all}).to_string().as_bytes()).unwrap();
    assert_eq!(keys.count(), 3);
    for (id, right) in [
        ("rsa", JwsAlgorithm::Rs256),
        ("p256", JwsAlgorithm::Es256),
        ("ed25519", JwsAlgorithm::EdDsa),
    ] {
        for algorithm in [
            JwsAlgorithm::Rs256,
            JwsAlgorithm::Es256,
            JwsAlgorithm::EdDsa,
            JwsAlgorithm::Hs256,
        ] {
            let key = keys.select(algorithm, Some(id));
            if algorithm == right {
                assert_eq!(key.unwrap().id(), Some(id));
            } else {
                assert_eq!(
                    key.unwrap_err(),
                    KeyLookupError::AlgorithmMismatch,
                    "{id} {algorithm:?}"
                );
            }
        }
        assert_eq!(keys.select(right, None).unwrap().id(), Some(id));
        assert_eq!(
            keys.select(right, Some("other")).unwrap_err(),
            KeyLookupError::UnknownKey
        );
    }
    assert_eq!(
        keys.select(JwsAlgorithm::Hs256, None).unwrap_err(),
        KeyLookupError::AlgorithmMismatch
    );
}

#[test]
fn keys_of_other_types_and_for_other_purposes_are_ignored() {
    let changed = |field: &str, value: Value| {
        let mut key = jwk("rsa");
        key[field] = value;
        key
    };
    let all = vectors();
    for key in [
        changed("use", "enc".into()),
        changed("alg", "RSA-OAEP".into()),
        changed("alg", "RS512".into()),
        changed("alg", "HS256".into()),
        changed("kty", "rsa".into()),
        changed("key_ops", json!(["wrapKey"])),
        changed("n", "AQAB".into()),
        changed("n", "not/base64url".into()),
        changed("e", "AA".into()),
        changed("e", "AQ".into()),
        changed("e", "AQAC".into()),
        changed("e", "AQAAAAAB".into()),
        changed("kid", "k".repeat(257).into()),
        changed("kid", 7.into()),
        all["weak_jwk"].clone(),
        all["p384_jwk"].clone(),
        json!({"kty": "OKP", "crv": "X25519", "x": jwk("ed25519")["x"]}),
        json!({"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}),
        json!({"kty": "EC", "crv": "P-256", "x": jwk("p256")["x"]}),
        json!("rsa"),
        json!({}),
    ] {
        let keys = with_a_usable_key(key.clone());
        assert_eq!(keys.count(), 1, "{key}");
        assert_eq!(keys.0[0].id(), Some("usable"));
    }
    assert_eq!(
        with_a_usable_key(changed("key_ops", json!(["verify"]))).count(),
        2
    );
    let weak = json!({"keys": [all["weak_jwk"]]}).to_string();
    assert!(matches!(
        KeySet::parse_jwks(weak.as_bytes()),
        Err(Error::NoUsableKey)
    ));
}

#[test]
fn a_private_key_invalidates_the_whole_set() {
    let mut private = jwk("p256");
    private["d"] = "AAAA".into();
    let secret = json!({"kty": "oct", "k": "AAAA"});
    for key in [private, secret] {
        let set = json!({"keys": [jwk("rsa"), key]}).to_string();
        assert!(matches!(
            KeySet::parse_jwks(set.as_bytes()),
            Err(Error::PrivateKey)
        ));
        assert!(matches!(
            KeySet::parse(set.as_bytes()),
            Err(Error::PrivateKey)
        ));
    }
    let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n";
    assert!(matches!(
        KeySet::parse(pem.as_bytes()),
        Err(Error::PrivateKey)
    ));
}

#[test]
fn a_set_is_bounded_in_keys_and_bytes() {
    let set = |count: usize| json!({"keys": vec![jwk("ed25519"); count]}).to_string();
    assert_eq!(
        KeySet::parse_jwks(set(MAX_JWKS_KEYS).as_bytes())
            .unwrap()
            .count(),
        MAX_JWKS_KEYS
    );
    assert!(matches!(
        KeySet::parse_jwks(set(MAX_JWKS_KEYS + 1).as_bytes()),
        Err(Error::TooManyKeys)
    ));
    let padded = |bytes: usize| {
        let mut set = set(1);
        set.push_str(&" ".repeat(bytes - set.len()));
        set
    };
    assert!(KeySet::parse_jwks(padded(MAX_JWKS_BYTES).as_bytes()).is_ok());
    for read in [KeySet::parse_jwks, KeySet::parse] {
        let large = padded(MAX_JWKS_BYTES + 1);
        assert!(matches!(read(large.as_bytes()), Err(Error::TooLarge)));
    }
}

#[test]
fn a_file_contains_a_jwks_or_one_public_key() {
    let all = vectors();
    for (id, key) in all["keys"].as_object().unwrap() {
        let pem = key["pem"].as_str().unwrap();
        let algorithm = JwsAlgorithm::parse(key["alg"].as_str().unwrap()).unwrap();
        let keys = KeySet::parse(format!("a comment\n{pem}").as_bytes()).unwrap();
        // a key without an id matches every id
        assert_eq!(keys.select(algorithm, None).unwrap().id(), None, "{id}");
        assert!(keys.select(algorithm, Some("any")).is_ok());
        assert!(matches!(
            KeySet::parse(pem.repeat(2).as_bytes()),
            Err(Error::UnknownFormat)
        ));
    }
    let set = json!({"keys": [jwk("rsa")]}).to_string();
    assert_eq!(
        KeySet::parse(format!("\n {set}").as_bytes())
            .unwrap()
            .count(),
        1
    );
    for wrong in [
        "",
        "rsa",
        "[]",
        "{}",
        "{\"keys\":{}}",
        "-----BEGIN PUBLIC KEY-----",
    ] {
        assert!(
            matches!(KeySet::parse(wrong.as_bytes()), Err(Error::UnknownFormat)),
            "{wrong:?}"
        );
    }
}

#[test]
fn a_file_is_read_up_to_its_bound() {
    let path = std::env::temp_dir().join(format!("lts-keys-{}", std::process::id()));
    std::fs::write(&path, json!({"keys": [jwk("p256")]}).to_string()).unwrap();
    assert_eq!(KeySet::read_file(&path).unwrap().count(), 1);
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(
        KeySet::read_file(&path),
        Err(Error::Unreadable(_))
    ));
    let endless = KeySet::read_file(Path::new("/dev/zero"));
    assert!(matches!(endless, Err(Error::TooLarge)));
}

#[test]
fn a_truncated_or_extended_public_key_is_rejected() {
    let all = vectors();
    let der = |pem: &str| {
        use rustls::pki_types::SubjectPublicKeyInfoDer;
        use rustls::pki_types::pem::PemObject;
        SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes())
            .unwrap()
            .to_vec()
    };
    for key in all["keys"].as_object().unwrap().values() {
        let der = der(key["pem"].as_str().unwrap());
        let id = key["kid"].as_str().unwrap();
        assert!(parse_spki(&der).is_some(), "{id}");
        for length in 0..der.len() {
            assert!(parse_spki(&der[..length]).is_none(), "{id} cut to {length}");
        }
        assert!(
            parse_spki(&[der.as_slice(), &[0]].concat()).is_none(),
            "{id}"
        );
    }
}

#[test]
fn a_secret_has_the_length_of_its_hash_and_is_not_logged() {
    let secret = "s".repeat(MIN_HS256_SECRET);
    assert!(matches!(
        KeySet::from_secret(&secret[1..]),
        Err(Error::SecretTooShort)
    ));
    let keys = KeySet::from_secret(&secret).unwrap();
    let key = keys.select(JwsAlgorithm::Hs256, Some("any")).unwrap();
    assert!(!format!("{keys:?} {key:?}").contains("sss"));
    assert!(keys.select(JwsAlgorithm::Rs256, None).is_err());
}

#[test]
fn an_id_of_two_keys_with_the_same_algorithm_is_ambiguous() {
    let twice = json!({"keys": [jwk("rsa"), jwk("rsa")]}).to_string();
    let keys = KeySet::parse_jwks(twice.as_bytes()).unwrap();
    for id in [Some("rsa"), None] {
        assert_eq!(
            keys.select(JwsAlgorithm::Rs256, id).unwrap_err(),
            KeyLookupError::Ambiguous
        );
    }
    let mut same_id = jwk("p256");
    same_id["kid"] = "rsa".into();
    let keys = KeySet::parse_jwks(
        json!({"keys": [jwk("rsa"), same_id]})
            .to_string()
            .as_bytes(),
    )
    .unwrap();
    // the algorithms of the two keys differ
    assert!(keys.select(JwsAlgorithm::Rs256, Some("rsa")).is_ok());
    assert!(keys.select(JwsAlgorithm::Es256, Some("rsa")).is_ok());
}
