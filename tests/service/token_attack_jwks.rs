//! Attacks by way of the keys that a login publishes: floods that make us ask, and servers that answer as no server should.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::caller::{APP_KEY, a_room, app, ask, ask_again, settings, users};
use crate::client::Connection;
use crate::login::{Conduct, HUGE, Login, SigningKey};
use crate::process::{Service, run_to_exit};
use crate::settings::Settings;
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
    settings(&(app("requests_per_minute = 0") + &users(keys, "requests_per_minute = 0")))
}

#[test]
fn a_flood_of_unknown_keys_makes_us_ask_once() {
    let known = SigningKey::p256("known");
    let login = Login::publishing(&[&known]);
    let service = Service::start(&both(&login.url()));
    assert_eq!(
        ask(service.address(), &known.token("alice"), &a_room()).status,
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
                    let token = stranger.signed_with(&header, &crate::login::claims("mallory"));
                    let reply = ask_again(&mut connection, &token, &a_room());
                    assert!(matches!(reply.status, 401 | 503), "{reply:?}");
                    let reply = ask_again(&mut connection, &known.token("alice"), &a_room());
                    assert_eq!(reply.status, 201, "{reply:?}");
                }
            });
        }
    });
    let minutes = usize::try_from(start.elapsed().as_secs() / 60).unwrap();
    let fetches = login.fetches();
    assert!(
        (FETCHES..=FETCHES + minutes).contains(&fetches),
        "{fetches} fetches"
    );
}

#[test]
fn a_new_key_is_found_by_the_first_token_that_names_it() {
    let (old, new) = (SigningKey::rsa("old"), SigningKey::p256("new"));
    let login = Login::publishing(&[&old]);
    let service = Service::start(&both(&login.url()));
    assert_eq!(
        ask(service.address(), &old.token("alice"), &a_room()).status,
        201
    );
    login.add(&new);
    for key in [&new, &old] {
        let reply = ask(service.address(), &key.token("alice"), &a_room());
        assert_eq!(reply.status, 201, "{} {reply:?}", key.id);
    }
    assert_eq!(login.fetches(), FETCHES);
}

#[test]
fn ten_megabytes_of_keys_are_no_keys() {
    for announced in [true, false] {
        let key = SigningKey::p256("one");
        let login = Login::start(&[&key], Conduct::Huge { announced });
        let service = Service::start(&both(&login.url()));
        let reply = ask(service.address(), &key.token("alice"), &a_room());
        assert_eq!(reply.status, 503, "{reply:?}");
        let pause = reply.header("retry-after").map(str::parse::<u64>);
        assert!(matches!(pause, Some(Ok(1..=60))), "{reply:?}");
        assert_eq!(ask(service.address(), APP_KEY, &a_room()).status, 201);
        service.wait_for_words(&["jwks fetch failed", "262144 bytes"]);
        let fetches = u64::try_from(login.fetches()).unwrap();
        let most = fetches * (DOCUMENT + BUFFERS);
        assert!(
            login.sent() < most.min(fetches * HUGE),
            "{} bytes",
            login.sent()
        );
    }
}

#[test]
fn a_server_that_hangs_holds_up_nobody_whose_key_is_known() {
    let (known, new) = (SigningKey::rsa("known"), SigningKey::p256("new"));
    let login = Login::publishing(&[&known]);
    let service = Service::start(&both(&login.url()));
    assert_eq!(
        ask(service.address(), &known.token("alice"), &a_room()).status,
        201
    );
    login.begin(Conduct::Hangs);
    let start = Instant::now();
    thread::scope(|scope| {
        let service = &service;
        let waiting: Vec<_> = (0..LANES)
            .map(|_| {
                scope.spawn(|| {
                    let start = Instant::now();
                    let reply = ask(service.address(), &new.token("bob"), &a_room());
                    (reply, start.elapsed())
                })
            })
            .collect();
        // all of them are served before the last of those that wait is
        let mut served = 0;
        while served < 50 || login.fetches() < FETCHES {
            for bearer in [APP_KEY, &known.token("alice")] {
                let reply = ask(service.address(), bearer, &a_room());
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
        ask(service.address(), &known.token("alice"), &a_room()).status,
        201
    );
}

#[test]
fn a_server_that_never_answered_leaves_the_others_alone() {
    let key = SigningKey::p256("one");
    let login = Login::start(&[&key], Conduct::Hangs);
    let service = Service::start(&both(&login.url()));
    let start = Instant::now();
    assert_eq!(ask(service.address(), APP_KEY, &a_room()).status, 201);
    let reply = ask(service.address(), &key.token("alice"), &a_room());
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
    service.wait_for_words(&["jwks fetch failed", "took too long"]);
    // what is wrong with a token is told without its keys
    let mut old = crate::login::claims("alice");
    old["exp"] = json!(1);
    assert_eq!(
        ask(service.address(), &key.signed(&old), &a_room()).status,
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
        let conduct = Conduct::Says(status, fields, body.clone());
        let login = Login::start(&[&key], conduct);
        let service = Service::start(&both(&login.url()));
        let reply = ask(service.address(), &key.token("alice"), &a_room());
        assert_eq!(reply.status, 503, "{status} {body} {reply:?}");
        service.wait_for_log("jwks fetch failed");
        assert_eq!(ask(service.address(), APP_KEY, &a_room()).status, 201);
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
    let reply = ask(
        service.address(),
        &SigningKey::p256("one").token("alice"),
        &a_room(),
    );
    assert_eq!(reply.status, 503, "{reply:?}");
    service.wait_for_words(&["jwks fetch failed", "LIVEKIT_ALLOWED_NETWORKS"]);
    assert_eq!(trap.visits(), 0);
    // a certificate for another name
    let key = SigningKey::p256("one");
    let login = Login::publishing(&[&key]);
    let service = Service::start(&both(&login.url().replace("localhost", "127.0.0.1")));
    assert_eq!(
        ask(service.address(), &key.token("alice"), &a_room()).status,
        503
    );
    service.wait_for_words(&["jwks fetch failed", "TLS"]);
    assert_eq!(login.fetches(), 0);
}
