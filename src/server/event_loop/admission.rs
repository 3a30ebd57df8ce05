//! Who comes in: accepting, room in all and per address, and who must go for others.

use super::connection::{ClientConnection, ClientPeer, ClientSocket};
use super::limits::{HEAD_TIMEOUT, LISTEN_BACKLOG, MAX_BUFFERED_BYTES};
use super::stats::increment;
use super::{EventLoop, FIRST_CLIENT_TOKEN, ListenSocket};
use mio::event::Source;
use mio::net::{TcpListener, UnixListener};
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Clients accepted in one turn of the loop; the others wait until those that are here were heard.
pub(super) const MAX_ACCEPTS_PER_TURN: usize = 256;
/// Connections looked at to find the one that has kept us waiting longest: enough, and always the same price.
const EVICTION_SAMPLE: usize = 64;
/// After an error that only time can mend.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener that the loop hears.
pub(super) struct Acceptor {
    socket: MioListener,
    /// Clients may be waiting: the event comes only once.
    pub(super) ready: bool,
}

enum MioListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Acceptor {
    pub(super) fn open(
        listener: ListenSocket,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let mut listener = match listener {
            ListenSocket::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                rustix::net::listen(&listener, LISTEN_BACKLOG)?;
                // accepted sockets inherit it
                rustix::net::sockopt::set_tcp_nodelay(&listener, true)?;
                MioListener::Tcp(TcpListener::from_std(listener))
            }
            ListenSocket::Unix(listener) => {
                listener.set_nonblocking(true)?;
                rustix::net::listen(&listener, LISTEN_BACKLOG)?;
                MioListener::Unix(UnixListener::from_std(listener))
            }
        };
        let source: &mut dyn Source = match &mut listener {
            MioListener::Tcp(listener) => listener,
            MioListener::Unix(listener) => listener,
        };
        source.register(registry, token, Interest::READABLE)?;
        Ok(Self {
            socket: listener,
            ready: false,
        })
    }

    fn accept(&self) -> io::Result<(ClientSocket, Option<IpAddr>)> {
        match &self.socket {
            MioListener::Tcp(listener) => listener
                .accept()
                .map(|(socket, peer)| (ClientSocket::Tcp(socket), Some(peer.ip().to_canonical()))),
            MioListener::Unix(listener) => listener
                .accept()
                .map(|(socket, _)| (ClientSocket::Unix(socket), None)),
        }
    }
}

impl EventLoop {
    /// Takes in who has come. No error ends it: EMFILE and its like make room or wait, others concern one client only.
    pub(super) fn accept(&mut self) {
        if self
            .accept_paused_until
            .is_some_and(|until| self.now < until)
        {
            return;
        }
        self.accept_paused_until = None;
        for door in 0..self.acceptors.len() {
            let mut left = MAX_ACCEPTS_PER_TURN;
            while left > 0 && self.acceptors[door].ready && self.accept_paused_until.is_none() {
                self.accept_one(door);
                left -= 1;
            }
        }
    }

    fn accept_one(&mut self, door: usize) {
        let error = match self.acceptors[door].accept() {
            Ok((socket, address)) => return self.admit(socket, address, door),
            Err(error) => error,
        };
        match error.kind() {
            io::ErrorKind::WouldBlock => self.acceptors[door].ready = false,
            io::ErrorKind::Interrupted => {}
            _ => {
                let errors = self.stats.accept_errors.fetch_add(1, Relaxed) + 1;
                let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
                if !Errno::from_io_error(&error).is_some_and(|errno| exhausted.contains(&errno)) {
                    return log::debug!("a client went before it was accepted: {error}");
                }
                self.evict();
                self.accept_paused_until = Some(self.now + ACCEPT_PAUSE);
                // it comes again every 50 ms until it is mended
                if errors.is_power_of_two() {
                    log::warn!("clients wait: {error} ({errors} times)");
                }
            }
        }
    }

    fn admit(&mut self, mut socket: ClientSocket, address: Option<IpAddr>, door: usize) {
        increment(&self.stats.accepted_connections);
        let peer = ClientPeer {
            address,
            trusted_proxy: address.is_none_or(|address| self.limits.is_trusted_proxy(address)),
            limit_key: address.and_then(|address| self.limits.limit_key(address)),
            listener_index: door,
        };
        let crowded = peer.limit_key.is_some_and(|bucket| {
            self.connections_per_address
                .get(&bucket)
                .copied()
                .unwrap_or(0)
                >= self.limits.max_connections_per_address
        });
        if crowded || (self.connections.len() >= self.limits.max_connections && !self.evict()) {
            return increment(&self.stats.rejected_connections);
        }
        let place = self.connections.vacant_entry();
        let slot = place.key();
        let token = Token(FIRST_CLIENT_TOKEN + slot);
        if let Err(error) = socket.register(self.poll.registry(), token, Interest::READABLE) {
            return log::warn!("a client is turned away: {error}");
        }
        place.insert(ClientConnection::new(socket, peer, self.now));
        if let Some(bucket) = peer.limit_key {
            *self.connections_per_address.entry(bucket).or_insert(0) += 1;
        }
        self.stats
            .open_connections
            .store(self.connections.len() as u64, Relaxed);
        self.set_deadline(slot, self.now + HEAD_TIMEOUT);
    }

    /// Closes a connection and frees all that it holds, except the work that a worker does for it.
    pub(super) fn close(&mut self, slot: usize) {
        if !self.connections.contains(slot) {
            return;
        }
        self.remove_from_queue(slot);
        let connection = self.connections.remove(slot);
        self.buffered_bytes -= connection.accounted_bytes;
        if let Some(bucket) = connection.peer.limit_key {
            decrement_count(&mut self.connections_per_address, bucket);
        }
        self.recycle_buffer(connection.input);
        self.recycle_buffer(connection.backend_request);
        self.stats
            .open_connections
            .store(self.connections.len() as u64, Relaxed);
    }

    /// Makes room for one: of some connections that keep us waiting, the one that has for longest goes, a proxy's only if
    /// there is no other.
    fn evict(&mut self) -> bool {
        let slots = self.connections.capacity().max(1);
        let mut eldest = None;
        let mut seen = 0;
        for _ in 0..slots {
            self.eviction_cursor = (self.eviction_cursor + 1) % slots;
            let Some(connection) = self.connections.get(self.eviction_cursor) else {
                continue;
            };
            if !connection.awaits_client() {
                continue;
            }
            let candidate = (
                connection.peer.trusted_proxy,
                connection.waiting_since,
                self.eviction_cursor,
            );
            eldest = Some(eldest.map_or(candidate, |other| candidate.min(other)));
            seen += 1;
            if seen == EVICTION_SAMPLE {
                break;
            }
        }
        let Some((.., slot)) = eldest else {
            return false;
        };
        increment(&self.stats.evicted_connections);
        self.close(slot);
        true
    }

    /// Counts anew what a connection's buffers hold. When all together hold too much, those go that have kept us waiting
    /// for longest, whether with a request or with an answer, until a quarter is free.
    pub(super) fn account_memory(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        let weight = connection.buffer_bytes();
        self.buffered_bytes = self.buffered_bytes - connection.accounted_bytes + weight;
        connection.accounted_bytes = weight;
        if self.buffered_bytes <= MAX_BUFFERED_BYTES {
            return;
        }
        let mut slow: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.awaits_client() && connection.accounted_bytes > 0)
            .map(|(slot, connection)| (connection.waiting_since, slot))
            .collect();
        slow.sort_unstable();
        for (_, slot) in slow {
            if self.buffered_bytes <= MAX_BUFFERED_BYTES / 4 * 3 {
                break;
            }
            increment(&self.stats.evicted_connections);
            self.close(slot);
        }
    }
}

/// One less; a zero is not kept.
pub(super) fn decrement_count(
    counts: &mut std::collections::HashMap<IpAddr, usize>,
    bucket: IpAddr,
) {
    if let Some(count) = counts.get_mut(&bucket) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&bucket);
        }
    }
}
