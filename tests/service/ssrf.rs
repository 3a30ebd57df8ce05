//! Server-side request forgery: no `matrix_server_name` of a caller makes the service connect to a local address, and the response is
//! that of every refused request. Well-known documents and redirects on port 443 are tested in `tests/e2e`.

use std::net::TcpStream;

use crate::homeserver::{Behaviour, FakeHomeserver};
use crate::process::Service;
use crate::settings::Settings;
use crate::setup::{LOOPBACK, TestSetup, User};
use crate::sfu::SfuBehaviour;
use crate::silent_listener::SilentListener;

/// Server names that resolve to loopback, or would with a lenient parser. `PORT` is that of a listener.
pub(crate) const LOOPBACK_NAMES: [&str; 48] = [
    // literals and names
    "127.0.0.1:PORT",
    "127.0.0.1",
    "127.1.2.3:PORT",
    "[::1]:PORT",
    "[::1]",
    "localhost:PORT",
    "LOCALHOST:PORT",
    "localhost",
    "localhost.:PORT",
    "127.0.0.1.:PORT",
    "0.0.0.0:PORT",
    "[::]:PORT",
    // IPv4 in IPv6: mapped, compatible, NAT64, 6to4, and as hexadecimal
    "[::ffff:127.0.0.1]:PORT",
    "[::ffff:7f00:1]:PORT",
    "[::127.0.0.1]:PORT",
    "[64:ff9b::127.0.0.1]:PORT",
    "[64:ff9b::7f00:1]:PORT",
    "[64:ff9b:1::7f00:1]:PORT",
    "[2002:7f00:1::]:PORT",
    "[2002:7f00:0001::1]:PORT",
    "[0:0:0:0:0:0:0:1]:PORT",
    "[::1%lo]:PORT",
    "[::1%251]:PORT",
    // IPv4 as getaddrinfo reads it
    "2130706433:PORT",
    "0x7f000001:PORT",
    "0x7f.0.0.1:PORT",
    "0x7f.1:PORT",
    "0177.0.0.1:PORT",
    "017700000001:PORT",
    "127.1:PORT",
    "127.0.1:PORT",
    "0:PORT",
    // invalid server names
    "user@127.0.0.1:PORT",
    "user:password@localhost:PORT",
    "localhost:PORT@example.com",
    "localhost:PORT/",
    "localhost:PORT/path",
    "localhost:PORT?query",
    "localhost:PORT#fragment",
    "example.com#@localhost:PORT",
    "localhost\\@example.com:PORT",
    "https://localhost:PORT",
    "//localhost:PORT",
    " localhost:PORT",
    "localhost:PORT\t",
    "localhost:PORT\r\nHost: example.com",
    "localhost\0:PORT",
    "１２７.０.０.１:PORT",
];

/// Private and special addresses without a listener, to which no connection may be tried.
pub(crate) const SPECIAL_ADDRESSES: [&str; 14] = [
    "10.0.0.1",
    "10.0.0.1:80",
    "172.16.0.1",
    "192.168.1.1:443",
    "100.64.0.1",
    "169.254.169.254",
    "169.254.169.254:80",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "[fe80::1]",
    "[fd00:ec2::254]:80",
    "[ff02::1]",
    "[::ffff:169.254.169.254]:80",
];

#[test]
fn no_server_name_leads_to_a_local_address() {
    let listeners = SilentListener::on_both_loopbacks();
    let service = Service::start(&Settings::complete());
    let refusal = refusal(&service);
    let names = LOOPBACK_NAMES.iter().chain(&SPECIAL_ADDRESSES);
    let mut wrong = Vec::new();
    for name in names {
        let name = name.replace("PORT", &listeners[0].port().to_string());
        let user = User::new("alice", &name);
        for (path, body) in [
            ("/get_token", user.get_token()),
            ("/sfu/get", user.sfu_get()),
        ] {
            let reply = service.post(path, &body);
            if reply.status != 401 || reply.body != refusal {
                wrong.push(format!("{path} {name:?}: {reply:?}"));
            }
            let connections = listeners.each_ref().map(SilentListener::connections);
            if connections != [0, 0] {
                wrong.push(format!(
                    "{path} {name:?}: {connections:?} connections so far"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Shows that the listeners of the test above would have counted a connection.
#[test]
fn the_same_names_are_reached_if_the_settings_allow_it() {
    for name in ["127.0.0.1:PORT", "[::1]:PORT", "localhost:PORT"] {
        let listeners = SilentListener::on_both_loopbacks();
        let service =
            Service::start(&Settings::complete().set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK));
        let name = name.replace("PORT", &listeners[0].port().to_string());
        // the listeners never respond
        let client = TcpStream::connect(tcp(&service)).unwrap();
        send(&client, &User::new("alice", &name));
        listeners[usize::from(name.starts_with("[::"))].wait_for(1);
    }
}

#[test]
fn full_access_for_all_homeservers_allows_no_local_address() {
    let listeners = SilentListener::on_both_loopbacks();
    let service = Service::start(&Settings::complete().set("LIVEKIT_FULL_ACCESS_HOMESERVERS", "*"));
    let refusal = refusal(&service);
    for name in ["127.0.0.1:PORT", "[::1]:PORT", "localhost:PORT"] {
        let name = name.replace("PORT", &listeners[0].port().to_string());
        let reply = service.post("/get_token", &User::new("alice", &name).get_token());
        assert_eq!(reply.status, 401, "{name}");
        assert_eq!(reply.body, refusal, "{name}");
    }
    assert_eq!(
        listeners.each_ref().map(SilentListener::connections),
        [0, 0]
    );
}

#[test]
fn only_the_name_of_a_listed_homeserver_may_have_a_local_address() {
    let listeners = SilentListener::on_both_loopbacks();
    let setup = TestSetup::full_access();
    let port = listeners[0].port();
    let homeserver_port = setup.homeserver.port();
    for name in [
        format!("localhost:{port}"),
        format!("127.0.0.1:{homeserver_port}"),
        format!("[::1]:{homeserver_port}"),
        format!("LOCALHOST:{homeserver_port}"),
    ] {
        let reply = setup.get_token(&User::new("alice", &name));
        assert_eq!(reply.status, 401, "{name}");
    }
    assert_eq!(
        listeners.each_ref().map(SilentListener::connections),
        [0, 0]
    );
    assert_eq!(setup.homeserver.connections(), 0);
}

#[test]
fn a_redirect_by_a_listed_homeserver_is_not_followed_to_a_local_address() {
    let listener = SilentListener::on("127.0.0.1");
    let location = format!("Location: https://127.0.0.1:{}/\r\n", listener.port());
    let behaviour = Behaviour::FixedResponse("307 Temporary Redirect", location, String::new());
    let homeserver = FakeHomeserver::start("localhost", behaviour);
    let name = homeserver.name().to_owned();
    let setup = TestSetup::with(homeserver, SfuBehaviour::Serves, |settings| {
        settings.set("LIVEKIT_FULL_ACCESS_HOMESERVERS", name)
    });
    let reply = setup.get_token(&setup.homeserver.user("alice"));
    assert_eq!(reply.status, 401);
    assert_eq!(setup.homeserver.requests().len(), 1);
    assert_eq!(listener.connections(), 0);
}

#[test]
fn denied_networks_add_to_the_built_in_ranges() {
    let listeners = SilentListener::on_both_loopbacks();
    let service = Service::start(
        &Settings::complete().set("LIVEKIT_DENIED_NETWORKS", "8.8.0.0/16, 2a00::/12"),
    );
    for name in ["8.8.8.8:1", "[2a00::1]:1", "127.0.0.1:PORT"] {
        let name = name.replace("PORT", &listeners[0].port().to_string());
        let reply = service.post("/get_token", &User::new("alice", &name).get_token());
        assert_eq!(reply.status, 401, "{name}");
        let address = name.rsplit_once(':').unwrap().0.trim_matches(['[', ']']);
        service.wait_for_log(address);
    }
    assert_eq!(
        listeners.each_ref().map(SilentListener::connections),
        [0, 0]
    );
}

#[test]
fn the_log_names_the_denied_address_and_the_setting_that_allows_it() {
    let service = Service::start(&Settings::complete());
    for (name, address) in [("localhost:4711", "127.0.0.1"), ("[::1]:4712", "::1")] {
        service.post("/get_token", &User::new("alice", name).get_token());
        service.wait_for_line_with(&[name, address, "LIVEKIT_ALLOWED_NETWORKS"]);
    }
}

/// Checked in the log: without a route to them, a connection would fail with the same response.
#[test]
fn special_and_unallocated_addresses_are_not_tried() {
    let service = Service::start(&Settings::complete());
    let unallocated = [
        "[4000::1]:1",
        "[::2]:1",
        "[::ffff:0:7f00:1]:1",
        "[fd12::1]:1",
    ];
    for name in SPECIAL_ADDRESSES.iter().chain(&unallocated) {
        service.post("/get_token", &User::new("alice", name).get_token());
        service.wait_for_line_with(&[
            "refused",
            &format!("server={name} "),
            "address policy denies",
        ]);
    }
}

#[test]
fn metadata_services_are_denied_even_as_listed_homeservers() {
    let names = [
        "169.254.169.254:80",
        "100.100.100.200:80",
        "[fd00:ec2::254]:80",
        "[fd20:ce::254]:80",
        "[fd00:c1::a9fe:a9fe]:80",
        "[::ffff:169.254.169.254]:80",
    ];
    let service = Service::start(
        &Settings::complete().set("LIVEKIT_FULL_ACCESS_HOMESERVERS", names.join(",")),
    );
    for name in names {
        service.post("/get_token", &User::new("alice", name).get_token());
        service.wait_for_line_with(&["refused", name, "address policy denies"]);
    }
}

/// Body of a refusal that does not depend on addresses.
fn refusal(service: &Service) -> Vec<u8> {
    let invalid = User::new("alice", "not a server name");
    let reply = service.post("/get_token", &invalid.get_token());
    assert_eq!(
        reply.status_and_errcode(),
        (401, "M_UNAUTHORIZED".to_owned())
    );
    reply.body
}

fn tcp(service: &Service) -> std::net::SocketAddr {
    match service.address() {
        crate::client::Address::Tcp(address) => *address,
        crate::client::Address::Unix(path) => panic!("{path:?}"),
    }
}

fn send(mut stream: &TcpStream, user: &User) {
    use std::io::Write;
    let body = user.get_token().to_string();
    let bytes = crate::client::written("POST", "/get_token", body.as_bytes());
    stream.write_all(&bytes).unwrap();
}
