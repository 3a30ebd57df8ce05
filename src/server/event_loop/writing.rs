//! Answers on their way to clients: whole in memory, taken in the client's time but not for ever.

use super::EventLoop;
use super::connection::{ClientAddress, RequestInfo, RequestStage};
use super::limits::{LINGER_TIMEOUT, MAX_LINGER_BYTES, WRITE_TIMEOUT};
use super::reading::client_token;
use super::stats::increment;
use crate::server::head::RequestRefusal;
use std::io::{ErrorKind, Write};

impl RequestInfo {
    /// The Connection field of the answer, where one is needed.
    pub(super) fn connection_header(&self) -> &'static str {
        match (self.keep_alive, self.http11) {
            (false, _) => "Connection: close\r\n",
            (true, false) => "Connection: keep-alive\r\n",
            (true, true) => "",
        }
    }
}

impl EventLoop {
    /// Answers a request that is not passed on. If its end is unknown, the connection ends with it.
    pub(super) fn refuse(&mut self, slot: usize, refusal: RequestRefusal) {
        if !self.connections.contains(slot) {
            return;
        }
        self.remove_from_queue(slot);
        let connection = &mut self.connections[slot];
        let keeps = refusal.keeps_connection();
        increment(if keeps {
            &self.stats.shed_requests
        } else {
            &self.stats.refused_requests
        });
        let client = ClientAddress(connection.peer.address);
        let (status, cause) = (refusal.status(), refusal.message());
        log::debug!("refused client={client} status={status} cause={cause:?}");
        if keeps && let Some(count) = self.shed_throttle.count(self.now) {
            log::warn!("busy refused={count} cause={cause:?}");
        }
        connection.drain_before_close = !keeps;
        connection.request_info.keep_alive &= keeps && self.stopping_since.is_none();
        let mut out = std::mem::take(&mut self.response_buffer);
        let call = &connection.request_info;
        refusal.write(call.connection_header(), call.head_request, &mut out);
        self.send_response(slot, &out);
        out.clear();
        self.response_buffer = out;
    }

    /// Sends an answer; what the client does not take at once is kept for it.
    pub(super) fn send_response(&mut self, slot: usize, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        connection.stage = RequestStage::WritingResponse;
        connection.waiting_since = self.now;
        let mut sent = 0;
        while sent < bytes.len() {
            match connection.socket.write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.close(slot),
            }
        }
        if sent == bytes.len() {
            return self.finish_response(slot);
        }
        connection.response = bytes[sent..].to_vec();
        connection.response_sent = 0;
        if connection
            .register_writable(self.poll.registry(), client_token(slot))
            .is_err()
        {
            return self.close(slot);
        }
        self.set_deadline(slot, self.now + WRITE_TIMEOUT);
        self.account_memory(slot);
    }

    /// Sends more of a kept answer.
    pub(super) fn flush_response(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        while connection.response_sent < connection.response.len() {
            match connection
                .socket
                .write(&connection.response[connection.response_sent..])
            {
                Ok(count) => connection.response_sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.close(slot),
            }
        }
        self.finish_response(slot);
    }

    /// The kernel has the whole answer: on to the next request, or the end.
    fn finish_response(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        connection.response = Vec::new();
        connection.waiting_since = self.now;
        connection.requests_served += 1;
        if !connection.request_info.keep_alive {
            // closing while bytes are unread would reset the connection, and the answer with it
            if !connection.drain_before_close && connection.input.is_empty() && !connection.readable
            {
                return self.close(slot);
            }
            let _ = connection.socket.shutdown_write();
            connection.stage = RequestStage::Lingering(MAX_LINGER_BYTES);
            connection.input = Vec::new();
            connection.backend_request = Vec::new();
            // what is unread already was told by an event that is over
            self.ready.push(slot);
            return self.set_deadline(slot, self.now + LINGER_TIMEOUT);
        }
        connection.stage = RequestStage::Idle;
        let trusted = connection.peer.trusted_proxy;
        let request = std::mem::take(&mut connection.backend_request);
        if connection.readable || !connection.input.is_empty() {
            self.ready.push(slot);
        }
        if connection.input.is_empty() {
            let input = std::mem::take(&mut connection.input);
            self.recycle_buffer(input);
        }
        self.recycle_buffer(request);
        self.set_deadline(slot, self.now + self.limits.idle_timeout(trusted));
        self.account_memory(slot);
    }
}
