//! Clients that take their time, or ours: slow, endless, silent, gone.

use crate::client::{ATTACKER, Honest, PATIENCE, ask, connect_from, is_closed, read_answer};
use crate::service::Service;
use rustix::net::sockopt::set_socket_linger;
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

crate::tests![
    a_thousand_slow_heads_are_cut_off,
    three_thousand_slow_heads_are_cut_off,
    a_thousand_slow_bodies_are_cut_off,
    a_byte_at_a_time_is_served_if_it_ends,
    endless_requests_are_cut_off,
    lengths_beyond_measure_are_refused_at_once,
    clients_that_never_read_cost_a_bounded_memory,
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
    for _ in 0..count {
        let mut stream = connect_from(ATTACKER, service.address()).expect("connect");
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

fn endless_requests_are_cut_off() {
    let service = Service::shipped();
    let (threads, honest) = (threads(&service), Honest::start(&service));
    let chunked = "POST /get_token HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let long = "a".repeat(1 << 16);
    let repeated = "X: y\r\n".repeat(10_000);
    let attacks = [
        (
            "100 MB header",
            "GET / HTTP/1.1\r\nHost: a\r\nX: ".to_owned(),
            long.clone(),
            100 << 20,
            vec![431],
        ),
        (
            "100 MB target",
            "GET /".to_owned(),
            long.clone(),
            100 << 20,
            vec![414],
        ),
        (
            "million fields",
            "GET / HTTP/1.1\r\nHost: a\r\n".to_owned(),
            repeated.clone(),
            6 << 20,
            vec![431],
        ),
        (
            "500 MB header 1",
            "GET / HTTP/1.1\r\nX: ".to_owned(),
            long.clone(),
            500 << 20,
            vec![431],
        ),
        (
            "500 MB header 2",
            "GET / HTTP/1.1\r\nX: ".to_owned(),
            long.clone(),
            500 << 20,
            vec![431],
        ),
        (
            "500 MB header 3",
            "GET / HTTP/1.1\r\nX: ".to_owned(),
            long.clone(),
            500 << 20,
            vec![431],
        ),
        (
            "500 MB header 4",
            "GET / HTTP/1.1\r\nX: ".to_owned(),
            long.clone(),
            500 << 20,
            vec![431],
        ),
        (
            "endless size",
            chunked.to_owned(),
            "0".repeat(1 << 16),
            100 << 20,
            vec![400],
        ),
        (
            "endless extension",
            format!("{chunked}1;"),
            long.clone(),
            100 << 20,
            vec![400],
        ),
        (
            "endless chunks",
            chunked.to_owned(),
            format!("10000\r\n{long}\r\n"),
            100 << 20,
            vec![413],
        ),
        (
            "endless small chunks",
            chunked.to_owned(),
            "1\r\na\r\n".repeat(10_000),
            100 << 20,
            vec![413],
        ),
        (
            "endless trailers",
            format!("{chunked}0\r\n"),
            repeated,
            100 << 20,
            vec![431],
        ),
        (
            "endless trailer",
            format!("{chunked}0\r\nT:"),
            long,
            100 << 20,
            vec![400],
        ),
    ];
    let attackers: Vec<_> = attacks
        .into_iter()
        .map(|(name, opening, piece, bytes, statuses)| {
            let to = service.address();
            thread::spawn(move || {
                let mut stream = connect_from(ATTACKER, to).expect("connect");
                stream.write_all(opening.as_bytes()).expect("write");
                let mut sent = 0;
                while sent < bytes && stream.write_all(piece.as_bytes()).is_ok() {
                    sent += piece.len();
                }
                // once the service has closed, a reset may overtake its answer
                match read_answer(&mut stream, false) {
                    Ok(answer) => assert!(
                        statuses.contains(&answer.status),
                        "{name}: {}",
                        answer.status
                    ),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{name}"),
                }
                assert!(sent < 64 << 20, "{name}: {sent} bytes were taken");
            })
        })
        .collect();
    for attacker in attackers {
        attacker.join().expect("an attacker");
    }
    thread::sleep(Duration::from_millis(300));
    survived(service, honest, threads, "endless requests");
}

fn lengths_beyond_measure_are_refused_at_once() {
    let service = Service::shipped();
    let (threads, honest) = (threads(&service), Honest::start(&service));
    let begun = Instant::now();
    for length in ["10737418240", "109951162777600", "18446744073709551615"] {
        let head =
            format!("POST /get_token HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        for mut stream in crowd(&service, 100, head.as_bytes()) {
            let _ = stream.write_all(b"slowly");
            assert_eq!(
                read_answer(&mut stream, false).expect("an answer").status,
                413
            );
        }
    }
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "refused in {:?}",
        begun.elapsed()
    );
    survived(service, honest, threads, "lengths");
}

fn clients_that_never_read_cost_a_bounded_memory() {
    let service = Service::stand(&[("STAND_WORKERS", "8")]);
    let (threads, honest) = (threads(&service), Honest::start(&service));
    // answers of 4 MiB, 400 MiB in all
    let unread = crowd(
        &service,
        100,
        b"GET /big/4194304 HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    // and requests without end, none of whose answers is read
    let mut pipelines = crowd(&service, 50, b"");
    let requests = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100);
    let begun = Instant::now();
    for stream in &pipelines {
        stream.set_nonblocking(true).expect("nonblocking");
    }
    while begun.elapsed() < Duration::from_secs(3) {
        for stream in &mut pipelines {
            let _ = stream.write(&requests);
        }
        thread::sleep(Duration::from_millis(1));
    }
    honest.satisfied(&service, "100 x 4 MiB and 50 pipelines, unread");
    assert!(service.threads() <= threads);
    // the gate's 32 MiB, what eight workers have in hand, and the process itself
    assert!(
        service.peak_mib() < 200.0,
        "it has used {} MiB",
        service.peak_mib()
    );
    drop((unread, pipelines));
    service.stop();
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
    for round in 0..5000 {
        let mut stream = connect_from(ATTACKER, service.address()).expect("connect");
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
