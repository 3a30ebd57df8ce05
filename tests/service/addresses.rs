//! A host name with several addresses: the service tries the next one if the first refuses the connection.
//!
//! The name is `localhost`. Where the host has only one address for it, the service runs in a mount namespace with an `/etc/hosts` that
//! has both; Linux lets users make one, unless a container forbids it.

use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::process::Command;

use crate::certificate::Presents;
use crate::homeserver::{Behaviour, FakeHomeserver};
use crate::process::{PROGRAM, Service, command};
use crate::settings::Settings;
use crate::setup::LOOPBACK;
use crate::sfu::{FakeSfu, SfuBehaviour};

const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n";
/// Ports tried until one is free on both addresses.
const PORTS: usize = 100;

#[test]
fn a_homeserver_is_found_on_any_address_of_its_name() {
    let Some(start) = service_starter() else {
        eprintln!("skipped: localhost has one address here, and mount namespaces are forbidden");
        return;
    };
    for (address, refusing_address) in [("127.0.0.1", "::1"), ("::1", "127.0.0.1")] {
        let (homeserver, _reserved) = (0..PORTS)
            .find_map(|_| {
                let presents = Presents::Name("localhost");
                let server =
                    FakeHomeserver::with_certificate(address, presents, Behaviour::Correct);
                let reserved = reserve_port(refusing_address, server.port())?;
                Some((server, reserved))
            })
            .unwrap();
        let name = format!("localhost:{}", homeserver.port());
        let homeserver = homeserver.with_name(&name);
        let sfu = FakeSfu::start(SfuBehaviour::Serves);
        let settings = Settings::complete().set("LIVEKIT_URL", sfu.url());
        for settings in [
            settings.clone().set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK),
            settings
                .clone()
                .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", &name),
            settings.set(
                "LIVEKIT_FEDERATION_URL_OVERRIDES",
                format!("{name}=https://{name}"),
            ),
        ] {
            let service = start(&settings);
            let reply = service.post("/get_token", &homeserver.user("alice").get_token());
            assert_eq!(reply.status, 200, "on {address} only: {reply:?}");
        }
    }
}

/// Binds a port without listening, so that connections to it are refused. `None` if the port is in use.
fn reserve_port(ip: &str, port: u16) -> Option<OwnedFd> {
    use rustix::net::{AddressFamily, SocketType, bind, socket};
    let ip: IpAddr = ip.parse().unwrap();
    let family = match ip {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket(family, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::new(ip, port)).ok()?;
    Some(socket)
}

/// Starts a service for which `localhost` has both addresses. `None` if this host cannot do that.
fn service_starter() -> Option<fn(&Settings) -> Service> {
    TcpListener::bind("[::1]:0").ok()?;
    let addresses: Vec<_> = ("localhost", 0).to_socket_addrs().unwrap().collect();
    if [true, false].map(|v4| addresses.iter().any(|a| a.is_ipv4() == v4)) == [true, true] {
        return Some(Service::start);
    }
    let script = "mount --bind /dev/null /etc/hosts";
    let tried = unshare(Command::new("unshare"), &["sh", "-c", script]).output();
    tried
        .is_ok_and(|output| output.status.success())
        .then_some(start_in_namespace)
}

fn start_in_namespace(settings: &Settings) -> Service {
    let hosts = settings.path("hosts");
    std::fs::write(&hosts, HOSTS).unwrap();
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$1\"";
    let arguments = ["sh", "-c", script, hosts.to_str().unwrap(), PROGRAM];
    let command = unshare(command("unshare", &[], settings), &arguments);
    Service::start_command(command, settings)
}

/// Adds the arguments of `unshare`(1) for a mount namespace in which `arguments` run.
fn unshare(mut command: Command, arguments: &[&str]) -> Command {
    command
        .args(["--user", "--map-root-user", "--mount"])
        .args(arguments);
    command
}
