//! Status codes of the Matrix endpoints, CORS header fields on every response, and errors with `errcode` and `error` only. Invalid bodies
//! are tested in `malformed`, methods and paths in `routes`.

use std::net::TcpListener;

use serde_json::Value;

use crate::client::{self, Reply};
use crate::setup::{TestSetup, User};
use crate::sfu::SfuBehaviour;

/// An endpoint and its body.
pub(crate) type Endpoint = (&'static str, fn(&User) -> Value);

pub(crate) const ENDPOINTS: [Endpoint; 2] =
    [("/get_token", User::get_token), ("/sfu/get", User::sfu_get)];

#[test]
fn every_response_has_cors_headers() {
    let setup = TestSetup::full_access();
    let good = setup.homeserver.user("alice");
    let unknown = setup.homeserver.user_with_unknown_token("mallory");
    for (path, body) in ENDPOINTS {
        let replies = [
            (200, setup.service.post(path, &body(&good))),
            (401, setup.service.post(path, &body(&unknown))),
            (400, setup.service.request("POST", path)),
            (400, setup.service.post(path, &Value::Null)),
            (413, too_large(&setup, path)),
            (405, setup.service.request("GET", path)),
            (405, setup.service.request("DELETE", path)),
            (200, setup.service.request("OPTIONS", path)),
            (404, setup.service.request("POST", "/elsewhere")),
            (404, setup.service.request("GET", "/")),
        ];
        for (status, reply) in replies {
            assert_eq!(reply.status, status, "{path} {reply:?}");
            assert_cors(&reply);
            if status >= 400 {
                assert_error(&reply);
            }
        }
    }
}

#[test]
fn a_failing_sfu_is_an_unknown_error() {
    for conduct in [
        SfuBehaviour::Responds(
            "401 Unauthorized",
            r#"{"code":"unauthenticated","msg":"no"}"#,
        ),
        SfuBehaviour::Responds("401 Unauthorized", "invalid API key: APItestkey\n"),
        SfuBehaviour::Responds(
            "503 Service Unavailable",
            r#"{"code":"unavailable","msg":"no"}"#,
        ),
        SfuBehaviour::Responds("302 Found", ""),
        SfuBehaviour::Garbage,
    ] {
        let setup = TestSetup::full_access_with(conduct, |settings| settings);
        for (path, body) in ENDPOINTS {
            let user = setup.homeserver.user("alice");
            let reply = setup.service.post(path, &body(&user));
            assert_eq!(
                reply.status_and_errcode(),
                (500, "M_UNKNOWN".to_owned()),
                "{conduct:?} {path}"
            );
            assert_cors(&reply);
            assert_error(&reply);
        }
    }
}

#[test]
fn a_success_of_another_server_than_the_sfu_is_an_unknown_error() {
    for (fields, body, found) in [
        (
            "Content-Type: text/html; charset=utf-8\r\n",
            &b"<!doctype html>"[..],
            "web page",
        ),
        (
            "Content-Type: application/json\r\n",
            b"{}",
            "application/json",
        ),
        ("", b"", "found none"),
        ("Content-Type: application/protobuf\r\n", b"", "no room"),
        (
            "Content-Type: application/protobuf\r\n",
            b"<!doctype html>",
            "no room",
        ),
        (
            "Content-Type: application/protobuf\r\n",
            b"\x0a\x04RM_1\x12\x05other",
            "other",
        ),
    ] {
        let behaviour = SfuBehaviour::Succeeds(fields, body);
        let setup = TestSetup::full_access_with(behaviour, |settings| settings);
        for (path, body) in ENDPOINTS {
            let reply = setup
                .service
                .post(path, &body(&setup.homeserver.user("alice")));
            let unknown = (500, "M_UNKNOWN".to_owned());
            assert_eq!(reply.status_and_errcode(), unknown, "{behaviour:?} {path}");
            assert_cors(&reply);
        }
        let words = ["request refused", "not an SFU's", found, "LIVEKIT_API_URL"];
        setup.service.wait_for_line_with(&words);
    }
}

#[test]
fn an_unreachable_sfu_is_an_unknown_error() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let unused = free.local_addr().unwrap();
    drop(free);
    let setup = TestSetup::full_access_with(SfuBehaviour::Serves, |settings| {
        settings.set("LIVEKIT_API_URL", format!("http://{unused}"))
    });
    for (path, body) in ENDPOINTS {
        let user = setup.homeserver.user("alice");
        let reply = setup.service.post(path, &body(&user));
        assert_eq!(
            reply.status_and_errcode(),
            (500, "M_UNKNOWN".to_owned()),
            "{path}"
        );
        assert_cors(&reply);
    }
}

#[test]
fn a_hanging_sfu_is_an_unknown_error_after_one_call() {
    let setup = TestSetup::full_access_with(SfuBehaviour::Hangs, |settings| settings);
    let user = setup.homeserver.user("alice");
    let reply = setup.get_token(&user);
    assert_eq!(reply.status_and_errcode(), (500, "M_UNKNOWN".to_owned()));
    assert_eq!(setup.sfu.calls().len(), 1, "calls");
}

#[test]
fn every_authentication_failure_has_the_same_response() {
    let setup = TestSetup::full_access();
    let homeserver = &setup.homeserver;
    let unknown = homeserver.user_with_unknown_token("alice");
    let mut claims_another = homeserver.user("mallory");
    claims_another.id = format!("@alice:{}", homeserver.name());
    let other_server = homeserver.user_with_unknown_token("alice");
    homeserver.set_userinfo(&other_server.token, "@alice:elsewhere.example");
    let suffixed = homeserver.user_with_unknown_token("alice");
    homeserver.set_userinfo(&suffixed.token, &format!("{}.example", suffixed.id));
    let two_colons = homeserver.user_with_unknown_token("alice");
    homeserver.set_userinfo(
        &two_colons.token,
        &format!("@alice:elsewhere.example:{}", homeserver.name()),
    );
    let not_an_id = homeserver.user_with_unknown_token("alice");
    homeserver.set_userinfo(&not_an_id.token, homeserver.name());
    let unreachable = User::new("alice", "127.0.0.1:1");
    let invalid_name = User::new("alice", "no server name");

    let mut replies = Vec::new();
    let users = [
        &unknown,
        &other_server,
        &suffixed,
        &two_colons,
        &not_an_id,
        &unreachable,
        &invalid_name,
    ];
    for (path, body) in ENDPOINTS {
        for user in users {
            replies.push((path, user, setup.service.post(path, &body(user))));
        }
    }
    // the body of `/sfu/get` has no user id
    let reply = setup.get_token(&claims_another);
    replies.push(("/get_token", &claims_another, reply));

    for (path, user, reply) in &replies {
        assert_eq!(
            reply.status_and_errcode(),
            (401, "M_UNAUTHORIZED".to_owned()),
            "{path} {user:?}"
        );
        assert_eq!(reply.body, replies[0].2.body, "{path} {user:?}");
        assert_cors(reply);
        assert_error(reply);
    }
    assert!(setup.sfu.calls().is_empty(), "rooms created");
}

#[test]
fn a_content_length_that_is_too_large_is_refused_without_the_body() {
    let setup = TestSetup::full_access();
    for length in ["65537000", "100000000000000"] {
        let head =
            format!("POST /get_token HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        let reply = setup.service.raw(head.as_bytes());
        assert_eq!(
            reply.status_and_errcode(),
            (413, "M_TOO_LARGE".to_owned()),
            "{length}"
        );
        assert_cors(&reply);
    }
    assert_eq!(setup.service.request("GET", "/healthz").status, 200);
}

#[test]
fn a_chunked_body_that_is_too_large_is_refused() {
    let setup = TestSetup::full_access();
    let mut request =
        b"POST /sfu/get HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..100 {
        request.extend_from_slice(b"1000\r\n");
        request.extend_from_slice(&[b' '; 0x1000]);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    let reply = setup.service.raw(&request);
    assert_eq!(reply.status_and_errcode(), (413, "M_TOO_LARGE".to_owned()));
    assert_cors(&reply);
}

fn too_large(setup: &TestSetup, path: &str) -> Reply {
    let mut body = setup.homeserver.user("alice").get_token();
    body["filler"] = "x".repeat(100_000).into();
    client::post(setup.service.address(), path, &body)
}

pub(crate) fn assert_cors(reply: &Reply) {
    let field = |name| {
        reply
            .header(name)
            .unwrap_or_else(|| panic!("no {name} in {reply:?}"))
    };
    assert_eq!(field("access-control-allow-origin"), "*", "{reply:?}");
    let methods = field("access-control-allow-methods");
    assert!(
        methods.contains("POST") && methods.contains("OPTIONS"),
        "{reply:?}"
    );
    let allowed = field("access-control-allow-headers").to_ascii_lowercase();
    let allowed: Vec<&str> = allowed.split(',').map(str::trim).collect();
    for name in [
        "accept",
        "content-type",
        "content-length",
        "accept-encoding",
        "x-csrf-token",
        "authorization",
    ] {
        assert!(allowed.contains(&name), "{name} in {reply:?}");
    }
}

pub(crate) fn assert_error(reply: &Reply) {
    let body = reply.json();
    let members: Vec<&String> = body.as_object().unwrap().keys().collect();
    assert_eq!(members, ["errcode", "error"], "{reply:?}");
    assert!(body["error"].as_str().is_some_and(|text| !text.is_empty()));
    let content_type = reply.header("content-type").unwrap();
    assert!(content_type.starts_with("application/json"), "{reply:?}");
}
