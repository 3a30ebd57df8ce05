//! The endpoints of application-service mode, beside those of the standalone mode.

use serde_json::json;

use crate::appservice_setup::{AppServiceSetup, USER_PATH, hs_token_header, user_header};
use crate::certificate::Presents;
use crate::homeserver::{Behaviour, FakeHomeserver};
use crate::settings::Settings;

const ALICE: &str = "@alice:own.example";

/// With the standalone endpoints as well.
fn in_both_modes(settings: Settings) -> Settings {
    settings.set("LIVEKIT_FULL_ACCESS_HOMESERVERS", "elsewhere.example")
}

#[test]
fn both_modes_can_be_enabled_and_no_token_is_logged() {
    let setup = AppServiceSetup::start_with(in_both_modes);
    let jwt = setup.request_as_alice(&setup.token_request()).jwt();
    let standalone_request = |setup: &AppServiceSetup| {
        let body = json!({ "room_id": "!r" });
        setup.service.post("/get_token", &body).status_and_errcode()
    };
    assert_eq!(standalone_request(&setup), (400, "M_BAD_JSON".into()));
    setup.service.wait_for_log("token issued");
    let log = setup.service.log();
    assert!(
        log.contains("appservice=true") && log.contains("matrix=true"),
        "{log}"
    );
    let warning = "do not check who is in a Matrix room";
    setup.service.wait_for_line_with(&["level=warn", warning]);
    assert!(
        !log.contains(&jwt) && !log.contains("never-logged"),
        "{log}"
    );
    let appservice_only = AppServiceSetup::start();
    assert!(!appservice_only.service.log().contains(warning));
    assert_eq!(
        standalone_request(&appservice_only),
        (404, "M_UNRECOGNIZED".into())
    );
}

#[test]
fn a_path_below_the_proxy_prefix_reaches_no_other_endpoint() {
    let setup = AppServiceSetup::start_with(in_both_modes);
    let unknown = (404, "M_UNRECOGNIZED".to_owned());
    let fields = [hs_token_header(), user_header(ALICE)];
    for api in [
        "client/v1",
        "federation/v1",
        "client/unstable/io.element.msc4195",
    ] {
        for endpoint in [
            "readyz",
            "healthz",
            "get_token",
            "sfu/get",
            "sfu_webhook",
            "app/v1/ping",
        ] {
            for between in ["", "_matrix/", "_matrix/x/", "_matrix/app/v1/"] {
                let path = format!("/_matrix/{api}/rtc/livekit/{between}{endpoint}");
                if between.is_empty() && endpoint == "get_token" {
                    continue;
                }
                for method in ["GET", "POST"] {
                    let reply = setup.request(method, &path, &fields, &setup.token_request());
                    assert_eq!(reply.status_and_errcode(), unknown, "{method} {path}");
                }
            }
        }
    }
    let path = format!("/_matrix/livekit{USER_PATH}");
    let reply = setup.post(&path, &fields, &setup.token_request());
    assert_eq!(reply.status, 200, "{reply:?}");
    let reply = setup.service.request("GET", "/_matrix/livekit/healthz");
    assert_eq!(reply.status, 200);
}

#[test]
fn the_url_of_the_sfu_can_be_spelled_in_several_ways() {
    let setup = AppServiceSetup::start();
    let url = setup.sfu.url().to_string();
    let (_, rest) = url.split_once("://").unwrap();
    for url in [
        format!("{url}/"),
        format!("WS://{rest}"),
        format!("http://{rest}"),
    ] {
        let mut body = setup.token_request();
        body["url"] = url.as_str().into();
        assert_eq!(setup.request_as_alice(&body).status, 200, "{url}");
    }
}

#[test]
fn the_as_token_is_not_sent_to_a_homeserver_with_an_invalid_certificate() {
    let homeserver = FakeHomeserver::with_certificate(
        "localhost",
        Presents::SelfSigned("localhost"),
        Behaviour::Correct,
    );
    let setup = AppServiceSetup::start_with(|settings| {
        settings
            .set("LIVEKIT_HS_URL", format!("https://{}", homeserver.name()))
            .set(
                "LIVEKIT_INSECURE_SKIP_VERIFY_TLS",
                "YES_I_KNOW_WHAT_I_AM_DOING",
            )
    });
    let failed = (502, "M_UNKNOWN".to_owned());
    let reply = setup.request_as_alice(&setup.token_request());
    assert_eq!(reply.status_and_errcode(), failed);
    setup.service.wait_for_line_with(&["level=error", "TLS"]);
    assert!(homeserver.connections() > 0 && homeserver.requests().is_empty());
}
