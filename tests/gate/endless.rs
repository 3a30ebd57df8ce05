//! Clients without measure: endless requests, lengths beyond any body, answers that nobody reads.

use crate::attacks::{crowd, survived, threads};
use crate::client::{ATTACKER, Honest, connect_from, read_answer};
use crate::service::Service;
use std::io::{ErrorKind, Write};
use std::thread;
use std::time::{Duration, Instant};

crate::tests![
    endless_requests_are_cut_off,
    lengths_beyond_measure_are_refused_at_once,
    clients_that_never_read_cost_a_bounded_memory,
];

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
