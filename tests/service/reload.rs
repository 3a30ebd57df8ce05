//! SIGHUP: what files say anew takes effect as a whole, or not at all.

use std::fs;
use std::path::PathBuf;

use crate::appservice_participants::{get_token, join};
use crate::appservice_stage::{AS_TOKEN, AppServiceStage, HS_TOKEN, USER_PATH, user_header};
use crate::homeserver::Homeserver;
use crate::jwt;
use crate::process::Service;
use crate::settings::{KEY, SECRET, Settings};
use crate::sfu::{Conduct, Sfu};
use crate::stage::LOOPBACK;

const NEW_SECRET: &str = "never-logged-the-secret-that-comes-next";

/// Keys, list and level in files, as systemd hands credentials over.
fn settings(sfu: &Sfu) -> Settings {
    Settings::listening()
        .set("LIVEKIT_URL", sfu.url())
        .set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
        .set_file("LIVEKIT_KEY_FILE", &format!("{KEY}: {SECRET}\n"))
}

#[test]
fn a_new_key_signs_and_the_old_one_still_proves_webhooks_while_it_is_there() {
    let (sfu, homeserver) = (Sfu::start(Conduct::Serves), Homeserver::honest());
    let settings = settings(&sfu);
    let service = Service::start(&settings);
    let file = settings.path("LIVEKIT_KEY_FILE");
    let token = |name: &str| {
        let user = homeserver.user(name);
        service.post("/get_token", &user.get_token()).jwt()
    };
    assert_eq!(jwt::claims(&token("alice"), SECRET)["iss"], KEY);

    fs::write(&file, format!("APInext: {NEW_SECRET}\n{KEY}: {SECRET}\n")).unwrap();
    service.hang_up();
    service.wait_for_words(&["re-read", "key=APInext"]);
    assert_eq!(jwt::claims(&token("bob"), NEW_SECRET)["iss"], "APInext");

    for wrong in ["", "no pair at all: \n", "a: b\na: c\n"] {
        fs::write(&file, wrong).unwrap();
        let before = service.log().matches("not re-read").count();
        service.hang_up();
        while service.log().matches("not re-read").count() == before {
            std::thread::yield_now();
        }
        assert_eq!(jwt::claims(&token("carol"), NEW_SECRET)["iss"], "APInext");
    }
    let line = service.wait_for_words(&["not re-read", "LIVEKIT_KEY_FILE"]);
    assert!(line.contains("level=error"), "{line}");
}

#[test]
fn a_homeserver_that_is_named_anew_has_full_access_and_the_level_changes() {
    let (sfu, homeserver) = (Sfu::start(Conduct::Serves), Homeserver::honest());
    let settings = settings(&sfu);
    let credentials = settings.path("credentials");
    fs::create_dir(&credentials).unwrap();
    let put = |name: &str, value: &str| fs::write(credentials.join(name), value).unwrap();
    put("LIVEKIT_FULL_ACCESS_HOMESERVERS", "elsewhere.example");
    put("LIVEKIT_LOG_LEVEL", "info");
    let settings = settings.set("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap());
    let settings = settings.unset("LIVEKIT_LOG_LEVEL");
    let service = Service::start(&settings);
    let access = |name: &str| {
        let user = homeserver.user(name);
        service.post("/get_token", &user.get_token()).jwt();
        let line = service.wait_for_words(&["token issued", &format!("@{name}:")]);
        line.contains("access=full")
    };
    assert!(!access("alice"));
    assert!(!service.log().contains("level=debug"));
    put("LIVEKIT_FULL_ACCESS_HOMESERVERS", homeserver.name());
    put("LIVEKIT_LOG_LEVEL", "debug");
    service.hang_up();
    service.wait_for_words(&["re-read", "homeservers=1 log_level=DEBUG"]);
    assert!(access("bob"));
    service.wait_for_words(&["level=debug"]);
    assert_eq!(sfu.calls().len(), 1);
}

#[test]
fn new_tokens_of_the_registration_hold_for_both_sides_and_for_those_who_have_come_before() {
    const NEXT_HS: &str = "never-logged-hs-token-that-comes-next";
    const NEXT_AS: &str = "never-logged-as-token-that-comes-next";
    let mut credentials = PathBuf::new();
    let stage = AppServiceStage::start_with(|settings| {
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
    let place = stage.token_request();
    let alice = get_token(&stage, 1);

    fs::write(credentials.join("LIVEKIT_AS_TOKEN"), NEXT_AS).unwrap();
    fs::write(credentials.join("LIVEKIT_HS_TOKEN"), NEXT_HS).unwrap();
    stage.set_as_token(NEXT_AS);
    stage.service.hang_up();
    stage.service.wait_for_words(&["re-read", "key="]);

    assert_eq!(
        stage.request_as_alice(&place).status,
        403,
        "the old hs_token"
    );
    let fields = [
        format!("Authorization: Bearer {NEXT_HS}"),
        user_header("@bob:own.example"),
    ];
    assert_eq!(stage.post(USER_PATH, &fields, &place).status, 200);

    // only an answer to the new as_token can tell; until she came nobody asked
    stage.set_joined(false);
    join(&stage, &alice);
    stage
        .service
        .wait_for_words(&["participant removed", "@alice:own.example"]);
}
