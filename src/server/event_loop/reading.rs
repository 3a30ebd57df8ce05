//! From bytes to a complete request.

use super::connection::{ClientAddress, ClientPeer, RequestInfo, RequestStage};
use super::limits::{BODY_TIMEOUT, HEAD_TIMEOUT, MAX_REQUESTS_PER_CONNECTION, ServerLimits};
use super::{EventLoop, FIRST_CLIENT_TOKEN};
use crate::server::head;
use crate::server::head::{
    BodyFraming, ChunkDecoder, MAX_BODY_BYTES, MAX_HEAD_BYTES, RequestHead, RequestRefusal,
};
use mio::Token;
use mio::event::Event;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};

const CONTINUE_RESPONSE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

impl EventLoop {
    /// Something has happened at a client's socket.
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

    /// Reads as long as there is something, and as long as we want it.
    pub(super) fn read(&mut self, slot: usize) {
        while let Some(connection) = self.connections.get_mut(slot) {
            let wanted = connection.read_budget().min(self.read_buffer.len());
            if !connection.readable || wanted == 0 {
                break;
            }
            let count = match connection.socket.read(&mut self.read_buffer[..wanted]) {
                Ok(0) => return self.close(slot),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    connection.readable = false;
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return self.close(slot),
            };
            // a short read has emptied the socket, and the next byte is an event; but the end, once told, is not told again
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

    /// Understands what has been read, as far as it goes.
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
        if !matches!(connection.stage, RequestStage::Idle | RequestStage::Head)
            || connection.input.is_empty()
        {
            return Ok(());
        }
        let begins = matches!(connection.stage, RequestStage::Idle);
        if begins {
            connection.stage = RequestStage::Head;
            connection.request_info = RequestInfo::default();
            connection.waiting_since = self.now;
        }
        let Some(end) = head::find_head_end(&connection.input, &mut connection.scanned)? else {
            if connection.input.len() > MAX_HEAD_BYTES {
                let lines = connection.input.contains(&b'\n');
                return Err(if lines {
                    RequestRefusal::HeadTooLarge
                } else {
                    RequestRefusal::TargetTooLong
                });
            }
            // the first head of a connection has had its deadline since the client came
            if begins && connection.requests_served > 0 {
                self.set_deadline(slot, self.now + HEAD_TIMEOUT);
            }
            return Ok(());
        };
        if end > MAX_HEAD_BYTES {
            return Err(RequestRefusal::HeadTooLarge);
        }
        let head = RequestHead::parse(&connection.input[..end])?;
        let prospect = (self.classify)(&head);
        if matches!(head.framing(), BodyFraming::ContentLength(length) if length > prospect.max_body_bytes)
        {
            return Err(RequestRefusal::BodyTooLarge);
        }
        let client = client_address(&connection.peer, &head, &self.limits);
        let last = connection.requests_served + 1 >= MAX_REQUESTS_PER_CONNECTION;
        if connection.backend_request.capacity() == 0 {
            connection.backend_request = self.buffer_pool.pop().unwrap_or_default();
        }
        connection.backend_request.clear();
        head.write_backend_head(
            &ClientAddress(client),
            connection.peer.listener_index,
            &mut connection.backend_request,
        );
        connection.request_info = RequestInfo {
            http11: head.is_http11(),
            keep_alive: head.keep_alive() && !last,
            head_request: head.method() == "HEAD",
            outbound: prospect.outbound,
            charged_address: client
                .filter(|_| prospect.address_limited)
                .and_then(|address| self.limits.limit_key(address)),
            body_start: connection.backend_request.len(),
        };
        connection.stage = match head.framing() {
            BodyFraming::Empty => RequestStage::Body(0),
            BodyFraming::ContentLength(length) => {
                if length > MAX_BODY_BYTES {
                    // growing by and by, it would take up to twice as much; whoever may send it is believed to do so
                    connection.backend_request.reserve_exact(length);
                }
                RequestStage::Body(length)
            }
            BodyFraming::Chunked => RequestStage::ChunkedBody(ChunkDecoder::default()),
        };
        let invited = head.expects_continue() && connection.input.len() == end;
        connection.input.drain(..end);
        connection.scanned = 0;
        // who does not even take these few bytes does not want them
        if invited
            && connection.socket.write(CONTINUE_RESPONSE).ok() != Some(CONTINUE_RESPONSE.len())
        {
            self.close(slot);
        }
        self.set_deadline(slot, self.now + BODY_TIMEOUT);
        Ok(())
    }

    /// True once the request is complete.
    fn read_body(&mut self, slot: usize) -> Result<bool, RequestRefusal> {
        let Some(connection) = self.connections.get_mut(slot) else {
            return Ok(false);
        };
        let used = match &mut connection.stage {
            RequestStage::Body(missing) => {
                let count = connection.input.len().min(*missing);
                connection
                    .backend_request
                    .extend_from_slice(&connection.input[..count]);
                *missing -= count;
                count
            }
            RequestStage::ChunkedBody(chunks) => {
                let room = MAX_BODY_BYTES + connection.request_info.body_start
                    - connection.backend_request.len();
                let (used, complete) =
                    chunks.decode(&connection.input, &mut connection.backend_request, room)?;
                if complete {
                    head::set_content_length(
                        &mut connection.backend_request,
                        connection.request_info.body_start,
                    );
                    connection.stage = RequestStage::Body(0);
                }
                used
            }
            _ => return Ok(false),
        };
        connection.input.drain(..used);
        Ok(matches!(connection.stage, RequestStage::Body(0)))
    }
}

/// For whom a request is: the peer, or who a trusted proxy says it is. `X-Forwarded-For` is read from right to left, past
/// trusted proxies only; what stands further left is the client's own invention.
fn client_address(
    peer: &ClientPeer,
    head: &RequestHead<'_>,
    limits: &ServerLimits,
) -> Option<IpAddr> {
    let mut client = peer.address;
    if !peer.trusted_proxy {
        return client;
    }
    for value in head.header_values_reversed("X-Forwarded-For") {
        for entry in value.rsplit(|byte| *byte == b',') {
            let Some(address) = parse_forwarded_address(entry) else {
                return client;
            };
            client = Some(address);
            if !limits.is_trusted_proxy(address) {
                return client;
            }
        }
    }
    client
}

/// One entry: an address, sometimes with its port.
fn parse_forwarded_address(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry).ok()?.trim();
    let address = entry.parse().ok().or_else(|| {
        let with_port: Result<SocketAddr, _> = entry.parse();
        with_port.ok().map(|socket| socket.ip())
    })?;
    Some(IpAddr::to_canonical(&address))
}

/// Where a client's events come from.
pub(super) fn client_token(slot: usize) -> Token {
    Token(FIRST_CLIENT_TOKEN + slot)
}
