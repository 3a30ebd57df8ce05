//! Socket activation (`LISTEN_FDS`). A shell moves the sockets to the descriptors at which the service expects them; the standard
//! library cannot.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::client::{self, Address};
use crate::process::{PROGRAM, Service, command};
use crate::settings::Settings;

#[test]
fn an_inherited_socket_is_served_instead_of_the_configured_one() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let inherited = listener.local_addr().unwrap();
    let configured = TcpListener::bind("127.0.0.1:0").unwrap();
    let unused = configured.local_addr().unwrap();
    drop(configured);
    let settings = Settings::complete().set("LIVEKIT_JWT_BIND", unused.to_string());
    let service = Service::start_command(with_socket(&settings, listener.into(), 1), &settings);
    assert_eq!(tcp_address(&service), inherited);
    assert_eq!(service.request("GET", "/healthz").status, 200);
    let refused = TcpStream::connect(unused).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn an_inherited_unix_socket_outlives_the_service() {
    let settings = Settings::complete();
    let path = settings.path("socket");
    let listener = UnixListener::bind(&path).unwrap();
    for _ in 0..2 {
        let socket = listener.try_clone().unwrap().into();
        let mut service = Service::start_command(with_socket(&settings, socket, 1), &settings);
        assert_eq!(service.request("GET", "/healthz").status, 200);
        service.send_sigterm();
        assert_eq!(service.wait_for_exit(), Some(0));
        assert!(path.exists());
    }
}

#[test]
fn sockets_for_another_process_are_not_used() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let foreign = listener.local_addr().unwrap();
    let settings = Settings::complete().set("LISTEN_PID", "1");
    let mut command = command(PROGRAM, &[], &settings);
    command
        .env("LISTEN_FDS", "1")
        .stdin(OwnedFd::from(listener));
    let service = Service::start_command(command, &settings);
    assert_ne!(tcp_address(&service), foreign);
}

#[test]
fn unusable_sockets_are_a_clear_error() {
    let datagrams = || UdpSocket::bind("127.0.0.1:0").unwrap().into();
    let listener = || TcpListener::bind("127.0.0.1:0").unwrap().into();
    let connection = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        OwnedFd::from(TcpStream::connect(listener.local_addr().unwrap()).unwrap())
    };
    let file = || std::fs::File::open("/dev/null").unwrap().into();
    let cases: [(OwnedFd, &str, &str); 7] = [
        (datagrams(), "1", "another kind of socket"),
        (connection(), "1", "a connection"),
        (file(), "1", "no socket"),
        // one socket, two announced
        (listener(), "2", "no socket"),
        (listener(), "5", "expected 0 to 4"),
        (listener(), "4294967295", "expected 0 to 4"),
        (listener(), "one", "expected 0 to 4"),
    ];
    for (socket, count, found) in cases {
        let settings = Settings::complete();
        let output = shell(&settings, socket, count).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{found}: {log}");
        assert!(log.contains("LISTEN_FDS: expected"), "{log}");
        assert!(log.contains(found), "{found}: {log}");
    }
}

/// Clients that connect between two services wait for the next one.
#[test]
fn a_restart_under_load_loses_no_request() {
    const CLIENTS: usize = 8;
    const RESTARTS: usize = 5;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    let settings = Settings::complete();
    let start = || {
        let socket = listener.try_clone().unwrap().into();
        Service::start_command(with_socket(&settings, socket, 1), &settings)
    };
    let mut service = start();
    let done = AtomicBool::new(false);
    let answered = thread::scope(|scope| {
        let send_requests = || {
            let mut answered = 0;
            while !done.load(Ordering::Relaxed) {
                // panics without a response
                let reply = client::request(&address, "GET", "/healthz", b"");
                assert_eq!(reply.status, 200, "{reply:?}");
                answered += 1;
            }
            answered
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(send_requests)).collect();
        for _ in 0..RESTARTS {
            service.send_sigterm();
            assert_eq!(service.wait_for_exit(), Some(0));
            service = start();
        }
        done.store(true, Ordering::Relaxed);
        let answered = clients.into_iter().map(|client| client.join());
        answered.collect::<Result<Vec<usize>, _>>()
    });
    let answered = answered.expect("a request was lost");
    assert!(answered.iter().all(|count| *count > 0), "{answered:?}");
}

fn with_socket(settings: &Settings, socket: OwnedFd, count: usize) -> Command {
    shell(settings, socket, &count.to_string())
}

/// A shell that moves its standard input to descriptor 3 and executes the service.
fn shell(settings: &Settings, socket: OwnedFd, count: &str) -> Command {
    let script = r#"exec 3<&0 </dev/null; export LISTEN_PID=$$; exec "$0""#;
    let mut command = command("/bin/sh", &["-c", script, PROGRAM], settings);
    command.env("LISTEN_FDS", count);
    command.stdin(socket).stdout(Stdio::null());
    command
}

fn tcp_address(service: &Service) -> SocketAddr {
    match service.address() {
        Address::Tcp(address) => *address,
        Address::Unix(path) => panic!("{}", path.display()),
    }
}
