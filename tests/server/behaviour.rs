//! HTTP/1.1 (RFC 9112) for ordinary clients.

use crate::client::{
    CLIENT, HEALTH, connect_from, exchange, get, is_closed, read_response, read_status,
    try_read_response,
};
use crate::echo::{EchoServer, MAX_LARGE_BODY_BYTES, Options};
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;

fn open(server: &EchoServer) -> TcpStream {
    connect_from(CLIENT, server.address()).expect("connect")
}

#[test]
fn a_connection_serves_many_requests() {
    let server = EchoServer::start();
    let mut stream = open(&server);
    for index in 0..200 {
        stream
            .write_all(&get(&format!("/echo/{index}")))
            .expect("write");
        let response = read_response(&mut stream);
        let expected = format!("GET /echo/{index} 0 ");
        assert!(response.text().starts_with(&expected));
        assert_eq!(response.header("connection"), None);
        assert_eq!(response.header("server"), None);
        assert!(response.header("date").is_some());
    }
    server.stop();
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = EchoServer::start();
    let mut stream = open(&server);
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
        let text = read_response(&mut stream).text();
        let length = index.to_string().len();
        let expected = format!("POST /echo/{index} {length} ");
        assert!(text.starts_with(&expected), "{text}");
    }
    sender.join().expect("sender");
    server.stop();
}

#[test]
fn http10_connections_end_unless_the_client_asks_to_keep_them() {
    let server = EchoServer::start();
    let mut stream = open(&server);
    stream
        .write_all(b"GET /echo HTTP/1.0\r\n\r\n")
        .expect("write");
    let response = read_response(&mut stream);
    let found = (response.status, response.header("connection"));
    assert_eq!(found, (200, Some("close")));
    assert!(is_closed(&mut stream));

    let mut stream = open(&server);
    for _ in 0..3 {
        stream
            .write_all(b"GET /echo HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
            .expect("write");
        let response = read_response(&mut stream);
        assert_eq!(response.header("connection"), Some("keep-alive"));
    }
    stream
        .write_all(b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .expect("write");
    let response = read_response(&mut stream);
    assert_eq!(response.header("connection"), Some("close"));
    assert!(is_closed(&mut stream));
    server.stop();
}

#[test]
fn a_response_to_head_has_no_body() {
    let server = EchoServer::start();
    let mut stream = open(&server);
    for _ in 0..2 {
        stream
            .write_all(b"HEAD /big/5000 HTTP/1.1\r\nHost: a\r\n\r\n")
            .expect("write");
        let response = try_read_response(&mut stream, true).expect("a response");
        let found = (response.status, response.header("content-length"));
        assert_eq!(found, (200, Some("5000")));
    }
    stream.write_all(HEALTH).expect("write");
    assert_eq!(read_response(&mut stream).text(), "ok");
    server.stop();
}

#[test]
fn a_client_that_waits_for_continue_gets_it() {
    let server = EchoServer::start();
    let mut stream = open(&server);
    let head =
        b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    stream.write_all(head).expect("write");
    assert_eq!(read_status(&mut stream), 100);
    stream.write_all(b"abc").expect("write");
    let text = read_response(&mut stream).text();
    assert!(text.starts_with("POST /echo 3 ba78"), "{text}");
    // a client that does not wait does not get it
    stream
        .write_all(&[head, &b"abc"[..]].concat())
        .expect("write");
    assert_eq!(read_status(&mut stream), 200);
    server.stop();
}

#[test]
fn a_half_closed_client_still_gets_its_response() {
    let server = EchoServer::start();
    let mut stream = server.send_get("/local/a");
    server.wait_held(1);
    stream.shutdown(Shutdown::Write).expect("shutdown");
    // the server gets events in their order: it knows of the half-close after this
    assert_eq!(exchange(server.address(), HEALTH).status, 200);
    server.release("a");
    assert_eq!(read_status(&mut stream), 200);
    assert!(is_closed(&mut stream));
    server.stop();
}

#[test]
fn large_responses_arrive_complete() {
    let server = EchoServer::start();
    for size in [0, 1, 8192, 70_000, 9_000_000] {
        let mut stream = server.send_get(&format!("/big/{size}"));
        stream.write_all(HEALTH).expect("write");
        assert_eq!(read_response(&mut stream).body.len(), size);
        assert_eq!(read_response(&mut stream).text(), "ok");
    }
    server.stop();
}

#[test]
fn large_bodies_need_permission_and_are_bounded_even_then() {
    let server = EchoServer::start();
    let body = vec![b'x'; MAX_LARGE_BODY_BYTES];
    let head = |target, length| {
        format!("POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")
    };
    for size in [(64 << 10) + 1, 1 << 20, MAX_LARGE_BODY_BYTES] {
        let mut stream = open(&server);
        let head = head("/echo/large", size);
        stream.write_all(head.as_bytes()).expect("write");
        stream.write_all(&body[..size]).expect("write");
        let text = read_response(&mut stream).text();
        let expected = format!("POST /echo/large {size} ");
        assert!(text.starts_with(&expected), "{text}");
    }
    for (target, length) in [
        ("/echo", (64 << 10) + 1),
        ("/echo/large", MAX_LARGE_BODY_BYTES + 1),
    ] {
        let response = exchange(server.address(), head(target, length).as_bytes());
        assert_eq!(response.status, 413, "{target}");
    }
    server.stop();
}

#[test]
fn bodies_arrive_complete_in_pieces_of_any_size() {
    let server = EchoServer::start();
    for size in [1, 1023, 1024, 1025, 16 << 10, 64 << 10] {
        let body: Vec<u8> = (0..size)
            .map(|index: usize| (index * 7 % 251) as u8)
            .collect();
        let with_length = [
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
        let mut received = Vec::new();
        for request in [with_length, chunked] {
            for piece in [request.len(), 7919, 97] {
                let mut stream = open(&server);
                for part in request.chunks(piece) {
                    stream.write_all(part).expect("write");
                }
                let text = read_response(&mut stream).text();
                received.push(text.lines().next().unwrap_or_default().to_owned());
            }
        }
        let expected = format!("POST /echo {size} ");
        assert!(received[0].starts_with(&expected), "{}", received[0]);
        assert!(
            received.iter().all(|line| *line == received[0]),
            "{received:?}"
        );
    }
    server.stop();
}

#[test]
fn a_panic_in_a_handler_costs_only_its_request() {
    let server = EchoServer::with_workers(2);
    let mut stream = open(&server);
    for _ in 0..10 {
        stream.write_all(&get("/panic")).expect("write");
        assert_eq!(read_status(&mut stream), 500);
        stream.write_all(HEALTH).expect("write");
        assert_eq!(read_status(&mut stream), 200);
    }
    server.stop();
}

#[test]
fn only_allowed_headers_reach_a_handler() {
    let server = EchoServer::start();
    let response = exchange(
        server.address(),
        b"POST /echo HTTP/1.1\r\nHost: a\r\nauthorization: Bearer x\r\nX-Internal-Request-Id: 9\r\nTE: chunked\r\n\
          Content-Length: 1\r\nConnection: authorization\r\nCookie: c\r\nExpect: 100-continue\r\nUpgrade: h2c\r\n\r\nx",
    );
    let text = response.text();
    let mut received: Vec<&str> = text.lines().skip(1).collect();
    received.sort_unstable();
    let expected = [
        "Content-Length: 1",
        "Host: a",
        "TE: identity",
        "X-Internal-Request-Id: 1",
        "authorization: Bearer x",
        "client: 127.0.0.1",
    ];
    assert_eq!(received, expected);
    server.stop();
}

#[test]
fn a_unix_socket_serves_as_the_network_does() {
    let path = std::env::temp_dir().join(format!("server-test-{}", std::process::id()));
    let server = EchoServer::with(Options {
        bind: format!("unix:{}", path.display()),
        ..Options::default()
    });
    let mut stream = UnixStream::connect(&path).expect("connect");
    for size in [10, 5_000_000] {
        stream
            .write_all(&get(&format!("/big/{size}")))
            .expect("write");
        assert_eq!(read_response(&mut stream).body.len(), size);
    }
    stream.write_all(&get("/echo")).expect("write");
    let text = read_response(&mut stream).text();
    assert!(text.contains("client: unix\n"), "{text}");
    server.stop();
    std::fs::remove_file(path).expect("remove");
}

#[test]
fn ipv4_and_ipv6_are_served() {
    let ipv6 = TcpListener::bind("[::1]:0").is_ok();
    let (bind, hosts) = if ipv6 {
        ("[::]:0", &["127.0.0.1", "::1"][..])
    } else {
        ("0.0.0.0:0", &["127.0.0.1"][..])
    };
    let server = EchoServer::with(Options {
        bind: bind.into(),
        ..Options::default()
    });
    for host in hosts {
        let mut stream = TcpStream::connect((*host, server.address().port())).expect("connect");
        stream.write_all(&get("/echo")).expect("write");
        let text = read_response(&mut stream).text();
        assert!(text.contains(&format!("client: {host}\n")), "{text}");
    }
    server.stop();
}
