//! Who comes in: accepting, room in all and per address, and who must go for others.

use super::connection::{Connection, Peer, Socket};
use super::limits::{BACKLOG, HEAD_TIME, MEMORY};
use super::stats::count;
use super::{CLIENTS, Gate, Listener};
use mio::event::Source;
use mio::net::{TcpListener, UnixListener};
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Clients accepted in one turn of the loop; the others wait until those that are here were heard.
pub(super) const ACCEPTED_AT_ONCE: usize = 256;
/// Connections looked at to find the one that has kept us waiting longest: enough, and always the same price.
const SAMPLE: usize = 64;
/// After an error that only time can mend.
const PAUSE: Duration = Duration::from_millis(50);

/// A listener that the loop hears.
pub(super) struct Door {
    listener: Bell,
    /// Clients may be waiting: the event comes only once.
    pub(super) ready: bool,
}

enum Bell {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Door {
    pub(super) fn open(listener: Listener, registry: &Registry, token: Token) -> io::Result<Self> {
        let mut listener = match listener {
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                rustix::net::listen(&listener, BACKLOG)?;
                // accepted sockets inherit it
                rustix::net::sockopt::set_tcp_nodelay(&listener, true)?;
                Bell::Tcp(TcpListener::from_std(listener))
            }
            Listener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                rustix::net::listen(&listener, BACKLOG)?;
                Bell::Unix(UnixListener::from_std(listener))
            }
        };
        let source: &mut dyn Source = match &mut listener {
            Bell::Tcp(listener) => listener,
            Bell::Unix(listener) => listener,
        };
        source.register(registry, token, Interest::READABLE)?;
        Ok(Self {
            listener,
            ready: false,
        })
    }

    fn accept(&self) -> io::Result<(Socket, Option<IpAddr>)> {
        match &self.listener {
            Bell::Tcp(listener) => listener
                .accept()
                .map(|(socket, peer)| (Socket::Tcp(socket), Some(peer.ip().to_canonical()))),
            Bell::Unix(listener) => listener
                .accept()
                .map(|(socket, _)| (Socket::Unix(socket), None)),
        }
    }
}

impl Gate {
    /// Takes in who has come. No error ends it: EMFILE and its like make room or wait, others concern one client only.
    pub(super) fn accept(&mut self) {
        if self.accept_paused.is_some_and(|until| self.now < until) {
            return;
        }
        self.accept_paused = None;
        for door in 0..self.doors.len() {
            let mut left = ACCEPTED_AT_ONCE;
            while left > 0 && self.doors[door].ready && self.accept_paused.is_none() {
                self.accept_one(door);
                left -= 1;
            }
        }
    }

    fn accept_one(&mut self, door: usize) {
        let error = match self.doors[door].accept() {
            Ok((socket, address)) => return self.admit(socket, address, door),
            Err(error) => error,
        };
        match error.kind() {
            io::ErrorKind::WouldBlock => self.doors[door].ready = false,
            io::ErrorKind::Interrupted => {}
            _ => {
                let errors = self.stats.accept_errors.fetch_add(1, Relaxed) + 1;
                let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
                if !Errno::from_io_error(&error).is_some_and(|errno| exhausted.contains(&errno)) {
                    return log::debug!("a client went before it was accepted: {error}");
                }
                self.evict();
                self.accept_paused = Some(self.now + PAUSE);
                // it comes again every 50 ms until it is mended
                if errors.is_power_of_two() {
                    log::warn!("clients wait: {error} ({errors} times)");
                }
            }
        }
    }

    fn admit(&mut self, mut socket: Socket, address: Option<IpAddr>, door: usize) {
        count(&self.stats.accepted);
        let peer = Peer {
            address,
            trusted: address.is_none_or(|address| self.limits.trusts(address)),
            bucket: address.and_then(|address| self.limits.bucket(address)),
            door,
        };
        let crowded = peer.bucket.is_some_and(|bucket| {
            self.per_address.get(&bucket).copied().unwrap_or(0)
                >= self.limits.connections_per_address
        });
        if crowded || (self.connections.len() >= self.limits.connections && !self.evict()) {
            return count(&self.stats.turned_away);
        }
        let place = self.connections.vacant_entry();
        let slot = place.key();
        let token = Token(CLIENTS + slot);
        if let Err(error) = socket.register(self.poll.registry(), token, Interest::READABLE) {
            return log::warn!("a client is turned away: {error}");
        }
        place.insert(Connection::new(socket, peer, self.now));
        if let Some(bucket) = peer.bucket {
            *self.per_address.entry(bucket).or_insert(0) += 1;
        }
        self.stats
            .open
            .store(self.connections.len() as u64, Relaxed);
        self.give_until(slot, self.now + HEAD_TIME);
    }

    /// Closes a connection and frees all that it holds, except the work that a worker does for it.
    pub(super) fn close(&mut self, slot: usize) {
        if !self.connections.contains(slot) {
            return;
        }
        self.leave_queue(slot);
        let connection = self.connections.remove(slot);
        self.held -= connection.weight;
        if let Some(bucket) = connection.peer.bucket {
            decrement(&mut self.per_address, bucket);
        }
        self.spare(connection.input);
        self.spare(connection.request);
        self.stats
            .open
            .store(self.connections.len() as u64, Relaxed);
    }

    /// Makes room for one: of some connections that keep us waiting, the one that has for longest goes, a proxy's only if
    /// there is no other.
    fn evict(&mut self) -> bool {
        let slots = self.connections.capacity().max(1);
        let mut eldest = None;
        let mut seen = 0;
        for _ in 0..slots {
            self.eldest = (self.eldest + 1) % slots;
            let Some(connection) = self.connections.get(self.eldest) else {
                continue;
            };
            if !connection.owes() {
                continue;
            }
            let candidate = (connection.peer.trusted, connection.since, self.eldest);
            eldest = Some(eldest.map_or(candidate, |other| candidate.min(other)));
            seen += 1;
            if seen == SAMPLE {
                break;
            }
        }
        let Some((.., slot)) = eldest else {
            return false;
        };
        count(&self.stats.evicted);
        self.close(slot);
        true
    }

    /// Counts anew what a connection's buffers hold. When all together hold too much, those go that have kept us waiting
    /// for longest, whether with a request or with an answer, until a quarter is free.
    pub(super) fn weigh(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        let weight = connection.buffered();
        self.held = self.held - connection.weight + weight;
        connection.weight = weight;
        if self.held <= MEMORY {
            return;
        }
        let mut slow: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.owes() && connection.weight > 0)
            .map(|(slot, connection)| (connection.since, slot))
            .collect();
        slow.sort_unstable();
        for (_, slot) in slow {
            if self.held <= MEMORY / 4 * 3 {
                break;
            }
            count(&self.stats.evicted);
            self.close(slot);
        }
    }
}

/// One less; a zero is not kept.
pub(super) fn decrement(counts: &mut std::collections::HashMap<IpAddr, usize>, bucket: IpAddr) {
    if let Some(count) = counts.get_mut(&bucket) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&bucket);
        }
    }
}
