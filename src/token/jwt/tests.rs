//! `tests/vectors/jwt_issuer.json`: keys and JWTs made by other implementations, with the expected results; and JWTs signed here, each
//! with one defect.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::json;

use super::*;

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://login.example";
const AUDIENCE: &str = "livekit-tokens";

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../tests/vectors/jwt_issuer.json")).unwrap()
}

fn issuer(name: &str, audience: &str, keys: KeySet) -> JwtIssuer {
    JwtIssuer {
        name: CallerName::parse(name).unwrap(),
        issuer: ISSUER.to_owned(),
        audience: audience.to_owned(),
        identity_claim: DEFAULT_IDENTITY_CLAIM.to_owned(),
        keys: KeySource::Fixed(keys),
    }
}

fn issuers(keys: KeySet) -> Vec<JwtIssuer> {
    vec![issuer("booking", AUDIENCE, keys)]
}

/// An issuer with the three public keys of the vectors.
fn published() -> Vec<JwtIssuer> {
    let all = vectors();
    let keys: Vec<&Value> = all["keys"]
        .as_object()
        .unwrap()
        .values()
        .map(|key| &key["jwk"])
        .collect();
    issuers(KeySet::parse_jwks(json!({"keys": keys}).to_string().as_bytes()).unwrap())
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": NOW + 300})
}

/// A JWT with this header and these claims, signed by the key of the vectors with this id, whatever the header says.
fn signed(id: &str, header: &Value, claims: &Value) -> String {
    let segment = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    sign(id, &format!("{}.{}", segment(header), segment(claims)))
}

fn sign(id: &str, message: &str) -> String {
    let all = vectors();
    let key = STANDARD
        .decode(all["keys"][id]["pkcs8"].as_str().unwrap())
        .unwrap();
    let random = SystemRandom::new();
    let signature = match id {
        "rsa" => {
            let key = RsaKeyPair::from_pkcs8(&key).unwrap();
            let mut signature = vec![0; key.public().modulus_len()];
            key.sign(
                &RSA_PKCS1_SHA256,
                &random,
                message.as_bytes(),
                &mut signature,
            )
            .unwrap();
            signature
        }
        "p256" => {
            let key =
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key, &random).unwrap();
            key.sign(&random, message.as_bytes())
                .unwrap()
                .as_ref()
                .to_vec()
        }
        _ => {
            let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&key).unwrap();
            key.sign(message.as_bytes()).as_ref().to_vec()
        }
    };
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn verify(issuers: &[JwtIssuer], token: &str) -> Result<Map<String, Value>, JwtRejection> {
    match verify_jwt(token, issuers, NOW) {
        Ok(jwt) => Ok(jwt.claims),
        Err(Error::JwtRejected(rejection)) => Err(rejection),
        Err(other) => panic!("{other}"),
    }
}

/// Verifies a correctly signed token with one claim changed; null removes the claim.
fn with_claim(name: &str, value: Value) -> Result<Map<String, Value>, JwtRejection> {
    let mut claims = claims();
    claims[name] = value;
    claims
        .as_object_mut()
        .unwrap()
        .retain(|_, value| !value.is_null());
    verify(
        &published(),
        &signed("p256", &json!({"alg": "ES256", "kid": "p256"}), &claims),
    )
}

#[test]
fn tokens_of_other_implementations_are_accepted_and_rejected_as_expected() {
    let all = vectors();
    let published = published();
    for vector in all["tokens"].as_array().unwrap() {
        let outcome = verify(&published, vector["token"].as_str().unwrap());
        let expected = vector["expected"] == "accepted";
        assert_eq!(outcome.is_ok(), expected, "{}: {outcome:?}", vector["id"]);
        if let Ok(claims) = outcome {
            assert_eq!(claims["sub"], "alice");
        }
    }
    for (bits, larger) in all["larger_rsa"].as_object().unwrap() {
        let path = std::env::temp_dir().join(format!("lts-{}-{bits}.pem", std::process::id()));
        std::fs::write(&path, larger["pem"].as_str().unwrap()).unwrap();
        let by_file = issuers(KeySet::read_file(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        verify(&by_file, larger["token"].as_str().unwrap()).unwrap();
    }
    let secret = issuers(KeySet::from_secret(all["secret"].as_str().unwrap()).unwrap());
    verify(&secret, all["secret_token"].as_str().unwrap()).unwrap();
}

#[test]
fn the_identity_claim_identifies_the_user() {
    let published = published();
    let mut claims = claims();
    claims["email"] = "alice@example.org".into();
    let header = json!({"alg": "Ed25519", "kid": "ed25519"});
    let token = signed("ed25519", &header, &claims);
    for (claim, user) in [
        ("sub", Some("alice")),
        ("email", Some("alice@example.org")),
        ("exp", None),
    ] {
        let issuers = [JwtIssuer {
            identity_claim: claim.to_owned(),
            ..published[0].clone()
        }];
        let jwt = verify_jwt(&token, &issuers, NOW).unwrap();
        assert_eq!(jwt.issuer.name.as_str(), "booking");
        assert_eq!(jwt.user(), user);
    }
}

#[test]
fn time_claims_have_a_minute_of_leeway() {
    let expired = Err(JwtRejection::Expired);
    let early = Err(JwtRejection::NotYetValid);
    let malformed = Err(JwtRejection::Malformed);
    assert!(with_claim("exp", (NOW - CLOCK_LEEWAY + 1).into()).is_ok());
    assert_eq!(with_claim("exp", (NOW - CLOCK_LEEWAY).into()), expired);
    for past in [json!(0), json!(-1), json!(-1e300), json!(1.5)] {
        assert_eq!(with_claim("exp", past), expired);
    }
    for far in [json!(u64::MAX), json!(1e300)] {
        assert!(with_claim("exp", far).is_ok());
    }
    for name in ["nbf", "iat"] {
        assert!(with_claim(name, (NOW + CLOCK_LEEWAY).into()).is_ok());
        assert_eq!(with_claim(name, (NOW + CLOCK_LEEWAY + 1).into()), early);
        assert_eq!(with_claim(name, json!(1e300)), early);
        assert_eq!(with_claim(name, "soon".into()), malformed);
        assert!(with_claim(name, Value::Null).is_ok());
    }
    for wrong in [
        Value::Null,
        "1800000300".into(),
        json!([NOW + 300]),
        json!({}),
        json!(true),
    ] {
        assert_eq!(with_claim("exp", wrong), malformed);
    }
}

#[test]
fn issuer_and_audience_are_compared_byte_by_byte() {
    for other in [
        "https://login.example/",
        "https://LOGIN.example",
        "",
        "https://evil.example",
    ] {
        let refused = Err(JwtRejection::UnknownIssuer(other.into()));
        assert_eq!(with_claim("iss", other.into()), refused);
    }
    for none in [Value::Null, json!([ISSUER]), json!(7)] {
        let refused = Err(JwtRejection::UnknownIssuer(String::new()));
        assert_eq!(with_claim("iss", none), refused);
    }
    for accepted in [json!([AUDIENCE]), json!(["a", AUDIENCE, 7])] {
        assert!(with_claim("aud", accepted).is_ok());
    }
    for other in [
        Value::Null,
        json!([]),
        json!("LIVEKIT-TOKENS"),
        json!(["livekit", "tokens"]),
        json!([[AUDIENCE]]),
        json!({AUDIENCE: AUDIENCE}),
        json!("livekit-tokens other"),
    ] {
        let refused = Err(JwtRejection::WrongAudience);
        assert_eq!(with_claim("aud", other), refused);
    }
    let named = "i".repeat(5000);
    let Err(error) = with_claim("iss", named.into()) else {
        panic!("accepted")
    };
    assert!(error.to_string().len() < 200, "{error}");
}

#[test]
fn two_issuers_with_the_same_name_differ_by_audience() {
    let all = vectors();
    let secret = KeySet::from_secret(all["secret"].as_str().unwrap()).unwrap();
    let both = [
        issuer("first", "other", secret.clone()),
        issuer("second", AUDIENCE, secret),
    ];
    let token = all["secret_token"].as_str().unwrap();
    let jwt = verify_jwt(token, &both, NOW).unwrap();
    assert_eq!(jwt.issuer.name.as_str(), "second");
}

fn hs256(secret: &[u8], header: &Value) -> String {
    let segment = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", segment(header), segment(&claims()));
    let mac = Hmac::<sha2::Sha256>::new_from_slice(secret)
        .unwrap()
        .chain_update(&message);
    format!(
        "{message}.{}",
        URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
    )
}

/// Verifies a correctly signed token with this header.
fn with_header(header: Value) -> Result<Map<String, Value>, JwtRejection> {
    verify(&published(), &signed("p256", &header, &claims()))
}

#[test]
fn the_key_determines_the_algorithm() {
    let refused = |token: &str, rejection| assert_eq!(verify(&published(), token), Err(rejection));
    for name in [
        "none", "None", "", "HS512", "PS256", "RS512", "ES384", "rs256",
    ] {
        refused(
            &signed("rsa", &json!({"alg": name}), &claims()),
            JwtRejection::UnsupportedAlgorithm(name.into()),
        );
    }
    // without a signature at all
    let unsigned = signed("rsa", &json!({"alg": "none"}), &claims());
    let (message, _) = unsigned.rsplit_once('.').unwrap();
    refused(
        &format!("{message}."),
        JwtRejection::UnsupportedAlgorithm("none".into()),
    );
    let empty = signed("rsa", &json!({"alg": "RS256", "kid": "rsa"}), &claims());
    let (message, _) = empty.rsplit_once('.').unwrap();
    refused(&format!("{message}."), JwtRejection::BadSignature);
    // a public key as the secret of an HMAC, in each of its forms
    let all = vectors();
    let key = &all["keys"]["rsa"];
    let forms = [
        key["pem"].as_str().unwrap().to_owned(),
        key["pem"].as_str().unwrap().trim().to_owned(),
        key["jwk"]["n"].as_str().unwrap().to_owned(),
        key["jwk"].to_string(),
    ];
    for form in forms {
        for header in [
            json!({"alg": "HS256", "kid": "rsa"}),
            json!({"alg": "HS256"}),
        ] {
            refused(
                &hs256(form.as_bytes(), &header),
                JwtRejection::KeyLookup(KeyLookupError::AlgorithmMismatch),
            );
        }
        let right = hs256(form.as_bytes(), &json!({"alg": "RS256", "kid": "rsa"}));
        refused(&right, JwtRejection::BadSignature);
    }
    for (id, alg) in [("rsa", "ES256"), ("p256", "RS256"), ("ed25519", "ES256")] {
        refused(
            &signed(id, &json!({"alg": alg, "kid": id}), &claims()),
            JwtRejection::KeyLookup(KeyLookupError::AlgorithmMismatch),
        );
    }
    // an issuer with a secret has no public keys
    let secret = issuers(KeySet::from_secret(all["secret"].as_str().unwrap()).unwrap());
    let token = signed("rsa", &json!({"alg": "RS256"}), &claims());
    assert_eq!(
        verify(&secret, &token),
        Err(JwtRejection::KeyLookup(KeyLookupError::UnknownKey))
    );
}

#[test]
fn keys_in_the_header_of_a_token_are_ignored() {
    let all = vectors();
    let own = &all["keys"]["ed25519"]["jwk"];
    for (name, value) in [
        ("jwk", own.clone()),
        ("jku", "https://evil.example/jwks.json".into()),
        ("x5u", "https://evil.example/cert.pem".into()),
        ("x5c", json!(["AAAA"])),
    ] {
        let mut header = json!({"alg": "EdDSA", "kid": "p256"});
        header[name] = value;
        let outcome = verify(&published(), &signed("ed25519", &header, &claims()));
        assert_eq!(
            outcome,
            Err(JwtRejection::KeyLookup(KeyLookupError::AlgorithmMismatch)),
            "{name}"
        );
    }
}

#[test]
fn critical_extensions_and_other_token_types_are_rejected() {
    for critical in [json!(["exp"]), json!([]), Value::Null, json!(false)] {
        let header = json!({"alg": "ES256", "kid": "p256", "crit": critical});
        assert_eq!(with_header(header), Err(JwtRejection::CriticalExtension));
    }
    for kind in ["JWT", "jwt", "at+jwt", "application/at+JWT"] {
        assert!(with_header(json!({"alg": "ES256", "kid": "p256", "typ": kind})).is_ok());
    }
    for kind in ["logout+jwt", "dpop+jwt", "", "JWE"] {
        let refused = Err(JwtRejection::UnsupportedType(kind.into()));
        assert_eq!(
            with_header(json!({"alg": "ES256", "kid": "p256", "typ": kind})),
            refused
        );
    }
    let malformed = Err(JwtRejection::Malformed);
    for header in [
        json!({}),
        json!({"alg": 5}),
        json!({"alg": null}),
        json!([]),
        json!({"alg": "ES256", "kid": 7}),
    ] {
        assert_eq!(with_header(header), malformed);
    }
}

#[test]
fn malformed_tokens_are_rejected() {
    let good = signed("p256", &json!({"alg": "ES256", "kid": "p256"}), &claims());
    let published = published();
    assert!(verify(&published, &good).is_ok());
    for wrong in [
        String::new(),
        ".".into(),
        "..".into(),
        "a.b.c".into(),
        format!("{good}."),
        format!(".{good}"),
        format!("{good}="),
        format!(" {good}"),
        good.replace('.', ""),
        format!("{good}.{good}"),
        good.replacen('.', "..", 1),
        format!("{good}{}", "A".repeat(MAX_JWT_BYTES)),
    ] {
        assert_eq!(
            verify(&published, &wrong),
            Err(JwtRejection::Malformed),
            "{wrong:.40}"
        );
    }
    // the longest accepted token, and a longer one
    let filled = |length: usize| {
        let mut claims = claims();
        let bare = signed("p256", &json!({"alg": "ES256", "kid": "p256"}), &claims).len();
        claims["filler"] = "x".repeat((length - bare) * 3 / 4 - 14).into();
        signed("p256", &json!({"alg": "ES256", "kid": "p256"}), &claims)
    };
    assert!(filled(MAX_JWT_BYTES).len() > MAX_JWT_BYTES - 8);
    assert!(verify(&published, &filled(MAX_JWT_BYTES)).is_ok());
    let long = filled(MAX_JWT_BYTES + 16);
    assert!(long.len() > MAX_JWT_BYTES);
    assert_eq!(verify(&published, &long), Err(JwtRejection::Malformed));
    // two parameters with the same name are ambiguous
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","alg":"ES256","kid":"p256"}"#);
    let twice = sign(
        "p256",
        &format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims().to_string())),
    );
    assert_eq!(verify(&published, &twice), Err(JwtRejection::Malformed));
}

#[test]
fn a_token_with_one_changed_character_is_rejected() {
    let published = published();
    for id in ["p256", "ed25519"] {
        let alg = &vectors()["keys"][id]["alg"];
        let good = signed(id, &json!({"alg": alg, "kid": id}), &claims());
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(verify(&published, &changed).is_err(), "{changed} at {at}");
        }
    }
}
