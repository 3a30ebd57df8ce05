//! Attacks with API keys: only the exact key is accepted, and a response does not reveal how similar another one was.

use crate::client::{Reply, raw};
use crate::process::Service;
use crate::token_client::{
    APP_KEY, any_request, app_entry, bearer_header, key_hash, policy_settings, raw_token_request,
    request_token,
};

#[test]
fn only_the_exact_key_is_accepted() {
    let service = Service::start(&policy_settings(&app_entry("")));
    assert_eq!(
        request_token(service.address(), APP_KEY, &any_request()).status,
        201
    );
    let first_refused = request_token(service.address(), "lts_", &any_request());
    for wrong in wrong_keys() {
        let reply = request_token(service.address(), &wrong, &any_request());
        assert_refused(&reply, &wrong);
        // the response does not depend on the kind of error
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
    let line = service.wait_for_line_with(&["refused", "endpoint=token", "status=401"]);
    assert!(line.contains("cause="), "{line}");
    assert_no_key_in_log(&service);
}

#[test]
fn a_key_is_accepted_only_once_and_in_its_header_field() {
    let service = Service::start(&policy_settings(&app_entry("")));
    let body = any_request().to_string();
    let send = |header_lines: &str| {
        raw(
            service.address(),
            &raw_token_request(header_lines, body.as_bytes()),
        )
    };
    for accepted in [
        bearer_header(APP_KEY),
        format!("authorization: bearer {APP_KEY}\r\n"),
        format!("X-API-Key: {APP_KEY}\r\n"),
    ] {
        let reply = send(&accepted);
        assert_eq!(reply.status, 201, "{accepted} {reply:?}");
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
        assert_refused(&send(&wrong), &wrong);
    }
    // of two credentials, a proxy could have checked the other one
    let other = APP_KEY.replace('7', "8");
    let bearer = bearer_header;
    let api_key_header = |key: &str| format!("X-API-Key: {key}\r\n");
    for two in [
        bearer(APP_KEY) + &bearer(&other),
        bearer(&other) + &bearer(APP_KEY),
        bearer(APP_KEY) + &bearer(APP_KEY),
        api_key_header(APP_KEY) + &api_key_header(&other),
        api_key_header(&other) + &api_key_header(APP_KEY),
    ] {
        assert_refused(&send(&two), &two);
    }
    // two different keys are ambiguous; another scheme may be for a proxy
    for (two, status) in [
        (bearer(&other) + &api_key_header(APP_KEY), 401),
        (api_key_header(&other) + &bearer(APP_KEY), 401),
        (api_key_header(APP_KEY) + &bearer(APP_KEY), 201),
        (api_key_header(APP_KEY) + &basic, 201),
        (api_key_header(&other) + &basic, 401),
    ] {
        let reply = send(&two);
        assert_eq!(reply.status, status, "{two} {reply:?}");
    }
    // proxies log the query
    let target = format!("/token?key={APP_KEY}&access_token={APP_KEY}");
    let request = String::from_utf8(raw_token_request("", body.as_bytes())).unwrap();
    let reply = raw(
        service.address(),
        request.replacen("/token", &target, 1).as_bytes(),
    );
    assert_refused(&reply, "in the query");
    assert_no_key_in_log(&service);
}

#[test]
fn a_key_authenticates_its_own_caller_only() {
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
    // the id of one key with the secret of the other
    let mixed = format!("{}{}", &APP_KEY[..13], &other[13..]);
    assert_refused(
        &request_token(service.address(), &mixed, &room("app-1")),
        &mixed,
    );
}

/// Parts and variants of the key that an attacker could have.
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
        // an unused id
        APP_KEY.replace("a0b1c2d3_", "ffffffff_"),
    ]);
    wrong
}

fn assert_refused(reply: &Reply, what: &str) {
    assert_eq!(reply.status, 401, "{what:?} {reply:?}");
    let challenge = reply.header("www-authenticate").unwrap_or_default();
    assert!(challenge.starts_with("Bearer"), "{reply:?}");
    assert!(reply.json()["detail"].is_string(), "{reply:?}");
    assert_contains_no_token(reply);
}

/// Asserts that the body has no field of a token response, which some clients would read whatever the status is.
fn assert_contains_no_token(reply: &Reply) {
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

/// Asserts that the log has neither the key nor its hash.
fn assert_no_key_in_log(service: &Service) {
    let log = service.log();
    for secret in [&APP_KEY[13..40], &key_hash(APP_KEY)[7..40]] {
        assert!(!log.contains(secret), "{secret} in the log:\n{log}");
    }
}
