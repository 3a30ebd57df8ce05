//! TLS certificate verification and sources of root certificates.

use std::fs;

use crate::certificate::{Presents, authority_pem};
use crate::homeserver::{Behaviour, FakeHomeserver};
use crate::process::Service;
use crate::settings::Settings;
use crate::setup::LOOPBACK;
use crate::sfu::{FakeSfu, SfuBehaviour};

#[test]
fn certificates_are_verified_unless_the_setting_has_its_exact_value() {
    for (value, accepted) in [
        ("", false),
        ("true", false),
        ("YES_I_KNOW_WHAT_I_AM_DOING", true),
    ] {
        let servers = [
            FakeHomeserver::with_certificate(
                "127.0.0.1",
                Presents::Name("127.0.0.2"),
                Behaviour::Correct,
            ),
            FakeHomeserver::with_certificate(
                "localhost",
                Presents::Name("example.com"),
                Behaviour::Correct,
            ),
            FakeHomeserver::with_certificate(
                "localhost",
                Presents::SelfSigned("localhost"),
                Behaviour::Correct,
            ),
        ];
        let names: Vec<&str> = servers.iter().map(FakeHomeserver::name).collect();
        let sfu = FakeSfu::start(SfuBehaviour::Serves);
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
                server.requests().len(),
                usize::from(accepted),
                "no OpenID token is sent to an unverified server"
            );
        }
        const NAME: &str = "LIVEKIT_INSECURE_SKIP_VERIFY_TLS";
        match value {
            "" => assert!(!service.log().contains(NAME)),
            "true" => drop(service.wait_for_line_with(&[NAME, "no effect", "level=warn"])),
            _ => drop(service.wait_for_line_with(&[NAME, "level=warn"])),
        }
    }
}

#[test]
fn root_certificates_come_from_the_documented_variables_only() {
    let homeserver = FakeHomeserver::well_behaved();
    let base = || {
        Settings::complete()
            .unset("LIVEKIT_CA_FILE")
            .set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
    };
    let directory = base();
    let path = directory.path("certificates");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("authority.pem"), authority_pem()).unwrap();
    fs::write(path.join("README"), "not a certificate").unwrap();
    for (settings, is_trusted) in [
        (base(), false),
        (base().set_file("LIVEKIT_CA_FILE", authority_pem()), true),
        (base().set_file("SSL_CERT_FILE", authority_pem()), true),
        (directory.set("SSL_CERT_DIR", path.to_str().unwrap()), true),
    ] {
        let names: Vec<&String> = settings.variables().map(|(name, _)| name).collect();
        let service = Service::start(&settings);
        let reply = service.post("/sfu/get", &homeserver.user("alice").sfu_get());
        let status = if is_trusted { 200 } else { 401 };
        assert_eq!(reply.status, status, "{names:?}");
    }
}
