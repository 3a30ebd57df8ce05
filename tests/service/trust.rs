//! Whose certificates are believed.

use std::fs;

use crate::certificate::{Presents, authority_pem};
use crate::homeserver::{Behaviour, Homeserver};
use crate::process::Service;
use crate::settings::Settings;
use crate::sfu::{Conduct, Sfu};
use crate::stage::LOOPBACK;

#[test]
fn certificates_are_checked_unless_the_administrator_insists() {
    for (value, accepted) in [
        ("", false),
        ("true", false),
        ("YES_I_KNOW_WHAT_I_AM_DOING", true),
    ] {
        let servers = [
            Homeserver::presenting("127.0.0.1", Presents::Name("127.0.0.2"), Behaviour::Honest),
            Homeserver::presenting(
                "localhost",
                Presents::Name("example.com"),
                Behaviour::Honest,
            ),
            Homeserver::presenting(
                "localhost",
                Presents::SelfSigned("localhost"),
                Behaviour::Honest,
            ),
        ];
        let names: Vec<&str> = servers.iter().map(Homeserver::name).collect();
        let sfu = Sfu::start(Conduct::Serves);
        let service = Service::start(
            &Settings::complete()
                .set("LIVEKIT_URL", sfu.url())
                .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", names.join(" "))
                .set("LIVEKIT_INSECURE_SKIP_VERIFY_TLS", value),
        );
        for server in &servers {
            let reply = service.post("/get_token", &server.user("alice").get_token());
            let status = if accepted { 200 } else { 401 };
            assert_eq!(reply.status, status, "{value:?} {reply:?}");
            assert_eq!(
                server.seen().len(),
                usize::from(accepted),
                "no token before trust"
            );
        }
        const NAME: &str = "LIVEKIT_INSECURE_SKIP_VERIFY_TLS";
        match value {
            "" => assert!(!service.log().contains(NAME)),
            "true" => drop(service.wait_for_words(&[NAME, "no effect", "level=warn"])),
            _ => drop(service.wait_for_words(&[NAME, "level=warn"])),
        }
    }
}

#[test]
fn roots_may_come_from_each_of_the_known_variables_and_from_no_other_place() {
    let homeserver = Homeserver::honest();
    let base = || {
        Settings::complete()
            .unset("LIVEKIT_CA_FILE")
            .set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
    };
    let directory = base();
    let path = directory.path("certificates");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("authority.pem"), authority_pem()).unwrap();
    fs::write(path.join("README"), "no certificate").unwrap();
    for (settings, trusted) in [
        (base(), false),
        (base().set_file("LIVEKIT_CA_FILE", authority_pem()), true),
        (base().set_file("SSL_CERT_FILE", authority_pem()), true),
        (directory.set("SSL_CERT_DIR", path.to_str().unwrap()), true),
    ] {
        let given: Vec<&String> = settings.variables().map(|(name, _)| name).collect();
        let service = Service::start(&settings);
        let reply = service.post("/sfu/get", &homeserver.user("alice").sfu_get());
        let status = if trusted { 200 } else { 401 };
        assert_eq!(reply.status, status, "{given:?}");
    }
}
