//! Non-blocking sockets in the event loop, TCP and unix alike.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::{Errno, ioctl_fionbio, retry_on_intr};
use rustix::net::{
    RecvFlags, SendFlags, Shutdown, SocketFlags, acceptfrom_with, recv, send, shutdown,
};

/// A connected socket.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    /// Reports events of the socket as `token`: that it is readable, or closed by the peer.
    pub(super) fn register(socket: OwnedFd, registry: &Registry, token: Token) -> io::Result<Self> {
        ioctl_fionbio(&socket, true)?;
        register_readable(&socket, registry, token)?;
        Ok(Self(socket))
    }

    /// Reads into `buffer`; 0 at the end, `None` if nothing is there.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let received = retry_on_intr(|| recv(&self.0, &mut *buffer, RecvFlags::empty()));
        unless_blocking(received.map(|(_, count)| count))
    }

    /// Writes a part of `bytes`; `None` if the socket takes nothing now.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        unless_blocking(retry_on_intr(|| send(&self.0, bytes, SendFlags::NOSIGNAL)))
    }

    pub(super) fn shutdown_write(&self) {
        // fails if the peer has closed the connection
        let _ = shutdown(&self.0, Shutdown::Write);
    }
}

/// Accepts a connection, if one is there; its address is `None` on a unix socket.
pub(super) fn accept(listener: &OwnedFd) -> io::Result<Option<(OwnedFd, Option<IpAddr>)>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let accepted = unless_blocking(retry_on_intr(|| acceptfrom_with(listener, flags)))?;
    Ok(accepted.map(|(socket, peer)| {
        let address = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
        (socket, address.map(|address| address.ip().to_canonical()))
    }))
}

pub(super) fn register_readable(
    socket: &impl AsFd,
    registry: &Registry,
    token: Token,
) -> io::Result<()> {
    let socket = socket.as_fd().as_raw_fd();
    SourceFd(&socket).register(registry, token, Interest::READABLE)
}

fn unless_blocking<T>(result: Result<T, Errno>) -> io::Result<Option<T>> {
    match result {
        Err(Errno::AGAIN) => Ok(None),
        result => Ok(Some(result?)),
    }
}

/// Bytes on their way into a socket.
#[derive(Default)]
pub(super) struct SendBuffer {
    pub(super) bytes: Vec<u8>,
    sent: usize,
    writable_registered: bool,
}

impl SendBuffer {
    /// Replaces the content.
    pub(super) fn start(&mut self, bytes: Vec<u8>) {
        (self.bytes, self.sent) = (bytes, 0);
    }

    pub(super) fn is_sent(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Writes what `socket` takes. True if that was the rest; otherwise an event follows when the socket takes more.
    pub(super) fn flush(
        &mut self,
        socket: &Socket,
        registry: &Registry,
        token: Token,
    ) -> io::Result<bool> {
        while !self.is_sent() {
            match socket.write(&self.bytes[self.sent..])? {
                Some(count) => self.sent += count,
                None => {
                    // only when needed: a unix socket wakes the loop each time its peer reads
                    if !self.writable_registered {
                        self.writable_registered = true;
                        let both = Interest::READABLE | Interest::WRITABLE;
                        SourceFd(&socket.0.as_raw_fd()).reregister(registry, token, both)?;
                    }
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}
