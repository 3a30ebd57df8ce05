//! Requests to an example token server, with its responses: `tests/vectors/example_token_server.json`.
//!
//! The service responds with the same statuses, except for the faults of the example in [`CORRECTED`].

use serde_json::Value;

use crate::client::Reply;
use crate::jwt;
use crate::process::Service;
use crate::settings::{SECRET, Settings};

/// Cases with another status than the example's.
const CORRECTED: [(&str, u16); 4] = [
    // the example responds 500, with "400: …" in the body
    ("room_short", 400),
    ("part_short", 400),
    // a NUL in a room name, which the SFU accepts
    ("room_slash_unicode", 400),
    // the example refuses HEAD by accident
    ("head_health", 200),
];

fn service() -> Service {
    let settings = Settings::listening()
        .set("LIVEKIT_URL", "wss://your-project.livekit.cloud")
        .set("LIVEKIT_API_KEY", "APItestkey")
        .set("LIVEKIT_API_SECRET", SECRET)
        .set("TOKEN_SERVER_AUTH", "none")
        .set("TOKEN_SERVER_MIN_NAME_LENGTH", "3")
        .set("CORS_ORIGINS", "http://localhost:3000,https://app.example");
    Service::start(&settings)
}

fn send(service: &Service, request: &Value) -> Reply {
    let (body, content_type) = match (&request["json"], &request["content"]) {
        (Value::Null, Value::String(content)) => (content.clone(), ""),
        (Value::Null, _) => (String::new(), ""),
        (json, _) => (json.to_string(), "Content-Type: application/json\r\n"),
    };
    let [method, path] = ["method", "path"].map(|part| request[part].as_str().unwrap());
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nHost: tokens.example.com\r\n{content_type}");
    for (name, value) in request["headers"].as_object().into_iter().flatten() {
        head += &format!("{name}: {}\r\n", value.as_str().unwrap());
    }
    if !body.is_empty() {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    service.raw(format!("{head}\r\n{body}").as_bytes())
}

#[test]
fn every_case_of_the_example_gets_the_expected_response() {
    let all: Value =
        serde_json::from_str(include_str!("../vectors/example_token_server.json")).unwrap();
    let cases = all["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 24);
    let service = service();
    for case in cases {
        let name = case["case"].as_str().unwrap();
        let reply = send(&service, &case["request"]);
        let corrected = CORRECTED.iter().find(|(case, _)| *case == name);
        let status = corrected.map_or(case["status"].as_u64().unwrap(), |(_, status)| {
            (*status).into()
        });
        assert_eq!(u64::from(reply.status), status, "{name}: {reply:?}");
        assert_same_shape(name, case, &reply, corrected.is_some());
        assert_cors(name, case, &reply);
    }
}

/// Asserts that the response has all fields of the example's, with the same types.
fn assert_same_shape(name: &str, case: &Value, reply: &Reply, is_corrected: bool) {
    let expected = &case["body"];
    if !expected.is_object() || is_corrected && name == "room_slash_unicode" {
        return;
    }
    let body = reply.json();
    for (field, value) in expected.as_object().unwrap() {
        let found = &body[field];
        assert_eq!(kind(found), kind(value), "{name}: {field} in {body}");
    }
    let problems = |body: &Value| -> Vec<(Value, Value)> {
        let list = body["detail"].as_array().into_iter().flatten();
        list.map(|problem| (problem["type"].clone(), problem["loc"].clone()))
            .collect()
    };
    // the example also has the position of a syntax error
    if name != "not_json" {
        assert_eq!(problems(&body), problems(expected), "{name}");
    }
    if let Some(token) = body["token"].as_str() {
        let request = &case["request"]["json"];
        let claims = jwt::claims(token, SECRET);
        assert_eq!(claims["sub"], request["participant_name"], "{name}");
        assert_eq!(claims["name"], request["participant_name"], "{name}");
        assert_eq!(claims["metadata"], request["metadata"], "{name}");
        assert_eq!(claims["video"]["room"], request["room_name"], "{name}");
        assert_eq!(body["url"], expected["url"], "{name}");
    } else {
        assert!(
            !reply.body.windows(6).any(|part| part == b"eyJhbG"),
            "{name}"
        );
    }
}

fn assert_cors(name: &str, case: &Value, reply: &Reply) {
    let expected = case["headers"].as_object().unwrap();
    for field in [
        "access-control-allow-origin",
        "access-control-allow-methods",
        "access-control-max-age",
        "allow",
    ] {
        let expected = match (name, field) {
            // 200 instead of 405
            ("head_health", "allow") => None,
            _ => expected.get(field).and_then(Value::as_str),
        };
        let found = reply.header(field);
        // /health accepts HEAD too
        assert!(
            found == expected || name == "health",
            "{name}: {field}: {reply:?}"
        );
    }
    if expected.contains_key("access-control-allow-origin") {
        assert_eq!(
            reply.header("access-control-allow-credentials"),
            Some("true"),
            "{name}"
        );
    }
    let vary = reply.header("vary").unwrap_or_default();
    assert!(vary.starts_with("Origin"), "{name}: {reply:?}");
    assert_eq!(reply.header("cache-control"), Some("no-store"), "{name}");
    if let Some(headers) = expected
        .get("access-control-allow-headers")
        .and_then(Value::as_str)
    {
        let body = reply
            .header("access-control-allow-headers")
            .unwrap_or_default();
        assert_eq!(body.replace(' ', ""), headers, "{name}");
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}
