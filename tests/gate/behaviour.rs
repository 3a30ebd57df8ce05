//! What honest clients may rely on: HTTP/1.1 as RFC 9112 has it.

use crate::client::{ATTACKER, ask, connect_from, is_closed, read_answer};
use crate::service::Service;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::thread;

crate::tests![
    a_connection_serves_request_after_request,
    pipelined_requests_are_answered_in_order,
    old_clients_are_served_as_they_ask,
    head_is_answered_without_a_body,
    a_client_that_expects_to_continue_is_told_to,
    a_half_closed_client_still_gets_its_answer,
    large_answers_arrive_whole,
    bodies_arrive_whole_however_they_are_cut,
    a_large_body_is_for_those_who_may_send_one_and_bounded_for_them_too,
    a_panic_costs_its_request_only,
    only_known_fields_reach_a_handler,
    a_unix_socket_is_as_good_as_the_network,
    both_families_of_addresses_are_served,
];

pub(crate) const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";

pub(crate) fn open(service: &Service) -> TcpStream {
    connect_from(ATTACKER, service.address()).expect("connect")
}

pub(crate) fn request(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes()
}

/// Sends a request and leaves its answer for later.
pub(crate) fn begin(service: &Service, target: &str) -> TcpStream {
    let mut stream = open(service);
    stream.write_all(&request(target)).expect("write");
    stream
}

pub(crate) fn status(stream: &mut TcpStream) -> u16 {
    read_answer(stream, false).map_or(0, |answer| answer.status)
}

fn a_connection_serves_request_after_request() {
    let service = Service::stand(&[]);
    let mut stream = open(&service);
    for index in 0..200 {
        stream
            .write_all(&request(&format!("/echo/{index}")))
            .expect("write");
        let answer = read_answer(&mut stream, false).expect("an answer");
        assert!(answer.text().starts_with(&format!("GET /echo/{index} 0 ")));
        assert_eq!(answer.field("connection"), None);
        assert_eq!(answer.field("server"), None);
        assert!(answer.field("date").is_some());
    }
    service.stop();
}

fn pipelined_requests_are_answered_in_order() {
    let service = Service::stand(&[]);
    let mut stream = open(&service);
    let mut writer = stream.try_clone().expect("clone");
    let sender = thread::spawn(move || {
        for index in 0..2000 {
            let body = format!("{index}");
            let length = body.len();
            let head = format!(
                "POST /echo/{index} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
            );
            writer.write_all((head + &body).as_bytes()).expect("write");
        }
    });
    for index in 0..2000 {
        let text = read_answer(&mut stream, false).expect("an answer").text();
        let length = index.to_string().len();
        assert!(
            text.starts_with(&format!("POST /echo/{index} {length} ")),
            "{text}"
        );
    }
    sender.join().expect("sender");
    service.stop();
}

fn old_clients_are_served_as_they_ask() {
    let service = Service::stand(&[]);
    let mut stream = open(&service);
    stream
        .write_all(b"GET /echo HTTP/1.0\r\n\r\n")
        .expect("write");
    let answer = read_answer(&mut stream, false).expect("an answer");
    assert_eq!(
        (answer.status, answer.field("connection")),
        (200, Some("close"))
    );
    assert!(is_closed(&mut stream));

    let mut stream = open(&service);
    for _ in 0..3 {
        stream
            .write_all(b"GET /echo HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
            .expect("write");
        let answer = read_answer(&mut stream, false).expect("an answer");
        assert_eq!(answer.field("connection"), Some("keep-alive"));
    }
    stream
        .write_all(b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .expect("write");
    let answer = read_answer(&mut stream, false).expect("an answer");
    assert_eq!(answer.field("connection"), Some("close"));
    assert!(is_closed(&mut stream));
    service.stop();
}

fn head_is_answered_without_a_body() {
    let service = Service::stand(&[]);
    let mut stream = open(&service);
    for _ in 0..2 {
        stream
            .write_all(b"HEAD /big/5000 HTTP/1.1\r\nHost: a\r\n\r\n")
            .expect("write");
        let answer = read_answer(&mut stream, true).expect("an answer");
        assert_eq!(
            (answer.status, answer.field("content-length")),
            (200, Some("5000"))
        );
    }
    stream.write_all(HEALTH).expect("write");
    assert_eq!(
        read_answer(&mut stream, false).expect("an answer").text(),
        "ok"
    );
    service.stop();
}

fn a_client_that_expects_to_continue_is_told_to() {
    let service = Service::stand(&[]);
    let mut stream = open(&service);
    let head =
        b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    stream.write_all(head).expect("write");
    assert_eq!(
        read_answer(&mut stream, false)
            .expect("an invitation")
            .status,
        100
    );
    stream.write_all(b"abc").expect("write");
    assert!(
        read_answer(&mut stream, false)
            .expect("an answer")
            .text()
            .starts_with("POST /echo 3 ba78")
    );
    // who does not wait is not told
    stream
        .write_all(&[head, &b"abc"[..]].concat())
        .expect("write");
    assert_eq!(status(&mut stream), 200);
    service.stop();
}

fn a_half_closed_client_still_gets_its_answer() {
    let service = Service::stand(&[]);
    let mut stream = begin(&service, "/local/50");
    stream
        .shutdown(std::net::Shutdown::Write)
        .expect("shutdown");
    assert_eq!(status(&mut stream), 200);
    assert!(is_closed(&mut stream));
    service.stop();
}

fn large_answers_arrive_whole() {
    let service = Service::stand(&[]);
    for size in [0, 1, 8192, 70_000, 9_000_000] {
        let mut stream = begin(&service, &format!("/big/{size}"));
        stream.write_all(HEALTH).expect("write");
        assert_eq!(
            read_answer(&mut stream, false)
                .expect("an answer")
                .body
                .len(),
            size
        );
        assert_eq!(
            read_answer(&mut stream, false).expect("an answer").text(),
            "ok"
        );
    }
    service.stop();
}

fn a_large_body_is_for_those_who_may_send_one_and_bounded_for_them_too() {
    let service = Service::stand(&[]);
    let most = 16 << 20;
    let body = vec![b'x'; most];
    let head = |target, length| {
        format!("POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")
    };
    for size in [(64 << 10) + 1, 1 << 20, most] {
        let mut stream = open(&service);
        let head = head("/echo/large", size);
        stream.write_all(head.as_bytes()).expect("write");
        stream.write_all(&body[..size]).expect("write");
        let text = read_answer(&mut stream, false).expect("an answer").text();
        let expected = format!("POST /echo/large {size} ");
        assert!(text.starts_with(&expected), "{text}");
    }
    for (target, length) in [("/echo", (64 << 10) + 1), ("/echo/large", most + 1)] {
        let mut stream = open(&service);
        let head = head(target, length);
        stream.write_all(head.as_bytes()).expect("write");
        let answer = read_answer(&mut stream, false).expect("an answer");
        assert_eq!(answer.status, 413, "{target}");
    }
    service.stop();
}

fn bodies_arrive_whole_however_they_are_cut() {
    let service = Service::stand(&[]);
    for size in [1, 1023, 1024, 1025, 16 << 10, 64 << 10] {
        let body: Vec<u8> = (0..size)
            .map(|index: usize| (index * 7 % 251) as u8)
            .collect();
        let sized = [
            format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n").as_bytes(),
            &body,
        ]
        .concat();
        let mut chunked =
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for part in body.chunks(1000) {
            chunked.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
            chunked.extend_from_slice(part);
            chunked.extend_from_slice(b"\r\n");
        }
        chunked.extend_from_slice(b"0\r\n\r\n");
        let mut told = Vec::new();
        for request in [sized, chunked] {
            for piece in [request.len(), 7919, 97] {
                let mut stream = open(&service);
                for part in request.chunks(piece) {
                    stream.write_all(part).expect("write");
                }
                let text = read_answer(&mut stream, false).expect("an answer").text();
                told.push(text.lines().next().unwrap_or_default().to_owned());
            }
        }
        assert!(
            told[0].starts_with(&format!("POST /echo {size} ")),
            "{}",
            told[0]
        );
        assert!(told.iter().all(|line| *line == told[0]), "{told:?}");
    }
    service.stop();
}

fn a_panic_costs_its_request_only() {
    let service = Service::stand(&[("STAND_WORKERS", "2")]);
    let mut stream = open(&service);
    for _ in 0..10 {
        stream.write_all(&request("/panic")).expect("write");
        assert_eq!(status(&mut stream), 500);
        stream.write_all(HEALTH).expect("write");
        assert_eq!(status(&mut stream), 200);
    }
    service.stop();
}

fn only_known_fields_reach_a_handler() {
    let service = Service::stand(&[]);
    let answer = ask(
        service.address(),
        b"POST /echo HTTP/1.1\r\nHost: a\r\nauthorization: Bearer x\r\nX-Internal-Request-Id: 1\r\nTE: chunked\r\n\
          Content-Length: 1\r\nConnection: authorization\r\nCookie: c\r\nExpect: 100-continue\r\nUpgrade: h2c\r\n\r\nx",
    );
    let text = answer.expect("an answer").text();
    let mut fields: Vec<&str> = text.lines().skip(1).collect();
    fields.sort_unstable();
    let expected = ["Authorization: Bearer x", "Host: a", "client: 127.0.0.1"];
    assert_eq!(fields, expected);
    service.stop();
}

fn a_unix_socket_is_as_good_as_the_network() {
    let path = std::env::temp_dir().join(format!("gate-test-{}", std::process::id()));
    let bind = format!("unix:{}", path.display());
    let service = Service::stand(&[("STAND_BIND", &bind)]);
    let mut stream = UnixStream::connect(&path).expect("connect");
    for size in [10, 5_000_000] {
        let request = format!("GET /big/{size} HTTP/1.1\r\nHost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("write");
        assert_eq!(
            read_answer(&mut stream, false)
                .expect("an answer")
                .body
                .len(),
            size
        );
    }
    stream
        .write_all(b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n")
        .expect("write");
    assert!(
        read_answer(&mut stream, false)
            .expect("an answer")
            .text()
            .contains("client: unix")
    );
    service.stop();
    std::fs::remove_file(path).expect("remove");
}

fn both_families_of_addresses_are_served() {
    let service = Service::stand(&[("STAND_BIND", "[::]:0")]);
    let port = service.address().port();
    for (host, client) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
        let mut stream = TcpStream::connect((host, port)).expect("connect");
        stream.write_all(&request("/echo")).expect("write");
        let text = read_answer(&mut stream, false).expect("an answer").text();
        assert!(text.contains(&format!("client: {client}\n")), "{text}");
    }
    service.stop();
}
