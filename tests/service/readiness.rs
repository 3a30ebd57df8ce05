//! `/readyz`: whether clients had better come, and why not, without a secret.

use serde_json::json;

use crate::settings::Settings;
use crate::sfu::Conduct;
use crate::stage::Stage;

fn ready(conduct: Conduct, change: impl FnOnce(Settings) -> Settings) -> (u16, serde_json::Value) {
    let stage = Stage::full_access_with(conduct, change);
    let reply = stage.service.request("GET", "/readyz");
    assert_eq!(
        stage.service.request("HEAD", "/readyz").status,
        reply.status
    );
    assert_eq!(stage.service.request("GET", "/healthz").status, 200);
    assert_eq!(stage.service.request("POST", "/readyz").status, 405);
    (reply.status, reply.json())
}

#[test]
fn who_can_do_its_work_is_ready() {
    let answer = ready(Conduct::Serves, |settings| settings);
    assert_eq!(answer, (200, json!({"status": "ready"})));
}

#[test]
fn an_sfu_that_refuses_the_key_is_named_as_such() {
    let conduct = Conduct::Says(
        "401 Unauthorized",
        r#"{"code":"unauthenticated","msg":"invalid API key"}"#,
    );
    let reasons = json!(["the SFU refuses the API key"]);
    let answer = ready(conduct, |settings| settings);
    assert_eq!(
        answer,
        (503, json!({"status": "not ready", "reasons": reasons}))
    );
}

#[test]
fn an_sfu_that_is_not_there_is_named_as_such() {
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", nowhere.local_addr().unwrap());
    drop(nowhere);
    let reasons = json!(["the SFU does not answer as expected"]);
    let answer = ready(Conduct::Serves, |settings| {
        settings.set("LIVEKIT_API_URL", url)
    });
    assert_eq!(
        answer,
        (503, json!({"status": "not ready", "reasons": reasons}))
    );
}

#[test]
fn the_sfu_is_asked_once_however_many_ask_us() {
    let stage = Stage::full_access();
    for _ in 0..50 {
        assert_eq!(stage.service.request("GET", "/readyz").status, 200);
    }
    assert_eq!(stage.sfu.calls().len(), 1);
}
