//! Admission of clients: accepts connections, limits their number and memory, and evicts the slowest.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use log::{debug, warn};
use rustix::io::Errno;

use super::connection::{ClientConnection, ClientPeer};
use super::event_loop::{EventLoop, client_token};
use super::increment;
use super::limits::{HEAD_TIMEOUT, MAX_BUFFERED_BYTES};
use super::service::Service;
use super::socket::{Socket, accept};

/// Connections accepted from one listener in one turn of the loop.
pub(super) const MAX_ACCEPTS_PER_TURN: usize = 256;
/// Connections among which the slowest is searched; bounds the cost of an eviction.
const EVICTION_SAMPLE: usize = 64;
/// After an error of `accept` that persists, such as EMFILE.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl<S: Service> EventLoop<S> {
    /// Accepts waiting clients. No error ends the loop: if descriptors or memory are exhausted, a connection is evicted and the
    /// loop pauses; other errors concern one client.
    pub(super) fn accept(&mut self) {
        if self
            .accept_paused_until
            .is_some_and(|until| self.now < until)
        {
            return;
        }
        self.accept_paused_until = None;
        for listener in 0..self.acceptors.len() {
            for _ in 0..MAX_ACCEPTS_PER_TURN {
                if !self.acceptors[listener].ready || self.accept_paused_until.is_some() {
                    break;
                }
                self.accept_one(listener);
            }
        }
    }

    fn accept_one(&mut self, listener: usize) {
        let error = match accept(&self.acceptors[listener].socket) {
            Ok(Some((socket, address))) => return self.admit(socket, address, listener),
            Ok(None) => {
                self.acceptors[listener].ready = false;
                return;
            }
            Err(error) => error,
        };
        let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
        if !Errno::from_io_error(&error).is_some_and(|errno| exhausted.contains(&errno)) {
            return debug!(error:% = error; "client disconnected before accept");
        }
        self.evict();
        self.accept_paused_until = Some(self.now + ACCEPT_PAUSE);
        self.accept_throttle
            .log(|count| warn!(error:% = error, count = count; "accept failed"));
    }

    fn admit(&mut self, socket: OwnedFd, address: Option<IpAddr>, listener: usize) {
        let peer = ClientPeer {
            address,
            trusted_proxy: address.is_none_or(|address| self.limits.is_trusted_proxy(address)),
            limit_key: address.and_then(|address| self.limits.limit_key(address)),
            listener,
        };
        let limit = self.limits.max_connections_per_address;
        if self.connections_per_address.is_full(peer.limit_key, limit)
            || (self.connections.len() >= self.limits.max_connections && !self.evict())
        {
            return increment(&self.stats.rejected_connections);
        }
        let entry = self.connections.vacant_entry();
        let slot = entry.key();
        match Socket::register(socket, self.poll.registry(), client_token(slot)) {
            Ok(socket) => entry.insert(ClientConnection::new(socket, peer, self.now)),
            Err(error) => {
                return self
                    .accept_throttle
                    .log(|count| warn!(error:% = error, count = count; "connection rejected"));
            }
        };
        self.connections_per_address.add(peer.limit_key);
        self.publish_connection_count();
        self.set_deadline(slot, self.now + HEAD_TIMEOUT);
    }

    /// Closes a connection and frees what it holds, except for a worker that works for it.
    pub(super) fn close(&mut self, slot: usize) {
        if !self.connections.contains(slot) {
            return;
        }
        self.remove_from_queue(slot);
        let connection = self.connections.remove(slot);
        self.buffered_bytes -= connection.accounted_bytes;
        self.connections_per_address
            .remove(connection.peer.limit_key);
        self.recycle_buffer(connection.input);
        self.recycle_buffer(connection.backend_request);
        self.publish_connection_count();
    }

    fn publish_connection_count(&self) {
        self.stats
            .open_connections
            .store(self.connections.len() as u64, Relaxed);
    }

    /// Closes the connection that has kept the service waiting longest, of a sample; one of a trusted proxy only if the sample
    /// has no other. False if no connection can be closed.
    fn evict(&mut self) -> bool {
        let slots = self.connections.capacity().max(1);
        let cursor = self.eviction_cursor;
        let slowest = (1..=slots)
            .map(|step| (cursor + step) % slots)
            .filter_map(|slot| Some((slot, self.connections.get(slot)?)))
            .filter(|(_, connection)| connection.awaits_client())
            .take(EVICTION_SAMPLE)
            .inspect(|(slot, _)| self.eviction_cursor = *slot)
            .min_by_key(|(_, c)| (c.peer.trusted_proxy, c.waiting_since));
        let Some((slot, _)) = slowest else {
            return false;
        };
        increment(&self.stats.evicted_connections);
        self.close(slot);
        true
    }

    /// Updates the memory of a connection's buffers. If all connections together hold too much, closes those that have kept
    /// the service waiting longest, whether with a request or with a response, until a quarter is free.
    pub(super) fn account_memory(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        let bytes = connection.buffer_bytes();
        self.buffered_bytes = self.buffered_bytes - connection.accounted_bytes + bytes;
        connection.accounted_bytes = bytes;
        if self.buffered_bytes <= MAX_BUFFERED_BYTES {
            return;
        }
        let mut slowest: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.awaits_client() && connection.accounted_bytes > 0)
            .map(|(slot, connection)| (connection.waiting_since, slot))
            .collect();
        slowest.sort_unstable();
        for (_, slot) in slowest {
            if self.buffered_bytes <= MAX_BUFFERED_BYTES / 4 * 3 {
                break;
            }
            increment(&self.stats.evicted_connections);
            self.close(slot);
        }
    }
}

/// Number of connections or requests of each address; `None` stands for all addresses without a limit.
#[derive(Debug, Default)]
pub(super) struct AddressCounter(HashMap<IpAddr, usize>);

impl AddressCounter {
    pub(super) fn is_full(&self, address: Option<IpAddr>, limit: usize) -> bool {
        address.is_some_and(|address| self.0.get(&address).copied().unwrap_or(0) >= limit)
    }

    pub(super) fn add(&mut self, address: Option<IpAddr>) {
        if let Some(address) = address {
            *self.0.entry(address).or_insert(0) += 1;
        }
    }

    pub(super) fn remove(&mut self, address: Option<IpAddr>) {
        let Some(address) = address else {
            return;
        };
        if let Some(count) = self.0.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&address);
            }
        }
    }
}
