//! Requests that mean nothing or more than one thing: each is refused with its status, and nothing of it is ever taken for
//! another request.

use crate::client::{ATTACKER, Answer, ask, connect_from, is_closed, read_answer};
use crate::service::Service;
use std::io::Write;

mod table;

crate::tests![
    every_malformed_request_is_refused_with_its_status,
    nothing_after_a_refused_request_is_served,
    large_heads_and_bodies_are_refused_with_their_status,
    refusals_are_json_that_a_browser_may_read,
    unusual_requests_that_mean_one_thing_are_served,
];

/// Each row of the table, and its bytes.
pub(crate) fn requests() -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    table::TABLE.iter().map(|(row, _)| (*row, bytes(row)))
}

fn bytes(row: &str) -> Vec<u8> {
    // characters above 7 bits stand for one byte each
    row.replace('^', "\r\n").chars().map(|c| c as u8).collect()
}

fn every_malformed_request_is_refused_with_its_status() {
    let service = Service::stand(&[]);
    let mut wrong = Vec::new();
    for (row, expected) in table::TABLE {
        let answer = ask(service.address(), &bytes(row));
        let status = answer.as_ref().map_or(0, |answer| answer.status);
        if status != *expected {
            wrong.push(format!("{row:?}: expected {expected}, found {status}"));
        }
    }
    println!("{} malformed requests", table::TABLE.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    service.stop();
}

fn nothing_after_a_refused_request_is_served() {
    let service = Service::stand(&[]);
    for (row, _) in table::TABLE {
        let mut stream = connect_from(ATTACKER, service.address()).expect("connect");
        let mut request = bytes(row);
        request.extend_from_slice(b"GET /echo HTTP/1.1\r\nHost: smuggled\r\n\r\n");
        stream.write_all(&request).expect("write");
        let answer = read_answer(&mut stream, false).expect("an answer");
        assert_eq!(answer.field("connection"), Some("close"), "{row:?}");
        let more = read_answer(&mut stream, false);
        assert!(more.is_err(), "{row:?} was followed by {more:?}");
    }
    service.stop();
}

fn large_heads_and_bodies_are_refused_with_their_status() {
    let service = Service::stand(&[]);
    let fields = |count: usize| "X: y\r\n".repeat(count);
    let rows = [
        (
            format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(8 << 10)),
            414,
        ),
        (format!("GET /{}", "a".repeat(17 << 10)), 414),
        (
            format!(
                "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
                "a".repeat(16 << 10)
            ),
            431,
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(64)),
            431,
        ),
        (
            format!("GET /healthz HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(63)),
            200,
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(10_000)),
            431,
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(262)),
            400,
        ),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;{}",
                "a".repeat(300)
            ),
            400,
        ),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{}\r\n",
                fields(1000)
            ),
            431,
        ),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{}",
                "1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n".repeat(100)
            ),
            400,
        ),
    ];
    for (request, expected) in rows {
        let answer = ask(service.address(), request.as_bytes()).expect("an answer");
        assert_eq!(answer.status, expected, "{}", &request[..40]);
    }
    service.stop();
}

fn refusals_are_json_that_a_browser_may_read() {
    let service = Service::stand(&[]);
    let told =
        |request: &str| -> Answer { ask(service.address(), &bytes(request)).expect("answer") };
    for (request, errcode) in [
        (
            "POST /echo HTTP/1.1^Host: a^Content-Length: 99999^^",
            "M_TOO_LARGE",
        ),
        ("GET /echo HTTP/1.1^^", "M_UNKNOWN"),
    ] {
        let answer = told(request);
        let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(body["errcode"], errcode);
        assert!(body["error"].is_string());
        assert_eq!(answer.field("content-type"), Some("application/json"));
        assert_eq!(answer.field("access-control-allow-origin"), Some("*"));
        assert!(answer.field("access-control-allow-headers").is_some());
        assert!(answer.field("date").is_some());
    }
    service.stop();
}

fn unusual_requests_that_mean_one_thing_are_served() {
    let service = Service::stand(&[]);
    for (request, expected) in [
        ("GET http://a/echo HTTP/1.1^Host: b^^", "GET /echo 0"),
        (
            "GET HTTPS://a:80/echo/x?y HTTP/1.1^Host: b^^",
            "GET /echo/x?y 0",
        ),
        ("^GET /echo HTTP/1.1^Host: a^^", "GET /echo 0"),
        ("GET /echo HTTP/1.0^^", "GET /echo 0"),
        ("GET /echo HTTP/1.1^Host:a^^", "GET /echo 0"),
        (
            "GET /echo HTTP/1.1^Host: [::1]:80^X: \u{e9}^^",
            "GET /echo 0",
        ),
        (
            "POST /echo HTTP/1.1^Host: a^Content-Length: 003^^abc",
            "POST /echo 3 ba7816bf",
        ),
        (
            "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: Chunked^^3;a=b^abc^0^T: v^^",
            "POST /echo 3 ba7816bf",
        ),
        (
            "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^001^a^2^bc^0^^",
            "POST /echo 3 ba7816bf",
        ),
        (
            "POST /echo HTTP/1.1^Host: a^Transfer-Encoding: chunked^^0^^",
            "POST /echo 0",
        ),
        (
            "GET /echo HTTP/1.1^Host: a^Content-Length: 3^^abc",
            "GET /echo 3 ba7816bf",
        ),
        (
            "GET /echo HTTP/1.1^Host: a^Upgrade: h2c^Connection: Upgrade, HTTP2-Settings^^",
            "GET /echo 0",
        ),
        (
            "GET /echo HTTP/1.1^Host: a^TE: chunked^Connection: TE^^",
            "GET /echo 0",
        ),
    ] {
        let answer = ask(service.address(), &bytes(request)).expect("an answer");
        assert_eq!(answer.status, 200, "{request:?}");
        assert!(
            answer.text().starts_with(expected),
            "{request:?}: {}",
            answer.text()
        );
    }
    let mut stream = connect_from(ATTACKER, service.address()).expect("connect");
    stream
        .write_all(b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close, keep-alive\r\n\r\n")
        .expect("write");
    assert_eq!(
        read_answer(&mut stream, false).expect("an answer").status,
        200
    );
    assert!(is_closed(&mut stream));
    service.stop();
}
