//! `doctor` in application-service mode: each wrong setting on either side is reported with what to do. The responses of a real Synapse
//! are in `tests/e2e`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::appservice_reload;
use crate::appservice_setup::{AppServiceSetup, FakeResponse, json_response};
use crate::process::{Exit, run_to_exit};

/// Deadline with a homeserver that does not respond, so that all timeouts are used up.
const DEADLINE: Duration = Duration::from_secs(180);

/// A homeserver that responds as Synapse does, and a service beside it.
fn start_valid() -> AppServiceSetup {
    let setup = appservice_reload::start();
    let error = |errcode: &str| json!({ "errcode": errcode, "error": "never-logged" });
    for (end, status, body) in [
        (
            "account/whoami",
            "200 OK",
            json!({ "user_id": "@livekit:own.example" }),
        ),
        ("is_joined", "200 OK", json!({ "joined": false })),
        ("fed_proxy", "400 Bad Request", error("M_MISSING_PARAM")),
        (
            "versions",
            "200 OK",
            json!({ "versions": ["v1.16"], "unstable_features": { "org.matrix.msc4140": true } }),
        ),
        (
            "delayed_events/livekit-token-service-doctor",
            "404 Not Found",
            error("M_NOT_FOUND"),
        ),
        (
            "rtc/livekit/get_token",
            "400 Bad Request",
            error("M_INVALID_PARAM"),
        ),
        (
            "appservice/doctor%27s/ping",
            "200 OK",
            json!({ "duration_ms": 7 }),
        ),
    ] {
        setup.set_response(end, json_response(status, &body));
    }
    setup
}

fn doctor(setup: &AppServiceSetup) -> Exit {
    let exit = run_to_exit(&["doctor"], &setup.settings);
    assert!(!exit.stdout.contains("never-logged"), "{exit:?}");
    exit
}

fn expect(exit: &Exit, subject: &str, verdict: &str, words: &str) {
    let begin = format!("{verdict} {subject}: ");
    let found = exit.stdout.lines().find(|line| line.starts_with(&begin));
    let found = found.is_some_and(|line| line.contains(words));
    assert!(found, "no {begin:?} with {words:?} in:\n{}", exit.stdout);
}

#[test]
fn a_right_configuration_has_no_failures() {
    let setup = start_valid();
    let exit = doctor(&setup);
    assert_eq!(exit.code, Some(0), "{exit:?}");
    for (subject, words) in [
        ("homeserver", "own.example"),
        ("homeserver is_joined", "MSC4502"),
        ("homeserver fed_proxy", "MSC4512"),
        ("homeserver delayed events", "MSC4140"),
        ("homeserver to service", "hs_token"),
        ("homeserver pushes", "7 ms"),
    ] {
        expect(&exit, subject, "ok  ", words);
    }
    assert!(!exit.stdout.contains("public URL"), "{exit:?}");
    // the service gives the response that the fake homeserver forwards
    let seen = setup.requests();
    let request = seen.iter().find(|r| r.path().ends_with("/get_token"));
    let request = serde_json::from_slice(&request.unwrap().body).unwrap();
    let invalid = (400, "M_INVALID_PARAM".to_owned());
    assert_eq!(
        setup.request_as_alice(&request).status_and_errcode(),
        invalid
    );
}

#[test]
fn a_wrong_configuration_is_reported_with_what_to_do() {
    let (gone, denied) = ("404 Not Found", "403 Forbidden");
    let error = |errcode: &str| json!({ "errcode": errcode });
    let bad_status = |status: u16| json!({ "errcode": "M_BAD_STATUS", "status": status });
    let page = json!("<html>");
    let ping = "appservice/doctor%27s/ping";
    let get_token = "rtc/livekit/get_token";
    let table: [(&str, &'static str, Value, &str, &str, &str); 20] = [
        (
            "account/whoami",
            "401 Unauthorized",
            error("M_UNKNOWN_TOKEN"),
            "homeserver",
            "FAIL",
            "as_token",
        ),
        (
            "account/whoami",
            "200 OK",
            json!({ "user_id": "@x:other.example" }),
            "homeserver",
            "FAIL",
            "LIVEKIT_HS_SERVER_NAME=other.example",
        ),
        (
            "account/whoami",
            "200 OK",
            page.clone(),
            "homeserver",
            "FAIL",
            "LIVEKIT_HS_URL",
        ),
        (
            "account/whoami",
            gone,
            page.clone(),
            "homeserver",
            "FAIL",
            "LIVEKIT_HS_URL",
        ),
        (
            "is_joined",
            denied,
            error("M_FORBIDDEN"),
            "homeserver is_joined",
            "FAIL",
            "scope",
        ),
        (
            "is_joined",
            gone,
            error("M_UNRECOGNIZED"),
            "homeserver is_joined",
            "FAIL",
            "experimental_features",
        ),
        (
            "fed_proxy",
            denied,
            error("M_FORBIDDEN"),
            "homeserver fed_proxy",
            "FAIL",
            "registration",
        ),
        (
            "fed_proxy",
            gone,
            error("M_UNRECOGNIZED"),
            "homeserver fed_proxy",
            "FAIL",
            "MSC4512",
        ),
        (
            "versions",
            "200 OK",
            json!({ "unstable_features": { "org.matrix.msc4140": false } }),
            "homeserver delayed events",
            "warn",
            "MSC4140",
        ),
        (
            "delayed_events/livekit-token-service-doctor",
            denied,
            error("M_FORBIDDEN"),
            "homeserver delayed events",
            "FAIL",
            "users",
        ),
        (
            get_token,
            gone,
            error("M_UNRECOGNIZED"),
            "homeserver to service",
            "FAIL",
            "msc4512_enabled",
        ),
        (
            get_token,
            denied,
            error("M_FORBIDDEN"),
            "homeserver to service",
            "FAIL",
            "hs_token",
        ),
        (
            get_token,
            "400 Bad Request",
            error("M_BAD_JSON"),
            "homeserver to service",
            "FAIL",
            "LIVEKIT_AS_",
        ),
        (
            get_token,
            "500 Broken",
            error("M_UNKNOWN"),
            "homeserver to service",
            "FAIL",
            "proxy_url",
        ),
        (
            ping,
            "400 Bad Request",
            error("M_URL_NOT_SET"),
            "homeserver pushes",
            "warn",
            "30 s",
        ),
        (
            ping,
            "502 Bad Gateway",
            bad_status(403),
            "homeserver pushes",
            "FAIL",
            "hs_token",
        ),
        (
            ping,
            "502 Bad Gateway",
            bad_status(404),
            "homeserver pushes",
            "FAIL",
            "is it this service?",
        ),
        (
            ping,
            "502 Bad Gateway",
            error("M_CONNECTION_FAILED"),
            "homeserver pushes",
            "FAIL",
            "does the service run?",
        ),
        (
            ping,
            "504 Gateway Timeout",
            error("M_CONNECTION_TIMEOUT"),
            "homeserver pushes",
            "FAIL",
            "does not answer",
        ),
        (
            ping,
            denied,
            error("M_FORBIDDEN"),
            "homeserver pushes",
            "FAIL",
            "registration",
        ),
    ];
    for (end, status, body, subject, verdict, words) in table {
        let setup = start_valid();
        setup.set_response(end, json_response(status, &body));
        let exit = doctor(&setup);
        expect(&exit, subject, verdict, words);
        assert_eq!(exit.code, Some(i32::from(verdict == "FAIL")), "{exit:?}");
    }
}

#[test]
fn a_homeserver_with_endless_or_no_responses_does_not_delay_the_end() {
    for answer in [
        FakeResponse::Hang,
        FakeResponse::Close,
        FakeResponse::Body("200 OK", vec![b' '; 10 << 20]),
    ] {
        let (setup, begin) = (start_valid(), Instant::now());
        for end in ["account/whoami", "appservice/doctor%27s/ping"] {
            setup.set_response(end, answer.clone());
            let exit = doctor(&setup);
            assert_eq!(exit.code, Some(1), "{exit:?}");
            expect(
                &exit,
                "homeserver",
                if end.contains("ping") { "ok  " } else { "FAIL" },
                "http://",
            );
            // for the next request
            setup.set_response(
                "account/whoami",
                json_response("200 OK", &json!({ "user_id": "@livekit:own.example" })),
            );
        }
        assert!(begin.elapsed() < DEADLINE, "{:?}", begin.elapsed());
    }
}

#[test]
fn without_the_registration_file_pings_are_not_checked() {
    let setup = AppServiceSetup::start();
    setup.set_response(
        "account/whoami",
        json_response("200 OK", &json!({ "user_id": "@livekit:own.example" })),
    );
    let exit = doctor(&setup);
    expect(
        &exit,
        "homeserver pushes",
        "warn",
        "LIVEKIT_AS_REGISTRATION_FILE",
    );
}
