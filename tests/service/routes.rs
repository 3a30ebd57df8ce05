//! Methods and paths of the endpoints, prefixes, and HTTP/1.0.

use crate::setup::TestSetup;
use crate::status::{ENDPOINTS, assert_cors, assert_error};

#[test]
fn another_method_is_refused_with_the_allowed_ones() {
    let setup = TestSetup::full_access();
    for (path, _) in ENDPOINTS {
        for method in ["GET", "PUT", "DELETE", "PATCH"] {
            let reply = setup.service.request(method, path);
            assert_eq!(
                reply.status_and_errcode(),
                (405, "M_UNRECOGNIZED".to_owned())
            );
            let allow = reply.header("allow").unwrap();
            assert!(
                allow.contains("POST") && allow.contains("OPTIONS"),
                "{allow}"
            );
        }
        let reply = setup.service.request("HEAD", path);
        assert_eq!(reply.status, 405);
        assert_cors(&reply);
    }
    let reply = setup.service.request("POST", "/healthz");
    assert_eq!(
        reply.status_and_errcode(),
        (405, "M_UNRECOGNIZED".to_owned())
    );
    let allow = reply.header("allow").unwrap();
    assert!(allow.contains("GET") && allow.contains("HEAD"), "{allow}");
}

#[test]
fn unknown_paths_are_not_found() {
    let setup = TestSetup::full_access();
    for path in [
        "/",
        "/nothing",
        "/get_token/more",
        "/xget_token",
        "/sfu",
        "/get",
        "/sfuget",
        "/delegate_delayed_leave/more",
        "/sfu_webhooks",
    ] {
        for method in ["POST", "GET"] {
            let reply = setup.service.request(method, path);
            assert_eq!(
                reply.status_and_errcode(),
                (404, "M_UNRECOGNIZED".to_owned()),
                "{method} {path}"
            );
            assert_cors(&reply);
            assert_error(&reply);
        }
    }
}

#[test]
fn a_preflight_is_answered() {
    let setup = TestSetup::full_access();
    for path in ["/get_token", "/sfu/get", "/livekit/jwt//sfu/get/"] {
        let request = format!(
            "OPTIONS {path} HTTP/1.1\r\nHost: x\r\nOrigin: https://app.example.com\r\n\
             Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type\r\n\r\n"
        );
        let reply = setup.service.raw(request.as_bytes());
        assert_eq!(reply.status, 200, "{path}");
        assert_cors(&reply);
    }
}

#[test]
fn liveness_is_answered_below_any_prefix() {
    let setup = TestSetup::full_access();
    for path in ["/healthz", "/healthz/", "//healthz", "/livekit/jwt/healthz"] {
        assert_eq!(setup.service.request("GET", path).status, 200, "{path}");
        let reply = setup.service.request("HEAD", path);
        assert_eq!(reply.status, 200, "{path}");
    }
}

#[test]
fn tokens_are_issued_below_any_prefix() {
    let setup = TestSetup::full_access();
    for prefix in [
        "",
        "/",
        "/livekit/jwt",
        "/livekit//jwt//",
        "/a/b/c/d/e",
        "/get_token",
    ] {
        for tail in ["", "/", "//", "?from=proxy"] {
            for (path, body) in ENDPOINTS {
                let path = format!("{prefix}{}{tail}", path.replace("/get", "//get"));
                let user = setup.homeserver.user("alice");
                let reply = setup.service.post(&path, &body(&user));
                assert_eq!(reply.status, 200, "{path} {reply:?}");
            }
        }
    }
}

/// nginx uses HTTP/1.0 for its back end by default.
#[test]
fn http_1_0_is_answered() {
    let setup = TestSetup::full_access();
    let body = setup.homeserver.user("alice").get_token().to_string();
    let length = body.len();
    let request = format!("POST /get_token HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
    assert_eq!(setup.service.raw(request.as_bytes()).status, 200);
}
