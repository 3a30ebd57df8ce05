//! Log lines in JSON: typed fields of each event.

use serde_json::{Map, Value};

use crate::process::Service;
use crate::settings::Settings;
use crate::setup::TestSetup;

/// Text fields whose value may happen to have digits only.
const TEXT_FIELDS: [&str; 4] = ["request", "room", "identity", "leave"];

fn json_log(settings: Settings) -> Settings {
    settings.set("LIVEKIT_LOG_FORMAT", "json")
}

/// All lines so far. Panics if a number is text.
fn events(service: &Service) -> Vec<Map<String, Value>> {
    let log = service.log();
    let events: Vec<Map<String, Value>> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    for (name, value) in events.iter().flatten() {
        let is_number = value
            .as_str()
            .is_some_and(|text| text.parse::<f64>().is_ok());
        let is_text = TEXT_FIELDS.contains(&name.as_str());
        assert!(!is_number || is_text, "{name} is {value}");
    }
    events
}

fn find<'a>(events: &'a [Map<String, Value>], msg: &str) -> &'a Map<String, Value> {
    let mut found = events.iter().filter(|event| event["msg"] == msg);
    found
        .next()
        .unwrap_or_else(|| panic!("no {msg:?} in {events:#?}"))
}

#[test]
fn issued_tokens_and_refusals_have_typed_fields() {
    let setup = TestSetup::restricted_with(json_log);
    let user = setup.homeserver.user("alice\" msg=\"x");
    let impostor = setup.homeserver.user_with_unknown_token("mallory");
    assert_eq!(setup.get_token(&user).status, 200);
    let reply = setup.service.post("/sfu/get", &impostor.sfu_get());
    assert_eq!(reply.status, 401);
    assert_eq!(setup.service.request("GET", "/a\"b").status, 404);
    setup.service.wait_for_log("\"status\":404");
    let events = events(&setup.service);
    let issued = find(&events, "token issued");
    assert_eq!(issued["user"], user.id.as_str());
    assert_eq!(issued["level"], "info");
    assert_eq!(issued["endpoint"], "get_token");
    assert!(issued["ms"].is_u64(), "{issued:?}");
    let refused = find(&events, "request refused");
    assert_eq!(refused["status"], 401);
    assert_eq!(refused["endpoint"], "sfu/get");
    assert!(refused["cause"].is_string(), "{refused:?}");
}
