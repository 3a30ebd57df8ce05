//! Shutdown without loss, and a start that fails.

use crate::client::{
    CLIENT, HEALTH, connect_from, is_closed, read_response, read_status, wait_until,
};
use crate::echo::EchoServer;
use crate::process::ServiceProcess;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Of `server::limits`: an idle client has this long for one more request.
const SHUTDOWN_IDLE_TIMEOUT: Duration = Duration::from_secs(1);

#[test]
fn requests_in_progress_are_finished_before_the_end() {
    // a client that the system does not run in time loses its connection, as it should: try again
    assert!((0..20).any(|_| shutdown_with_requests_in_progress()));
}

/// False if the client was not in time.
fn shutdown_with_requests_in_progress() -> bool {
    let mut server = EchoServer::with_workers(4);
    let address = server.address();
    let mut reused = server.send_get("/healthz");
    assert_eq!(read_status(&mut reused), 200);
    let mut working: Vec<_> = (0..8).map(|_| server.send_get("/local/a")).collect();
    server.wait_held(4);
    let mut unfinished = connect_from(CLIENT, address).expect("connect");
    unfinished
        .write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na")
        .expect("write");
    let start = Instant::now();
    server.begin_shutdown();
    wait_until("refused connections", || {
        TcpStream::connect(address).is_err()
    });
    let written = reused
        .write_all(HEALTH)
        .and_then(|()| unfinished.write_all(b"bc"));
    if start.elapsed() > SHUTDOWN_IDLE_TIMEOUT / 2 {
        return false;
    }
    written.expect("write");
    server.release_all();
    let last = read_response(&mut reused);
    let found = (last.status, last.header("connection"));
    assert_eq!(found, (200, Some("close")));
    assert_eq!(read_status(&mut unfinished), 200);
    for stream in &mut working {
        assert_eq!(read_status(stream), 200);
        assert!(is_closed(stream));
    }
    server.stop();
    true
}

/// A client may connect in the very turn of the loop that closes the listener, which no test can choose: hence many times.
#[test]
fn connections_during_the_shutdown_do_no_harm() {
    for _ in 0..25 {
        let server = EchoServer::with_workers(2);
        let (address, ended) = (server.address(), Arc::<AtomicBool>::default());
        let clients: Vec<_> = (0..2)
            .map(|_| {
                let ended = Arc::clone(&ended);
                thread::spawn(move || {
                    while !ended.load(Ordering::Relaxed) && TcpStream::connect(address).is_ok() {}
                })
            })
            .collect();
        assert_eq!(read_status(&mut server.send_get("/healthz")), 200);
        server.stop();
        ended.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("a client");
        }
    }
}

#[test]
fn too_few_descriptors_are_a_clear_error() {
    let output = ServiceProcess::run_with_descriptors(30);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    for part in ["descriptor limit (ulimit -n): expected ", ", found 30"] {
        assert!(log.contains(part), "{log}");
    }
}
