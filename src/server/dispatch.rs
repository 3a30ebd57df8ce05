//! Queues of complete requests, and the connections to tiny_http over which workers get them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::ops::Range;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use mio::{Registry, Token};

use super::connection::RequestStage;
use super::event_loop::{EventLoop, worker_token};
use super::head::MAX_HEADERS;
use super::increment;
use super::limits::{
    MAX_QUEUED_REQUESTS, MAX_RESPONSE_BYTES, QUEUE_TIMEOUT, max_outbound_workers,
    max_requests_per_address,
};
use super::service::{RequestRefusal, Service};
use super::socket::{SendBuffer, Socket};
use crate::util::sync::lock;

/// First request on a connection to tiny_http; see [`WorkerConnection::connect`].
const PROBE_REQUEST: &[u8] = b"OPTIONS * HTTP/1.1\r\nHost: internal\r\nTE: identity\r\n\r\n";
/// For the response to it; workers have nothing else to do yet.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a buffer kept from one job to the next: enough for most responses, and for all but large requests.
const RETAINED_BUFFER_BYTES: usize = 64 << 10;

impl<S: Service> EventLoop<S> {
    /// Queues a complete request for a worker, or refuses it.
    pub(super) fn enqueue(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        let queue = &mut self.queues[usize::from(connection.request_info.outbound)];
        if queue.len() >= MAX_QUEUED_REQUESTS {
            return self.refuse(slot, RequestRefusal::Busy);
        }
        let address = connection.request_info.charged_address;
        let limit = max_requests_per_address(self.workers.len());
        if self.requests_per_address.is_full(address, limit) {
            return self.refuse(slot, RequestRefusal::TooManyRequests);
        }
        self.requests_per_address.add(address);
        connection.stage = RequestStage::Queued;
        queue.push_back(slot);
        self.dispatch();
        if matches!(self.connections.get(slot), Some(c) if matches!(c.stage, RequestStage::Queued))
        {
            self.set_deadline(slot, self.now + QUEUE_TIMEOUT);
        }
    }

    /// Removes a connection that will not be served from its queue.
    pub(super) fn remove_from_queue(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        if matches!(connection.stage, RequestStage::Queued) {
            let info = &mut connection.request_info;
            self.queues[usize::from(info.outbound)].retain(|queued| *queued != slot);
            self.requests_per_address.remove(info.charged_address);
        }
    }

    /// Hands queued requests to idle workers: local ones first. Outbound ones never occupy the last eighth of the workers.
    fn dispatch(&mut self) {
        let max_outbound = max_outbound_workers(self.workers.len());
        while let Some(&index) = self.idle_workers.last() {
            let [local, outbound] = &mut self.queues;
            let next = match local.pop_front() {
                None if self.outbound_in_progress < max_outbound => outbound.pop_front(),
                next => next,
            };
            let Some(slot) = next else {
                return;
            };
            // closing a connection removes it from its queue
            let connection = &mut self.connections[slot];
            if let Some(origin) = connection.origin.take() {
                lock(&self.request_origins).insert(connection.request_id, origin);
            }
            let info = &mut connection.request_info;
            let job = WorkerJob {
                slot,
                request_id: connection.request_id,
                outbound: info.outbound,
                head_request: info.head_request,
                charged_address: info.charged_address,
            };
            self.idle_workers.pop();
            self.outbound_in_progress += usize::from(job.outbound);
            connection.stage = RequestStage::Processing;
            let worker = &mut self.workers[index];
            worker.assign(job, &mut connection.backend_request);
            if let Err(error) = worker.send_request(self.poll.registry(), worker_token(index)) {
                self.backend_error.get_or_insert(error);
            }
            self.set_deadline(slot, self.now + self.limits.work_timeout);
            self.account_memory(slot);
        }
    }

    /// Handles an event of a worker's connection: sends more of the request, or receives the response.
    pub(super) fn on_worker_event(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        let received = worker
            .send_request(self.poll.registry(), worker_token(index))
            .and_then(|()| worker.receive_response(&mut self.read_buffer));
        let job = match received {
            Ok(Some(job)) => job,
            Ok(None) => return,
            Err(error) => {
                self.backend_error.get_or_insert(error);
                return;
            }
        };
        let waiting = self.connections.get_mut(job.slot).filter(|connection| {
            connection.request_id == job.request_id
                && matches!(connection.stage, RequestStage::Processing)
        });
        let response = waiting.map(|connection| {
            let info = &mut connection.request_info;
            info.keep_alive &= self.stopping_since.is_none();
            let mut response = self.buffer_pool.pop().unwrap_or_default();
            worker.write_response(info.connection_header(), &mut response);
            response
        });
        worker.release();
        self.idle_workers.push(index);
        self.outbound_in_progress -= usize::from(job.outbound);
        self.requests_per_address.remove(job.charged_address);
        if let Some(response) = response {
            increment(&self.stats.served_requests);
            self.send_response(job.slot, response);
        }
        self.dispatch();
    }
}

/// A request with a worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct WorkerJob {
    slot: usize,
    request_id: u64,
    outbound: bool,
    head_request: bool,
    /// Released when the worker is done, so that a client cannot evade its limit by closing the connection.
    charged_address: Option<IpAddr>,
}

/// A connection to tiny_http. It carries one request at a time.
pub(super) struct WorkerConnection {
    socket: Socket,
    job: Option<WorkerJob>,
    request: SendBuffer,
    response: Vec<u8>,
    /// Once the head of the response is complete.
    response_head: Option<ResponseHead>,
}

impl WorkerConnection {
    /// Connects to tiny_http and waits for the response to a probe.
    ///
    /// Connections must be made one after the other: tiny_http counts a thread as waiting until it has woken up, and puts one
    /// of two simultaneous connections behind a thread that never ends.
    pub(super) fn connect(
        address: &SocketAddr,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let mut socket = UnixStream::connect_addr(address)?;
        socket.set_read_timeout(Some(PROBE_TIMEOUT))?;
        socket.write_all(PROBE_REQUEST)?;
        let mut response = Vec::new();
        let mut buffer = [0; 4096];
        while ResponseHead::parse(&response, false)?
            .is_none_or(|head| head.body.end > response.len())
        {
            match socket.read(&mut buffer)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => response.extend_from_slice(&buffer[..count]),
            }
        }
        Ok(Self {
            socket: Socket::register(socket.into(), registry, token)?,
            job: None,
            request: SendBuffer::default(),
            response: Vec::new(),
            response_head: None,
        })
    }

    /// Takes over a job, and swaps `request` for an empty buffer.
    fn assign(&mut self, job: WorkerJob, request: &mut Vec<u8>) {
        self.job = Some(job);
        let mut empty = std::mem::take(&mut self.request.bytes);
        empty.clear();
        self.request.start(std::mem::replace(request, empty));
    }

    /// Sends what the socket takes of the request.
    fn send_request(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.request.flush(&self.socket, registry, token).map(drop)
    }

    /// Reads what is there. The job, once its request is sent and its response complete.
    ///
    /// # Errors
    /// tiny_http has closed the connection or sent more than a response: the connection is unusable.
    fn receive_response(&mut self, buffer: &mut [u8]) -> io::Result<Option<WorkerJob>> {
        loop {
            match self.socket.read(buffer)? {
                None => return self.completed_job(),
                Some(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Some(_) if self.job.is_none() => return Err(ErrorKind::InvalidData.into()),
                Some(count) => self.response.extend_from_slice(&buffer[..count]),
            }
            if let Some(job) = self.completed_job()? {
                return Ok(Some(job));
            }
        }
    }

    fn completed_job(&mut self) -> io::Result<Option<WorkerJob>> {
        let Some(job) = self.job.filter(|_| self.request.is_sent()) else {
            return Ok(None);
        };
        if self.response_head.is_none() {
            self.response_head = ResponseHead::parse(&self.response, job.head_request)?;
        }
        let Some(head) = &self.response_head else {
            return Ok(None);
        };
        if self.response.len() > head.body.end {
            return Err(ErrorKind::InvalidData.into());
        }
        Ok(self.job.filter(|_| self.response.len() == head.body.end))
    }

    /// Appends the response for the client to `out`.
    fn write_response(&self, connection_header: &str, out: &mut Vec<u8>) {
        if let Some(head) = &self.response_head {
            let body = &self.response[head.body.clone()];
            for part in [&head.rewritten, connection_header.as_bytes(), b"\r\n", body] {
                out.extend_from_slice(part);
            }
        }
    }

    /// Ends the job.
    fn release(&mut self) {
        self.job = None;
        self.response_head = None;
        self.response.clear();
        self.response.shrink_to(RETAINED_BUFFER_BYTES);
        if self.request.bytes.capacity() > 2 * RETAINED_BUFFER_BYTES {
            self.request.start(Vec::new());
        }
    }
}

/// Head of a response of tiny_http.
struct ResponseHead {
    /// For the client: without Server and Connection, and without the empty line.
    rewritten: Vec<u8>,
    /// Where the body is, or will be.
    body: Range<usize>,
}

impl ResponseHead {
    /// Parses the head if it is complete; the response to HEAD has no body.
    fn parse(bytes: &[u8], head_request: bool) -> io::Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let start = match response.parse(bytes) {
            Ok(httparse::Status::Complete(start)) => start,
            Ok(httparse::Status::Partial) => return Ok(None),
            _ => return Err(ErrorKind::InvalidData.into()),
        };
        let status = response.code.ok_or(ErrorKind::InvalidData)?;
        let reason = response.reason.unwrap_or_default();
        let mut rewritten = format!("HTTP/1.1 {status} {reason}\r\n").into_bytes();
        let mut length = None;
        for header in response.headers.iter() {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is("content-length") {
                let text = std::str::from_utf8(header.value).ok();
                length = text.and_then(|text| text.parse().ok());
            }
            if is("server") || is("connection") || (status == 204 && is("content-length")) {
                continue;
            }
            for part in [header.name.as_bytes(), b": ", header.value, b"\r\n"] {
                rewritten.extend_from_slice(part);
            }
        }
        let length = match status {
            _ if head_request => 0,
            204 | 304 => 0,
            _ => length
                .filter(|length| *length <= MAX_RESPONSE_BYTES)
                .ok_or(ErrorKind::InvalidData)?,
        };
        Ok(Some(Self {
            rewritten,
            body: start..start + length,
        }))
    }
}
