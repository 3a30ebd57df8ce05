//! Attacks with a JWT issuer's key set: floods that trigger fetches, and servers that respond wrongly.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::Connection;
use crate::fake_issuer::{FakeIssuer, IssuerBehaviour, OVERSIZED_BYTES, SigningKey};
use crate::process::{Service, run_to_exit};
use crate::settings::Settings;
use crate::silent_listener::SilentListener;
use crate::token_client::{
    APP_KEY, any_request, app_entry, policy_settings, request_token, request_token_on, users_entry,
};

/// JWTs with unknown keys.
const FLOOD: usize = 300;
/// Concurrent clients.
const CLIENTS: usize = 30;
/// One fetch at the start, and one because of the first unknown key; the next is allowed after a minute.
const FETCHES: usize = 2;
/// Largest key set in bytes, and the bytes that socket buffers can take in addition.
const MAX_JWKS_BYTES: u64 = 256 * 1024;
const SOCKET_BUFFERS: u64 = 6 * 1024 * 1024;
/// Deadline that only a hang would miss.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A caller with an API key, and a JWT issuer.
fn settings_with_both_callers(keys: &str) -> Settings {
    policy_settings(
        &(app_entry("requests_per_minute = 0") + &users_entry(keys, "requests_per_minute = 0")),
    )
}

#[test]
fn a_flood_of_unknown_keys_triggers_one_fetch() {
    let known = SigningKey::p256("known");
    let issuer = FakeIssuer::with_keys(&[&known]);
    let service = Service::start(&settings_with_both_callers(&issuer.url()));
    assert_eq!(
        request_token(service.address(), &known.token_for("alice"), &any_request()).status,
        201
    );
    let start = Instant::now();
    let unpublished = SigningKey::ed25519("unpublished");
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (service, unpublished, known) = (&service, &unpublished, &known);
            scope.spawn(move || {
                let mut connection = Connection::open(service.address()).unwrap();
                for number in 0..FLOOD / CLIENTS {
                    let header = json!({"alg": "EdDSA", "kid": format!("{client}-{number}")});
                    let token = unpublished
                        .sign_with_header(&header, &crate::fake_issuer::user_claims("mallory"));
                    let reply = request_token_on(&mut connection, &token, &any_request());
                    assert!(matches!(reply.status, 401 | 503), "{reply:?}");
                    let reply = request_token_on(
                        &mut connection,
                        &known.token_for("alice"),
                        &any_request(),
                    );
                    assert_eq!(reply.status, 201, "{reply:?}");
                }
            });
        }
    });
    let minutes = usize::try_from(start.elapsed().as_secs() / 60).unwrap();
    let fetches = issuer.fetch_count();
    assert!(
        (FETCHES..=FETCHES + minutes).contains(&fetches),
        "{fetches} fetches"
    );
}

#[test]
fn a_new_key_is_fetched_for_the_first_jwt_that_names_it() {
    let (old, new) = (SigningKey::rsa("old"), SigningKey::p256("new"));
    let issuer = FakeIssuer::with_keys(&[&old]);
    let service = Service::start(&settings_with_both_callers(&issuer.url()));
    assert_eq!(
        request_token(service.address(), &old.token_for("alice"), &any_request()).status,
        201
    );
    issuer.publish(&new);
    for key in [&new, &old] {
        let reply = request_token(service.address(), &key.token_for("alice"), &any_request());
        assert_eq!(reply.status, 201, "{} {reply:?}", key.id);
    }
    assert_eq!(issuer.fetch_count(), FETCHES);
}

#[test]
fn an_oversized_key_set_is_rejected() {
    for content_length in [true, false] {
        let key = SigningKey::p256("one");
        let issuer = FakeIssuer::start(&[&key], IssuerBehaviour::Oversized { content_length });
        let service = Service::start(&settings_with_both_callers(&issuer.url()));
        let reply = request_token(service.address(), &key.token_for("alice"), &any_request());
        assert_eq!(reply.status, 503, "{reply:?}");
        let retry_after = reply.header("retry-after").map(str::parse::<u64>);
        assert!(matches!(retry_after, Some(Ok(1..=60))), "{reply:?}");
        assert_eq!(
            request_token(service.address(), APP_KEY, &any_request()).status,
            201
        );
        service.wait_for_line_with(&["jwks fetch failed", "262144 bytes"]);
        let fetches = u64::try_from(issuer.fetch_count()).unwrap();
        let max = fetches * (MAX_JWKS_BYTES + SOCKET_BUFFERS);
        assert!(
            issuer.oversized_bytes_sent() < max.min(fetches * OVERSIZED_BYTES),
            "{} bytes",
            issuer.oversized_bytes_sent()
        );
    }
}

#[test]
fn a_hanging_server_does_not_delay_jwts_with_known_keys() {
    let (known, new) = (SigningKey::rsa("known"), SigningKey::p256("new"));
    let issuer = FakeIssuer::with_keys(&[&known]);
    let service = Service::start(&settings_with_both_callers(&issuer.url()));
    assert_eq!(
        request_token(service.address(), &known.token_for("alice"), &any_request()).status,
        201
    );
    issuer.set_behaviour(IssuerBehaviour::Hangs);
    let start = Instant::now();
    thread::scope(|scope| {
        let service = &service;
        let waiting: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let start = Instant::now();
                    let reply =
                        request_token(service.address(), &new.token_for("bob"), &any_request());
                    (reply, start.elapsed())
                })
            })
            .collect();
        // these are served while others wait for the new key
        let mut served = 0;
        while served < 50 || issuer.fetch_count() < FETCHES {
            for bearer in [APP_KEY, &known.token_for("alice")] {
                let reply = request_token(service.address(), bearer, &any_request());
                assert_eq!(reply.status, 201, "{reply:?}");
            }
            assert_eq!(service.request("GET", "/healthz").status, 200);
            served += 1;
            assert!(start.elapsed() < TIMEOUT, "no request for the new key");
        }
        for one in waiting {
            let (reply, took) = one.join().unwrap();
            assert_eq!(reply.status, 503, "{reply:?}");
            let retry_after = reply.header("retry-after").map(str::parse::<u64>);
            assert!(matches!(retry_after, Some(Ok(1..=60))), "{reply:?}");
            assert!(took < TIMEOUT, "{took:?}");
        }
    });
    assert_eq!(
        request_token(service.address(), &known.token_for("alice"), &any_request()).status,
        201
    );
}

#[test]
fn a_server_that_never_responded_does_not_affect_other_callers() {
    let key = SigningKey::p256("one");
    let issuer = FakeIssuer::start(&[&key], IssuerBehaviour::Hangs);
    let service = Service::start(&settings_with_both_callers(&issuer.url()));
    let start = Instant::now();
    assert_eq!(
        request_token(service.address(), APP_KEY, &any_request()).status,
        201
    );
    let reply = request_token(service.address(), &key.token_for("alice"), &any_request());
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(start.elapsed() < TIMEOUT, "{:?}", start.elapsed());
    service.wait_for_line_with(&["jwks fetch failed", "timed out"]);
    // an expired JWT is rejected without keys
    let mut old = crate::fake_issuer::user_claims("alice");
    old["exp"] = json!(1);
    assert_eq!(
        request_token(service.address(), &key.sign(&old), &any_request()).status,
        401
    );
}

#[test]
fn a_response_without_a_key_set_authenticates_no_jwt() {
    let key = SigningKey::ed25519("one");
    let valid = json!({"keys": [key.jwk()]});
    let mut private = key.jwk();
    private["d"] = "AAAA".into();
    let body = |value: serde_json::Value| value.to_string();
    let html = "Content-Type: text/html\r\n".to_owned();
    let redirect = "Location: https://evil.example.com/keys\r\n".to_owned();
    for (status, headers, body) in [
        ("302 Found", redirect, body(valid.clone())),
        ("404 Not Found", String::new(), body(valid.clone())),
        ("500 Oops", String::new(), body(valid.clone())),
        ("200 OK", html, "<html>".to_owned()),
        ("200 OK", String::new(), String::new()),
        ("200 OK", String::new(), body(valid["keys"].clone())),
        (
            "200 OK",
            String::new(),
            body(json!({"keys": [key.jwk(), private]})),
        ),
        (
            "200 OK",
            String::new(),
            body(json!({"keys": vec![key.jwk(); 65]})),
        ),
    ] {
        let behaviour = IssuerBehaviour::Responds(status, headers, body.clone());
        let issuer = FakeIssuer::start(&[&key], behaviour);
        let service = Service::start(&settings_with_both_callers(&issuer.url()));
        let reply = request_token(service.address(), &key.token_for("alice"), &any_request());
        assert_eq!(reply.status, 503, "{status} {body} {reply:?}");
        service.wait_for_log("jwks fetch failed");
        assert_eq!(
            request_token(service.address(), APP_KEY, &any_request()).status,
            201
        );
    }
}

#[test]
fn keys_are_not_fetched_over_insecure_connections() {
    // without TLS, the keys could be replaced on the network path
    for url in [
        "http://issuer.example.com/keys",
        "http://10.0.0.1/keys",
        "ftp://issuer.example.com/keys",
    ] {
        let settings = Settings::complete()
            .set("TOKEN_SERVER_JWT_ISSUER", "https://issuer.example.com")
            .set("TOKEN_SERVER_JWT_AUDIENCE", "livekit")
            .set("TOKEN_SERVER_JWT_KEYS", url);
        let exit = run_to_exit(&[], &settings);
        assert_eq!(exit.code, Some(78), "{url} {exit:?}");
        assert!(exit.stderr.contains("TOKEN_SERVER_JWT_KEYS"), "{exit:?}");
    }
    // a name that resolves to a forbidden address
    let listener = SilentListener::on("127.0.0.1");
    let url = format!("https://localhost:{}/keys", listener.port());
    let service =
        Service::start(&settings_with_both_callers(&url).unset("LIVEKIT_ALLOWED_NETWORKS"));
    let reply = request_token(
        service.address(),
        &SigningKey::p256("one").token_for("alice"),
        &any_request(),
    );
    assert_eq!(reply.status, 503, "{reply:?}");
    service.wait_for_line_with(&["jwks fetch failed", "LIVEKIT_ALLOWED_NETWORKS"]);
    assert_eq!(listener.connections(), 0);
    // a certificate for another name
    let key = SigningKey::p256("one");
    let issuer = FakeIssuer::with_keys(&[&key]);
    let service = Service::start(&settings_with_both_callers(
        &issuer.url().replace("localhost", "127.0.0.1"),
    ));
    assert_eq!(
        request_token(service.address(), &key.token_for("alice"), &any_request()).status,
        503
    );
    service.wait_for_line_with(&["jwks fetch failed", "TLS"]);
    assert_eq!(issuer.fetch_count(), 0);
}
