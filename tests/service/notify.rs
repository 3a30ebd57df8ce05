//! Notifications to systemd (sd_notify(3)), whose part a datagram socket plays.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::process::Service;
use crate::settings::Settings;

/// Only a hang takes longer.
const TIMEOUT: Duration = Duration::from_secs(60);

#[test]
fn the_start_and_the_end_are_notified() {
    let settings = Settings::complete();
    let path = settings.path("notify");
    let systemd = Systemd::at(UnixDatagram::bind(&path).unwrap());
    let settings = settings.set("NOTIFY_SOCKET", path.to_str().unwrap());
    let mut service = Service::start(&settings);
    assert_eq!(systemd.receive(), "READY=1");
    assert_eq!(service.request("GET", "/healthz").status, 200);
    service.send_sigterm();
    assert_eq!(systemd.receive(), "STOPPING=1");
    assert_eq!(service.wait_for_exit(), Some(0));
}

#[test]
fn an_abstract_socket_is_notified() {
    let name = format!("lts-test-notify-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let systemd = Systemd::at(UnixDatagram::bind_addr(&address).unwrap());
    let settings = Settings::complete().set("NOTIFY_SOCKET", format!("@{name}"));
    let _service = Service::start(&settings);
    assert_eq!(systemd.receive(), "READY=1");
}

#[test]
fn an_idle_service_pings_the_watchdog() {
    let settings = Settings::complete();
    let path = settings.path("notify");
    let systemd = Systemd::at(UnixDatagram::bind(&path).unwrap());
    let settings = settings
        .set("NOTIFY_SOCKET", path.to_str().unwrap())
        .set("WATCHDOG_USEC", "200000");
    let _service = Service::start(&settings);
    assert_eq!(systemd.receive(), "READY=1");
    for _ in 0..5 {
        assert_eq!(systemd.receive(), "WATCHDOG=1");
    }
}

#[test]
fn the_watchdog_of_another_process_is_not_pinged() {
    let settings = Settings::complete();
    let path = settings.path("notify");
    let systemd = Systemd::at(UnixDatagram::bind(&path).unwrap());
    let settings = settings
        .set("NOTIFY_SOCKET", path.to_str().unwrap())
        .set("WATCHDOG_USEC", "1000")
        .set("WATCHDOG_PID", "1");
    let mut service = Service::start(&settings);
    assert_eq!(systemd.receive(), "READY=1");
    assert_eq!(service.request("GET", "/healthz").status, 200);
    service.send_sigterm();
    assert_eq!(systemd.receive(), "STOPPING=1");
    assert_eq!(service.wait_for_exit(), Some(0));
}

#[test]
fn a_service_without_a_reachable_socket_serves() {
    let absent = Settings::complete().path("absent");
    for socket in [absent.to_str().unwrap(), "vsock:2:1234", "@", "nonsense"] {
        let settings = Settings::complete()
            .set("NOTIFY_SOCKET", socket)
            .set("WATCHDOG_USEC", "100000");
        let service = Service::start(&settings);
        assert_eq!(service.request("GET", "/healthz").status, 200, "{socket}");
    }
}

#[test]
fn a_full_socket_does_not_block_the_service() {
    let settings = Settings::complete();
    let path = settings.path("notify");
    // its queue holds about ten messages, and none is read
    let _unread = UnixDatagram::bind(&path).unwrap();
    let settings = settings
        .set("NOTIFY_SOCKET", path.to_str().unwrap())
        .set("WATCHDOG_USEC", "20000");
    let mut service = Service::start(&settings);
    service.wait_for_log("cannot notify systemd");
    assert_eq!(service.request("GET", "/healthz").status, 200);
    service.send_sigterm();
    assert_eq!(service.wait_for_exit(), Some(0));
}

struct Systemd(UnixDatagram);

impl Systemd {
    fn at(socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self(socket)
    }

    /// The next message.
    fn receive(&self) -> String {
        let mut message = [0; 256];
        loop {
            match self.0.recv(&mut message) {
                Ok(length) => return String::from_utf8(message[..length].to_vec()).unwrap(),
                // with a timeout the system does not continue after a signal
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => panic!("no notification: {error}"),
            }
        }
    }
}
