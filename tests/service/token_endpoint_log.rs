//! One log line for each decision, and the rate limit by address that all endpoints share.

use serde_json::json;

use crate::client::{self, raw};
use crate::homeserver::FakeHomeserver;
use crate::process::Service;
use crate::token_client::{APP_KEY, any_request, app_entry, policy_settings, request_token};

/// Requests of one address in a minute, and at once.
const PER_MINUTE: usize = 6;

#[test]
fn a_decision_is_one_log_line_with_caller_request_and_cause() {
    let service = Service::start(&policy_settings(&app_entry(
        "rooms = ['room']\nagents = ['helper']",
    )));
    let body = json!({"room_name": "room", "participant_identity": "ali\u{202e}ce \"x\"", "ttl_seconds": 60,
        "participant_metadata": "never-logged-metadata", "room_config": {"agents": [{"agent_name": "helper"}]}});
    assert_eq!(request_token(service.address(), APP_KEY, &body).status, 201);
    let line = service.wait_for_log("token issued");
    for part in [
        "level=info",
        "client=127.0.0.1",
        "endpoint=token",
        "caller=app",
        "key=a0b1c2d3",
        "room=room ",
        "identity=\"ali",
        "grants=canPublish,canSubscribe,canPublishData",
        "agents=helper ",
        "ttl=60",
        "ms=",
        "Token generated for user ali",
        "in room room",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!line.contains('\u{202e}'), "{line}");

    assert_eq!(
        request_token(
            service.address(),
            APP_KEY,
            &json!({"room_name": "other", "participant_name": "me"})
        )
        .status,
        403
    );
    let line = service.wait_for_line_with(&["request refused", "status=403"]);
    for part in [
        "level=info",
        "endpoint=token",
        "caller=app",
        "key=a0b1c2d3",
        "field=room_name ",
        "cause=\"room_name: ",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(
        request_token(service.address(), "never-logged", &any_request()).status,
        401
    );
    let line = service.wait_for_line_with(&["request refused", "status=401"]);
    assert!(
        line.contains("cause=") && !line.contains("caller="),
        "{line}"
    );
    assert_eq!(
        request_token(service.address(), APP_KEY, &json!([])).status,
        422
    );
    service.wait_for_line_with(&["request refused", "status=422", "cause="]);
    assert!(!service.log().contains(&APP_KEY[13..]), "a key in the log");
}

#[test]
fn all_endpoints_share_the_rate_limit_of_an_address() {
    let homeserver = FakeHomeserver::well_behaved();
    let settings =
        policy_settings(&app_entry("")).set("LIVEKIT_RATE_PER_ADDRESS", PER_MINUTE.to_string());
    let service = Service::start(&settings);
    let ask = |client: &str, path: &str| {
        let user = homeserver.user("alice");
        let body = match path {
            "/token" => any_request(),
            "/sfu/get" => user.sfu_get(),
            _ => user.get_token(),
        };
        raw(service.address(), &client::forwarded(client, path, &body))
    };
    let mut paths = ["/get_token", "/sfu/get", "/token"].into_iter().cycle();
    let mut replies = Vec::new();
    // until each of the three paths has been refused, however slow the machine is
    while replies.iter().filter(|(_, status)| *status == 429).count() < 3 {
        assert!(replies.len() < 1000, "no request is refused: {replies:?}");
        let path = paths.next().unwrap();
        let reply = ask("8.8.8.8", path);
        if reply.status == 429 {
            let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=60).contains(&seconds), "{reply:?}");
            match path {
                "/token" => assert!(reply.json()["detail"].is_string(), "{reply:?}"),
                _ => assert_eq!(
                    reply.status_and_errcode(),
                    (429, "M_LIMIT_EXCEEDED".to_owned())
                ),
            }
        }
        replies.push((path, reply.status));
    }
    let accepted = replies.iter().filter(|(_, status)| *status != 429).count();
    assert!(accepted >= PER_MINUTE, "{replies:?}");
    service.wait_for_line_with(&["level=warn", "requests refused", "of this address"]);
    // other addresses, preflights and health checks are not limited
    assert_ne!(ask("8.8.4.4", "/get_token").status, 429);
    let preflight = "OPTIONS /get_token HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 8.8.8.8\r\n\r\n";
    assert_eq!(service.raw(preflight.as_bytes()).status, 200);
    let health = "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 8.8.8.8\r\n\r\n";
    assert_eq!(service.raw(health.as_bytes()).status, 200);
}

#[test]
fn a_limit_of_zero_means_no_limit() {
    let settings =
        policy_settings(&app_entry("requests_per_minute = 0")).set("LIVEKIT_RATE_PER_ADDRESS", "0");
    let service = Service::start(&settings);
    for _ in 0..1000 {
        let reply = raw(
            service.address(),
            &client::forwarded("8.8.8.8", "/token", &any_request()),
        );
        assert_eq!(reply.status, 401);
    }
}
