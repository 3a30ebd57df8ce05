//! Rate limits of callers, JWT users and addresses: each has its own, and 429 has a Retry-After.

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

/// Requests of an attack, far above every limit.
const FLOOD: usize = 100;
/// Requests of one caller in a minute, and at once.
const PER_MINUTE: usize = 5;

#[test]
fn each_caller_has_its_own_rate_limit() {
    let other = format!("lts_ffffffff_{}", "5".repeat(64));
    let policy = app_entry(&format!("requests_per_minute = {PER_MINUTE}"))
        + &format!("[callers.other]\nkeys = [\"{}\"]\n", key_hash(&other));
    let service = Service::start(&policy_settings(&policy));
    let mut connection = Connection::open(service.address()).unwrap();
    let start = Instant::now();
    let mut accepted = 0;
    for number in 0..FLOOD {
        let reply = request_token_on(&mut connection, APP_KEY, &any_request());
        if reply.status == 201 {
            accepted += 1;
        } else {
            assert_rate_limited(&reply);
        }
        if number % 10 == 0 {
            assert_eq!(
                request_token(service.address(), &other, &any_request()).status,
                201
            );
        }
    }
    assert_within_limit(accepted, start);
    let line = service.wait_for_line_with(&["refused", "endpoint=token", "status=429"]);
    assert!(line.contains("app"), "{line}");
}

#[test]
fn each_jwt_user_has_their_own_rate_limit() {
    let key = SigningKey::p256("one");
    let issuer = FakeIssuer::with_keys(&[&key]);
    let lines = format!("requests_per_minute = {PER_MINUTE}");
    let service = Service::start(&policy_settings(&users_entry(&issuer.url(), &lines)));
    let room = json!({"room_name": "room"});
    let start = Instant::now();
    let mut accepted = 0;
    for number in 0..FLOOD {
        // a new JWT for each request does not help
        let mut claims = crate::fake_issuer::user_claims("mallory");
        claims["jti"] = number.into();
        let reply = request_token(service.address(), &key.sign(&claims), &room);
        match reply.status {
            201 => accepted += 1,
            _ => assert_rate_limited(&reply),
        }
        if number % 10 == 0 {
            let honest = key.token_for(&format!("alice{number}"));
            assert_eq!(request_token(service.address(), &honest, &room).status, 201);
        }
    }
    assert_within_limit(accepted, start);
    // users without an id share one limit
    let mut without_sub = crate::fake_issuer::user_claims("");
    without_sub.as_object_mut().unwrap().remove("sub");
    let refused = (0..FLOOD)
        .filter(|_| request_token(service.address(), &key.sign(&without_sub), &room).status == 429)
        .count();
    assert!(refused > 0, "a JWT without sub has no limit");
}

#[test]
fn an_address_that_guesses_keys_is_rate_limited_and_no_other_is() {
    let service = Service::start(&settings_with_address_limit());
    for attackers in [
        ["8.8.8.8", "8.8.8.8"],
        ["2001:4860:1:2::1", "2001:4860:1:2:3:4:5:6"],
    ] {
        let mut connection = Connection::open(service.address()).unwrap();
        let mut refused = 0;
        for number in 0..FLOOD * 10 {
            let guess = format!("lts_a0b1c2d3_{number:064x}");
            let reply = request_token_from(&mut connection, attackers[number % 2], &guess);
            match reply.status {
                401 => {}
                _ => {
                    assert_rate_limited(&reply);
                    refused += 1;
                }
            }
            if number % 100 == 99 {
                let honest = format!("9.9.{}.{}", number / 100, attackers[0].len());
                let reply = request_token_from(&mut connection, &honest, APP_KEY);
                assert_eq!(reply.status, 201, "{reply:?}");
            }
        }
        assert!(
            refused > FLOOD * 5,
            "only {refused} of {} refused",
            FLOOD * 10
        );
    }
    // behind a proxy that adds no X-Forwarded-For, all clients have one address: no limit by address
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
fn a_client_cannot_forge_its_address() {
    let service = Service::start(&settings_with_address_limit());
    // only the last address is the proxy's; the client can write the others
    let mut refused = 0;
    for number in 0..FLOOD * 10 {
        let header_lines = format!(
            "X-Forwarded-For: 203.0.113.{}, 8.8.4.4\r\n{}",
            number % 250,
            bearer_header("lts_a0b1c2d3_0")
        );
        let reply = raw(service.address(), &raw_token_request(&header_lines, b"{}"));
        assert!(matches!(reply.status, 401 | 429), "{reply:?}");
        refused += usize::from(reply.status == 429);
    }
    assert!(
        refused > FLOOD * 5,
        "only {refused} of {} refused",
        FLOOD * 10
    );
}

/// A limit by address that even a slow machine exceeds.
fn settings_with_address_limit() -> Settings {
    policy_settings(&app_entry("requests_per_minute = 0")).set("LIVEKIT_RATE_PER_ADDRESS", "60")
}

fn request_token_from(connection: &mut Connection, client: &str, bearer: &str) -> Reply {
    let header_lines = format!("X-Forwarded-For: {client}\r\n{}", bearer_header(bearer));
    connection.send(&raw_token_request(
        &header_lines,
        any_request().to_string().as_bytes(),
    ));
    connection.receive(false).unwrap()
}

/// Asserts the limit of a minute, plus what the time since `start` allows.
fn assert_within_limit(accepted: usize, start: Instant) {
    let since = usize::try_from(start.elapsed().as_secs()).unwrap() * PER_MINUTE / 60;
    assert!(
        (PER_MINUTE..=PER_MINUTE + since + 1).contains(&accepted),
        "{accepted} accepted"
    );
}

fn assert_rate_limited(reply: &Reply) {
    assert_eq!(reply.status, 429, "{reply:?}");
    let seconds = reply.header("retry-after").map(str::parse::<u64>);
    assert!(matches!(seconds, Some(Ok(1..=60))), "{reply:?}");
    let body: Value = reply.json();
    assert!(body["detail"].is_string(), "{reply:?}");
    assert!(body.get("participant_token").is_none());
}
