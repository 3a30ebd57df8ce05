//! Attacks with JWTs: forged, replayed for another user, expired, or for another audience.

use serde_json::{Value, json};

use crate::client::Reply;
use crate::fake_issuer::{
    AUDIENCE, FakeIssuer, ISSUER, SigningKey, rsa_vector, sign_hs256, user_claims,
};
use crate::jwt;
use crate::process::{Service, run_to_exit};
use crate::settings::{SECRET, Settings};
use crate::token_client::{any_request, policy_settings, request_token, users_entry};

/// The HS256 secret of a JWT issuer.
const ISSUER_SECRET: &str = "never-logged-secret-of-the-issuer-of-the-application";

/// A service with a JWT issuer that has three keys.
struct JwtSetup {
    rsa: SigningKey,
    p256: SigningKey,
    ed25519: SigningKey,
    issuer: FakeIssuer,
    service: Service,
}

impl JwtSetup {
    fn new(lines: &str) -> Self {
        let (rsa, p256) = (SigningKey::rsa("one"), SigningKey::p256("two"));
        let ed25519 = SigningKey::ed25519("three");
        let issuer = FakeIssuer::with_keys(&[&rsa, &p256, &ed25519]);
        let service = Service::start(&policy_settings(&users_entry(&issuer.url(), lines)));
        Self {
            rsa,
            p256,
            ed25519,
            issuer,
            service,
        }
    }

    fn ask(&self, token: &str) -> Reply {
        request_token(self.service.address(), token, &any_request())
    }
}

#[test]
fn a_jwt_signed_by_any_key_of_the_issuer_is_accepted() {
    let setup = JwtSetup::new("");
    for key in [&setup.rsa, &setup.p256, &setup.ed25519] {
        let reply = setup.ask(&key.token_for("alice"));
        assert_eq!(reply.status, 201, "{} {reply:?}", key.id);
        let token = reply.json()["participant_token"]
            .as_str()
            .unwrap()
            .to_owned();
        assert_eq!(jwt::claims(&token, SECRET)["sub"], "alice");
    }
    assert_eq!(setup.issuer.fetch_count(), 1);
}

#[test]
fn forged_jwts_are_rejected_with_the_same_response() {
    let setup = JwtSetup::new("");
    let (valid, now) = (user_claims("alice"), jwt::now());
    let unpublished = SigningKey::ed25519("three");
    let header = |alg: &str, kid: &str| json!({"alg": alg, "kid": kid, "typ": "JWT"});
    let message = |token: &str| token.rsplit_once('.').unwrap().0.to_owned();
    let unsigned = message(&setup.rsa.sign_with_header(&header("none", "one"), &valid));
    let good = setup.p256.token_for("alice");
    let mut with_own_key = header("EdDSA", "three");
    with_own_key["jwk"] = unpublished.jwk();
    with_own_key["jku"] = "https://evil.example.com/keys".into();
    let mut critical = header("ES256", "two");
    critical["crit"] = json!(["exp"]);
    let logout = json!({"alg": "ES256", "kid": "two", "typ": "logout+jwt"});
    let mut attacks = vec![
        ("alg none", format!("{unsigned}.")),
        (
            "alg none with a signature",
            setup.rsa.sign_with_header(&header("none", "one"), &valid),
        ),
        (
            "alg NONE",
            setup.rsa.sign_with_header(&header("NONE", "one"), &valid),
        ),
        ("no signature", message(&good) + "."),
        ("two segments", message(&good)),
        (
            "no alg",
            setup.p256.sign_with_header(&json!({"kid": "two"}), &valid),
        ),
        (
            "the signature of another JWT",
            message(&good) + "." + setup.p256.token_for("bob").rsplit('.').next().unwrap(),
        ),
        (
            "an unpublished key with a published id",
            unpublished.token_for("alice"),
        ),
        (
            "a key in the header",
            unpublished.sign_with_header(&with_own_key, &valid),
        ),
        (
            "the id of another key",
            setup
                .p256
                .sign_with_header(&header("ES256", "three"), &valid),
        ),
        (
            "the algorithm of another key",
            setup.p256.sign_with_header(&header("EdDSA", "two"), &valid),
        ),
        (
            "a path as the key id",
            setup
                .p256
                .sign_with_header(&header("ES256", "../../../dev/null"), &valid),
        ),
        (
            "an empty key id",
            setup.p256.sign_with_header(&header("ES256", ""), &valid),
        ),
        (
            "a critical extension",
            setup.p256.sign_with_header(&critical, &valid),
        ),
        (
            "a logout token",
            setup.p256.sign_with_header(&logout, &valid),
        ),
        (
            "14 KB without JSON",
            "a".repeat(7000) + "." + &"b".repeat(7000) + ".c",
        ),
    ];
    let public = [
        ("PEM", rsa_vector("pem").as_str().unwrap().to_owned()),
        (
            "modulus",
            rsa_vector("jwk")["n"].as_str().unwrap().to_owned(),
        ),
        ("JWK", setup.rsa.jwk().to_string()),
    ];
    for (form, key) in &public {
        for alg in ["HS256", "RS256"] {
            attacks.push((
                form,
                sign_hs256(key.as_bytes(), &header(alg, "one"), &valid),
            ));
        }
        attacks.push((
            form,
            sign_hs256(key.as_bytes(), &json!({"alg": "HS256"}), &valid),
        ));
    }
    for empty in ["", " ", "null"] {
        attacks.push((
            "an empty secret",
            sign_hs256(empty.as_bytes(), &header("HS256", "one"), &valid),
        ));
    }
    for (name, value) in [
        ("exp", json!(now - 61)),
        ("exp", json!(0)),
        ("exp", json!((now + 600).to_string())),
        ("exp", Value::Null),
        ("nbf", json!(now + 600)),
        ("iat", json!(now + 600)),
        ("aud", json!("other")),
        ("aud", json!(["other", AUDIENCE.to_uppercase()])),
        ("aud", Value::Null),
        ("iss", json!("https://login.example.com.evil.example")),
        ("iss", json!(format!("{ISSUER}/"))),
        ("iss", Value::Null),
    ] {
        let mut claims = user_claims("alice");
        claims[name] = value;
        attacks.push((name, setup.p256.sign(&claims)));
    }
    let first = setup.ask("a.b.c");
    for (what, token) in &attacks {
        let reply = setup.ask(token);
        assert_eq!(reply.status, 401, "{what}: {reply:?}");
        assert_eq!(reply.body, first.body, "{what}: another response");
    }
    assert_eq!(setup.ask(&good).status, 201);
    // the log has the causes
    for cause in [
        "expired",
        "not valid yet",
        "audience",
        "issuer",
        "signature",
        "algorithm",
        "critical",
        "malformed",
    ] {
        setup
            .service
            .wait_for_line_with(&["refused", "endpoint=token", "status=401", cause]);
    }
}

#[test]
fn a_user_cannot_use_the_identity_of_another() {
    let setup = JwtSetup::new("");
    let alice = setup.rsa.token_for("alice");
    let request_as = |identity: &str| {
        let body = json!({"room_name": "room", "participant_identity": identity});
        request_token(setup.service.address(), &alice, &body)
    };
    assert_eq!(request_as("alice").status, 201);
    for other in [
        "bob",
        "alice2",
        "Alice",
        "alic",
        "alice\u{200b}",
        "\u{430}lice",
        "alice ",
        "*",
        "",
    ] {
        let reply = request_as(other);
        assert!((400..500).contains(&reply.status), "{other:?} {reply:?}");
        assert!(
            reply.json()["detail"]
                .to_string()
                .contains("participant_identity"),
            "{reply:?}"
        );
    }
    // no `sub`, or one that is not an identity
    for subject in [
        Value::Null,
        json!(""),
        json!({"id": "alice"}),
        json!(["alice"]),
        json!("a\u{0}"),
        json!("a".repeat(257)),
    ] {
        let mut claims = user_claims("alice");
        claims["sub"] = subject.clone();
        let reply = request_token(
            setup.service.address(),
            &setup.rsa.sign(&claims),
            &json!({"room_name": "room"}),
        );
        assert!((400..500).contains(&reply.status), "{subject} {reply:?}");
    }
}

#[test]
fn a_claim_allows_only_the_rooms_of_its_own_tenant() {
    let setup = JwtSetup::new("rooms = [\"{claim:tenant}/*\"]");
    let status_for = |tenant: Value, room: &str| {
        let mut claims = user_claims("alice");
        claims["tenant"] = tenant;
        let body = json!({"room_name": room, "participant_identity": "alice"});
        request_token(setup.service.address(), &setup.p256.sign(&claims), &body).status
    };
    assert_eq!(status_for(json!("acme"), "acme/1"), 201);
    for (tenant, room) in [
        (json!("acme"), "other/1"),
        (json!("*"), "other/1"),
        (json!("{identity}"), "alice/1"),
        (json!(""), "/1"),
        (Value::Null, "null/1"),
        (Value::Null, "/1"),
        (json!(["acme"]), "acme/1"),
        (json!({"a": 1}), "acme/1"),
        (json!(true), "true/1"),
    ] {
        assert_eq!(status_for(tenant.clone(), room), 403, "{tenant} {room}");
    }
}

#[test]
fn hs256_requires_a_configured_secret() {
    let base = || {
        Settings::complete()
            .set("TOKEN_SERVER_JWT_ISSUER", ISSUER)
            .set("TOKEN_SERVER_JWT_AUDIENCE", AUDIENCE)
    };
    let service = Service::start(&base().set("TOKEN_SERVER_JWT_SECRET", ISSUER_SECRET));
    let token = |secret: &str, alg: &str| {
        sign_hs256(
            secret.as_bytes(),
            &json!({"alg": alg}),
            &user_claims("alice"),
        )
    };
    let status = |token: &str| request_token(service.address(), token, &any_request()).status;
    assert_eq!(status(&token(ISSUER_SECRET, "HS256")), 201);
    assert_eq!(status(&token(ISSUER_SECRET, "HS512")), 401);
    assert_eq!(status(&token(ISSUER_SECRET, "none")), 401);
    assert_eq!(status(&token("", "HS256")), 401);
    assert_eq!(status(&token(&ISSUER_SECRET[1..], "HS256")), 401);
    assert_eq!(status(&SigningKey::rsa("one").token_for("alice")), 401);
    // an access token that the service signed is not a JWT of the issuer
    let reply = request_token(
        service.address(),
        &token(ISSUER_SECRET, "HS256"),
        &any_request(),
    );
    let access_token = reply.json()["participant_token"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(status(&access_token), 401);

    let exit = run_to_exit(
        &[],
        &base().set("TOKEN_SERVER_JWT_SECRET", "never-logged-short"),
    );
    assert_eq!(exit.code, Some(78), "{exit:?}");
    assert!(exit.stderr.contains("TOKEN_SERVER_JWT_SECRET"), "{exit:?}");
}

#[test]
fn keys_can_be_in_a_file() {
    let rsa = SigningKey::rsa("one");
    let base = || {
        Settings::complete()
            .set("TOKEN_SERVER_JWT_ISSUER", ISSUER)
            .set("TOKEN_SERVER_JWT_AUDIENCE", AUDIENCE)
    };
    let jwks = json!({"keys": [rsa.jwk()]}).to_string();
    for file in [rsa_vector("pem").as_str().unwrap(), &jwks] {
        let service = Service::start(&base().set_file("TOKEN_SERVER_JWT_KEYS", file));
        assert_eq!(
            request_token(service.address(), &rsa.token_for("alice"), &any_request()).status,
            201
        );
        let forged = sign_hs256(
            file.as_bytes(),
            &json!({"alg": "HS256", "kid": "one"}),
            &user_claims("alice"),
        );
        assert_eq!(
            request_token(service.address(), &forged, &any_request()).status,
            401
        );
        let unpublished = SigningKey::p256("one").token_for("alice");
        assert_eq!(
            request_token(service.address(), &unpublished, &any_request()).status,
            401
        );
    }
    let mut private = rsa.jwk();
    private["d"] = "AAAA".into();
    for wrong in [
        "",
        "{}",
        "{\"keys\":[]}",
        &json!({"keys": [private]}).to_string(),
    ] {
        let exit = run_to_exit(&[], &base().set_file("TOKEN_SERVER_JWT_KEYS", wrong));
        assert_eq!(exit.code, Some(78), "{wrong} {exit:?}");
        assert!(exit.stderr.contains("TOKEN_SERVER_JWT_KEYS"), "{exit:?}");
    }
}
