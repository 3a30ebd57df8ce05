//! Attacks by way of the keys that a login publishes: floods that make us ask, and servers that answer as no server should.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::Connection;
use crate::fake_issuer::{FakeIssuer, IssuerBehaviour, OVERSIZED_BYTES, SigningKey};
use crate::process::{Service, run_to_exit};
use crate::settings::Settings;
use crate::token_client::{
    APP_KEY, any_request, app_entry, policy_settings, request_token, request_token_on, users_entry,
};
use crate::trap::Trap;

/// JWTs that name keys which nobody has.
const FLOOD: usize = 300;
/// At once.
const LANES: usize = 30;
/// One when the service starts, and one because of the first unknown key: the next may come after a minute.
const FETCHES: usize = 2;
/// What a set of keys may have, in bytes, and what buffers on the way may have taken beyond it.
const DOCUMENT: u64 = 256 * 1024;
const BUFFERS: u64 = 6 * 1024 * 1024;
/// What "in time" means on a busy machine: a hanging server is given up after 5 s.
const IN_TIME: Duration = Duration::from_secs(30);
/// Longer than it takes a busy service to ask for a key.
const PATIENCE: Duration = Duration::from_secs(120);

/// Both an application with an API key and users with a login.
fn both(keys: &str) -> Settings {
    policy_settings(
        &(app_entry("requests_per_minute = 0") + &users_entry(keys, "requests_per_minute = 0")),
    )
}

#[test]
fn a_flood_of_unknown_keys_makes_us_ask_once() {
    let known = SigningKey::p256("known");
    let login = FakeIssuer::with_keys(&[&known]);
    let service = Service::start(&both(&login.url()));
    assert_eq!(
        request_token(service.address(), &known.token_for("alice"), &any_request()).status,
        201
    );
    let start = Instant::now();
    let stranger = SigningKey::ed25519("stranger");
    thread::scope(|scope| {
        for lane in 0..LANES {
            let (service, stranger, known) = (&service, &stranger, &known);
            scope.spawn(move || {
                let mut connection = Connection::open(service.address()).unwrap();
                for number in 0..FLOOD / LANES {
                    let header = json!({"alg": "EdDSA", "kid": format!("{lane}-{number}")});
                    let token = stranger
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
    let fetches = login.fetch_count();
    assert!(
        (FETCHES..=FETCHES + minutes).contains(&fetches),
        "{fetches} fetches"
    );
}

#[test]
fn a_new_key_is_found_by_the_first_token_that_names_it() {
    let (old, new) = (SigningKey::rsa("old"), SigningKey::p256("new"));
    let login = FakeIssuer::with_keys(&[&old]);
    let service = Service::start(&both(&login.url()));
    assert_eq!(
        request_token(service.address(), &old.token_for("alice"), &any_request()).status,
        201
    );
    login.publish(&new);
    for key in [&new, &old] {
        let reply = request_token(service.address(), &key.token_for("alice"), &any_request());
        assert_eq!(reply.status, 201, "{} {reply:?}", key.id);
    }
    assert_eq!(login.fetch_count(), FETCHES);
}

#[test]
fn ten_megabytes_of_keys_are_no_keys() {
    for announced in [true, false] {
        let key = SigningKey::p256("one");
        let login = FakeIssuer::start(&[&key], IssuerBehaviour::Oversized { announced });
        let service = Service::start(&both(&login.url()));
        let reply = request_token(service.address(), &key.token_for("alice"), &any_request());
        assert_eq!(reply.status, 503, "{reply:?}");
        let pause = reply.header("retry-after").map(str::parse::<u64>);
        assert!(matches!(pause, Some(Ok(1..=60))), "{reply:?}");
        assert_eq!(
            request_token(service.address(), APP_KEY, &any_request()).status,
            201
        );
        service.wait_for_words(&["jwks fetch failed", "262144 bytes"]);
        let fetches = u64::try_from(login.fetch_count()).unwrap();
        let most = fetches * (DOCUMENT + BUFFERS);
        assert!(
            login.oversized_bytes_sent() < most.min(fetches * OVERSIZED_BYTES),
            "{} bytes",
            login.oversized_bytes_sent()
        );
    }
}

#[test]
fn a_server_that_hangs_holds_up_nobody_whose_key_is_known() {
    let (known, new) = (SigningKey::rsa("known"), SigningKey::p256("new"));
    let login = FakeIssuer::with_keys(&[&known]);
    let service = Service::start(&both(&login.url()));
    assert_eq!(
        request_token(service.address(), &known.token_for("alice"), &any_request()).status,
        201
    );
    login.set_behaviour(IssuerBehaviour::Hangs);
    let start = Instant::now();
    thread::scope(|scope| {
        let service = &service;
        let waiting: Vec<_> = (0..LANES)
            .map(|_| {
                scope.spawn(|| {
                    let start = Instant::now();
                    let reply =
                        request_token(service.address(), &new.token_for("bob"), &any_request());
                    (reply, start.elapsed())
                })
            })
            .collect();
        // all of them are served before the last of those that wait is
        let mut served = 0;
        while served < 50 || login.fetch_count() < FETCHES {
            for bearer in [APP_KEY, &known.token_for("alice")] {
                let reply = request_token(service.address(), bearer, &any_request());
                assert_eq!(reply.status, 201, "{reply:?}");
            }
            assert_eq!(service.request("GET", "/healthz").status, 200);
            served += 1;
            assert!(start.elapsed() < PATIENCE, "nobody asked for the new key");
        }
        for one in waiting {
            let (reply, took) = one.join().unwrap();
            assert_eq!(reply.status, 503, "{reply:?}");
            let pause = reply.header("retry-after").map(str::parse::<u64>);
            assert!(matches!(pause, Some(Ok(1..=60))), "{reply:?}");
            assert!(took < IN_TIME, "{took:?}");
        }
    });
    assert_eq!(
        request_token(service.address(), &known.token_for("alice"), &any_request()).status,
        201
    );
}

#[test]
fn a_server_that_never_answered_leaves_the_others_alone() {
    let key = SigningKey::p256("one");
    let login = FakeIssuer::start(&[&key], IssuerBehaviour::Hangs);
    let service = Service::start(&both(&login.url()));
    let start = Instant::now();
    assert_eq!(
        request_token(service.address(), APP_KEY, &any_request()).status,
        201
    );
    let reply = request_token(service.address(), &key.token_for("alice"), &any_request());
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
    service.wait_for_words(&["jwks fetch failed", "took too long"]);
    // what is wrong with a token is told without its keys
    let mut old = crate::fake_issuer::user_claims("alice");
    old["exp"] = json!(1);
    assert_eq!(
        request_token(service.address(), &key.sign(&old), &any_request()).status,
        401
    );
}

#[test]
fn answers_that_are_no_key_set_let_nobody_in() {
    let key = SigningKey::ed25519("one");
    let right = json!({"keys": [key.jwk()]});
    let mut private = key.jwk();
    private["d"] = "AAAA".into();
    let body = |value: serde_json::Value| value.to_string();
    let html = "Content-Type: text/html\r\n".to_owned();
    let elsewhere = "Location: https://evil.example.com/keys\r\n".to_owned();
    for (status, fields, body) in [
        ("302 Found", elsewhere, body(right.clone())),
        ("404 Not Found", String::new(), body(right.clone())),
        ("500 Oops", String::new(), body(right.clone())),
        ("200 OK", html, "<html>".to_owned()),
        ("200 OK", String::new(), String::new()),
        ("200 OK", String::new(), body(right["keys"].clone())),
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
        let conduct = IssuerBehaviour::Responds(status, fields, body.clone());
        let login = FakeIssuer::start(&[&key], conduct);
        let service = Service::start(&both(&login.url()));
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
fn keys_are_not_fetched_from_where_they_could_be_replaced() {
    // whoever is on the way could answer
    for url in [
        "http://login.example.com/keys",
        "http://10.0.0.1/keys",
        "ftp://login.example.com/keys",
    ] {
        let settings = Settings::complete()
            .set("TOKEN_SERVER_JWT_ISSUER", "https://login.example.com")
            .set("TOKEN_SERVER_JWT_AUDIENCE", "livekit")
            .set("TOKEN_SERVER_JWT_KEYS", url);
        let exit = run_to_exit(&[], &settings);
        assert_eq!(exit.code, Some(78), "{url} {exit:?}");
        assert!(exit.stderr.contains("TOKEN_SERVER_JWT_KEYS"), "{exit:?}");
    }
    // a name that leads into our own network
    let trap = Trap::on("127.0.0.1");
    let url = format!("https://localhost:{}/keys", trap.port());
    let service = Service::start(&both(&url).unset("LIVEKIT_ALLOWED_NETWORKS"));
    let reply = request_token(
        service.address(),
        &SigningKey::p256("one").token_for("alice"),
        &any_request(),
    );
    assert_eq!(reply.status, 503, "{reply:?}");
    service.wait_for_words(&["jwks fetch failed", "LIVEKIT_ALLOWED_NETWORKS"]);
    assert_eq!(trap.connections(), 0);
    // a certificate for another name
    let key = SigningKey::p256("one");
    let login = FakeIssuer::with_keys(&[&key]);
    let service = Service::start(&both(&login.url().replace("localhost", "127.0.0.1")));
    assert_eq!(
        request_token(service.address(), &key.token_for("alice"), &any_request()).status,
        503
    );
    service.wait_for_words(&["jwks fetch failed", "TLS"]);
    assert_eq!(login.fetch_count(), 0);
}
