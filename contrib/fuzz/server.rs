//! One request as the event loop reads it, without sockets; and as tiny_http reads what the event loop passes on.

use livekit_token_service::internal::{
    BodyFraming, ChunkDecoder, MAX_BODY_BYTES, MAX_HEAD_BYTES, RequestHead, find_head_end,
    set_content_length,
};
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;
use tiny_http::{Request, Response, Server};

const ALLOWED_HEADERS: &[&str] = &["Host", "Content-Type", "Authorization", "Accept"];

/// A request that the event loop has accepted.
pub struct AcceptedRequest {
    /// For tiny_http.
    pub request: Vec<u8>,
    pub method: String,
    pub target: String,
    pub body: Vec<u8>,
    /// Number of the client's bytes in the request.
    pub used: usize,
}

/// Reads a client's bytes in pieces of this size; `None` if the request is refused or incomplete.
pub fn accept(bytes: &[u8], piece: usize) -> Option<AcceptedRequest> {
    let (mut scanned, mut end) = (0, None);
    let mut received = 0;
    while end.is_none() && received < bytes.len() {
        received = (received + piece).min(bytes.len());
        end = find_head_end(&bytes[..received], &mut scanned).ok()?;
    }
    let end = end.filter(|end| *end <= MAX_HEAD_BYTES)?;
    let head = RequestHead::parse(&bytes[..end], ALLOWED_HEADERS).ok()?;
    let mut request = Vec::new();
    head.write_backend_head(1, &mut request);
    let body_start = request.len();
    let used = match head.framing() {
        BodyFraming::Empty => end,
        BodyFraming::ContentLength(length) => {
            let used = end.checked_add(length)?;
            request.extend_from_slice(bytes.get(end..used)?);
            used
        }
        BodyFraming::Chunked => {
            let (mut decoder, mut at) = (ChunkDecoder::default(), end);
            loop {
                let next = bytes.get(at..(at + piece).min(bytes.len()))?;
                if next.is_empty() {
                    return None;
                }
                let room = MAX_BODY_BYTES + body_start - request.len();
                let (used, complete) = decoder.decode(next, &mut request, room).ok()?;
                at += used;
                if complete {
                    break;
                }
                assert_eq!(used, next.len(), "input was left in the middle of a body");
            }
            set_content_length(&mut request, body_start);
            at
        }
    };
    Some(AcceptedRequest {
        method: head.method().to_owned(),
        target: head.target().to_owned(),
        body: request[body_start..].to_vec(),
        request,
        used,
    })
}

/// tiny_http, with one connection.
pub struct TinyHttp {
    /// Never dropped: that panics for a socket without a path.
    server: ManuallyDrop<Server>,
    stream: UnixStream,
}

/// Follows each request: if tiny_http does not read it as the next request, it did not read the one before as one.
const NEXT: &[u8] = b"PUT /next HTTP/1.1\r\nTE: identity\r\nContent-Length: 1\r\n\r\nn";

impl TinyHttp {
    #[expect(clippy::new_without_default, reason = "it opens a socket")]
    pub fn new() -> Self {
        let name = format!("server-fuzz-{}", std::process::id());
        let name = SocketAddr::from_abstract_name(name).expect("a name");
        let listener = UnixListener::bind_addr(&name).expect("bind");
        let server = Server::from_listener(listener, None).expect("tiny_http");
        let stream = UnixStream::connect_addr(&name).expect("connect");
        Self {
            server: ManuallyDrop::new(server),
            stream,
        }
    }

    /// Checks that tiny_http reads exactly one request, the one that the event loop has read.
    pub fn assert_agrees(&mut self, accepted: &AcceptedRequest) {
        self.stream.write_all(&accepted.request).expect("write");
        self.stream.write_all(NEXT).expect("write");
        let (method, target, body) = self.read();
        assert_eq!(method, accepted.method);
        assert_eq!(target, accepted.target);
        assert_eq!(body, accepted.body);
        assert_eq!(self.read(), ("PUT".into(), "/next".into(), b"n".to_vec()));
    }

    /// Receives a request and answers it.
    fn read(&mut self) -> (String, String, Vec<u8>) {
        let next = self.server.recv_timeout(Duration::from_secs(5));
        let mut request: Request = next.expect("running").expect("a request");
        let mut body = Vec::new();
        request.as_reader().read_to_end(&mut body).expect("body");
        let read = (request.method().to_string(), request.url().to_owned(), body);
        request
            .respond(Response::from_string("answer"))
            .expect("respond");
        // exactly one response as well: no header of the request may change its framing
        let mut response = Vec::new();
        let mut buffer = [0; 4096];
        let end: &[u8] = if read.0 == "HEAD" {
            b"\r\n\r\n"
        } else {
            b"\r\n\r\nanswer"
        };
        while !response.ends_with(end) {
            let count = self.stream.read(&mut buffer).expect("a response");
            assert!(count > 0, "tiny_http has closed the connection");
            response.extend_from_slice(&buffer[..count]);
        }
        assert!(response.starts_with(b"HTTP/1.1 200 OK\r\n"));
        let text = String::from_utf8_lossy(&response);
        assert!(
            text.contains("Content-Length: 6\r\n") && !text.contains("chunked"),
            "{text}"
        );
        read
    }
}
