//! `--dev`: a service on loopback, with public credentials.

use crate::client::Address;
use crate::homeserver::FakeHomeserver;
use crate::jwt;
use crate::process::{Service, run_to_exit};
use crate::settings::Settings;
use crate::setup::LOOPBACK;
use crate::sfu::{FakeSfu, SfuBehaviour};

/// The credentials of `livekit-server --dev`.
const DEV_KEY: &str = "devkey";
const DEV_SECRET: &str = "secret";

#[test]
fn it_runs_on_loopback_and_logs_what_is_open_and_how_to_try_it() {
    let settings = Settings::none().set("LIVEKIT_JWT_BIND", "127.0.0.1:0");
    let service = Service::start_with(&["--dev"], &settings);
    let Address::Tcp(address) = service.address() else {
        panic!("{:?}", service.address());
    };
    assert!(address.ip().is_loopback());
    for needle in [DEV_KEY, "ws://localhost:7880", "can have rooms created"] {
        service.wait_for_log(needle);
    }
    // with the port that the system chose
    service.wait_for_line_with(&["curl ", &format!("http://{address}/healthz")]);
    service.wait_for_line_with(&["curl ", &format!("http://{address}/get_token")]);
    assert_eq!(service.request("GET", "/healthz").status, 200);
}

#[test]
fn users_of_all_homeservers_have_full_access() {
    let homeserver = FakeHomeserver::well_behaved();
    let sfu = FakeSfu::with_secret(SfuBehaviour::Serves, DEV_SECRET);
    let settings = Settings::listening()
        .set("LIVEKIT_URL", sfu.url())
        .set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK);
    let service = Service::start_with(&["--dev"], &settings);
    let reply = service.post("/get_token", &homeserver.user("alice").get_token());
    let claims = jwt::claims(&reply.jwt(), DEV_SECRET);
    assert_eq!(claims["iss"], DEV_KEY);
    assert_eq!(sfu.calls().len(), 1);
}

#[test]
fn it_refuses_other_addresses_than_loopback() {
    for bind in ["0.0.0.0:0", ":0", "[::]:0"] {
        let settings = Settings::none().set("LIVEKIT_JWT_BIND", bind);
        let exit = run_to_exit(&["--dev"], &settings);
        assert_eq!(exit.code, Some(78), "{bind} {exit:?}");
        assert!(exit.stderr.contains("LIVEKIT_JWT_BIND"), "{bind} {exit:?}");
    }
}
