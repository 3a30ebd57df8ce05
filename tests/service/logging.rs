//! Log lines as programs read them.

use serde_json::Value;

use crate::stage::Stage;

fn lines(stage: &Stage) -> Vec<Value> {
    let log = stage.service.log();
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect()
}

#[test]
fn every_line_is_json_where_that_is_wanted() {
    let stage = Stage::restricted_with(|settings| settings.set("LIVEKIT_LOG_FORMAT", "json"));
    let user = stage.homeserver.user("alice\" msg=\"x");
    let stranger = stage.homeserver.user_with_unknown_token("mallory");
    assert_eq!(
        stage.service.post("/get_token", &user.get_token()).status,
        200
    );
    assert_eq!(
        stage.service.post("/sfu/get", &stranger.sfu_get()).status,
        401
    );
    assert_eq!(stage.service.request("GET", "/a\"b").status, 404);
    stage.service.wait_for_words(&["\"status\":404"]);
    let lines = lines(&stage);
    let one = |msg: &str, name: &str| -> &Value {
        let mut found = lines
            .iter()
            .filter(|line| line["msg"] == msg && !line[name].is_null());
        found
            .next()
            .unwrap_or_else(|| panic!("no {msg} with {name} in {lines:#?}"))
    };
    let issued = one("token issued", "user");
    assert_eq!(issued["user"], user.id.as_str());
    assert_eq!(
        (&issued["level"], &issued["endpoint"]),
        (&"info".into(), &"get_token".into())
    );
    let refused = one("request refused", "cause");
    assert_eq!(
        (&refused["status"], &refused["endpoint"]),
        (&401.into(), &"sfu/get".into())
    );
    assert!(
        lines
            .iter()
            .all(|line| line["time"].is_string() && line["target"].is_string())
    );
}
