//! A client's connection: reads and parses its requests, writes their responses.

use std::net::IpAddr;
use std::time::Instant;

use log::{debug, warn};
use mio::event::Event;

use super::event_loop::{EventLoop, client_token};
use super::head::{
    BodyFraming, ChunkDecoder, MAX_BODY_BYTES, MAX_HEAD_BYTES, RequestHead, find_head_end,
    set_content_length,
};
use super::increment;
use super::limits::{
    BODY_TIMEOUT, HEAD_TIMEOUT, LINGER_TIMEOUT, MAX_LINGER_BYTES, MAX_REQUESTS_PER_CONNECTION,
    WRITE_TIMEOUT,
};
use super::service::{ClientAddress, RequestOrigin, RequestRefusal, Service};
use super::socket::{SendBuffer, Socket};

const CONTINUE_RESPONSE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientPeer {
    /// `None` on a unix socket.
    pub(super) address: Option<IpAddr>,
    /// Whether its `X-Forwarded-For` is trusted.
    pub(super) trusted_proxy: bool,
    /// The address under which its connections are counted, if they are.
    pub(super) limit_key: Option<IpAddr>,
    /// Index of the listener.
    pub(super) listener: usize,
}

/// Progress of the current request.
#[derive(Debug)]
pub(super) enum RequestStage {
    /// No byte of it has arrived.
    Idle,
    Head,
    /// So many bytes are missing.
    Body(usize),
    ChunkedBody(ChunkDecoder),
    /// Complete, and waiting for a worker.
    Queued,
    /// With a worker.
    Processing,
    /// The client has not read the whole response.
    WritingResponse,
    /// The connection is closed for writing; up to so many bytes are read and discarded.
    Lingering(usize),
}

impl RequestStage {
    pub(super) fn is_reading(&self) -> bool {
        matches!(self, Self::Head | Self::Body(_) | Self::ChunkedBody(_))
    }
}

/// Facts about the current request, once its head is complete.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RequestInfo {
    http11: bool,
    pub(super) keep_alive: bool,
    /// A HEAD request: the response has no body.
    pub(super) head_request: bool,
    /// Whether the response waits for other servers.
    pub(super) outbound: bool,
    /// The address under which the request is counted, or will be.
    pub(super) charged_address: Option<IpAddr>,
    /// Start of the body in [`ClientConnection::backend_request`].
    body_start: usize,
}

impl RequestInfo {
    /// The Connection header of the response: a line, or nothing where the default of the HTTP version applies.
    pub(super) fn connection_header(&self) -> &'static str {
        match (self.keep_alive, self.http11) {
            (false, _) => "Connection: close\r\n",
            (true, false) => "Connection: keep-alive\r\n",
            (true, true) => "",
        }
    }
}

pub(super) struct ClientConnection<C> {
    socket: Socket,
    pub(super) peer: ClientPeer,
    /// Number of the current request; tells its response from that of an earlier request that was answered with 504.
    pub(super) request_id: u64,
    pub(super) stage: RequestStage,
    pub(super) request_info: RequestInfo,
    /// Until the request is dispatched.
    pub(super) origin: Option<RequestOrigin<C>>,
    /// End of the current stage.
    pub(super) deadline: Instant,
    /// Start of the current wait for the client.
    pub(super) waiting_since: Instant,
    pub(super) readable: bool,
    /// The client has closed its side, which no further event will report.
    read_closed: bool,
    /// The request was refused before its end, so that the rest must be discarded before closing.
    drain_before_close: bool,
    requests_served: u32,
    /// Bytes read and not yet parsed.
    pub(super) input: Vec<u8>,
    /// Bytes of `input` that are known not to contain the end of a head.
    scanned: usize,
    /// The request as tiny_http gets it.
    pub(super) backend_request: Vec<u8>,
    response: SendBuffer,
    /// What [`ClientConnection::buffer_bytes`] was at the last accounting.
    pub(super) accounted_bytes: usize,
}

impl<C> ClientConnection<C> {
    pub(super) fn new(socket: Socket, peer: ClientPeer, now: Instant) -> Self {
        Self {
            socket,
            peer,
            request_id: 0,
            stage: RequestStage::Idle,
            request_info: RequestInfo::default(),
            origin: None,
            deadline: now,
            waiting_since: now,
            readable: false,
            read_closed: false,
            drain_before_close: false,
            requests_served: 0,
            input: Vec::new(),
            scanned: 0,
            backend_request: Vec::new(),
            response: SendBuffer::default(),
            accounted_bytes: 0,
        }
    }

    /// Bytes that may be read now. During a request the next one stays in the kernel, and thereby with the client: this
    /// limits pipelining.
    fn read_budget(&self) -> usize {
        match self.stage {
            RequestStage::Idle | RequestStage::Head => {
                (MAX_HEAD_BYTES + 1).saturating_sub(self.input.len())
            }
            RequestStage::Body(missing) => missing,
            RequestStage::ChunkedBody(_) => MAX_HEAD_BYTES,
            RequestStage::Lingering(_) => MAX_LINGER_BYTES,
            RequestStage::Queued | RequestStage::Processing | RequestStage::WritingResponse => 0,
        }
    }

    /// Whether the service waits for the client, not the client for the service.
    pub(super) fn awaits_client(&self) -> bool {
        !matches!(self.stage, RequestStage::Queued | RequestStage::Processing)
    }

    /// Memory of the buffers.
    pub(super) fn buffer_bytes(&self) -> usize {
        self.input.capacity() + self.backend_request.capacity() + self.response.bytes.capacity()
    }
}

impl<S: Service> EventLoop<S> {
    /// Handles an event of a client's socket.
    pub(super) fn on_client_event(&mut self, slot: usize, event: &Event) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        if event.is_error() {
            return self.close(slot);
        }
        connection.read_closed |= event.is_read_closed();
        connection.readable |= event.is_readable() || event.is_read_closed();
        if event.is_writable() && matches!(connection.stage, RequestStage::WritingResponse) {
            self.flush_response(slot);
        }
        self.read(slot);
    }

    /// Reads until nothing is there or nothing more is wanted.
    pub(super) fn read(&mut self, slot: usize) {
        while let Some(connection) = self.connections.get_mut(slot) {
            let wanted = connection.read_budget().min(self.read_buffer.len());
            if !connection.readable || wanted == 0 {
                break;
            }
            let count = match connection.socket.read(&mut self.read_buffer[..wanted]) {
                Ok(None) => {
                    connection.readable = false;
                    break;
                }
                Ok(Some(0)) | Err(_) => return self.close(slot),
                Ok(Some(count)) => count,
            };
            // a short read has emptied the socket, and an event reports the next byte; the end is reported only once
            connection.readable = count == wanted || connection.read_closed;
            if let RequestStage::Lingering(left) = &mut connection.stage {
                if count >= *left {
                    return self.close(slot);
                }
                *left -= count;
                continue;
            }
            if connection.input.capacity() == 0 {
                connection.input = self.buffer_pool.pop().unwrap_or_default();
            }
            connection
                .input
                .extend_from_slice(&self.read_buffer[..count]);
            self.process_input(slot);
        }
        self.account_memory(slot);
    }

    /// Parses the input, as far as it goes.
    pub(super) fn process_input(&mut self, slot: usize) {
        let outcome = self.read_head(slot).and_then(|()| self.read_body(slot));
        match outcome {
            Ok(true) => self.enqueue(slot),
            Ok(false) => {}
            Err(refusal) => self.refuse(slot, refusal),
        }
    }

    fn read_head(&mut self, slot: usize) -> Result<(), RequestRefusal> {
        let Some(connection) = self.connections.get_mut(slot) else {
            return Ok(());
        };
        let begins = matches!(connection.stage, RequestStage::Idle);
        if !(begins || matches!(connection.stage, RequestStage::Head))
            || connection.input.is_empty()
        {
            return Ok(());
        }
        if begins {
            connection.stage = RequestStage::Head;
            connection.request_info = RequestInfo::default();
            connection.waiting_since = self.now;
        }
        let Some(end) = find_head_end(&connection.input, &mut connection.scanned)? else {
            if connection.input.len() > MAX_HEAD_BYTES {
                return Err(if connection.input.contains(&b'\n') {
                    RequestRefusal::HeadTooLarge
                } else {
                    RequestRefusal::TargetTooLong
                });
            }
            // the deadline of a connection's first head is that of the connection
            if begins && connection.requests_served > 0 {
                self.set_deadline(slot, self.now + HEAD_TIMEOUT);
            }
            return Ok(());
        };
        if end > MAX_HEAD_BYTES {
            return Err(RequestRefusal::HeadTooLarge);
        }
        let head = RequestHead::parse(&connection.input[..end], S::ALLOWED_HEADERS)?;
        let class = self.service.classify(connection.peer.listener, &head);
        if matches!(head.framing(), BodyFraming::ContentLength(length) if length > class.max_body_bytes)
        {
            return Err(RequestRefusal::BodyTooLarge);
        }
        let client = self.limits.client_address(connection.peer.address, &head);
        let limit_key = client.and_then(|address| self.limits.limit_key(address));
        self.last_request_id += 1;
        connection.request_id = self.last_request_id;
        if connection.backend_request.capacity() == 0 {
            connection.backend_request = self.buffer_pool.pop().unwrap_or_default();
        }
        connection.backend_request.clear();
        head.write_backend_head(connection.request_id, &mut connection.backend_request);
        let last = connection.requests_served + 1 >= MAX_REQUESTS_PER_CONNECTION;
        connection.request_info = RequestInfo {
            http11: head.http11,
            keep_alive: head.keep_alive && !last,
            head_request: head.method() == "HEAD",
            outbound: class.outbound,
            charged_address: limit_key.filter(|_| class.address_limited),
            body_start: connection.backend_request.len(),
        };
        connection.origin = Some(RequestOrigin {
            client: ClientAddress(client),
            limit_key,
            listener: connection.peer.listener,
            context: class.context,
        });
        connection.stage = match head.framing() {
            BodyFraming::Empty => RequestStage::Body(0),
            BodyFraming::ContentLength(length) => {
                if length > MAX_BODY_BYTES {
                    // growing step by step takes up to twice the memory; few clients may send such a body
                    connection.backend_request.reserve_exact(length);
                }
                RequestStage::Body(length)
            }
            BodyFraming::Chunked => RequestStage::ChunkedBody(ChunkDecoder::default()),
        };
        let send_continue = head.expects_continue() && connection.input.len() == end;
        connection.input.drain(..end);
        connection.scanned = 0;
        // a client that does not take these few bytes does not wait for them
        if send_continue {
            let written = connection.socket.write(CONTINUE_RESPONSE);
            if !matches!(written, Ok(Some(count)) if count == CONTINUE_RESPONSE.len()) {
                self.close(slot);
            }
        }
        self.set_deadline(slot, self.now + BODY_TIMEOUT);
        Ok(())
    }

    /// True once the request is complete.
    fn read_body(&mut self, slot: usize) -> Result<bool, RequestRefusal> {
        let Some(connection) = self.connections.get_mut(slot) else {
            return Ok(false);
        };
        let request = &mut connection.backend_request;
        let used = match &mut connection.stage {
            RequestStage::Body(missing) => {
                let count = connection.input.len().min(*missing);
                request.extend_from_slice(&connection.input[..count]);
                *missing -= count;
                count
            }
            RequestStage::ChunkedBody(decoder) => {
                let body_start = connection.request_info.body_start;
                let room = MAX_BODY_BYTES + body_start - request.len();
                let (used, complete) = decoder.decode(&connection.input, request, room)?;
                if complete {
                    set_content_length(request, body_start);
                    connection.stage = RequestStage::Body(0);
                }
                used
            }
            _ => return Ok(false),
        };
        connection.input.drain(..used);
        Ok(matches!(connection.stage, RequestStage::Body(0)))
    }

    /// Answers a request that no worker gets. If its end is unknown, the connection ends with it.
    pub(super) fn refuse(&mut self, slot: usize, refusal: RequestRefusal) {
        if !self.connections.contains(slot) {
            return;
        }
        self.remove_from_queue(slot);
        let connection = &mut self.connections[slot];
        let keep = refusal.keeps_connection();
        increment(if keep {
            &self.stats.shed_requests
        } else {
            &self.stats.refused_requests
        });
        let (status, cause) = (refusal.status(), refusal.message());
        let client = ClientAddress(connection.peer.address);
        debug!(client:% = client, status = status, cause = cause; "request refused");
        if keep {
            self.shed_throttle
                .log(|count| warn!(count = count, cause = cause; "requests shed"));
        }
        connection.drain_before_close = !keep;
        let info = &mut connection.request_info;
        info.keep_alive &= keep && self.stopping_since.is_none();
        let mut response = self.buffer_pool.pop().unwrap_or_default();
        self.service.refuse(refusal).write(
            info.connection_header(),
            info.head_request,
            &mut response,
        );
        self.send_response(slot, response);
    }

    /// Starts to send a response.
    pub(super) fn send_response(&mut self, slot: usize, response: Vec<u8>) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        connection.stage = RequestStage::WritingResponse;
        connection.waiting_since = self.now;
        connection.response.start(response);
        self.set_deadline(slot, self.now + WRITE_TIMEOUT);
        self.flush_response(slot);
        self.account_memory(slot);
    }

    /// Sends what the client takes of the response, and ends the request at its end.
    fn flush_response(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        let ClientConnection {
            socket, response, ..
        } = connection;
        match response.flush(socket, self.poll.registry(), client_token(slot)) {
            Ok(true) => self.finish_response(slot),
            Ok(false) => {}
            Err(_) => self.close(slot),
        }
    }

    /// Starts the next request, or ends the connection.
    fn finish_response(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        let response = std::mem::take(&mut connection.response.bytes);
        connection.waiting_since = self.now;
        connection.requests_served += 1;
        if !connection.request_info.keep_alive {
            // closing with unread bytes would reset the connection, and the response could be lost
            if !connection.drain_before_close && connection.input.is_empty() && !connection.readable
            {
                return self.close(slot);
            }
            connection.socket.shutdown_write();
            connection.stage = RequestStage::Lingering(MAX_LINGER_BYTES);
            connection.input = Vec::new();
            connection.backend_request = Vec::new();
            // the event of what is unread already may be over
            self.ready.push(slot);
            return self.set_deadline(slot, self.now + LINGER_TIMEOUT);
        }
        connection.stage = RequestStage::Idle;
        let trusted_proxy = connection.peer.trusted_proxy;
        let request = std::mem::take(&mut connection.backend_request);
        if connection.readable || !connection.input.is_empty() {
            self.ready.push(slot);
        }
        if connection.input.is_empty() {
            let input = std::mem::take(&mut connection.input);
            self.recycle_buffer(input);
        }
        self.recycle_buffer(request);
        self.recycle_buffer(response);
        self.set_deadline(slot, self.now + self.limits.idle_timeout(trusted_proxy));
    }
}
