//! Clients that take their time, or are gone: slow, silent, reset, half-open.

use crate::client::{Honest, PATIENCE, ask, connect_from, fresh_address, is_closed, read_answer};
use crate::service::Service;
use rustix::net::sockopt::set_socket_linger;
use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

crate::tests![
    a_thousand_slow_heads_are_cut_off,
    three_thousand_slow_heads_are_cut_off,
    a_thousand_slow_bodies_are_cut_off,
    a_byte_at_a_time_is_served_if_it_ends,
    resets_in_the_middle_leave_nothing,
    half_open_connections_leave_nothing,
];

/// For all attacks; the gate keeps at most 32 MiB for clients, and their connections less than 1 KiB each.
const MEMORY_MIB: f64 = 96.0;
/// Totals of 10 s, and what a slow machine adds.
const CUT_OFF: Duration = Duration::from_secs(15);

/// So many connections, each having sent this.
pub(crate) fn crowd(service: &Service, count: usize, opening: &[u8]) -> Vec<TcpStream> {
    let mut crowd = Vec::with_capacity(count);
    let mut from = fresh_address();
    for index in 1..=count {
        let mut stream = connect_from(from, service.address()).expect("connect");
        if index % 1000 == 0 {
            from = fresh_address();
        }
        let _ = stream.write_all(opening);
        crowd.push(stream);
    }
    crowd
}

/// What must hold after each attack: the honest client was served, and the cost was bounded.
pub(crate) fn survived(service: Service, honest: Honest, threads: usize, attack: &str) {
    honest.satisfied(&service, attack);
    assert!(
        service.threads() <= threads,
        "it has {} threads now",
        service.threads()
    );
    assert!(
        service.peak_mib() < MEMORY_MIB,
        "it has used {} MiB",
        service.peak_mib()
    );
    let alive = ask(
        service.address(),
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_eq!(alive.expect("it is alive").status, 200);
    service.stop();
}

/// Threads of the service: two for each worker, and a few; attackers must not add one.
pub(crate) fn threads(service: &Service) -> usize {
    // tiny_http's idle ones may still be counted, and an honest request may wake what sleeps
    service.threads() + 2
}

fn a_thousand_slow_heads_are_cut_off() {
    slowloris(1000, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ", b"y");
}

fn three_thousand_slow_heads_are_cut_off() {
    slowloris(3000, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ", b"y");
}

fn a_thousand_slow_bodies_are_cut_off() {
    slowloris(
        1000,
        b"POST /get_token HTTP/1.1\r\nHost: a\r\nContent-Length: 65536\r\n\r\n",
        b"y",
    );
}

/// Opens a crowd that sends a byte now and then, for ever.
fn slowloris(count: usize, opening: &[u8], drip: &[u8]) {
    let service = Service::shipped();
    let (threads, honest) = (threads(&service), Honest::start(&service));
    let begun = Instant::now();
    let mut crowd = crowd(&service, count, opening);
    let opened = begun.elapsed();
    while begun.elapsed() < opened + Duration::from_millis(9000) {
        for stream in &mut crowd {
            let _ = stream.write_all(drip);
        }
        thread::sleep(Duration::from_millis(500));
    }
    assert!(service.descriptors() > count, "they were cut off too early");
    for stream in &mut crowd {
        let answer = read_answer(stream, false).expect("an answer");
        assert_eq!(answer.status, 408);
    }
    assert!(
        begun.elapsed() < opened + CUT_OFF,
        "cut off after {:?}",
        begun.elapsed()
    );
    let attack = format!(
        "{count} slow, {:?}",
        std::str::from_utf8(&opening[..4]).unwrap_or_default()
    );
    survived(service, honest, threads, &attack);
}

fn a_byte_at_a_time_is_served_if_it_ends() {
    let service = Service::shipped();
    let honest = Honest::start(&service);
    let threads = threads(&service);
    let mut crowd = crowd(&service, 200, b"");
    for byte in b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" {
        for stream in &mut crowd {
            stream.write_all(&[*byte]).expect("write");
        }
        thread::sleep(Duration::from_millis(10));
    }
    for stream in &mut crowd {
        assert_eq!(read_answer(stream, false).expect("an answer").status, 200);
    }
    drop(crowd);
    survived(service, honest, threads, "200 dribbling");
}

fn resets_in_the_middle_leave_nothing() {
    let service = Service::shipped();
    let (threads, honest) = (threads(&service), Honest::start(&service));
    let before = service.descriptors();
    let openings: [&[u8]; 5] = [
        b"",
        b"GET /heal",
        b"POST /get_token HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /healthz HTTP/1.1\r\nHo",
    ];
    let from = fresh_address();
    for round in 0..5000 {
        let mut stream = connect_from(from, service.address()).expect("connect");
        let _ = stream.write_all(openings[round % openings.len()]);
        set_socket_linger(&stream, Some(Duration::ZERO)).expect("linger");
    }
    let begun = Instant::now();
    // the honest client has one, which may be on its way in and out
    while service.descriptors() > before + 2 {
        assert!(begun.elapsed() < PATIENCE, "descriptors leak");
        thread::sleep(Duration::from_millis(10));
    }
    survived(service, honest, threads, "5,000 resets");
}

fn half_open_connections_leave_nothing() {
    let service = Service::shipped();
    let (threads, honest) = (threads(&service), Honest::start(&service));
    for opening in [
        &b""[..],
        b"GET / HT",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
    ] {
        for mut stream in crowd(&service, 500, opening) {
            stream
                .shutdown(std::net::Shutdown::Write)
                .expect("shutdown");
            assert!(is_closed(&mut stream));
        }
    }
    survived(service, honest, threads, "1,500 half-open");
}
