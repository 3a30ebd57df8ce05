//! Responses of `POST /token`, and the claims of its access tokens.

use serde_json::{Value, json};

use crate::client::{Reply, raw};
use crate::jwt;
use crate::process::Service;
use crate::settings::{KEY, SECRET};
use crate::token_client::{
    APP_KEY, app_entry, bearer_header, policy_settings, raw_token_request, request_token,
};

/// Tolerance for a slow machine, in seconds.
const SLACK: i64 = 60;

fn claims(reply: &Reply) -> Value {
    assert!(matches!(reply.status, 200 | 201), "{reply:?}");
    let body = reply.json();
    assert_eq!(body["token"], body["participant_token"]);
    assert_eq!(body["url"], body["server_url"]);
    jwt::claims(body["token"].as_str().unwrap(), SECRET)
}

/// Seconds since 1970 of a timestamp such as `2026-11-22T00:09:03Z`, by date(1).
fn seconds_of(timestamp: &str) -> i64 {
    let output = std::process::Command::new("date")
        .args(["-u", "+%s", "-d", timestamp])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("{timestamp}"))
}

#[test]
fn both_request_forms_get_the_same_fields_and_differ_by_status() {
    let service = Service::start(&policy_settings(&app_entry("")));
    let example = json!({"room_name": "room", "participant_name": "me"});
    for (body, status) in [
        (example.clone(), 200),
        (
            json!({"room_name": "room", "participant_name": "me", "metadata": "m", "other": [1]}),
            200,
        ),
        (
            json!({"room_name": "room", "participant_identity": "me"}),
            201,
        ),
        (
            json!({"room_name": "room", "participant_name": "me", "room_config": {}}),
            201,
        ),
        (
            json!({"room_name": "room", "participant_name": "me", "room_config": null}),
            201,
        ),
        (
            json!({"room_name": "room", "participant_name": "me", "participant_attributes": {}}),
            201,
        ),
    ] {
        let reply = request_token(service.address(), APP_KEY, &body);
        assert_eq!(reply.status, status, "{body} {reply:?}");
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert!(reply.header("content-length").is_some());
        let body = reply.json();
        assert_eq!(body["room_name"], "room");
        assert_eq!(body["participant_identity"], "me");
        assert_eq!(body["server_url"], "wss://sfu.example.com");
        assert_eq!(body.as_object().unwrap().len(), 8, "{body}");
        assert_eq!(claims(&reply)["sub"], "me");
    }
    let forwarded = format!("{}X-Forwarded-Proto: https\r\n", bearer_header(APP_KEY));
    for path in ["/token/", "//token", "/api/livekit/token?x=1"] {
        let request = String::from_utf8(raw_token_request(
            &forwarded,
            example.to_string().as_bytes(),
        ))
        .unwrap();
        let request = request.replacen("/token", path, 1);
        assert_eq!(
            raw(service.address(), request.as_bytes()).status,
            200,
            "{path}"
        );
    }
}

#[test]
fn the_default_access_token_is_for_one_room_without_admin_grants() {
    let service = Service::start(&policy_settings(&app_entry("")));
    let body =
        json!({"room_name": "room", "participant_identity": "me", "participant_name": "My Name"});
    let reply = request_token(service.address(), APP_KEY, &body);
    let claims = claims(&reply);
    assert_eq!(
        claims["video"],
        json!({"roomJoin": true, "room": "room", "canPublish": true, "canSubscribe": true, "canPublishData": true})
    );
    let names: Vec<&String> = claims.as_object().unwrap().keys().collect();
    assert_eq!(names, ["exp", "iss", "name", "nbf", "sub", "video"]);
    assert_eq!(
        (&claims["iss"], &claims["name"]),
        (&json!(KEY), &json!("My Name"))
    );
    let (nbf, exp) = (
        claims["nbf"].as_i64().unwrap(),
        claims["exp"].as_i64().unwrap(),
    );
    assert!((jwt::now() - nbf).abs() < SLACK, "{claims}");
    assert_eq!(exp - nbf, 86_400);
    let expires_at = reply.json()["expires_at"].as_str().unwrap().to_owned();
    assert!(
        expires_at.ends_with('Z') && expires_at.len() == 20,
        "{expires_at}"
    );
    assert_eq!(seconds_of(&expires_at), exp);
}

#[test]
fn all_allowed_fields_are_in_the_access_token() {
    let policy = app_entry(
        "
        grants = ['canPublish', 'canSubscribe']
        grants_on_request = ['canUpdateOwnMetadata', 'hidden', 'agent']
        sources = ['camera', 'microphone']
        agents = ['helper-*']
        max_lifetime_seconds = 7200",
    );
    let service = Service::start(&policy_settings(&policy));
    let body = json!({
        "room_name": "room", "participant_identity": "me", "participant_metadata": "{\"a\":1}\n",
        "participant_attributes": {"colour": "blau", "ü": "\u{202e}"}, "ttl_seconds": 90,
        "room_config": {"agents": [{"agent_name": "helper-1", "metadata": "task"}, {"agentName": "helper-2"}]},
        "participant_grants": {"canUpdateOwnMetadata": true, "canSubscribe": false, "canPublishSources": ["microphone"], "agent": false},
    });
    let claims = claims(&request_token(service.address(), APP_KEY, &body));
    assert_eq!(
        claims["video"],
        json!({"roomJoin": true, "room": "room", "canPublish": true, "canSubscribe": false, "canPublishData": false,
            "canPublishSources": ["microphone"], "canUpdateOwnMetadata": true})
    );
    assert_eq!(claims["metadata"], body["participant_metadata"]);
    assert_eq!(claims["attributes"], body["participant_attributes"]);
    assert_eq!(
        claims["roomConfig"],
        json!({"agents": [{"agentName": "helper-1", "metadata": "task"}, {"agentName": "helper-2"}]})
    );
    assert_eq!(
        claims["exp"].as_i64().unwrap() - claims["nbf"].as_i64().unwrap(),
        90
    );
}

#[test]
fn an_empty_request_gets_a_random_room_and_identity_if_the_policy_allows() {
    let policy = app_entry(
        "rooms = ['meeting-*']\nidentities = ['visitor-*']\nrandom_room = true\nrandom_identity = true",
    );
    let service = Service::start(&policy_settings(&policy));
    let replies = [(), ()].map(|()| request_token(service.address(), APP_KEY, &json!({})));
    let names = replies.each_ref().map(|reply| {
        let (claims, body) = (claims(reply), reply.json());
        assert_eq!(claims["sub"], body["participant_identity"]);
        assert_eq!(claims["video"]["room"], body["room_name"]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (
            text(&body["room_name"]),
            text(&body["participant_identity"]),
        )
    });
    for (room, identity) in &names {
        assert!(
            room.starts_with("meeting-") && identity.starts_with("visitor-"),
            "{names:?}"
        );
    }
    assert!(
        names[0].0 != names[1].0 && names[0].1 != names[1].1,
        "{names:?}"
    );

    let strict = Service::start(&policy_settings(&app_entry("")));
    let reply = request_token(
        strict.address(),
        APP_KEY,
        &json!({"participant_attributes": {}}),
    );
    assert_eq!(reply.status, 422);
    let locations: Vec<Value> = reply.json()["detail"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["loc"].clone())
        .collect();
    assert_eq!(
        locations,
        [
            json!(["body", "room_name"]),
            json!(["body", "participant_name"])
        ]
    );
}

#[test]
fn a_refusal_names_the_field_and_nothing_else() {
    let service = Service::start(&policy_settings(&app_entry(
        "rooms = ['a-*']\nmax_metadata_bytes = 0",
    )));
    for (body, status, field) in [
        (
            json!({"room_name": "b", "participant_name": "me"}),
            403,
            "room_name",
        ),
        (
            json!({"room_name": "a-1", "participant_name": "me", "metadata": "x"}),
            403,
            "metadata",
        ),
        (
            json!({"room_name": "a-1", "participant_name": "me\u{7f}"}),
            400,
            "participant_name",
        ),
        (
            json!({"room_name": "a-".repeat(200), "participant_name": "me"}),
            400,
            "room_name",
        ),
        (
            json!({"room_name": "a-1", "participant_name": "me", "ttl_seconds": 1}),
            400,
            "ttl_seconds",
        ),
        (
            json!({"room_name": "a-1", "participant_name": "me", "ttl_seconds": "1"}),
            422,
            "ttl_seconds",
        ),
    ] {
        let reply = request_token(service.address(), APP_KEY, &body);
        assert_eq!(reply.status, status, "{body} {reply:?}");
        let body = reply.json();
        assert_eq!(
            body.as_object().unwrap().keys().collect::<Vec<_>>(),
            ["detail"]
        );
        assert!(body["detail"].to_string().contains(field), "{body}");
    }
}
