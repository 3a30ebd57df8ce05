//! Limits per address, the addresses that they apply to, and the shares of workers.

use crate::client::{
    HEALTH, OTHER_CLIENT, connect_from, exchange, get, is_closed, read_response, read_status,
    wait_until,
};
use crate::echo::{EchoServer, Options};
use rustix::net::sockopt::set_socket_linger;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Of `server::limits`: a request waits this long for a worker.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// Of `server::limits`: requests in a queue.
const MAX_QUEUED_REQUESTS: usize = 512;

fn status_for_other_client(server: &EchoServer) -> u16 {
    let mut stream = connect_from(OTHER_CLIENT, server.address()).expect("connect");
    stream.write_all(HEALTH).expect("write");
    read_status(&mut stream)
}

fn client_of(server: &EchoServer, header: &str) -> String {
    let request = format!("GET /echo HTTP/1.1\r\nHost: a\r\n{header}\r\n");
    let text = exchange(server.address(), request.as_bytes()).text();
    let client = text
        .lines()
        .find_map(|line| line.strip_prefix("client: "))
        .expect("a client");
    client.to_owned()
}

#[test]
fn a_forwarded_address_is_believed_from_trusted_proxies_only() {
    let header = "X-Forwarded-For: 198.51.100.7, 192.0.2.1\r\n";
    let behind_proxy = EchoServer::start();
    assert_eq!(client_of(&behind_proxy, header), "192.0.2.1");
    assert_eq!(client_of(&behind_proxy, ""), "127.0.0.1");
    behind_proxy.stop();
    let without_proxy = EchoServer::with(Options {
        trusted_proxies: Some(&[]),
        ..Options::default()
    });
    assert_eq!(client_of(&without_proxy, header), "127.0.0.1");
    without_proxy.stop();
}

#[test]
fn local_requests_do_not_wait_for_outbound_ones() {
    let server = EchoServer::with_workers(8);
    let mut outbound: Vec<_> = (0..50).map(|_| server.send_get("/outbound/a")).collect();
    // one worker is reserved
    server.wait_held(7);
    for _ in 0..20 {
        assert_eq!(exchange(server.address(), HEALTH).status, 200);
    }
    server.wait_held(7);
    // the others wait in vain
    wait_until("refusals of queued requests", || {
        server.stats.shed_requests.load(Relaxed) == 43
    });
    server.release("a");
    let statuses: Vec<u16> = outbound.iter_mut().map(read_status).collect();
    let count = |status| statuses.iter().filter(|found| **found == status).count();
    assert_eq!((count(200), count(503)), (7, 43), "{statuses:?}");
    server.stop();
}

#[test]
fn one_address_cannot_occupy_all_workers() {
    let server = EchoServer::with(Options {
        trusted_proxies: Some(&[]),
        workers: 8,
        ..Options::default()
    });
    let mut greedy: Vec<_> = (0..4).map(|_| server.send_get("/local/a")).collect();
    server.wait_held(4);
    // a request counts while a worker works for it, even if its connection is reset
    for stream in greedy.drain(2..) {
        set_socket_linger(&stream, Some(Duration::ZERO)).expect("linger");
    }
    wait_until("two open connections", || {
        server.stats.open_connections.load(Relaxed) == 2
    });
    let mut fifth = server.send_get("/local/a");
    assert_eq!(read_status(&mut fifth), 429);
    assert_eq!(status_for_other_client(&server), 200);
    server.release("a");
    assert!(greedy.iter_mut().all(|stream| read_status(stream) == 200));
    // the refusal did not cost the connection
    fifth.write_all(HEALTH).expect("write");
    assert_eq!(read_status(&mut fifth), 200);
    server.stop();
}

#[test]
fn one_address_cannot_occupy_all_connections() {
    let server = EchoServer::with(Options {
        trusted_proxies: Some(&[]),
        max_connections_per_address: Some(20),
        ..Options::default()
    });
    let open = || {
        let mut stream = server.send_get("/healthz");
        assert_eq!(read_status(&mut stream), 200);
        stream
    };
    let mut occupied: Vec<TcpStream> = (0..20).map(|_| open()).collect();
    assert!(is_closed(&mut server.send_get("/healthz")));
    assert_eq!(status_for_other_client(&server), 200);
    occupied.pop();
    wait_until("19 open connections", || {
        server.stats.open_connections.load(Relaxed) == 19
    });
    open();
    server.stop();
}

#[test]
fn a_late_response_is_replaced_by_504_and_goes_to_no_other_request() {
    let server = EchoServer::with(Options {
        workers: 2,
        work_timeout: Some(Duration::from_secs(5)),
        ..Options::default()
    });
    let mut stream = server.send_get("/local/late");
    assert_eq!(read_status(&mut stream), 504);
    // the connection goes on with the other worker
    stream.write_all(&get("/local/next")).expect("write");
    server.wait_held(2);
    server.release("late");
    // served by the worker of the late response, when that is over
    assert_eq!(exchange(server.address(), HEALTH).status, 200);
    server.release("next");
    assert_eq!(read_response(&mut stream).text(), "released next");
    server.stop();
}

#[test]
fn requests_beyond_the_queue_are_refused_with_503() {
    const REQUESTS: usize = 600;
    const WORKERS: usize = 2;
    let server = EchoServer::with_workers(WORKERS);
    let start = Instant::now();
    let mut streams: Vec<_> = (0..REQUESTS).map(|_| server.send_get("/local/a")).collect();
    let refused = REQUESTS - WORKERS - MAX_QUEUED_REQUESTS;
    wait_until("refusals", || {
        server.stats.shed_requests.load(Relaxed) >= refused as u64
    });
    server.release("a");
    let statuses: Vec<u16> = streams.iter_mut().map(read_status).collect();
    let count = |status| statuses.iter().filter(|found| **found == status).count();
    assert_eq!(count(200) + count(503), REQUESTS, "{statuses:?}");
    assert!(count(503) >= refused && count(200) >= WORKERS);
    if start.elapsed() < QUEUE_TIMEOUT {
        assert_eq!(count(503), refused);
    }
    server.stop();
}
