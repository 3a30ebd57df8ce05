//! Answers that never end, each piece of them innocent: no bound on a part of an answer bounds them. They cost the service
//! neither time nor traffic nor processor.

use std::time::{Duration, Instant};

use crate::homeserver::{Behaviour, Homeserver};
use crate::process::Service;
use crate::settings::Settings;

/// Far less than the 8 s that an answer's head may take, let alone the 15 s of a call.
const IN_TIME: Duration = Duration::from_secs(5);
/// What one of them may cost, in a build without optimization. Parsed at line rate for 8 s they cost 6 s.
const PROCESSOR: Duration = Duration::from_secs(1);
/// What the service may take of one, with the buffers of two kernels.
const TAKEN: u64 = 16 * 1024 * 1024;

const OK: &str = "HTTP/1.1 200 OK\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn interim_answers_without_end_are_refused() {
    refused("", "HTTP/1.1 100 Continue\r\n\r\n");
    refused("", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
}

#[test]
fn a_head_without_end_is_refused() {
    refused(OK, "X-Filler: and one more\r\n");
    refused("HTTP/1.1 200 OK\r\nX-Filler: ", "and one more, ");
    refused("HTTP/1.1 200 ", "OK ");
    refused("", "\r\n");
}

#[test]
fn chunks_without_end_are_refused() {
    refused(CHUNKED, "1\r\n \r\n");
    refused(CHUNKED, "0000000000000001\r\n \r\n");
    refused(CHUNKED, "1;a=b\r\n \r\n");
}

#[test]
fn a_chunk_s_extension_and_size_without_end_are_refused() {
    let extension = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a=";
    refused(extension, "aaaaaaaa");
    refused(CHUNKED, "00000000");
}

#[test]
fn trailers_without_end_are_refused() {
    let trailers = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n";
    refused(trailers, "X-Trailer: and one more\r\n");
}

/// A stranger's server that answers so is refused soon, after little of it, and at little cost.
fn refused(begin: &'static str, piece: &'static str) {
    let what = format!("{begin:?} {piece:?}");
    let server = Homeserver::start("127.0.0.1", Behaviour::Endless(begin, piece));
    let service =
        Service::start(&Settings::complete().set("LIVEKIT_ALLOWED_NETWORKS", "127.0.0.1"));
    let before = service.processor_time();
    let start = Instant::now();
    let reply = service.post("/get_token", &server.user("alice").get_token());
    let took = start.elapsed();
    let used = service.processor_time() - before;
    eprintln!(
        "{took:>6.1?} {used:>6.1?} {:>9} bytes {what}",
        server.bytes_sent()
    );
    assert_eq!(reply.status, 401, "{what} {reply:?}");
    assert_eq!(server.requests().len(), 1, "{what}");
    assert!(took < IN_TIME, "{what}: {took:?}");
    assert!(used < PROCESSOR, "{what}: {used:?}");
    assert!(
        server.bytes_sent() < TAKEN,
        "{what}: {} bytes",
        server.bytes_sent()
    );
}
