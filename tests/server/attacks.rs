//! Attacks on the real service that need few connections: the regular client is served, and the cost is bounded.

use crate::attack::{Attack, flood, resets, slow_requests};
use crate::client::{
    CLIENT, HEALTH, Retry, connect_from, exchange, is_closed, open_many, read_status,
    try_read_response, wait_until,
};
use crate::echo::EchoServer;
use crate::process::ServiceProcess;
use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn slow_heads_are_cut_off() {
    slow_requests(50, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ");
}

#[test]
fn slow_bodies_are_cut_off() {
    slow_requests(
        50,
        b"POST /get_token HTTP/1.1\r\nHost: a\r\nContent-Length: 65536\r\n\r\n",
    );
}

#[test]
fn requests_that_arrive_byte_by_byte_are_served() {
    let attack = Attack::on(ServiceProcess::start(), Retry::Never);
    let mut streams = open_many(attack.address(), 200, b"");
    for byte in HEALTH {
        for stream in &mut streams {
            stream.write_all(&[*byte]).expect("write");
        }
        thread::sleep(Duration::from_millis(10));
    }
    for stream in &mut streams {
        assert_eq!(read_status(stream), 200);
    }
    drop(streams);
    attack.end("200 requests byte by byte");
}

#[test]
fn reset_connections_leave_nothing_behind() {
    resets(500);
}

#[test]
fn half_closed_connections_leave_nothing_behind() {
    let attack = Attack::on(ServiceProcess::start(), Retry::Never);
    for opening in [
        &b""[..],
        b"GET / HT",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
    ] {
        for mut stream in open_many(attack.address(), 100, opening) {
            stream.shutdown(Shutdown::Write).expect("shutdown");
            assert!(is_closed(&mut stream));
        }
    }
    attack.end("300 half-closed connections");
}

#[test]
fn bodies_of_any_announced_length_are_refused_before_they_are_sent() {
    let attack = Attack::on(ServiceProcess::start(), Retry::Never);
    for length in ["10737418240", "109951162777600", "18446744073709551615"] {
        let head =
            format!("POST /get_token HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        for mut stream in open_many(attack.address(), 100, head.as_bytes()) {
            let _ = stream.write_all(b"slowly");
            assert_eq!(read_status(&mut stream), 413);
        }
    }
    attack.end("300 announced lengths");
}

#[test]
fn endless_requests_are_cut_off() {
    /// More than the buffers of both kernels.
    const BYTES: usize = 64 << 20;
    let attack = Attack::on(ServiceProcess::start(), Retry::Never);
    let chunked = "POST /get_token HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let a = "a".repeat(1 << 16);
    let headers = "X: y\r\n".repeat(10_000);
    let requests = [
        (
            "header",
            "GET / HTTP/1.1\r\nHost: a\r\nX: ".into(),
            a.clone(),
            431,
        ),
        ("target", "GET /".into(), a.clone(), 414),
        (
            "headers",
            "GET / HTTP/1.1\r\nHost: a\r\n".into(),
            headers.clone(),
            431,
        ),
        (
            "first header",
            "GET / HTTP/1.1\r\nX: ".into(),
            a.clone(),
            431,
        ),
        ("chunk size", chunked.to_owned(), "0".repeat(1 << 16), 400),
        ("chunk extension", format!("{chunked}1;"), a.clone(), 400),
        (
            "chunks",
            chunked.to_owned(),
            format!("10000\r\n{a}\r\n"),
            413,
        ),
        (
            "small chunks",
            chunked.to_owned(),
            "1\r\na\r\n".repeat(10_000),
            413,
        ),
        ("trailers", format!("{chunked}0\r\n"), headers, 431),
        ("trailer", format!("{chunked}0\r\nT:"), a, 400),
    ];
    let attackers = requests.map(|(name, opening, piece, status): (_, String, _, _)| {
        let to = attack.address();
        thread::spawn(move || {
            let mut stream = connect_from(CLIENT, to).expect("connect");
            stream.write_all(opening.as_bytes()).expect("write");
            let mut sent = 0;
            while sent < BYTES && stream.write_all(piece.as_bytes()).is_ok() {
                sent += piece.len();
            }
            // a reset after the close of the server may overtake the response
            match try_read_response(&mut stream, false) {
                Ok(response) => assert_eq!(response.status, status, "{name}"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{name}"),
            }
            assert!(sent < BYTES, "{name}: all of {sent} bytes were taken");
        })
    });
    for attacker in attackers {
        attacker.join().expect("an attacker");
    }
    attack.end("endless requests");
}

#[test]
fn connections_beyond_the_limit_replace_the_slowest() {
    flood(ServiceProcess::with_max_connections(60), Retry::Closed, 600);
}

#[test]
fn sixty_four_descriptors_are_enough() {
    let attack = Attack::on(ServiceProcess::with_descriptors(64), Retry::Closed);
    let start = Instant::now();
    let mut opened = 0;
    let mut streams: Vec<TcpStream> = Vec::new();
    while start.elapsed() < Duration::from_secs(3) {
        streams.extend(open_many(
            attack.address(),
            1,
            b"GET /healthz HTTP/1.1\r\nX: ",
        ));
        opened += 1;
        streams.drain(..streams.len().saturating_sub(200));
        thread::sleep(Duration::from_millis(2));
    }
    eprintln!("64 descriptors: {opened} connections");
    attack.end("64 descriptors");
}

#[test]
fn clients_that_do_not_read_are_disconnected_when_memory_is_short() {
    const RESPONSE_BYTES: usize = 4 << 20;
    let server = EchoServer::with_workers(2);
    let evicted = || server.stats.evicted_connections.load(Relaxed);
    let mut unread: Vec<TcpStream> = Vec::new();
    // 32 MiB are buffered; the rest is in the kernel
    while evicted() == 0 {
        assert!(unread.len() < 100, "400 MiB were buffered");
        let served = server.stats.served_requests.load(Relaxed);
        unread.push(server.send_get(&format!("/big/{RESPONSE_BYTES}")));
        wait_until("a response", || {
            server.stats.served_requests.load(Relaxed) > served
        });
    }
    assert!(unread.len() > 7, "{} x 4 MiB evict a client", unread.len());
    assert_eq!(exchange(server.address(), HEALTH).status, 200);
    drop(unread);
    server.stop();
}

#[test]
fn an_idle_service_sleeps() {
    let service = ServiceProcess::start();
    let mut streams = open_many(service.address(), 100, HEALTH);
    for stream in &mut streams {
        assert_eq!(read_status(stream), 200);
    }
    thread::sleep(Duration::from_millis(500));
    let (switches, cpu) = (service.context_switches(), service.cpu_seconds());
    thread::sleep(Duration::from_secs(3));
    let (switches, cpu) = (
        service.context_switches() - switches,
        service.cpu_seconds() - cpu,
    );
    eprintln!("100 idle connections: {switches} wake-ups and {cpu} s of CPU in 3 s");
    assert!(switches < 10, "{switches} wake-ups");
    drop(streams);
    service.stop();
}
