//! Invalid and ambiguous requests: each is refused with its status, and no part of it is taken for another request.

use crate::client::{CLIENT, connect_from, exchange, is_closed, read_response, try_read_response};
use crate::echo::EchoServer;
use crate::malformed_requests::{all, bytes};
use crate::process::ServiceProcess;
use std::io::Write;

#[test]
fn malformed_requests_are_refused_with_their_status() {
    let server = EchoServer::start();
    let mut wrong = Vec::new();
    for request in all() {
        let mut stream = connect_from(CLIENT, server.address()).expect("connect");
        stream.write_all(&request.bytes).expect("write");
        let response = try_read_response(&mut stream, false);
        let status = response.map_or(0, |response| response.status);
        if status != request.status {
            wrong.push((request.row, request.status, status));
        }
    }
    assert!(wrong.is_empty(), "request, expected, found: {wrong:#?}");
    server.stop();
}

#[test]
fn nothing_after_a_malformed_request_is_served() {
    let server = EchoServer::start();
    for request in all() {
        let mut stream = connect_from(CLIENT, server.address()).expect("connect");
        let smuggled = b"GET /echo HTTP/1.1\r\nHost: smuggled\r\n\r\n";
        stream
            .write_all(&[&request.bytes, &smuggled[..]].concat())
            .expect("write");
        let response = read_response(&mut stream);
        let row = request.row;
        assert_eq!(response.header("connection"), Some("close"), "{row:?}");
        let next = try_read_response(&mut stream, false);
        assert!(next.is_err(), "{row:?} was followed by {next:?}");
    }
    server.stop();
}

#[test]
fn large_heads_and_bodies_are_refused_with_their_status() {
    let server = EchoServer::start();
    let headers = |count: usize| "X: y\r\n".repeat(count);
    let a = |count: usize| "a".repeat(count);
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let extension = "1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n";
    for (request, status) in [
        (
            format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", a(8 << 10)),
            414,
        ),
        (format!("GET /{}", a(17 << 10)), 414),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", a(16 << 10)),
            431,
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", headers(64)),
            431,
        ),
        (
            format!("GET /healthz HTTP/1.1\r\nHost: a\r\n{}\r\n", headers(63)),
            200,
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", headers(10_000)),
            431,
        ),
        (format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", a(262)), 400),
        (format!("{chunked}1;{}", a(300)), 400),
        (format!("{chunked}0\r\n{}\r\n", headers(1000)), 431),
        (format!("{chunked}{}", extension.repeat(100)), 400),
    ] {
        let response = exchange(server.address(), request.as_bytes());
        assert_eq!(response.status, status, "{}", &request[..40]);
    }
    server.stop();
}

#[test]
fn a_browser_can_read_refusals() {
    let service = ServiceProcess::start();
    for (request, errcode) in [
        (
            "POST /get_token HTTP/1.1^Host: a^Content-Length: 99999^^",
            "M_TOO_LARGE",
        ),
        ("GET /get_token HTTP/1.1^^", "M_UNKNOWN"),
    ] {
        let response = exchange(service.address(), &bytes(request));
        let body: serde_json::Value = serde_json::from_slice(&response.body).expect("JSON");
        assert_eq!(body["errcode"], errcode);
        assert!(body["error"].is_string());
        assert_eq!(response.header("content-type"), Some("application/json"));
        assert_eq!(response.header("access-control-allow-origin"), Some("*"));
        assert!(response.header("access-control-allow-headers").is_some());
        assert!(response.header("date").is_some());
    }
    service.stop();
}

#[test]
fn unusual_requests_with_one_meaning_are_served() {
    let server = EchoServer::start();
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
        let response = exchange(server.address(), &bytes(request));
        assert_eq!(response.status, 200, "{request:?}");
        let text = response.text();
        assert!(text.starts_with(expected), "{request:?}: {text}");
    }
    let mut stream = connect_from(CLIENT, server.address()).expect("connect");
    stream
        .write_all(b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close, keep-alive\r\n\r\n")
        .expect("write");
    assert_eq!(read_response(&mut stream).status, 200);
    assert!(is_closed(&mut stream));
    server.stop();
}
