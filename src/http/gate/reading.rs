//! From bytes to a complete request.

use super::connection::{Call, Client, Peer, Stage};
use super::limits::{BODY_TIME, HEAD_TIME, Limits, REQUESTS_PER_CONNECTION};
use super::{CLIENTS, Gate};
use crate::http::head::{self, BODY_BYTES, Chunks, Framing, HEAD_BYTES, Head, Refusal};
use mio::Token;
use mio::event::Event;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

impl Gate {
    /// Something has happened at a client's socket.
    pub(super) fn hear_client(&mut self, slot: usize, event: &Event) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        if event.is_error() {
            return self.close(slot);
        }
        connection.ended |= event.is_read_closed();
        connection.readable |= event.is_readable() || event.is_read_closed();
        if event.is_writable() && matches!(connection.stage, Stage::Answering) {
            self.write(slot);
        }
        self.read(slot);
    }

    /// Reads as long as there is something, and as long as we want it.
    pub(super) fn read(&mut self, slot: usize) {
        while let Some(connection) = self.connections.get_mut(slot) {
            let wanted = connection.appetite().min(self.scratch.len());
            if !connection.readable || wanted == 0 {
                break;
            }
            let count = match connection.socket.read(&mut self.scratch[..wanted]) {
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
            connection.readable = count == wanted || connection.ended;
            if let Stage::Lingering(left) = &mut connection.stage {
                if count >= *left {
                    return self.close(slot);
                }
                *left -= count;
                continue;
            }
            if connection.input.capacity() == 0 {
                connection.input = self.spares.pop().unwrap_or_default();
            }
            connection.input.extend_from_slice(&self.scratch[..count]);
            self.advance(slot);
        }
        self.weigh(slot);
    }

    /// Understands what has been read, as far as it goes.
    pub(super) fn advance(&mut self, slot: usize) {
        let outcome = self.read_head(slot).and_then(|()| self.read_body(slot));
        match outcome {
            Ok(true) => self.enqueue(slot),
            Ok(false) => {}
            Err(refusal) => self.refuse(slot, refusal),
        }
    }

    fn read_head(&mut self, slot: usize) -> Result<(), Refusal> {
        let Some(connection) = self.connections.get_mut(slot) else {
            return Ok(());
        };
        if !matches!(connection.stage, Stage::Idle | Stage::Head) || connection.input.is_empty() {
            return Ok(());
        }
        let begins = matches!(connection.stage, Stage::Idle);
        if begins {
            connection.stage = Stage::Head;
            connection.call = Call::default();
            connection.since = self.now;
        }
        let Some(end) = head::find_end(&connection.input, &mut connection.scanned)? else {
            if connection.input.len() > HEAD_BYTES {
                let lines = connection.input.contains(&b'\n');
                return Err(if lines {
                    Refusal::HeadTooLarge
                } else {
                    Refusal::TargetTooLong
                });
            }
            // the first head of a connection has had its deadline since the client came
            if begins && connection.served > 0 {
                self.give_until(slot, self.now + HEAD_TIME);
            }
            return Ok(());
        };
        if end > HEAD_BYTES {
            return Err(Refusal::HeadTooLarge);
        }
        let head = Head::parse(&connection.input[..end])?;
        let prospect = (self.prospects)(&head);
        if matches!(head.framing(), Framing::Sized(length) if length > prospect.body) {
            return Err(Refusal::BodyTooLarge);
        }
        let client = client(&connection.peer, &head, &self.limits);
        let last = connection.served + 1 >= REQUESTS_PER_CONNECTION;
        if connection.request.capacity() == 0 {
            connection.request = self.spares.pop().unwrap_or_default();
        }
        connection.request.clear();
        head.write(
            &Client(client),
            connection.peer.door,
            &mut connection.request,
        );
        connection.call = Call {
            modern: head.is_modern(),
            keep_alive: head.keeps_alive() && !last,
            bodiless: head.method() == "HEAD",
            outbound: prospect.outbound,
            charged: client
                .filter(|_| prospect.counted)
                .and_then(|address| self.limits.bucket(address)),
            body: connection.request.len(),
        };
        connection.stage = match head.framing() {
            Framing::Empty => Stage::Body(0),
            Framing::Sized(length) => {
                if length > BODY_BYTES {
                    // growing by and by, it would take up to twice as much; whoever may send it is believed to do so
                    connection.request.reserve_exact(length);
                }
                Stage::Body(length)
            }
            Framing::Chunked => Stage::ChunkedBody(Chunks::default()),
        };
        let invited = head.expects_continue() && connection.input.len() == end;
        connection.input.drain(..end);
        connection.scanned = 0;
        // who does not even take these few bytes does not want them
        if invited && connection.socket.write(CONTINUE).ok() != Some(CONTINUE.len()) {
            self.close(slot);
        }
        self.give_until(slot, self.now + BODY_TIME);
        Ok(())
    }

    /// True once the request is complete.
    fn read_body(&mut self, slot: usize) -> Result<bool, Refusal> {
        let Some(connection) = self.connections.get_mut(slot) else {
            return Ok(false);
        };
        let used = match &mut connection.stage {
            Stage::Body(missing) => {
                let count = connection.input.len().min(*missing);
                connection
                    .request
                    .extend_from_slice(&connection.input[..count]);
                *missing -= count;
                count
            }
            Stage::ChunkedBody(chunks) => {
                let room = BODY_BYTES + connection.call.body - connection.request.len();
                let (used, complete) =
                    chunks.feed(&connection.input, &mut connection.request, room)?;
                if complete {
                    head::set_length(&mut connection.request, connection.call.body);
                    connection.stage = Stage::Body(0);
                }
                used
            }
            _ => return Ok(false),
        };
        connection.input.drain(..used);
        Ok(matches!(connection.stage, Stage::Body(0)))
    }
}

/// For whom a request is: the peer, or who a trusted proxy says it is. `X-Forwarded-For` is read from right to left, past
/// trusted proxies only; what stands further left is the client's own invention.
fn client(peer: &Peer, head: &Head<'_>, limits: &Limits) -> Option<IpAddr> {
    let mut client = peer.address;
    if !peer.trusted {
        return client;
    }
    for value in head.values_from_last("X-Forwarded-For") {
        for entry in value.rsplit(|byte| *byte == b',') {
            let Some(address) = forwarded(entry) else {
                return client;
            };
            client = Some(address);
            if !limits.trusts(address) {
                return client;
            }
        }
    }
    client
}

/// One entry: an address, sometimes with its port.
fn forwarded(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry).ok()?.trim();
    let address = entry.parse().ok().or_else(|| {
        let with_port: Result<SocketAddr, _> = entry.parse();
        with_port.ok().map(|socket| socket.ip())
    })?;
    Some(IpAddr::to_canonical(&address))
}

/// Where a client's events come from.
pub(super) fn token(slot: usize) -> Token {
    Token(CLIENTS + slot)
}
