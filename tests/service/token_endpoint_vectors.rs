//! What the older example server was sent, and what it answered: `tests/vectors/example_token_server.json`.
//!
//! Our statuses are those that it had, but for its own mistakes, which stand in [`INTENDED`] with what was meant.

use serde_json::Value;

use crate::client::Reply;
use crate::jwt;
use crate::process::Service;
use crate::settings::{SECRET, Settings};

/// Cases that we answer otherwise than the example did.
const INTENDED: [(&str, u16); 4] = [
    // 500, with "400: …" in its text
    ("room_short", 400),
    ("part_short", 400),
    // a NUL in the name of a room: the SFU would take it, logs and people would not
    ("room_slash_unicode", 400),
    // HEAD is refused by accident
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
    let (body, implied) = match (&request["json"], &request["content"]) {
        (Value::Null, Value::String(content)) => (content.clone(), ""),
        (Value::Null, _) => (String::new(), ""),
        (json, _) => (json.to_string(), "Content-Type: application/json\r\n"),
    };
    let [method, path] = ["method", "path"].map(|part| request[part].as_str().unwrap());
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: tokens.example.com\r\n{implied}");
    for (name, value) in request["headers"].as_object().into_iter().flatten() {
        head += &format!("{name}: {}\r\n", value.as_str().unwrap());
    }
    if !body.is_empty() {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    service.raw(format!("{head}\r\n{body}").as_bytes())
}

#[test]
fn every_case_of_the_example_is_answered_as_it_was_meant() {
    let all: Value =
        serde_json::from_str(include_str!("../vectors/example_token_server.json")).unwrap();
    let cases = all["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 24);
    let service = service();
    for case in cases {
        let name = case["case"].as_str().unwrap();
        let reply = send(&service, &case["request"]);
        let intended = INTENDED.iter().find(|(of, _)| *of == name);
        let status = intended.map_or(case["status"].as_u64().unwrap(), |(_, status)| {
            (*status).into()
        });
        assert_eq!(u64::from(reply.status), status, "{name}: {reply:?}");
        assert_same_shape(name, case, &reply, intended.is_some());
        assert_cors(name, case, &reply);
    }
}

/// The names of all fields that the example has, of the same types.
fn assert_same_shape(name: &str, case: &Value, reply: &Reply, mended: bool) {
    let theirs = &case["body"];
    if !theirs.is_object() || mended && name == "room_slash_unicode" {
        return;
    }
    let ours = reply.json();
    for (field, value) in theirs.as_object().unwrap() {
        let found = &ours[field];
        assert_eq!(kind(found), kind(value), "{name}: {field} in {ours}");
    }
    let problems = |body: &Value| -> Vec<(Value, Value)> {
        let list = body["detail"].as_array().into_iter().flatten();
        list.map(|problem| (problem["type"].clone(), problem["loc"].clone()))
            .collect()
    };
    // where the text goes wrong, only the example tells
    if name != "not_json" {
        assert_eq!(problems(&ours), problems(theirs), "{name}");
    }
    if let Some(token) = ours["token"].as_str() {
        let asked = &case["request"]["json"];
        let claims = jwt::claims(token, SECRET);
        assert_eq!(claims["sub"], asked["participant_name"], "{name}");
        assert_eq!(claims["name"], asked["participant_name"], "{name}");
        assert_eq!(claims["metadata"], asked["metadata"], "{name}");
        assert_eq!(claims["video"]["room"], asked["room_name"], "{name}");
        assert_eq!(ours["url"], theirs["url"], "{name}");
    } else {
        assert!(
            !reply.body.windows(6).any(|part| part == b"eyJhbG"),
            "{name}"
        );
    }
}

fn assert_cors(name: &str, case: &Value, reply: &Reply) {
    let theirs = case["headers"].as_object().unwrap();
    for field in [
        "access-control-allow-origin",
        "access-control-allow-methods",
        "access-control-max-age",
        "allow",
    ] {
        let expected = match (name, field) {
            // its 405 is our 200
            ("head_health", "allow") => None,
            _ => theirs.get(field).and_then(Value::as_str),
        };
        let found = reply.header(field);
        // /health answers HEAD too
        assert!(
            found == expected || name == "health",
            "{name}: {field}: {reply:?}"
        );
    }
    if theirs.contains_key("access-control-allow-origin") {
        assert_eq!(
            reply.header("access-control-allow-credentials"),
            Some("true"),
            "{name}"
        );
    }
    let vary = reply.header("vary").unwrap_or_default();
    assert!(vary.starts_with("Origin"), "{name}: {reply:?}");
    assert_eq!(reply.header("cache-control"), Some("no-store"), "{name}");
    if let Some(headers) = theirs
        .get("access-control-allow-headers")
        .and_then(Value::as_str)
    {
        let ours = reply
            .header("access-control-allow-headers")
            .unwrap_or_default();
        assert_eq!(ours.replace(' ', ""), headers, "{name}");
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
