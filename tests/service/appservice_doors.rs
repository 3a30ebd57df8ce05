//! Which doors application-service mode opens, and to what.

use serde_json::json;

use crate::appservice_homeserver::{Beside, USER_PATH, bearer, of_user};
use crate::certificate::Presents;
use crate::homeserver::{Behaviour, Homeserver};
use crate::settings::Settings;

const ALICE: &str = "@alice:own.example";

fn both(settings: Settings) -> Settings {
    settings.set("LIVEKIT_FULL_ACCESS_HOMESERVERS", "elsewhere.example")
}

#[test]
fn no_token_reaches_the_log_and_both_doors_can_be_open() {
    let beside = Beside::start_with(both);
    let jwt = beside.for_alice(&beside.place()).jwt();
    let reply = beside
        .service
        .post("/get_token", &json!({ "room_id": "!r" }));
    assert_eq!(reply.verdict(), (400, "M_BAD_JSON".into()));
    beside.service.wait_for_log("token issued");
    let log = beside.service.log();
    assert!(
        log.contains("appservice=open") && log.contains("matrix=open"),
        "{log}"
    );
    let warning = "do not ask who is in a Matrix room";
    beside.service.wait_for_words(&["level=warn", warning]);
    assert!(
        !log.contains(&jwt) && !log.contains("never-logged"),
        "{log}"
    );
    let alone = Beside::start();
    assert!(!alone.service.log().contains(warning));
    let reply = alone
        .service
        .post("/get_token", &json!({ "room_id": "!r" }));
    assert_eq!(reply.verdict(), (404, "M_UNRECOGNIZED".into()));
}

#[test]
fn what_users_write_after_their_homeserver_s_path_opens_no_other_door() {
    let beside = Beside::start_with(both);
    let unknown = (404, "M_UNRECOGNIZED".to_owned());
    for api in [
        "client/v1",
        "federation/v1",
        "client/unstable/io.element.msc4195",
    ] {
        for door in [
            "readyz",
            "healthz",
            "get_token",
            "sfu/get",
            "sfu_webhook",
            "app/v1/ping",
        ] {
            for between in ["", "_matrix/", "_matrix/x/", "_matrix/app/v1/"] {
                let path = format!("/_matrix/{api}/rtc/livekit/{between}{door}");
                if between.is_empty() && door == "get_token" {
                    continue;
                }
                let fields = [bearer(), of_user(ALICE)];
                for method in ["GET", "POST"] {
                    let reply = beside.ask(method, &path, &fields, &beside.place());
                    assert_eq!(reply.verdict(), unknown, "{method} {path}");
                }
            }
        }
    }
    let behind = format!("/_matrix/livekit{USER_PATH}");
    let reply = beside.post(&behind, &[bearer(), of_user(ALICE)], &beside.place());
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(
        beside
            .service
            .request("GET", "/_matrix/livekit/healthz")
            .status,
        200
    );
}

#[test]
fn our_sfu_may_be_spelled_in_several_ways() {
    let beside = Beside::start();
    let url = beside.sfu.url().to_string();
    let (_, rest) = url.split_once("://").unwrap();
    for url in [
        format!("{url}/"),
        format!("WS://{rest}"),
        format!("http://{rest}"),
    ] {
        let mut body = beside.place();
        body["url"] = url.as_str().into();
        assert_eq!(beside.for_alice(&body).status, 200, "{url}");
    }
}

#[test]
fn the_as_token_goes_only_where_the_certificate_is_right() {
    let homeserver = Homeserver::with_certificate(
        "localhost",
        Presents::SelfSigned("localhost"),
        Behaviour::Honest,
    );
    let beside = Beside::start_with(|settings| {
        settings
            .set("LIVEKIT_HS_URL", format!("https://{}", homeserver.name()))
            .set(
                "LIVEKIT_INSECURE_SKIP_VERIFY_TLS",
                "YES_I_KNOW_WHAT_I_AM_DOING",
            )
    });
    let failed = (502, "M_UNKNOWN".to_owned());
    assert_eq!(beside.for_alice(&beside.place()).verdict(), failed);
    beside.service.wait_for_words(&["level=error", "TLS"]);
    assert!(homeserver.connections() > 0 && homeserver.requests().is_empty());
}
