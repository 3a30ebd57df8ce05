//! `/readyz`: whether the service can issue tokens, and the reasons if it cannot.

use serde_json::json;

use crate::settings::Settings;
use crate::setup::TestSetup;
use crate::sfu::SfuBehaviour;

fn ready(
    conduct: SfuBehaviour,
    change: impl FnOnce(Settings) -> Settings,
) -> (u16, serde_json::Value) {
    let setup = TestSetup::full_access_with(conduct, change);
    let reply = setup.service.request("GET", "/readyz");
    assert_eq!(
        setup.service.request("HEAD", "/readyz").status,
        reply.status
    );
    assert_eq!(setup.service.request("GET", "/healthz").status, 200);
    assert_eq!(setup.service.request("POST", "/readyz").status, 405);
    (reply.status, reply.json())
}

#[test]
fn a_working_service_is_ready() {
    let response = ready(SfuBehaviour::Serves, |settings| settings);
    assert_eq!(response, (200, json!({"status": "ready"})));
}

#[test]
fn an_sfu_that_refuses_the_key_is_a_reason() {
    let conduct = SfuBehaviour::Responds(
        "401 Unauthorized",
        r#"{"code":"unauthenticated","msg":"invalid API key"}"#,
    );
    let reasons = json!(["the SFU refuses the API key"]);
    let response = ready(conduct, |settings| settings);
    assert_eq!(
        response,
        (503, json!({"status": "not ready", "reasons": reasons}))
    );
}

#[test]
fn a_web_page_in_place_of_the_sfu_is_a_reason() {
    let behaviour = SfuBehaviour::Succeeds("Content-Type: text/html\r\n", b"<!doctype html>");
    let setup = TestSetup::full_access_with(behaviour, |settings| settings);
    let reply = setup.service.request("GET", "/readyz");
    assert_eq!(reply.status, 503, "{reply:?}");
    let reasons = json!(["the server at LIVEKIT_API_URL is not an SFU"]);
    assert_eq!(reply.json()["reasons"], reasons);
    let line = setup
        .service
        .wait_for_line_with(&["SFU not ready", "web page"]);
    assert!(line.contains("LIVEKIT_API_URL"), "{line}");
}

#[test]
fn an_sfu_that_does_not_respond_is_a_reason() {
    let unused_port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", unused_port.local_addr().unwrap());
    drop(unused_port);
    let reasons = json!(["the SFU is unreachable or fails"]);
    let response = ready(SfuBehaviour::Serves, |settings| {
        settings.set("LIVEKIT_API_URL", url)
    });
    assert_eq!(
        response,
        (503, json!({"status": "not ready", "reasons": reasons}))
    );
}

#[test]
fn many_requests_check_the_sfu_once() {
    let setup = TestSetup::full_access();
    for _ in 0..50 {
        assert_eq!(setup.service.request("GET", "/readyz").status, 200);
    }
    assert_eq!(setup.sfu.calls().len(), 1);
}
