//! A worker's place: one of the persistent connections to tiny_http, which carries one request at a time.

use super::connection::RequestKey;
use super::limits::MAX_RESPONSE_BYTES;
use crate::server::head::MAX_HEADERS;
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::SocketAddr;
use std::time::Duration;

/// What tiny_http is asked once on each new connection; the service answers it without a word in its log.
const PROBE_REQUEST: &[u8] = b"OPTIONS * HTTP/1.1\r\nHost: gate\r\nTE: identity\r\n\r\n";
/// For the answer to it: workers have nothing else to do yet.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the head of an answer; ours have a few hundred.
const MAX_RESPONSE_HEAD_BYTES: usize = 64 << 10;
/// Bytes of a buffer that are kept from one job to the next: those of most answers, and of all requests but large ones.
const RETAINED_BUFFER_BYTES: usize = 64 << 10;

/// For whom a place works.
#[derive(Clone, Copy, Debug)]
pub(super) struct WorkerJob {
    pub(super) request_key: RequestKey,
    pub(super) outbound: bool,
    pub(super) head_request: bool,
    /// Freed when the WORKER is done, so that a client that hangs up does not evade its limit.
    pub(super) charged_address: Option<IpAddr>,
}

pub(super) struct WorkerConnection {
    socket: UnixStream,
    pub(super) job: Option<WorkerJob>,
    request: Vec<u8>,
    request_sent: usize,
    writable_registered: bool,
    response: Vec<u8>,
    /// The answer is not complete below this size.
    min_response_bytes: usize,
}

/// How the answer of a worker begins and ends in the bytes of its place.
pub(super) struct ResponseLayout {
    pub(super) status: u16,
    /// Where the body begins.
    pub(super) body_start: usize,
    /// Where the answer ends.
    pub(super) end: usize,
}

impl WorkerConnection {
    /// Connects to tiny_http and waits for an answer.
    ///
    /// Connections must be made one after the other: tiny_http counts a thread as waiting until it has woken up, and puts
    /// one of two connections that come together behind a thread that never ends.
    pub(super) fn connect(
        address: &SocketAddr,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let mut socket = std::os::unix::net::UnixStream::connect_addr(address)?;
        socket.set_read_timeout(Some(PROBE_TIMEOUT))?;
        socket.write_all(PROBE_REQUEST)?;
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while parse_response_head(&answer, false)?.is_none_or(|outline| outline.end > answer.len())
        {
            match socket.read(&mut buffer)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => answer.extend_from_slice(&buffer[..count]),
            }
        }
        socket.set_nonblocking(true)?;
        let mut socket = UnixStream::from_std(socket);
        registry.register(&mut socket, token, Interest::READABLE)?;
        Ok(Self {
            socket,
            job: None,
            request: Vec::new(),
            request_sent: 0,
            writable_registered: false,
            response: Vec::new(),
            min_response_bytes: 0,
        })
    }

    /// Takes on a job: the request is swapped for an empty buffer.
    pub(super) fn assign(&mut self, job: WorkerJob, request: &mut Vec<u8>) {
        self.job = Some(job);
        self.request.clear();
        std::mem::swap(&mut self.request, request);
        self.request_sent = 0;
        self.response.clear();
        self.response.shrink_to(RETAINED_BUFFER_BYTES);
        self.min_response_bytes = 0;
    }

    /// Sends what the socket takes of the request.
    pub(super) fn flush_request(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        while self.request_sent < self.request.len() {
            match self.socket.write(&self.request[self.request_sent..]) {
                Ok(count) => self.request_sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !self.writable_registered {
                        self.writable_registered = true;
                        let both = Interest::READABLE | Interest::WRITABLE;
                        registry.reregister(&mut self.socket, token, both)?;
                    }
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what has come. Once the answer is complete, and the request was sent to its end, [`Place::finish`] takes it.
    ///
    /// # Errors
    /// tiny_http has closed the connection, or says what was not asked: the place can never be used again.
    pub(super) fn receive_response(
        &mut self,
        scratch: &mut [u8],
    ) -> io::Result<Option<ResponseLayout>> {
        loop {
            match self.socket.read(scratch) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) if self.job.is_none() => return Err(ErrorKind::InvalidData.into()),
                Ok(count) => self.response.extend_from_slice(&scratch[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return self.complete_response();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if let Some(outline) = self.complete_response()? {
                return Ok(Some(outline));
            }
        }
    }

    fn complete_response(&mut self) -> io::Result<Option<ResponseLayout>> {
        let unsent = self.request_sent < self.request.len();
        let Some(job) = self
            .job
            .filter(|_| !unsent && self.response.len() >= self.min_response_bytes)
        else {
            return Ok(None);
        };
        let outline = parse_response_head(&self.response, job.head_request)?;
        self.min_response_bytes = outline.as_ref().map_or(0, |outline| outline.end);
        if outline.is_some() && self.response.len() > self.min_response_bytes {
            return Err(ErrorKind::InvalidData.into());
        }
        Ok(outline.filter(|outline| self.response.len() == outline.end))
    }

    /// Ends the job: gives it back with the bytes of its answer, and the place is free.
    pub(super) fn release(&mut self) -> Option<(WorkerJob, &[u8])> {
        if self.request.capacity() > 2 * RETAINED_BUFFER_BYTES {
            self.request = Vec::new();
        }
        Some((self.job.take()?, &self.response))
    }
}

/// Reads the head of an answer, if it is complete.
fn parse_response_head(bytes: &[u8], bodiless: bool) -> io::Result<Option<ResponseLayout>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut answer = httparse::Response::new(&mut fields);
    let body = match answer.parse(bytes) {
        Ok(httparse::Status::Complete(body)) => body,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_RESPONSE_HEAD_BYTES => return Ok(None),
        _ => return Err(ErrorKind::InvalidData.into()),
    };
    let status = answer.code.ok_or(ErrorKind::InvalidData)?;
    let length = answer
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("content-length"))
        .and_then(|field| std::str::from_utf8(field.value).ok()?.parse::<usize>().ok());
    let length = match status {
        _ if bodiless => 0,
        204 | 304 => 0,
        _ => length
            .filter(|length| *length <= MAX_RESPONSE_BYTES)
            .ok_or(ErrorKind::InvalidData)?,
    };
    let end = body + length;
    Ok(Some(ResponseLayout {
        status,
        body_start: body,
        end,
    }))
}

/// Writes a worker's answer as the client gets it: without tiny_http's name, with our Connection field.
pub(super) fn rewrite_response(
    outline: &ResponseLayout,
    bytes: &[u8],
    connection: &str,
    out: &mut Vec<u8>,
) {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut answer = httparse::Response::new(&mut fields);
    if answer.parse(&bytes[..outline.body_start]).is_err() {
        return;
    }
    let reason = answer.reason.unwrap_or_default();
    let _ = write!(out, "HTTP/1.1 {} {reason}\r\n", outline.status);
    for field in answer.headers.iter() {
        let ours = ["server", "connection"];
        let no_body = outline.status == 204 && field.name.eq_ignore_ascii_case("content-length");
        if no_body
            || ours
                .iter()
                .any(|name| field.name.eq_ignore_ascii_case(name))
        {
            continue;
        }
        for part in [field.name.as_bytes(), b": ", field.value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(connection.as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&bytes[outline.body_start..outline.end]);
}
