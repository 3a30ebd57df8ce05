//! Sockets that somebody else has opened, as systemd does (`LISTEN_FDS`). A shell puts them where the service looks for them, as
//! nothing in the standard library does.

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
fn it_serves_the_socket_that_it_was_given_and_no_other() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = listener.local_addr().unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let unused = other.local_addr().unwrap();
    drop(other);
    let settings = Settings::complete().set("LIVEKIT_JWT_BIND", unused.to_string());
    let service = Service::start_by(given(&settings, listener.into(), 1), &settings);
    assert_eq!(told(&service), ours);
    assert_eq!(service.request("GET", "/healthz").status, 200);
    let refused = TcpStream::connect(unused).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_unix_socket_stays_where_it_is_when_the_service_ends() {
    let settings = Settings::complete();
    let path = settings.path("socket");
    let listener = UnixListener::bind(&path).unwrap();
    for _ in 0..2 {
        let socket = listener.try_clone().unwrap().into();
        let mut service = Service::start_by(given(&settings, socket, 1), &settings);
        assert_eq!(service.request("GET", "/healthz").status, 200);
        service.terminate();
        assert_eq!(service.ended(), Some(0));
        assert!(path.exists());
    }
}

#[test]
fn what_was_given_to_another_process_is_left_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let not_ours = listener.local_addr().unwrap();
    let settings = Settings::complete().set("LISTEN_PID", "1");
    let mut command = command(PROGRAM, &[], &settings);
    command
        .env("LISTEN_FDS", "1")
        .stdin(OwnedFd::from(listener));
    let service = Service::start_by(command, &settings);
    assert_ne!(told(&service), not_ours);
}

#[test]
fn what_cannot_be_served_ends_the_start_and_is_named() {
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
        // one was given, two were announced
        (listener(), "2", "no socket"),
        (listener(), "5", "expected 0 to 4"),
        (listener(), "4294967295", "expected 0 to 4"),
        (listener(), "one", "expected 0 to 4"),
    ];
    for (socket, count, complaint) in cases {
        let settings = Settings::complete();
        let output = shell(&settings, socket, count).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{complaint}: {said}");
        assert!(said.contains("LISTEN_FDS: expected"), "{said}");
        assert!(said.contains(complaint), "{complaint}: {said}");
    }
}

/// Clients that come while nobody serves wait for the next one to.
#[test]
fn a_restart_under_load_loses_no_request() {
    const CLIENTS: usize = 8;
    const RESTARTS: usize = 5;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    let settings = Settings::complete();
    let start = || {
        let socket = listener.try_clone().unwrap().into();
        Service::start_by(given(&settings, socket, 1), &settings)
    };
    let mut service = start();
    let done = AtomicBool::new(false);
    let answered = thread::scope(|scope| {
        let ask_on = || {
            let mut answered = 0;
            while !done.load(Ordering::Relaxed) {
                // panics if there is no answer
                let reply = client::request(&address, "GET", "/healthz", b"");
                assert_eq!(reply.status, 200, "{reply:?}");
                answered += 1;
            }
            answered
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask_on)).collect();
        for _ in 0..RESTARTS {
            service.terminate();
            assert_eq!(service.ended(), Some(0));
            service = start();
        }
        done.store(true, Ordering::Relaxed);
        let answered = clients.into_iter().map(|client| client.join());
        answered.collect::<Result<Vec<usize>, _>>()
    });
    let answered = answered.expect("a request was lost");
    assert!(answered.iter().all(|count| *count > 0), "{answered:?}");
}

fn given(settings: &Settings, socket: OwnedFd, count: usize) -> Command {
    shell(settings, socket, &count.to_string())
}

/// A shell that moves its standard input to descriptor 3 and becomes the service.
fn shell(settings: &Settings, socket: OwnedFd, count: &str) -> Command {
    let script = r#"exec 3<&0 </dev/null; export LISTEN_PID=$$; exec "$0""#;
    let mut command = command("/bin/sh", &["-c", script, PROGRAM], settings);
    command.env("LISTEN_FDS", count);
    command.stdin(socket).stdout(Stdio::null());
    command
}

fn told(service: &Service) -> SocketAddr {
    match service.address() {
        Address::Tcp(address) => *address,
        Address::Unix(path) => panic!("{}", path.display()),
    }
}
