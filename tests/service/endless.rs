//! Endless responses of homeservers, each part of which is valid and small. The service ends them by a bound on the whole input, long
//! before the deadline, at little cost in traffic and processor time.

use std::time::Duration;

use crate::homeserver::{Behaviour, FakeHomeserver};
use crate::process::Service;
use crate::settings::Settings;

/// Processor time for one response, in a build without optimization. Parsed for the 8 s of the deadline, it would take 6 s.
const MAX_PROCESSOR_TIME: Duration = Duration::from_secs(1);
/// Bytes of one response that the service reads, with the buffers of both sockets.
const MAX_BYTES_SENT: u64 = 16 * 1024 * 1024;

const OK: &str = "HTTP/1.1 200 OK\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn endless_interim_responses_are_refused() {
    refused("", "HTTP/1.1 100 Continue\r\n\r\n");
    refused("", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
}

#[test]
fn an_endless_head_is_refused() {
    refused(OK, "X-Filler: and one more\r\n");
    refused("HTTP/1.1 200 OK\r\nX-Filler: ", "and one more, ");
    refused("HTTP/1.1 200 ", "OK ");
    refused("", "\r\n");
}

#[test]
fn endless_chunks_are_refused() {
    refused(CHUNKED, "1\r\n \r\n");
    refused(CHUNKED, "0000000000000001\r\n \r\n");
    refused(CHUNKED, "1;a=b\r\n \r\n");
}

#[test]
fn an_endless_chunk_extension_or_size_is_refused() {
    let extension = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a=";
    refused(extension, "aaaaaaaa");
    refused(CHUNKED, "00000000");
}

#[test]
fn endless_trailers_are_refused() {
    let trailers = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n";
    refused(trailers, "X-Trailer: and one more\r\n");
}

/// The response starts with `start` and repeats `piece`.
fn refused(start: &'static str, piece: &'static str) {
    let what = format!("{start:?} {piece:?}");
    let server = FakeHomeserver::start("127.0.0.1", Behaviour::Endless(start, piece));
    let service =
        Service::start(&Settings::complete().set("LIVEKIT_ALLOWED_NETWORKS", "127.0.0.1"));
    let before = service.processor_time();
    let reply = service.post("/get_token", &server.user("alice").get_token());
    let used = service.processor_time() - before;
    eprintln!("{used:>6.1?} {:>9} bytes {what}", server.bytes_sent());
    assert_eq!(reply.status, 401, "{what} {reply:?}");
    assert_eq!(server.requests().len(), 1, "{what}");
    // a bound has ended it, not the deadline
    let line = service.wait_for_line_with(&["refused", "cause="]);
    assert!(!line.contains("timed out"), "{what}: {line}");
    assert!(used < MAX_PROCESSOR_TIME, "{what}: {used:?}");
    assert!(
        server.bytes_sent() < MAX_BYTES_SENT,
        "{what}: {} bytes",
        server.bytes_sent()
    );
}
