//! What an attacker makes of a header, of a public key, or of somebody's token.

use hmac::{Hmac, KeyInit, Mac};

use super::*;

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

/// What becomes of a well signed token with this header.
fn with_header(header: Value) -> Result<Map<String, Value>, Error> {
    verdict(&published(), &signed("p256", &header, &claims()))
}

#[test]
fn the_key_decides_on_the_algorithm() {
    let refused =
        |token: &str, cause| assert_eq!(verdict(&published(), token), Err(Error::Rejected(cause)));
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
    // a public key as the secret of an HMAC, in each form that it has
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
    // where a secret is set, nothing else is believed
    let secret = issuers(KeySet::from_secret(all["secret"].as_str().unwrap()).unwrap());
    let token = signed("rsa", &json!({"alg": "RS256"}), &claims());
    assert_eq!(
        verdict(&secret, &token),
        Err(Error::Rejected(JwtRejection::KeyLookup(
            KeyLookupError::UnknownKey
        )))
    );
}

#[test]
fn a_token_brings_no_key_of_its_own() {
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
        let outcome = verdict(&published(), &signed("ed25519", &header, &claims()));
        assert_eq!(
            outcome,
            Err(Error::Rejected(JwtRejection::KeyLookup(
                KeyLookupError::AlgorithmMismatch
            ))),
            "{name}"
        );
    }
}

#[test]
fn headers_say_nothing_that_has_to_be_understood() {
    for critical in [json!(["exp"]), json!([]), Value::Null, json!(false)] {
        let header = json!({"alg": "ES256", "kid": "p256", "crit": critical});
        assert_eq!(
            with_header(header),
            Err(Error::Rejected(JwtRejection::CriticalExtension))
        );
    }
    for kind in ["JWT", "jwt", "at+jwt", "application/at+JWT"] {
        assert!(with_header(json!({"alg": "ES256", "kid": "p256", "typ": kind})).is_ok());
    }
    for kind in ["logout+jwt", "dpop+jwt", "", "JWE"] {
        let refused = Err(Error::Rejected(JwtRejection::UnsupportedType(kind.into())));
        assert_eq!(
            with_header(json!({"alg": "ES256", "kid": "p256", "typ": kind})),
            refused
        );
    }
    let malformed = Err(Error::Rejected(JwtRejection::Malformed));
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
fn what_is_no_jwt_is_refused_whatever_its_form() {
    let good = signed("p256", &json!({"alg": "ES256", "kid": "p256"}), &claims());
    let published = published();
    assert!(verdict(&published, &good).is_ok());
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
            verdict(&published, &wrong),
            Err(Error::Rejected(JwtRejection::Malformed)),
            "{wrong:.40}"
        );
    }
    // the longest that is read, and one byte more
    let filled = |length: usize| {
        let mut claims = claims();
        let bare = signed("p256", &json!({"alg": "ES256", "kid": "p256"}), &claims).len();
        claims["filler"] = "x".repeat((length - bare) * 3 / 4 - 14).into();
        signed("p256", &json!({"alg": "ES256", "kid": "p256"}), &claims)
    };
    assert!(filled(MAX_JWT_BYTES).len() > MAX_JWT_BYTES - 8);
    assert!(verdict(&published, &filled(MAX_JWT_BYTES)).is_ok());
    let long = filled(MAX_JWT_BYTES + 16);
    assert!(long.len() > MAX_JWT_BYTES);
    assert_eq!(
        verdict(&published, &long),
        Err(Error::Rejected(JwtRejection::Malformed))
    );
    // two claims of one name are two meanings
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","alg":"ES256","kid":"p256"}"#);
    let twice = by(
        "p256",
        &format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims().to_string())),
    );
    assert_eq!(
        verdict(&published, &twice),
        Err(Error::Rejected(JwtRejection::Malformed))
    );
}

#[test]
fn not_one_character_of_a_token_can_be_changed() {
    let published = published();
    for id in ["p256", "ed25519"] {
        let alg = &vectors()["keys"][id]["alg"];
        let good = signed(id, &json!({"alg": alg, "kid": id}), &claims());
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(verdict(&published, &changed).is_err(), "{changed} at {at}");
        }
    }
}
