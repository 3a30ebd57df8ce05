//! Attacks with API keys: whatever is not the key opens nothing, and nothing tells how near it was.

use std::time::{Duration, Instant};

use crate::client::{Connection, Reply, raw};
use crate::process::Service;
use crate::token_client::{
    APP_KEY, any_request, app_entry, bearer_header, key_hash, policy_settings, raw_token_request,
    request_token, request_token_on,
};

/// Requests of each kind whose time is taken.
const TIMED: usize = 200;

#[test]
fn nothing_but_the_key_itself_is_the_key() {
    let service = Service::start(&policy_settings(&app_entry("")));
    assert_eq!(
        request_token(service.address(), APP_KEY, &any_request()).status,
        201
    );
    let first_refused = request_token(service.address(), "lts_", &any_request());
    for wrong in wrong_keys() {
        let reply = request_token(service.address(), &wrong, &any_request());
        assert_refused(&reply, &wrong);
        // nothing in it says what was wrong with this one
        assert_eq!(reply.body, first_refused.body, "{wrong:?}");
        let names = |reply: &Reply| {
            reply
                .headers
                .iter()
                .map(|(name, _)| name.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&reply), names(&first_refused), "{wrong:?}");
    }
    assert_eq!(
        request_token(service.address(), APP_KEY, &any_request()).status,
        201
    );
    let line = service.wait_for_words(&["refused", "endpoint=token", "status=401"]);
    assert!(line.contains("cause="), "{line}");
    assert_discreet(&service);
}

#[test]
fn a_key_is_shown_in_its_field_or_not_at_all() {
    let service = Service::start(&policy_settings(&app_entry("")));
    let body = any_request().to_string();
    let ask = |fields: &str| {
        raw(
            service.address(),
            &raw_token_request(fields, body.as_bytes()),
        )
    };
    for right in [
        bearer_header(APP_KEY),
        format!("authorization: bearer {APP_KEY}\r\n"),
        format!("X-API-Key: {APP_KEY}\r\n"),
    ] {
        let reply = ask(&right);
        assert_eq!(reply.status, 201, "{right} {reply:?}");
    }
    let basic = "Authorization: Basic bHRzXzphYmM=\r\n".to_owned();
    for wrong in [
        String::new(),
        basic.clone(),
        format!("Authorization: {APP_KEY}\r\n"),
        format!("Authorization: Token {APP_KEY}\r\n"),
        format!("Authorization: Bearer{APP_KEY}\r\n"),
        "Authorization: Bearer\r\n".to_owned(),
        "Authorization: Bearer \r\n".to_owned(),
        "X-API-Key: \r\n".to_owned(),
        format!("X-API-Key: Bearer {APP_KEY}\r\n"),
        format!("Cookie: key={APP_KEY}\r\n"),
        format!("X-Forwarded-Authorization: Bearer {APP_KEY}\r\n"),
        format!("X_API_Key: {APP_KEY}\r\n"),
    ] {
        assert_refused(&ask(&wrong), &wrong);
    }
    // a proxy in front may have checked the one that we would not look at
    let other = APP_KEY.replace('7', "8");
    let bearer = |key: &str| bearer_header(key);
    let own = |key: &str| format!("X-API-Key: {key}\r\n");
    for two in [
        bearer(APP_KEY) + &bearer(&other),
        bearer(&other) + &bearer(APP_KEY),
        bearer(APP_KEY) + &bearer(APP_KEY),
        own(APP_KEY) + &own(&other),
        own(&other) + &own(APP_KEY),
    ] {
        assert_refused(&ask(&two), &two);
    }
    // two keys are one too many; another scheme may be between the client and a proxy
    for (two, status) in [
        (bearer(&other) + &own(APP_KEY), 401),
        (own(&other) + &bearer(APP_KEY), 401),
        (own(APP_KEY) + &bearer(APP_KEY), 201),
        (own(APP_KEY) + &basic, 201),
        (own(&other) + &basic, 401),
    ] {
        let reply = ask(&two);
        assert_eq!(reply.status, status, "{two} {reply:?}");
    }
    // a query ends up in the logs of every proxy on the way
    let target = format!("/token?key={APP_KEY}&access_token={APP_KEY}");
    let request = String::from_utf8(raw_token_request("", body.as_bytes())).unwrap();
    let reply = raw(
        service.address(),
        request.replacen("/token", &target, 1).as_bytes(),
    );
    assert_refused(&reply, "in the query");
    assert_discreet(&service);
}

#[test]
fn a_key_of_one_caller_is_not_that_of_another() {
    let other = format!("lts_ffffffff_{}", "5".repeat(64));
    let policy = app_entry("rooms = [\"app-*\"]")
        + &format!(
            "[callers.other]\nkeys = [\"{}\"]\nrooms = [\"other-*\"]\n",
            key_hash(&other)
        );
    let service = Service::start(&policy_settings(&policy));
    let room = |name: &str| serde_json::json!({"room_name": name, "participant_identity": "a"});
    assert_eq!(
        request_token(service.address(), APP_KEY, &room("app-1")).status,
        201
    );
    assert_eq!(
        request_token(service.address(), &other, &room("other-1")).status,
        201
    );
    assert_eq!(
        request_token(service.address(), APP_KEY, &room("other-1")).status,
        403
    );
    assert_eq!(
        request_token(service.address(), &other, &room("app-1")).status,
        403
    );
    // the id of the one, the secret of the other
    let mixed = format!("{}{}", &APP_KEY[..13], &other[13..]);
    assert_refused(
        &request_token(service.address(), &mixed, &room("app-1")),
        &mixed,
    );
}

/// Keys are compared by their hashes, all bytes of each with all that are known; so there is nothing to be learnt from time. This
/// measures it all the same, for whoever reads the log; a machine under load would make any bound a lie.
#[test]
fn right_and_wrong_keys_take_alike() {
    let service = Service::start(&policy_settings(&app_entry(
        "rooms = [\"none\"]\nrequests_per_minute = 0",
    )));
    let near = format!("{}0", &APP_KEY[..APP_KEY.len() - 1]);
    let far = format!("lts_ffffffff_{}", "0".repeat(64));
    let mut connection = Connection::open(service.address()).unwrap();
    let mut medians = Vec::new();
    for (what, key, status) in [
        ("right key, refused by its policy", APP_KEY, 403),
        ("all but the last digit right", &near, 401),
        ("nothing right", &far, 401),
    ] {
        let mut times: Vec<Duration> = (0..TIMED)
            .map(|_| {
                let start = Instant::now();
                let reply = request_token_on(&mut connection, key, &any_request());
                assert_eq!(reply.status, status, "{what}: {reply:?}");
                start.elapsed()
            })
            .collect();
        times.sort();
        medians.push((what, times[TIMED / 2]));
    }
    eprintln!("median of {TIMED}: {medians:.1?}");
}

/// What an attacker may have of a key without having the key.
fn wrong_keys() -> Vec<String> {
    let (most, last) = APP_KEY.split_at(APP_KEY.len() - 1);
    let other_last = if last == "0" { "1" } else { "0" };
    let mut wrong: Vec<String> = [
        "lts_",
        "lts__",
        "lts_a0b1c2d3",
        "lts_a0b1c2d3_",
        most,
        &APP_KEY[4..],
        &APP_KEY[13..],
        &key_hash(APP_KEY),
        &key_hash(APP_KEY)["sha256:".len()..],
        "app",
        "null",
        "undefined",
        "*",
    ]
    .map(str::to_owned)
    .into();
    wrong.extend([
        format!("{most}{other_last}"),
        format!("{APP_KEY}0"),
        format!("0{APP_KEY}"),
        format!("{APP_KEY},{APP_KEY}"),
        format!("{APP_KEY} {APP_KEY}"),
        format!("{APP_KEY}."),
        format!("{APP_KEY}.."),
        APP_KEY.to_uppercase(),
        APP_KEY.replace("a0b1c2d3", "a0b1c2d4"),
        APP_KEY.replace("lts_", "lts-"),
        format!("lts_a0b1c2d3_{}", "0".repeat(64)),
        "lts_".to_owned() + &"a".repeat(8000),
        // an id of its own that was never given out
        APP_KEY.replace("a0b1c2d3_", "ffffffff_"),
    ]);
    wrong
}

fn assert_refused(reply: &Reply, what: &str) {
    assert_eq!(reply.status, 401, "{what:?} {reply:?}");
    let challenge = reply.header("www-authenticate").unwrap_or_default();
    assert!(challenge.starts_with("Bearer"), "{reply:?}");
    assert!(reply.json()["detail"].is_string(), "{reply:?}");
    assert_tells_nothing(reply);
}

/// No field of a grant, which some clients would take for one whatever the status is.
fn assert_tells_nothing(reply: &Reply) {
    let body = String::from_utf8_lossy(&reply.body);
    for field in [
        "participant_token",
        "server_url",
        "\"token\"",
        "\"url\"",
        "sha256",
        "a0b1c2d3",
    ] {
        assert!(!body.contains(field), "{field} in {reply:?}");
    }
    assert_eq!(reply.header("cache-control"), Some("no-store"), "{reply:?}");
}

/// No key is in the log, nor what makes it out.
fn assert_discreet(service: &Service) {
    let log = service.log();
    for secret in [&APP_KEY[13..40], &key_hash(APP_KEY)[7..40]] {
        assert!(!log.contains(secret), "{secret} in the log:\n{log}");
    }
}
