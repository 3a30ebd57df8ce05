//! Every way to configure the SFU's API key and secret.

use std::fs;

use crate::homeserver::FakeHomeserver;
use crate::jwt;
use crate::process::{Service, run_to_exit};
use crate::settings::{KEY, SECRET, Settings};
use crate::setup::LOOPBACK;

const OTHER_SECRET: &str = "never-logged-another-secret-of-the-black-box-suite";

#[test]
fn every_way_to_configure_key_and_secret_works() {
    let homeserver = FakeHomeserver::well_behaved();
    let base = || {
        Settings::listening()
            .set("LIVEKIT_URL", "wss://sfu.example.com")
            .set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
    };
    let pair = format!("{KEY}: {SECRET}");
    let pairs = format!("{pair}\nAPIother: {OTHER_SECRET}\n");
    let key = || base().set("LIVEKIT_KEY", KEY);
    for settings in [
        key().set("LIVEKIT_SECRET", SECRET),
        // these alone would open the general endpoint only
        base()
            .set("LIVEKIT_API_KEY", KEY)
            .set("LIVEKIT_API_SECRET", SECRET)
            .set("LIVEKIT_REMOTE_USERS_MAY_PUBLISH", "true"),
        key().set_file("LIVEKIT_SECRET_FROM_FILE", &format!("{SECRET}\n")),
        key().set_file("LIVEKIT_SECRET_FILE", &format!("  {SECRET}\r\n\n")),
        base()
            .set_file("LIVEKIT_KEY_FROM_FILE", &format!("{KEY}\n"))
            .set_file("LIVEKIT_SECRET_FROM_FILE", SECRET),
        base()
            .set_file("LIVEKIT_KEY_FROM_FILE", KEY)
            .set("LIVEKIT_SECRET", SECRET),
        // LiveKit's key file
        base().set_file("LIVEKIT_KEY_FILE", &pair),
        base().set_file("LIVEKIT_KEY_FILE", &format!("{KEY}:{SECRET}\n")),
        base().set_file("LIVEKIT_KEY_FILE", &pairs),
        base().set_file(
            "LIVEKIT_KEY_FILE",
            &format!("\n{}\n", pairs.replace('\n', "\r\n")),
        ),
        // the key alone, as in lk-jwt-service
        base()
            .set_file("LIVEKIT_KEY_FILE", &format!("{KEY}\n"))
            .set("LIVEKIT_SECRET", SECRET),
        base()
            .set_file("LIVEKIT_KEY_FILE", KEY)
            .set_file("LIVEKIT_SECRET_FILE", SECRET),
        base().set("LIVEKIT_KEYS", pair.as_str()),
        base().set("LIVEKIT_KEYS", pairs.as_str()),
        base().set("LIVEKIT_KEYS", pairs.trim().replace('\n', ", ")),
        // systemd's LoadCredential=
        in_credentials_directory(key(), "LIVEKIT_SECRET", SECRET),
        // an empty value counts as unset
        key()
            .set("LIVEKIT_SECRET", SECRET)
            .set("LIVEKIT_KEY_FILE", "")
            .set("LIVEKIT_KEYS", "")
            .set("LIVEKIT_JWT_PORT", ""),
    ] {
        let variables: Vec<&String> = settings.variables().map(|(name, _)| name).collect();
        let service = Service::start(&settings);
        let reply = service.post("/sfu/get", &homeserver.user("alice").sfu_get());
        assert_eq!(reply.status, 200, "{variables:?} {reply:?}");
        let claims = jwt::claims(&reply.jwt(), SECRET);
        assert_eq!(claims["iss"], KEY, "{variables:?}");
    }
}

#[test]
fn an_unreadable_or_empty_file_is_named() {
    for name in [
        "LIVEKIT_KEY_FROM_FILE",
        "LIVEKIT_SECRET_FROM_FILE",
        "LIVEKIT_SECRET_FILE",
        "LIVEKIT_KEY_FILE",
    ] {
        let settings = match name.contains("SECRET") {
            true => Settings::complete().unset("LIVEKIT_SECRET"),
            false => Settings::complete().unset("LIVEKIT_KEY"),
        };
        for settings in [
            settings.clone().set(name, "/nonexistent/secret"),
            settings.set_file(name, " \n"),
        ] {
            let exit = run_to_exit(&[], &settings);
            assert_eq!(exit.code, Some(78), "{name} {exit:?}");
            assert!(exit.stderr.contains(name), "{name} {exit:?}");
        }
    }
}

#[test]
fn a_short_secret_works_with_a_warning() {
    let settings = Settings::complete().set("LIVEKIT_SECRET", "never-logged-short");
    let service = Service::start(&settings);
    let warning = service.wait_for_log("32");
    assert!(warning.contains("level=warn"), "{warning}");
    assert!(warning.contains("LIVEKIT_SECRET"), "{warning}");
}

#[test]
fn two_different_secrets_are_an_error_that_names_both_settings() {
    let exit = run_to_exit(
        &[],
        &Settings::complete().set_file("LIVEKIT_SECRET_FILE", OTHER_SECRET),
    );
    assert_eq!(exit.code, Some(78), "{exit:?}");
    assert!(exit.stderr.contains("LIVEKIT_SECRET_FILE"), "{exit:?}");
    assert!(exit.stderr.contains("LIVEKIT_SECRET:") || exit.stderr.contains("LIVEKIT_SECRET,"));
}

fn in_credentials_directory(settings: Settings, name: &str, content: &str) -> Settings {
    let directory = settings.path("credentials");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join(name), content).unwrap();
    settings.set("CREDENTIALS_DIRECTORY", directory.to_str().unwrap())
}
