//! Invalid bodies at both endpoints: 400 before any other server is called. And unusual bodies that are valid.

use serde_json::{Value, json};

use crate::client;
use crate::setup::{TestSetup, User};

/// An endpoint, a valid body for it, and the pointers (RFC 6901) of its required fields, objects first.
type Endpoint = (&'static str, fn(&User) -> Value, &'static [&'static str]);

const ENDPOINTS: [Endpoint; 2] = [
    (
        "/get_token",
        User::get_token,
        &[
            "/openid_token",
            "/member",
            "/room_id",
            "/slot_id",
            "/openid_token/access_token",
            "/openid_token/matrix_server_name",
            "/member/id",
            "/member/claimed_user_id",
            "/member/claimed_device_id",
        ],
    ),
    (
        "/sfu/get",
        User::sfu_get,
        &[
            "/openid_token",
            "/room",
            "/openid_token/access_token",
            "/openid_token/matrix_server_name",
            "/device_id",
        ],
    ),
];

#[test]
fn bodies_that_are_not_json_are_m_not_json() {
    let setup = TestSetup::full_access();
    let bodies: [&[u8]; 8] = [
        b"",
        b" ",
        b"{",
        b"{\"room\":}",
        b"{} {}",
        b"room_id=x&slot_id=y",
        b"{'room': 1}",
        b"{\"room\": \"\xff\xfe\"}",
    ];
    for (path, _, _) in ENDPOINTS {
        for body in bodies {
            let reply = client::request(setup.service.address(), "POST", path, body);
            let body = String::from_utf8_lossy(body);
            assert_eq!(
                reply.status_and_errcode(),
                (400, "M_NOT_JSON".to_owned()),
                "{path} {body:?}"
            );
        }
    }
    assert_eq!(setup.homeserver.connections(), 0);
}

#[test]
fn json_without_the_fields_of_a_request_is_m_bad_json() {
    let setup = TestSetup::full_access();
    for (path, _, _) in ENDPOINTS {
        for body in [json!(null), json!(7), json!("room"), json!([]), json!({})] {
            let reply = setup.service.post(path, &body);
            assert_eq!(
                reply.status_and_errcode(),
                (400, "M_BAD_JSON".to_owned()),
                "{path} {body}"
            );
        }
    }
}

#[test]
fn required_fields_must_be_non_empty_strings_or_objects() {
    let setup = TestSetup::full_access();
    let mut wrong = Vec::new();
    for (path, body, required) in ENDPOINTS {
        for pointer in required {
            let user = setup.homeserver.user("alice");
            for value in [
                None,
                Some(json!("")),
                Some(json!(null)),
                Some(json!(7)),
                Some(json!(true)),
                Some(json!(["x"])),
                Some(json!({"x": "y"})),
            ] {
                let body = with_member(body(&user), pointer, value.clone());
                let reply = setup.service.post(path, &body);
                if reply.status_and_errcode() != (400, "M_BAD_JSON".to_owned()) {
                    wrong.push(format!("{path} {pointer} = {value:?}: {reply:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(setup.homeserver.connections(), 0, "calls to the homeserver");
}

/// Clients then repeat the request without the delay.
#[test]
fn invalid_delays_are_m_bad_json_and_create_no_room() {
    let setup = TestSetup::full_access();
    let mut wrong = Vec::new();
    for (path, body, _) in ENDPOINTS {
        for delay in [
            json!({"delay_id": "syd_1"}),
            json!({"delay_timeout": 18000}),
            json!({"delay_id": "s".repeat(256), "delay_timeout": 18000}),
            json!({"delay_id": "syd_1", "delay_timeout": 0}),
            json!({"delay_id": "syd_1", "delay_timeout": "0"}),
            json!({"delay_id": "syd_1", "delay_timeout": -1}),
            json!({"delay_id": "syd_1", "delay_timeout": "-1"}),
            json!({"delay_id": "syd_1", "delay_timeout": 1e300}),
            json!({"delay_id": "syd_1", "delay_timeout": "99999999999999999999999"}),
            json!({"delay_id": "syd_1", "delay_timeout": "soon"}),
            json!({"delay_id": "syd_1", "delay_timeout": ""}),
            json!({"delay_id": "syd_1", "delay_timeout": [18000]}),
            json!({"delay_id": "", "delay_timeout": 18000}),
            json!({"delay_id": 7, "delay_timeout": 18000}),
        ] {
            let user = setup.homeserver.user("alice");
            let mut body = body(&user);
            let delay_fields = delay.as_object().unwrap().clone();
            body.as_object_mut().unwrap().extend(delay_fields);
            let reply = setup.service.post(path, &body);
            if reply.status_and_errcode() != (400, "M_BAD_JSON".to_owned()) {
                wrong.push(format!("{path} {delay}: {reply:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(setup.sfu.calls().is_empty());
}

#[test]
fn fields_that_the_service_does_not_use_may_be_missing_unknown_or_of_any_type() {
    let setup = TestSetup::full_access();
    let mut wrong = Vec::new();
    for (path, body, _) in ENDPOINTS {
        for (pointer, value) in [
            ("/openid_token/expires_in", None),
            ("/openid_token/expires_in", Some(json!("3600"))),
            ("/openid_token/expires_in", Some(json!(3600.5))),
            ("/openid_token/token_type", None),
            ("/openid_token/token_type", Some(json!(null))),
            ("/openid_token/io.element.new", Some(json!({"a": [1]}))),
            ("/delay_cs_api_url", Some(json!("https://example.com"))),
            ("/io.element.new", Some(json!([{"deep": {"er": null}}]))),
            ("/member_id", Some(json!(7))),
        ] {
            let user = setup.homeserver.user("alice");
            let body = with_member(body(&user), pointer, value.clone());
            let reply = setup.service.post(path, &body);
            if reply.status != 200 {
                wrong.push(format!("{path} {pointer} = {value:?}: {reply:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_content_type_does_not_matter() {
    let setup = TestSetup::full_access();
    for content_type in ["", "Content-Type: text/plain;charset=UTF-8\r\n"] {
        let body = setup.homeserver.user("alice").sfu_get().to_string();
        let length = body.len();
        let request = format!(
            "POST /sfu/get HTTP/1.1\r\nHost: x\r\n{content_type}Content-Length: {length}\r\n\r\n{body}"
        );
        let reply = setup.service.raw(request.as_bytes());
        assert_eq!(reply.status, 200, "{content_type:?} {reply:?}");
    }
}

/// `body` with the member at `pointer` replaced, or removed.
fn with_member(mut body: Value, pointer: &str, value: Option<Value>) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = body.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Some(value) => parent.insert(name.to_owned(), value),
        None => parent.remove(name),
    };
    body
}
