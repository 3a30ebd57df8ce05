//! A name with several addresses, some of which refuse: the next one is asked.
//!
//! `localhost` is the name. Where the host knows it by one address only, the service gets a mount namespace with an
//! `/etc/hosts` that has both, for which Linux asks no privilege.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;

use crate::certificate::Presents;
use crate::homeserver::{Behaviour, Homeserver};
use crate::process::{PROGRAM, Service, command};
use crate::settings::Settings;
use crate::sfu::{Sfu, SfuBehavior};
use crate::stage::LOOPBACK;

const BOTH: &str = "127.0.0.1 localhost\n::1 localhost\n";

#[test]
fn a_homeserver_is_found_on_whichever_address_of_its_name_answers() {
    for (there, nobody) in [("127.0.0.1", "::1"), ("::1", "127.0.0.1")] {
        let (homeserver, _refusing) = (0..100)
            .find_map(|_| {
                let server = Homeserver::with_certificate(
                    there,
                    Presents::Name("localhost"),
                    Behaviour::Honest,
                );
                let refusing = refuse(nobody, server.port())?;
                Some((server, refusing))
            })
            .unwrap();
        let name = format!("localhost:{}", homeserver.port());
        let homeserver = homeserver.with_name(&name);
        let sfu = Sfu::start(SfuBehavior::Serves);
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
            let service = where_localhost_is_both(&settings);
            let reply = service.post("/get_token", &homeserver.user("alice").get_token());
            assert_eq!(reply.status, 200, "only {there}: {reply:?}");
        }
    }
}

/// Keeps a port of `ip` from everybody else, so that connections to it are refused.
fn refuse(ip: &str, port: u16) -> Option<OwnedFd> {
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

fn where_localhost_is_both(settings: &Settings) -> Service {
    let addresses: Vec<_> = ("localhost", 0).to_socket_addrs().unwrap().collect();
    let both = [true, false].map(|v4| addresses.iter().any(|address| address.is_ipv4() == v4));
    if both == [true, true] {
        return Service::start(settings);
    }
    let hosts = settings.path("hosts");
    std::fs::write(&hosts, BOTH).unwrap();
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$1\"";
    let hosts = hosts.to_str().unwrap();
    let arguments = [
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        hosts,
        PROGRAM,
    ];
    Service::start_command(command("unshare", &arguments, settings), settings)
}
