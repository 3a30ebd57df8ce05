//! What systemd hears from the service: a datagram socket plays its part.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::process::Service;
use crate::settings::Settings;

/// Longer than anything that is waited for takes.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn it_is_told_when_clients_are_let_in_and_when_no_more_are() {
    let settings = Settings::complete();
    let path = settings.path("notify");
    let systemd = Systemd::at(UnixDatagram::bind(&path).unwrap());
    let settings = settings.set("NOTIFY_SOCKET", path.to_str().unwrap());
    let mut service = Service::start(&settings);
    assert_eq!(systemd.hears(), "READY=1");
    assert_eq!(service.request("GET", "/healthz").status, 200);
    service.terminate();
    assert_eq!(systemd.hears(), "STOPPING=1");
    assert_eq!(service.ended(), Some(0));
}

#[test]
fn an_abstract_name_is_as_good_as_a_path() {
    let name = format!("lts-test-notify-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let systemd = Systemd::at(UnixDatagram::bind_addr(&address).unwrap());
    let settings = Settings::complete().set("NOTIFY_SOCKET", format!("@{name}"));
    let _service = Service::start(&settings);
    assert_eq!(systemd.hears(), "READY=1");
}

#[test]
fn it_hears_signs_of_life_from_an_idle_service() {
    let settings = Settings::complete();
    let path = settings.path("notify");
    let systemd = Systemd::at(UnixDatagram::bind(&path).unwrap());
    let settings = settings
        .set("NOTIFY_SOCKET", path.to_str().unwrap())
        .set("WATCHDOG_USEC", "200000");
    let _service = Service::start(&settings);
    assert_eq!(systemd.hears(), "READY=1");
    for _ in 0..5 {
        assert_eq!(systemd.hears(), "WATCHDOG=1");
    }
}

#[test]
fn the_watchdog_of_another_process_is_not_ours() {
    let settings = Settings::complete();
    let path = settings.path("notify");
    let systemd = Systemd::at(UnixDatagram::bind(&path).unwrap());
    let settings = settings
        .set("NOTIFY_SOCKET", path.to_str().unwrap())
        .set("WATCHDOG_USEC", "1000")
        .set("WATCHDOG_PID", "1");
    let mut service = Service::start(&settings);
    assert_eq!(systemd.hears(), "READY=1");
    assert_eq!(service.request("GET", "/healthz").status, 200);
    service.terminate();
    assert_eq!(systemd.hears(), "STOPPING=1");
    assert_eq!(service.ended(), Some(0));
}

#[test]
fn nobody_to_tell_is_no_reason_not_to_serve() {
    let nowhere = Settings::complete().path("nowhere");
    for socket in [nowhere.to_str().unwrap(), "vsock:2:1234", "@", "nonsense"] {
        let settings = Settings::complete()
            .set("NOTIFY_SOCKET", socket)
            .set("WATCHDOG_USEC", "100000");
        let service = Service::start(&settings);
        assert_eq!(service.request("GET", "/healthz").status, 200, "{socket}");
    }
}

#[test]
fn a_manager_that_does_not_listen_any_more_holds_nothing_up() {
    let settings = Settings::complete();
    let path = settings.path("notify");
    // its queue holds some ten messages; nobody ever reads one
    let _deaf = UnixDatagram::bind(&path).unwrap();
    let settings = settings
        .set("NOTIFY_SOCKET", path.to_str().unwrap())
        .set("WATCHDOG_USEC", "20000");
    let mut service = Service::start(&settings);
    service.wait_for_log("cannot notify systemd");
    assert_eq!(service.request("GET", "/healthz").status, 200);
    service.terminate();
    assert_eq!(service.ended(), Some(0));
}

struct Systemd(UnixDatagram);

impl Systemd {
    fn at(socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// The next message.
    fn hears(&self) -> String {
        let mut message = [0; 256];
        loop {
            match self.0.recv(&mut message) {
                Ok(length) => return String::from_utf8(message[..length].to_vec()).unwrap(),
                // with a time limit the system does not go on by itself after a signal
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => panic!("nothing was heard: {error}"),
            }
        }
    }
}
