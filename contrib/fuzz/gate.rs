//! The gate's reading of one request, without its sockets, and tiny_http's reading of what comes out of it.

use livekit_token_service::internal::{MAX_BODY_BYTES, ChunkDecoder, BodyFraming, MAX_HEAD_BYTES, RequestHead, find_head_end, set_content_length};
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;
use tiny_http::{Request, Response, Server};

/// A request that the gate has let through.
pub struct Passed {
    /// What tiny_http gets.
    pub request: Vec<u8>,
    pub method: String,
    pub target: String,
    pub body: Vec<u8>,
    /// How many of the client's bytes it was.
    pub used: usize,
}

/// What the gate makes of a client's bytes, which come in pieces of this size: a request, or nothing (yet).
pub fn pass(bytes: &[u8], piece: usize) -> Option<Passed> {
    let (mut scanned, mut end) = (0, None);
    let mut come = 0;
    while end.is_none() && come < bytes.len() {
        come = (come + piece).min(bytes.len());
        end = find_head_end(&bytes[..come], &mut scanned).ok()?;
    }
    let end = end.filter(|end| *end <= MAX_HEAD_BYTES)?;
    let head = RequestHead::parse(&bytes[..end]).ok()?;
    let mut request = Vec::new();
    head.write(&"192.0.2.1", 0, &mut request);
    let begin = request.len();
    let used = match head.framing() {
        BodyFraming::Empty => end,
        BodyFraming::Sized(length) => {
            request.extend_from_slice(bytes.get(end..end + length)?);
            end + length
        }
        BodyFraming::Chunked => {
            let (mut chunks, mut at) = (ChunkDecoder::default(), end);
            loop {
                let next = bytes.get(at..(at + piece).min(bytes.len()))?;
                if next.is_empty() {
                    return None;
                }
                let room = MAX_BODY_BYTES + begin - request.len();
                let (used, complete) = chunks.feed(next, &mut request, room).ok()?;
                at += used;
                if complete {
                    break;
                }
                assert_eq!(
                    used,
                    next.len(),
                    "bytes were left over in the middle of a body"
                );
            }
            set_content_length(&mut request, begin);
            at
        }
    };
    Some(Passed {
        method: head.method().to_owned(),
        target: head.target().to_owned(),
        body: request[begin..].to_vec(),
        request,
        used,
    })
}

/// tiny_http, and one connection to it.
pub struct Reader {
    /// Never dropped, for that panics where the socket has no path.
    server: ManuallyDrop<Server>,
    stream: UnixStream,
}

/// Follows each request: if it is not read as the next one, the one before it was not read as one.
const NEXT: &[u8] = b"PUT /next HTTP/1.1\r\nTE: identity\r\nContent-Length: 1\r\n\r\nn";

impl Reader {
    #[expect(clippy::new_without_default, reason = "it opens a socket")]
    pub fn new() -> Self {
        let name = format!("gate-fuzz-{}", std::process::id());
        let name = SocketAddr::from_abstract_name(name).expect("a name");
        let listener = UnixListener::bind_addr(&name).expect("bind");
        let server = Server::from_listener(listener, None).expect("tiny_http");
        let stream = UnixStream::connect_addr(&name).expect("connect");
        Self {
            server: ManuallyDrop::new(server),
            stream,
        }
    }

    /// tiny_http must read this as exactly one request, the one that the gate has read.
    pub fn must_agree(&mut self, passed: &Passed) {
        self.stream.write_all(&passed.request).expect("write");
        self.stream.write_all(NEXT).expect("write");
        let (method, target, body) = self.read();
        assert_eq!(method, passed.method);
        assert_eq!(target, passed.target);
        assert_eq!(body, passed.body);
        assert_eq!(self.read(), ("PUT".into(), "/next".into(), b"n".to_vec()));
    }

    /// Takes a request and answers it.
    fn read(&mut self) -> (String, String, Vec<u8>) {
        let next = self.server.recv_timeout(Duration::from_secs(5));
        let mut request: Request = next.expect("tiny_http lives").expect("a request");
        let mut body = Vec::new();
        request.as_reader().read_to_end(&mut body).expect("body");
        let told = (request.method().to_string(), request.url().to_owned(), body);
        request
            .respond(Response::from_string("answer"))
            .expect("respond");
        // the answer is one too: nothing of what the request said may change its framing
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        let ends: &[u8] = if told.0 == "HEAD" {
            b"\r\n\r\n"
        } else {
            b"\r\n\r\nanswer"
        };
        while !answer.ends_with(ends) {
            let count = self.stream.read(&mut buffer).expect("an answer");
            assert!(count > 0, "tiny_http has closed the connection");
            answer.extend_from_slice(&buffer[..count]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
        let text = String::from_utf8_lossy(&answer);
        assert!(
            text.contains("Content-Length: 6\r\n") && !text.contains("chunked"),
            "{text}"
        );
        told
    }
}
