//! Reload on SIGHUP: each section of settings is read on its own, and only what has changed is replaced.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::appservice_participants::{get_token, join};
use crate::appservice_setup::{
    AS_TOKEN, AppServiceSetup, HS_TOKEN, USER_PATH, user_header, wait_until,
};
use crate::call::post_webhook;
use crate::homeserver::FakeHomeserver;
use crate::jwt;
use crate::metrics::{metrics_of, scrape};
use crate::process::Service;
use crate::settings::{KEY, SECRET, Settings};
use crate::setup::LOOPBACK;
use crate::sfu::{FakeSfu, SfuBehaviour};
use crate::token_client::{APP_KEY, any_request, app_entry, request_token};

const NEW_SECRET: &str = "never-logged-the-secret-that-comes-next";

/// Reloads, and waits for the end. Returns the log of it.
pub(crate) fn reload(service: &Service) -> String {
    let before = service.log();
    let reloads = |log: &str| log.matches("settings reloaded").count();
    service.reload();
    wait_until(
        || reloads(&service.log()) > reloads(&before),
        "no end of the reload",
    );
    service.log()[before.len()..].to_owned()
}

/// The log line about a settings section.
fn section_line<'a>(log: &'a str, event: &str, section: &str) -> &'a str {
    let section = format!("section={section}");
    let mut lines = log.lines();
    let line = lines.find(|line| line.contains(event) && line.contains(&section));
    line.unwrap_or_else(|| panic!("{event} {section}: {log}"))
}

/// The SFU's keys are in a file.
fn settings(sfu: &FakeSfu) -> Settings {
    Settings::listening()
        .set("LIVEKIT_URL", sfu.url())
        .set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
        .set_file("LIVEKIT_KEY_FILE", &format!("{KEY}: {SECRET}\n"))
}

fn new_and_old_key() -> String {
    format!("APInext: {NEW_SECRET}\n{KEY}: {SECRET}\n")
}

#[test]
fn a_new_first_key_signs_and_a_wrong_key_file_is_refused() {
    let (sfu, homeserver) = (
        FakeSfu::start(SfuBehaviour::Serves),
        FakeHomeserver::well_behaved(),
    );
    let settings = settings(&sfu);
    let service = Service::start(&settings);
    let file = settings.path("LIVEKIT_KEY_FILE");
    let token = |name: &str| {
        let user = homeserver.user(name);
        service.post("/get_token", &user.get_token()).jwt()
    };
    assert_eq!(jwt::claims(&token("alice"), SECRET)["iss"], KEY);

    fs::write(&file, new_and_old_key()).unwrap();
    let log = reload(&service);
    section_line(&log, "settings section reloaded", "\"SFU keys\"");
    assert!(log.contains("signing_key=APInext"), "{log}");
    assert_eq!(jwt::claims(&token("bob"), NEW_SECRET)["iss"], "APInext");

    for wrong in ["", "no pair at all: \n", "a: b\na: c\n"] {
        fs::write(&file, wrong).unwrap();
        let log = reload(&service);
        let line = section_line(&log, "settings section rejected", "\"SFU keys\"");
        assert!(line.contains("level=error"), "{line}");
        assert!(line.contains("LIVEKIT_KEY_FILE"), "{line}");
        assert_eq!(jwt::claims(&token("carol"), NEW_SECRET)["iss"], "APInext");
    }
}

#[test]
fn a_wrong_policy_does_not_keep_out_a_new_key_of_the_sfu() {
    let sfu = FakeSfu::start(SfuBehaviour::Serves);
    let settings = settings(&sfu).set_file("TOKEN_SERVER_POLICY_FILE", &app_entry(""));
    let service = Service::start(&settings);
    let token = || {
        let reply = request_token(service.address(), APP_KEY, &any_request());
        reply.json()["participant_token"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(jwt::claims(&token(), SECRET)["iss"], KEY);

    fs::write(settings.path("TOKEN_SERVER_POLICY_FILE"), "[broken").unwrap();
    fs::write(settings.path("LIVEKIT_KEY_FILE"), new_and_old_key()).unwrap();
    let log = reload(&service);
    let line = section_line(&log, "settings section rejected", "policy");
    assert!(line.contains("TOKEN_SERVER_POLICY_FILE"), "{line}");
    assert_eq!(log.matches("settings section rejected").count(), 1, "{log}");
    section_line(&log, "settings section reloaded", "\"SFU keys\"");
    assert_eq!(jwt::claims(&token(), NEW_SECRET)["iss"], "APInext");
}

#[test]
fn a_new_list_of_homeservers_and_a_new_log_level_take_effect() {
    let (sfu, homeserver) = (
        FakeSfu::start(SfuBehaviour::Serves),
        FakeHomeserver::well_behaved(),
    );
    let settings = settings(&sfu);
    let credentials = settings.path("credentials");
    fs::create_dir(&credentials).unwrap();
    let write = |name: &str, value: &str| fs::write(credentials.join(name), value).unwrap();
    write("LIVEKIT_FULL_ACCESS_HOMESERVERS", "elsewhere.example");
    write("LIVEKIT_LOG_LEVEL", "info");
    let settings = settings.set("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap());
    let settings = settings.unset("LIVEKIT_LOG_LEVEL");
    let service = Service::start(&settings);
    let has_full_access = |name: &str| {
        let user = homeserver.user(name);
        service.post("/get_token", &user.get_token()).jwt();
        let line = service.wait_for_line_with(&["token issued", &format!("@{name}:")]);
        line.contains("access=full")
    };
    assert!(!has_full_access("alice"));
    assert!(!service.log().contains("level=debug"));
    write("LIVEKIT_FULL_ACCESS_HOMESERVERS", homeserver.name());
    write("LIVEKIT_LOG_LEVEL", "debug");
    let log = reload(&service);
    let full_access = format!("full_access={}", homeserver.name());
    assert!(log.contains("log_level=DEBUG"), "{log}");
    assert!(log.replace('"', "").contains(&full_access), "{log}");
    assert!(has_full_access("bob"));
    service.wait_for_line_with(&["level=debug"]);
    assert_eq!(sfu.calls().len(), 1);
}

#[test]
fn caches_and_known_webhooks_outlast_a_reload_that_changes_the_key() {
    let (sfu, homeserver) = (
        FakeSfu::start(SfuBehaviour::Serves),
        FakeHomeserver::well_behaved(),
    );
    let settings = settings(&sfu).set("LIVEKIT_METRICS_BIND", "127.0.0.1:0");
    let service = Service::start(&settings);
    let alice = homeserver.user("alice").get_token();
    let webhook = json!({
        "event": "participant_left", "id": "EV_once", "createdAt": jwt::now().to_string(),
        "room": {"name": "room"}, "participant": {"identity": "alice", "sid": "PA_1"},
    });
    let webhook = webhook.to_string();
    let duplicates = || {
        let metrics = scrape(&metrics_of(&service));
        let name = "livekit_token_service_webhooks_total{outcome=\"duplicate\"} ";
        let count = metrics.lines().find_map(|line| line.strip_prefix(name));
        count.map_or(0, |count| count.parse().unwrap())
    };
    assert_eq!(service.post("/get_token", &alice).status, 200);
    assert_eq!(post_webhook(&service, webhook.as_bytes()).status, 200);
    let (requests, connections) = (homeserver.requests().len(), homeserver.connections());
    assert_eq!(duplicates(), 0);

    fs::write(settings.path("LIVEKIT_KEY_FILE"), new_and_old_key()).unwrap();
    reload(&service);
    let reply = service.post("/get_token", &alice);
    assert_eq!(jwt::claims(&reply.jwt(), NEW_SECRET)["iss"], "APInext");
    assert_eq!(
        homeserver.requests().len(),
        requests,
        "the OpenID token is cached"
    );
    assert_eq!(post_webhook(&service, webhook.as_bytes()).status, 200);
    assert_eq!(duplicates(), 1);
    let bob = homeserver.user("bob").get_token();
    assert_eq!(service.post("/get_token", &bob).status, 200);
    assert_eq!(
        homeserver.connections(),
        connections,
        "the connection is reused"
    );
}

#[test]
fn dev_stays_dev() {
    let settings = Settings::none().set("LIVEKIT_JWT_BIND", "127.0.0.1:0");
    let service = Service::start_with(&["--dev"], &settings);
    let issuer = || {
        let body = json!({"room_name": "room", "participant_identity": "me"});
        let reply = service.post("/token", &body).json();
        let token = reply["participant_token"].as_str().unwrap().to_owned();
        jwt::claims(&token, "secret")["iss"].clone()
    };
    assert_eq!(issuer(), "devkey");
    let log = reload(&service);
    assert!(!log.contains("settings section rejected"), "{log}");
    assert!(log.contains("full_access=all"), "{log}");
    assert_eq!(issuer(), "devkey");
}

#[test]
fn new_tokens_of_the_registration_hold_for_earlier_participants_too() {
    const NEXT_HS: &str = "never-logged-hs-token-that-comes-next";
    const NEXT_AS: &str = "never-logged-as-token-that-comes-next";
    let mut credentials = PathBuf::new();
    let setup = AppServiceSetup::start_with(|settings| {
        credentials = settings.path("credentials");
        fs::create_dir(&credentials).unwrap();
        fs::write(credentials.join("LIVEKIT_AS_TOKEN"), AS_TOKEN).unwrap();
        fs::write(credentials.join("LIVEKIT_HS_TOKEN"), HS_TOKEN).unwrap();
        settings
            .unset("LIVEKIT_AS_TOKEN")
            .unset("LIVEKIT_HS_TOKEN")
            .set("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap())
            .set("LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS", "1")
    });
    let request = setup.token_request();
    let alice = get_token(&setup, 1);

    fs::write(credentials.join("LIVEKIT_AS_TOKEN"), NEXT_AS).unwrap();
    fs::write(credentials.join("LIVEKIT_HS_TOKEN"), NEXT_HS).unwrap();
    setup.set_as_token(NEXT_AS);
    reload(&setup.service);

    let with_old_token = setup.request_as_alice(&request);
    assert_eq!(with_old_token.status, 403);
    let fields = [
        format!("Authorization: Bearer {NEXT_HS}"),
        user_header("@bob:own.example"),
    ];
    assert_eq!(setup.post(USER_PATH, &fields, &request).status, 200);

    // only a request with the new as_token gets this response; alice is checked when she joins
    setup.set_joined(false);
    join(&setup, &alice);
    setup
        .service
        .wait_for_line_with(&["participant removed", "@alice:own.example"]);
}
