//! Answers on their way to clients: whole in memory, taken in the client's time but not for ever.

use super::Gate;
use super::connection::{Call, Client, Stage};
use super::limits::{LINGER_BYTES, LINGER_TIME, WRITE_TIME};
use super::reading::token;
use super::stats::count;
use crate::http::head::Refusal;
use std::io::{ErrorKind, Write};

impl Call {
    /// The Connection field of the answer, where one is needed.
    pub(super) fn connection_field(&self) -> &'static str {
        match (self.keep_alive, self.modern) {
            (false, _) => "Connection: close\r\n",
            (true, false) => "Connection: keep-alive\r\n",
            (true, true) => "",
        }
    }
}

impl Gate {
    /// Answers a request that is not passed on. If its end is unknown, the connection ends with it.
    pub(super) fn refuse(&mut self, slot: usize, refusal: Refusal) {
        if !self.connections.contains(slot) {
            return;
        }
        self.leave_queue(slot);
        let connection = &mut self.connections[slot];
        let keeps = refusal.keeps_connection();
        count(if keeps {
            &self.stats.shed
        } else {
            &self.stats.refused
        });
        let client = Client(connection.peer.address);
        let (status, cause) = (refusal.status(), refusal.sentence());
        log::debug!("refused client={client} status={status} cause={cause:?}");
        if keeps && let Some(count) = self.shed.count(self.now) {
            log::warn!("busy refused={count} cause={cause:?}");
        }
        connection.abandoned = !keeps;
        connection.call.keep_alive &= keeps && self.stopping.is_none();
        let mut out = std::mem::take(&mut self.out);
        let call = &connection.call;
        refusal.write(call.connection_field(), call.bodiless, &mut out);
        self.answer(slot, &out);
        out.clear();
        self.out = out;
    }

    /// Sends an answer; what the client does not take at once is kept for it.
    pub(super) fn answer(&mut self, slot: usize, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        connection.stage = Stage::Answering;
        connection.since = self.now;
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
            return self.answered(slot);
        }
        connection.answer = bytes[sent..].to_vec();
        connection.answered = 0;
        if connection
            .want_writable(self.poll.registry(), token(slot))
            .is_err()
        {
            return self.close(slot);
        }
        self.give_until(slot, self.now + WRITE_TIME);
        self.weigh(slot);
    }

    /// Sends more of a kept answer.
    pub(super) fn write(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        while connection.answered < connection.answer.len() {
            match connection
                .socket
                .write(&connection.answer[connection.answered..])
            {
                Ok(count) => connection.answered += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.close(slot),
            }
        }
        self.answered(slot);
    }

    /// The kernel has the whole answer: on to the next request, or the end.
    fn answered(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        connection.answer = Vec::new();
        connection.since = self.now;
        connection.served += 1;
        if !connection.call.keep_alive {
            // closing while bytes are unread would reset the connection, and the answer with it
            if !connection.abandoned && connection.input.is_empty() && !connection.readable {
                return self.close(slot);
            }
            let _ = connection.socket.finish();
            connection.stage = Stage::Lingering(LINGER_BYTES);
            connection.input = Vec::new();
            connection.request = Vec::new();
            // what is unread already was told by an event that is over
            self.woken.push(slot);
            return self.give_until(slot, self.now + LINGER_TIME);
        }
        connection.stage = Stage::Idle;
        let trusted = connection.peer.trusted;
        let request = std::mem::take(&mut connection.request);
        if connection.readable || !connection.input.is_empty() {
            self.woken.push(slot);
        }
        if connection.input.is_empty() {
            let input = std::mem::take(&mut connection.input);
            self.spare(input);
        }
        self.spare(request);
        self.give_until(slot, self.now + self.limits.idle_time(trusted));
        self.weigh(slot);
    }
}
