//! `tests/vectors/login.json`: keys and JWTs that others have made, with their verdicts; and JWTs of our own making, each with
//! one thing wrong.

mod forged;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
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
    serde_json::from_str(include_str!("../../../../tests/vectors/login.json")).unwrap()
}

fn issuers(keys: KeySet) -> JwtIssuers {
    let name = CallerName::parse("booking").unwrap();
    let (issuer, audience) = (ISSUER.to_owned(), AUDIENCE.to_owned());
    JwtIssuers::new(vec![JwtIssuer::new(
        name,
        issuer,
        audience,
        KeySource::Fixed(keys),
    )])
}

/// The JWKS of the vectors' three keys.
fn published() -> JwtIssuers {
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

/// A JWT with these parts, signed by the vectors' key of this id, whatever the header says.
fn signed(id: &str, header: &Value, claims: &Value) -> String {
    let segment = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    by(id, &format!("{}.{}", segment(header), segment(claims)))
}

fn by(id: &str, message: &str) -> String {
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

fn verdict(issuers: &JwtIssuers, token: &str) -> Result<Map<String, Value>, Error> {
    issuers.verify(token, NOW).map(|(_, claims)| claims)
}

/// What becomes of a well signed token with this claim changed; null takes it away.
fn with_claim(name: &str, value: Value) -> Result<Map<String, Value>, Error> {
    let mut claims = claims();
    claims[name] = value;
    claims
        .as_object_mut()
        .unwrap()
        .retain(|_, value| !value.is_null());
    verdict(
        &published(),
        &signed("p256", &json!({"alg": "ES256", "kid": "p256"}), &claims),
    )
}

#[test]
fn others_tokens_get_the_verdict_that_they_came_with() {
    let all = vectors();
    let published = published();
    for vector in all["tokens"].as_array().unwrap() {
        let outcome = verdict(&published, vector["token"].as_str().unwrap());
        let expected = vector["verdict"] == "accepted";
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
        verdict(&by_file, larger["token"].as_str().unwrap()).unwrap();
    }
    let secret = issuers(KeySet::from_secret(all["secret"].as_str().unwrap()).unwrap());
    verdict(&secret, all["secret_token"].as_str().unwrap()).unwrap();
}

#[test]
fn a_user_is_who_the_claim_says() {
    let published = published();
    let mut claims = claims();
    claims["email"] = "alice@example.org".into();
    let token = signed(
        "ed25519",
        &json!({"alg": "Ed25519", "kid": "ed25519"}),
        &claims,
    );
    let (issuer, claims) = published.verify(&token, NOW).unwrap();
    assert_eq!(
        (issuer.name().as_str(), issuer.user_identity(&claims)),
        ("booking", Some("alice"))
    );
    let by_mail = issuer.clone().with_identity_claim("email".into());
    assert_eq!(by_mail.user_identity(&claims), Some("alice@example.org"));
    let by_number = issuer.clone().with_identity_claim("exp".into());
    assert_eq!(by_number.user_identity(&claims), None);
}

#[test]
fn dates_are_honoured_with_a_minute_of_leeway() {
    let expired = Err(Error::Rejected(JwtRejection::Expired));
    let early = Err(Error::Rejected(JwtRejection::NotYetValid));
    let malformed = Err(Error::Rejected(JwtRejection::Malformed));
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
fn issuer_and_audience_are_ours_letter_for_letter() {
    for other in [
        "https://login.example/",
        "https://LOGIN.example",
        "",
        "https://evil.example",
    ] {
        let refused = Err(Error::Rejected(JwtRejection::UnknownIssuer(other.into())));
        assert_eq!(with_claim("iss", other.into()), refused);
    }
    for none in [Value::Null, json!([ISSUER]), json!(7)] {
        let refused = Err(Error::Rejected(JwtRejection::UnknownIssuer(String::new())));
        assert_eq!(with_claim("iss", none), refused);
    }
    for ours in [json!([AUDIENCE]), json!(["a", AUDIENCE, 7])] {
        assert!(with_claim("aud", ours).is_ok());
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
        let refused = Err(Error::Rejected(JwtRejection::WrongAudience));
        assert_eq!(with_claim("aud", other), refused);
    }
    let named = "i".repeat(5000);
    let Err(error) = with_claim("iss", named.into()) else {
        panic!("accepted")
    };
    assert!(error.to_string().len() < 200, "{error}");
}

#[test]
fn one_login_may_have_several_audiences() {
    let all = vectors();
    let secret = KeySet::from_secret(all["secret"].as_str().unwrap()).unwrap();
    let entry = |name: &str, audience: &str| {
        let keys = KeySource::Fixed(secret.clone());
        JwtIssuer::new(
            CallerName::parse(name).unwrap(),
            ISSUER.into(),
            audience.into(),
            keys,
        )
    };
    let both = JwtIssuers::new(vec![entry("first", "other"), entry("second", AUDIENCE)]);
    let (issuer, _) = both
        .verify(all["secret_token"].as_str().unwrap(), NOW)
        .unwrap();
    assert_eq!(issuer.name().as_str(), "second");
}
