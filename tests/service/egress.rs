//! `LIVEKIT_HTTPS_PROXY`: connections to public addresses go through the proxy, other addresses are dialled directly or denied.
//!
//! The public addresses are of 2d00::/8, which is not allocated: a connection past the proxy would fail.

use std::thread;

use crate::certificate::Presents;
use crate::forward_proxy::{ConnectResponse, ForwardProxy};
use crate::homeserver::{Behaviour, FakeHomeserver};
use crate::process::{Service, run_to_exit};
use crate::settings::Settings;
use crate::setup::{TestSetup, User};
use crate::sfu::SfuBehaviour;
use crate::ssrf::{LOOPBACK_NAMES, SPECIAL_ADDRESSES};

const ADDRESS: &str = "2d00::1";
const NAME: &str = "[2d00::1]:8448";
/// User and password for the proxy, which must not appear elsewhere.
const USERINFO: &str = "proxyuser:never-logged-proxy";
/// [`USERINFO`] as Basic credentials.
const BASIC: &str = "Basic cHJveHl1c2VyOm5ldmVyLWxvZ2dlZC1wcm94eQ==";

fn homeserver(certificate_name: &str) -> FakeHomeserver {
    let certificate = Presents::Name(certificate_name);
    FakeHomeserver::with_certificate("127.0.0.1", certificate, Behaviour::Correct).with_name(NAME)
}

fn url(port: u16) -> String {
    format!("http://{USERINFO}@localhost:{port}")
}

fn settings_with(proxy: &ForwardProxy) -> Settings {
    Settings::complete().set("LIVEKIT_HTTPS_PROXY", url(proxy.port()))
}

#[test]
fn a_homeserver_with_a_public_address_is_reached_through_the_proxy() {
    let homeserver = homeserver(ADDRESS);
    let proxy = ForwardProxy::start(ConnectResponse::TunnelTo(homeserver.port()));
    let setup = TestSetup::with(homeserver, SfuBehaviour::Serves, |settings| {
        settings
            .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", NAME)
            .set("LIVEKIT_HTTPS_PROXY", url(proxy.port()))
    });
    for name in ["alice", "bob"] {
        let reply = setup.get_token(&setup.homeserver.user(name));
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let requests = proxy.requests();
    assert_eq!(requests.len(), 1, "the tunnel is reused: {requests:?}");
    assert_eq!(
        (requests[0].method.as_str(), requests[0].target.as_str()),
        ("CONNECT", NAME)
    );
    assert_eq!(requests[0].header("host"), Some(NAME));
    assert_eq!(requests[0].header("proxy-authorization"), Some(BASIC));
    let received = setup.homeserver.requests();
    assert_eq!(received.len(), 2);
    for received in received {
        assert_eq!(received.request.header("host"), Some(NAME));
        assert_eq!(received.request.header("proxy-authorization"), None);
    }
    assert!(!setup.sfu.calls().is_empty());
    let line = setup.service.wait_for_log("msg=listening");
    assert!(line.contains(&format!("https_proxy=http://localhost:{}", proxy.port())));
    assert!(!setup.service.log().contains(BASIC));
}

#[test]
fn the_certificate_is_verified_through_the_tunnel() {
    let homeserver = homeserver("2d00::2");
    let proxy = ForwardProxy::start(ConnectResponse::TunnelTo(homeserver.port()));
    let service = Service::start(&settings_with(&proxy));
    let reply = service.post("/get_token", &homeserver.user("alice").get_token());
    assert_eq!(reply.status, 401, "{reply:?}");
    service.wait_for_line_with(&["refused", NAME, "TLS: "]);
    assert_eq!(homeserver.connections(), 1);
    assert_eq!(homeserver.requests().len(), 0);
}

#[test]
fn other_addresses_are_dialled_directly() {
    let proxy = ForwardProxy::start(ConnectResponse::Silent);
    let setup = TestSetup::restricted_with(|s| s.set("LIVEKIT_HTTPS_PROXY", url(proxy.port())));
    let reply = setup.get_token(&setup.homeserver.user("alice"));
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(proxy.requests().is_empty(), "{:?}", proxy.requests());
}

#[test]
fn the_proxy_is_never_asked_for_a_local_address() {
    let homeserver = homeserver(ADDRESS);
    let proxy = ForwardProxy::start(ConnectResponse::TunnelTo(homeserver.port()));
    let service = Service::start(&settings_with(&proxy));
    for name in LOOPBACK_NAMES.iter().chain(&SPECIAL_ADDRESSES) {
        let name = name.replace("PORT", "8448");
        let reply = service.post("/get_token", &User::new("alice", &name).get_token());
        assert_eq!(reply.status, 401, "{name}");
        assert!(
            proxy.requests().is_empty(),
            "{name}: {:?}",
            proxy.requests()
        );
    }
    // shows that the proxy is used at all
    let reply = service.post("/get_token", &homeserver.user("alice").get_token());
    assert_eq!(
        (reply.status, proxy.requests().len()),
        (200, 1),
        "{reply:?}"
    );
}

#[test]
fn a_failure_of_the_proxy_is_logged_and_not_part_of_the_response() {
    let endless_head = ConnectResponse::Endless("HTTP/1.1 200 OK\r\nX: ", "a");
    let endless_fields = ConnectResponse::Endless("HTTP/1.1 200 OK\r\n", "X: a\r\n");
    let endless_body = ConnectResponse::Endless("HTTP/1.1 403 No\r\n\r\n", "<html>");
    let responses = [
        (
            ConnectResponse::Bytes("HTTP/1.1 407 No\r\n\r\n"),
            "status 407",
        ),
        (
            ConnectResponse::Bytes("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"),
            "status 403",
        ),
        (
            ConnectResponse::Bytes("HTTP/1.0 503 Oh\r\n\r\n"),
            "status 503",
        ),
        (
            ConnectResponse::Bytes("SSH-2.0-OpenSSH_9.9\r\n"),
            "no valid response",
        ),
        (ConnectResponse::Bytes(""), "closed the connection"),
        (ConnectResponse::Slow("HTTP/1.1 200 OK\r\n\r\n"), "in time"),
        (ConnectResponse::Silent, "in time"),
        (endless_head, "more than 8192 bytes"),
        (endless_fields, "no valid response"),
        (
            ConnectResponse::Bytes("HTTP/1.1 200 OK\r\n\r\nmore"),
            "more than a head",
        ),
        (endless_body, "status 403"),
    ];
    thread::scope(|scope| {
        for (response, cause) in responses {
            scope.spawn(move || {
                let proxy = ForwardProxy::start(response.clone());
                let service = Service::start(&settings_with(&proxy));
                assert_refused(&service, proxy.port(), cause);
                assert!(
                    proxy.bytes_sent() < 8 * 1024 * 1024,
                    "{response:?} was read"
                );
            });
        }
    });
}

#[test]
fn an_unreachable_proxy_is_logged() {
    let service = Service::start(&Settings::complete().set("LIVEKIT_HTTPS_PROXY", url(1)));
    assert_refused(&service, 1, "cannot be reached");
    let unknown = format!("http://{USERINFO}@proxy.invalid:3128");
    let service = Service::start(&Settings::complete().set("LIVEKIT_HTTPS_PROXY", unknown));
    let reply = service.post("/get_token", &User::new("alice", NAME).get_token());
    assert_eq!(reply.status, 401);
    service.wait_for_line_with(&["refused", NAME, "proxy.invalid:3128", "is not found"]);
}

/// The response is that for a homeserver that does not exist, and the log has the cause. The client's own timeout is the deadline.
fn assert_refused(service: &Service, port: u16, cause: &str) {
    let reply = service.post("/get_token", &User::new("alice", NAME).get_token());
    let unknown = service.post(
        "/get_token",
        &User::new("alice", "nowhere.invalid:1").get_token(),
    );
    assert_eq!((reply.status, reply.body), (401, unknown.body), "{cause}");
    let proxy = format!("the proxy http://localhost:{port} (LIVEKIT_HTTPS_PROXY)");
    service.wait_for_line_with(&["refused", NAME, &proxy, cause]);
    assert!(!service.log().contains(BASIC));
}

#[test]
fn keys_of_a_jwt_issuer_are_fetched_through_the_proxy() {
    let proxy = ForwardProxy::start(ConnectResponse::Bytes("HTTP/1.1 403 No\r\n\r\n"));
    let service = Service::start(
        &settings_with(&proxy)
            .set("TOKEN_SERVER_JWT_ISSUER", "https://login.example.com")
            .set("TOKEN_SERVER_JWT_AUDIENCE", "livekit")
            .set("TOKEN_SERVER_JWT_KEYS", "https://[2d00::3]/jwks.json"),
    );
    service.wait_for_line_with(&["jwks fetch failed", "CONNECT [2d00::3]:443", "403"]);
    assert_eq!(proxy.requests()[0].target, "[2d00::3]:443");
}

/// [`run_to_exit`] checks that no output has the password.
#[test]
fn check_config_hides_the_credentials_and_an_invalid_proxy_is_an_error() {
    let settings = |value: &str| Settings::complete().set("LIVEKIT_HTTPS_PROXY", value);
    let valid = run_to_exit(&["check-config"], &settings(&url(3128)));
    assert_eq!(valid.code, Some(0), "{valid:?}");
    assert!(valid.stdout.contains("http://localhost:3128 (login set)"));
    assert!(!valid.stdout.contains("proxyuser"), "{valid:?}");
    for value in [
        "localhost:3128",
        "https://proxyuser:never-logged@localhost:3128",
        "http://proxyuser:never-logged@localhost",
        "http://proxyuser:never-logged",
        "never-logged",
    ] {
        for arguments in [&[][..], &["check-config"], &["doctor"]] {
            let exit = run_to_exit(arguments, &settings(value));
            assert_eq!(exit.code, Some(78), "{exit:?}");
            let output = exit.stdout + &exit.stderr;
            assert!(
                output.contains("LIVEKIT_HTTPS_PROXY: expected http://[user:password@]host:port")
            );
        }
    }
}

#[test]
fn doctor_checks_the_proxy() {
    let sfu = crate::sfu::FakeSfu::start(SfuBehaviour::Serves);
    let proxy = ForwardProxy::start(ConnectResponse::Bytes(
        "HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n",
    ));
    let settings = settings_with(&proxy).set("LIVEKIT_URL", sfu.url());
    let healthy = run_to_exit(&["doctor"], &settings);
    assert!(
        healthy.stdout.contains("ok   proxy: http://localhost:"),
        "{healthy:?}"
    );
    let unreachable = settings
        .set(
            "LIVEKIT_HTTPS_PROXY",
            format!("http://{USERINFO}@127.0.0.1:1"),
        )
        .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", NAME);
    let failed = run_to_exit(&["doctor"], &unreachable);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    for what in ["proxy: ", &format!("{NAME} federation: ")] {
        let line = failed.stdout.lines().find(|line| line.contains(what));
        let line = line.unwrap_or_else(|| panic!("{failed:?}"));
        assert!(
            line.starts_with("FAIL") && line.contains("LIVEKIT_HTTPS_PROXY"),
            "{line}"
        );
    }
}
