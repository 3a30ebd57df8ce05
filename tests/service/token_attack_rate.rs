//! Callers and addresses that ask too often: counted, told when to come again, and nobody else's trouble.

use std::time::Instant;

use serde_json::{Value, json};

use crate::client::{Connection, Reply, raw};
use crate::fake_issuer::{FakeIssuer, SigningKey};
use crate::process::Service;
use crate::settings::Settings;
use crate::token_client::{
    APP_KEY, any_request, app_entry, bearer_header, key_hash, policy_settings, raw_token_request,
    request_token, request_token_on, users_entry,
};

/// Requests of an attack: far more than any share.
const FLOOD: usize = 100;
/// What a caller of these tests may ask for in a minute, and so at once.
const A_MINUTE: usize = 5;

#[test]
fn a_caller_gets_their_share_and_no_other_caller_pays_for_it() {
    let other = format!("lts_ffffffff_{}", "5".repeat(64));
    let policy = app_entry(&format!("requests_per_minute = {A_MINUTE}"))
        + &format!("[callers.other]\nkeys = [\"{}\"]\n", key_hash(&other));
    let service = Service::start(&policy_settings(&policy));
    let mut connection = Connection::open(service.address()).unwrap();
    let start = Instant::now();
    let mut passed = 0;
    for number in 0..FLOOD {
        let reply = request_token_on(&mut connection, APP_KEY, &any_request());
        if reply.status == 201 {
            passed += 1;
        } else {
            assert_told_when(&reply);
        }
        if number % 10 == 0 {
            assert_eq!(
                request_token(service.address(), &other, &any_request()).status,
                201
            );
        }
    }
    assert_share(passed, start);
    let line = service.wait_for_words(&["refused", "endpoint=token", "status=429"]);
    assert!(line.contains("app"), "{line}");
}

#[test]
fn a_user_of_a_login_gets_their_share_and_no_other_user_pays_for_it() {
    let key = SigningKey::p256("one");
    let login = FakeIssuer::with_keys(&[&key]);
    let lines = format!("requests_per_minute = {A_MINUTE}");
    let service = Service::start(&policy_settings(&users_entry(&login.url(), &lines)));
    let room = json!({"room_name": "room"});
    let start = Instant::now();
    let mut passed = 0;
    for number in 0..FLOOD {
        // a token of its own each time is no way round it
        let mut claims = crate::fake_issuer::user_claims("mallory");
        claims["jti"] = number.into();
        let reply = request_token(service.address(), &key.sign(&claims), &room);
        match reply.status {
            201 => passed += 1,
            _ => assert_told_when(&reply),
        }
        if number % 10 == 0 {
            let honest = key.token_for(&format!("alice{number}"));
            assert_eq!(request_token(service.address(), &honest, &room).status, 201);
        }
    }
    assert_share(passed, start);
    // without a name, a user has no share of their own, but is not without limit either
    let mut nameless = crate::fake_issuer::user_claims("");
    nameless.as_object_mut().unwrap().remove("sub");
    let refused = (0..FLOOD)
        .filter(|_| request_token(service.address(), &key.sign(&nameless), &room).status == 429)
        .count();
    assert!(refused > 0, "a token without sub is never too often");
}

#[test]
fn an_address_that_guesses_keys_is_stopped_and_no_other_address_is() {
    let service = Service::start(&few_from_an_address());
    for attackers in [
        ["8.8.8.8", "8.8.8.8"],
        ["2001:4860:1:2::1", "2001:4860:1:2:3:4:5:6"],
    ] {
        let mut connection = Connection::open(service.address()).unwrap();
        let mut refused = 0;
        for number in 0..FLOOD * 10 {
            let guess = format!("lts_a0b1c2d3_{number:064x}");
            let reply = from(&mut connection, attackers[number % 2], &guess);
            match reply.status {
                401 => {}
                _ => {
                    assert_told_when(&reply);
                    refused += 1;
                }
            }
            if number % 100 == 99 {
                let honest = format!("9.9.{}.{}", number / 100, attackers[0].len());
                let reply = from(&mut connection, &honest, APP_KEY);
                assert_eq!(reply.status, 201, "{reply:?}");
            }
        }
        assert!(
            refused > FLOOD * 5,
            "only {refused} of {} refused",
            FLOOD * 10
        );
    }
    // behind a proxy that names nobody, everybody has one address: that is no reason to shut them all out
    let mut connection = Connection::open(service.address()).unwrap();
    for number in 0..FLOOD * 10 {
        let guess = format!("lts_a0b1c2d3_{number:064x}");
        assert_eq!(
            request_token_on(&mut connection, &guess, &any_request()).status,
            401
        );
    }
    assert_eq!(
        request_token(service.address(), APP_KEY, &any_request()).status,
        201
    );
}

#[test]
fn an_address_cannot_be_made_up_by_whoever_is_no_proxy() {
    let service = Service::start(&few_from_an_address());
    // the last address is the one that our own proxy saw; what stands before it anybody could write
    let mut refused = 0;
    for number in 0..FLOOD * 10 {
        let fields = format!(
            "X-Forwarded-For: 203.0.113.{}, 8.8.4.4\r\n{}",
            number % 250,
            bearer_header("lts_a0b1c2d3_0")
        );
        let reply = raw(service.address(), &raw_token_request(&fields, b"{}"));
        assert!(matches!(reply.status, 401 | 429), "{reply:?}");
        refused += usize::from(reply.status == 429);
    }
    assert!(
        refused > FLOOD * 5,
        "only {refused} of {} refused",
        FLOOD * 10
    );
}

/// So few that even a slow machine sends more.
fn few_from_an_address() -> Settings {
    policy_settings(&app_entry("requests_per_minute = 0")).set("LIVEKIT_RATE_PER_ADDRESS", "60")
}

fn from(connection: &mut Connection, client: &str, bearer: &str) -> Reply {
    let fields = format!("X-Forwarded-For: {client}\r\n{}", bearer_header(bearer));
    connection.send(&raw_token_request(
        &fields,
        any_request().to_string().as_bytes(),
    ));
    connection.receive(false).unwrap()
}

/// The share of a minute, and what has come back since; a slow machine takes more than a moment for the flood.
fn assert_share(passed: usize, start: Instant) {
    let since = usize::try_from(start.elapsed().as_secs()).unwrap() * A_MINUTE / 60;
    assert!(
        (A_MINUTE..=A_MINUTE + since + 1).contains(&passed),
        "{passed} passed"
    );
}

fn assert_told_when(reply: &Reply) {
    assert_eq!(reply.status, 429, "{reply:?}");
    let seconds = reply.header("retry-after").map(str::parse::<u64>);
    assert!(matches!(seconds, Some(Ok(1..=60))), "{reply:?}");
    let body: Value = reply.json();
    assert!(body["detail"].is_string(), "{reply:?}");
    assert!(body.get("participant_token").is_none());
}
