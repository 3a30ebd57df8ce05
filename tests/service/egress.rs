//! `LIVEKIT_HTTPS_PROXY`: what is on public addresses is reached through it, what is not is dialled, and nobody is led inside.
//!
//! The public addresses are of 2d00::/8, which nobody has been given: a request that went past the proxy would reach no one.

use std::thread;
use std::time::{Duration, Instant};

use crate::certificate::Presents;
use crate::forward_proxy::{ForwardProxy, Treatment};
use crate::homeserver::{Behaviour, Homeserver};
use crate::process::{Service, run_to_exit};
use crate::settings::Settings;
use crate::sfu::Conduct;
use crate::ssrf::{ELSEWHERE, INWARD};
use crate::stage::{Stage, User};

const ADDRESS: &str = "2d00::1";
const NAME: &str = "[2d00::1]:8448";
/// What the service shows to the proxy, and nobody else may see.
const LOGIN: &str = "somebody:never-logged-proxy";
/// [`LOGIN`] in Basic authentication.
const BASIC: &str = "Basic c29tZWJvZHk6bmV2ZXItbG9nZ2VkLXByb3h5";
/// "In time" for a call through a proxy that is no help: its budget is 15 s, on a machine that may be slow.
const IN_TIME: Duration = Duration::from_secs(30);

fn homeserver(presents: &str) -> Homeserver {
    Homeserver::with_certificate("127.0.0.1", Presents::Name(presents), Behaviour::Honest)
        .with_name(NAME)
}

fn url(port: u16) -> String {
    format!("http://{LOGIN}@localhost:{port}")
}

fn behind(proxy: &ForwardProxy) -> Settings {
    Settings::complete().set("LIVEKIT_HTTPS_PROXY", url(proxy.port()))
}

#[test]
fn a_homeserver_on_a_public_address_is_asked_through_the_proxy() {
    let homeserver = homeserver(ADDRESS);
    let proxy = ForwardProxy::start(Treatment::LeadsTo(homeserver.port()));
    let stage = Stage::with(homeserver, Conduct::Serves, |settings| {
        settings
            .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", NAME)
            .set("LIVEKIT_HTTPS_PROXY", url(proxy.port()))
    });
    for name in ["alice", "bob"] {
        let reply = stage.get_token(&stage.homeserver.user(name));
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let asked = proxy.asked();
    assert_eq!(asked.len(), 1, "the tunnel is kept: {asked:?}");
    assert_eq!(
        (asked[0].method.as_str(), asked[0].target.as_str()),
        ("CONNECT", NAME)
    );
    assert_eq!(asked[0].header("host"), Some(NAME));
    assert_eq!(asked[0].header("proxy-authorization"), Some(BASIC));
    let seen = stage.homeserver.requests();
    assert_eq!(seen.len(), 2);
    for seen in seen {
        assert_eq!(seen.request.header("host"), Some(NAME));
        assert_eq!(seen.request.header("proxy-authorization"), None);
    }
    assert!(!stage.sfu.calls().is_empty());
    let line = stage.service.wait_for_log("listening on ");
    assert!(line.contains(&format!("https_proxy=http://localhost:{}", proxy.port())));
    assert!(!stage.service.log().contains(BASIC));
}

#[test]
fn a_certificate_is_checked_through_the_tunnel() {
    let homeserver = homeserver("2d00::2");
    let proxy = ForwardProxy::start(Treatment::LeadsTo(homeserver.port()));
    let service = Service::start(&behind(&proxy));
    let reply = service.post("/get_token", &homeserver.user("alice").get_token());
    assert_eq!(reply.status, 401, "{reply:?}");
    service.wait_for_words(&["refused", NAME, "TLS: "]);
    assert_eq!(homeserver.connections(), 1);
    assert_eq!(homeserver.requests().len(), 0);
}

#[test]
fn what_is_not_on_public_addresses_is_dialled_past_the_proxy() {
    let proxy = ForwardProxy::start(Treatment::Silent);
    let stage = Stage::restricted_with(|s| s.set("LIVEKIT_HTTPS_PROXY", url(proxy.port())));
    let reply = stage.get_token(&stage.homeserver.user("alice"));
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(proxy.asked().is_empty(), "{:?}", proxy.asked());
}

#[test]
fn the_proxy_is_never_asked_for_an_inner_address() {
    let homeserver = homeserver(ADDRESS);
    let proxy = ForwardProxy::start(Treatment::LeadsTo(homeserver.port()));
    let service = Service::start(&behind(&proxy));
    for name in INWARD.iter().chain(&ELSEWHERE) {
        let name = name.replace("PORT", "8448");
        let reply = service.post("/get_token", &User::new("alice", &name).get_token());
        assert_eq!(reply.status, 401, "{name}");
        assert!(proxy.asked().is_empty(), "{name}: {:?}", proxy.asked());
    }
    // without this a proxy that is never asked for anything would do
    let reply = service.post("/get_token", &homeserver.user("alice").get_token());
    assert_eq!((reply.status, proxy.asked().len()), (200, 1), "{reply:?}");
}

#[test]
fn a_proxy_that_is_no_help_is_named_in_the_log_and_to_nobody_else() {
    let flood = Treatment::Endless("HTTP/1.1 200 OK\r\nX: ", "a");
    let fields = Treatment::Endless("HTTP/1.1 200 OK\r\n", "X: a\r\n");
    let page = Treatment::Endless("HTTP/1.1 403 No\r\n\r\n", "<html>");
    let treatments = [
        (Treatment::Says("HTTP/1.1 407 No\r\n\r\n"), "status 407"),
        (
            Treatment::Says("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"),
            "status 403",
        ),
        (Treatment::Says("HTTP/1.0 503 Oh\r\n\r\n"), "status 503"),
        (
            Treatment::Says("SSH-2.0-OpenSSH_9.9\r\n"),
            "no valid response",
        ),
        (Treatment::Says(""), "closed the connection"),
        (Treatment::Drips("HTTP/1.1 200 OK\r\n\r\n"), "in time"),
        (Treatment::Silent, "in time"),
        (flood, "more than 8192 bytes"),
        (fields, "no valid response"),
        (
            Treatment::Says("HTTP/1.1 200 OK\r\n\r\nmore"),
            "more than a head",
        ),
        (page, "status 403"),
    ];
    thread::scope(|scope| {
        for (treatment, needle) in treatments {
            scope.spawn(move || {
                let proxy = ForwardProxy::start(treatment.clone());
                let service = Service::start(&behind(&proxy));
                refuses_in_time(&service, proxy.port(), needle);
                assert!(proxy.sent() < 8 * 1024 * 1024, "{treatment:?} was read");
            });
        }
    });
}

#[test]
fn a_proxy_that_is_not_there_is_named_too() {
    let service = Service::start(&Settings::complete().set("LIVEKIT_HTTPS_PROXY", url(1)));
    refuses_in_time(&service, 1, "cannot be reached");
    let unknown = format!("http://{LOGIN}@proxy.invalid:3128");
    let service = Service::start(&Settings::complete().set("LIVEKIT_HTTPS_PROXY", unknown));
    let reply = service.post("/get_token", &User::new("alice", NAME).get_token());
    assert_eq!(reply.status, 401);
    service.wait_for_words(&["refused", NAME, "proxy.invalid:3128", "is not found"]);
}

/// The client gets what it gets where a homeserver is not there, and the log says what the proxy did.
fn refuses_in_time(service: &Service, port: u16, needle: &str) {
    let start = Instant::now();
    let reply = service.post("/get_token", &User::new("alice", NAME).get_token());
    assert!(start.elapsed() < IN_TIME, "{needle}: {:?}", start.elapsed());
    let gone = service.post(
        "/get_token",
        &User::new("alice", "nowhere.invalid:1").get_token(),
    );
    assert_eq!((reply.status, reply.body), (401, gone.body), "{needle}");
    let proxy = format!("the proxy http://localhost:{port} (LIVEKIT_HTTPS_PROXY)");
    service.wait_for_words(&["refused", NAME, &proxy, needle]);
    assert!(!service.log().contains(BASIC));
}

#[test]
fn keys_of_a_login_are_fetched_through_the_proxy() {
    let proxy = ForwardProxy::start(Treatment::Says("HTTP/1.1 403 No\r\n\r\n"));
    let service = Service::start(
        &behind(&proxy)
            .set("TOKEN_SERVER_JWT_ISSUER", "https://login.example.com")
            .set("TOKEN_SERVER_JWT_AUDIENCE", "livekit")
            .set("TOKEN_SERVER_JWT_KEYS", "https://[2d00::3]/jwks.json"),
    );
    service.wait_for_words(&["jwks fetch failed", "CONNECT [2d00::3]:443", "403"]);
    assert_eq!(proxy.asked()[0].target, "[2d00::3]:443");
}

/// That no password is said is seen to by [`run_to_exit`].
#[test]
fn a_proxy_is_shown_without_its_login_and_a_wrong_one_ends_the_start() {
    let settings = |value: &str| Settings::complete().set("LIVEKIT_HTTPS_PROXY", value);
    let right = run_to_exit(&["check-config"], &settings(&url(3128)));
    assert_eq!(right.code, Some(0), "{right:?}");
    assert!(right.stdout.contains("http://localhost:3128 (login set)"));
    assert!(!right.stdout.contains("somebody"), "{right:?}");
    for value in [
        "localhost:3128",
        "https://somebody:never-logged@localhost:3128",
        "http://somebody:never-logged@localhost",
        "http://somebody:never-logged",
        "never-logged",
    ] {
        for arguments in [&[][..], &["check-config"], &["doctor"]] {
            let exit = run_to_exit(arguments, &settings(value));
            assert_eq!(exit.code, Some(78), "{exit:?}");
            let said = exit.stdout + &exit.stderr;
            assert!(
                said.contains("LIVEKIT_HTTPS_PROXY: expected http://[user:password@]host:port")
            );
        }
    }
}

#[test]
fn the_doctor_says_whether_the_proxy_is_there() {
    let sfu = crate::sfu::Sfu::start(Conduct::Serves);
    let proxy = ForwardProxy::start(Treatment::Says(
        "HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n",
    ));
    let settings = behind(&proxy).set("LIVEKIT_URL", sfu.url());
    let well = run_to_exit(&["doctor"], &settings);
    assert!(
        well.stdout.contains("ok   proxy: http://localhost:"),
        "{well:?}"
    );
    let unknown = settings
        .set("LIVEKIT_HTTPS_PROXY", format!("http://{LOGIN}@127.0.0.1:1"))
        .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", NAME);
    let ill = run_to_exit(&["doctor"], &unknown);
    assert_eq!(ill.code, Some(1), "{ill:?}");
    for what in ["proxy: ", &format!("{NAME} federation: ")] {
        let line = ill.stdout.lines().find(|line| line.contains(what));
        let line = line.unwrap_or_else(|| panic!("{ill:?}"));
        assert!(
            line.starts_with("FAIL") && line.contains("LIVEKIT_HTTPS_PROXY"),
            "{line}"
        );
    }
}
