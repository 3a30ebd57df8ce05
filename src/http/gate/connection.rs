//! One client's connection: what is known of it, and which bytes wait on it.

use super::limits::LINGER_BYTES;
use crate::http::head::{Chunks, HEAD_BYTES};
use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown};
use std::time::Instant;

/// A request: its connection, and which one of all requests that have come there. An answer may come after its client has
/// gone, or after the client was told that it is late, and has asked for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) slot: usize,
    pub(super) serial: u64,
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    /// `None` on a unix socket.
    pub(super) address: Option<IpAddr>,
    /// A proxy of ours, believed about whom it speaks for.
    pub(super) trusted: bool,
    /// What its connections are counted under, if they are.
    pub(super) bucket: Option<IpAddr>,
    /// Which listener it came to, counted from 0.
    pub(super) door: usize,
}

/// How far the present request has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// Nothing of it is there.
    Idle,
    Head,
    /// So many bytes are missing.
    Body(usize),
    ChunkedBody(Chunks),
    /// It is complete, and waits for a worker.
    Queued,
    /// A worker has it.
    Working,
    /// The client has not taken the whole answer yet.
    Answering,
    /// All is said and our side closed; so many more bytes are swallowed.
    Lingering(usize),
}

/// What is known of the present request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Call {
    pub(super) modern: bool,
    pub(super) keep_alive: bool,
    /// It is HEAD: the answer has no body.
    pub(super) bodiless: bool,
    /// The work will call other servers.
    pub(super) outbound: bool,
    /// The address that its work counts for, while it does.
    pub(super) charged: Option<IpAddr>,
    /// Where the body begins in the request.
    pub(super) body: usize,
}

pub(super) struct Connection {
    pub(super) socket: Socket,
    pub(super) peer: Peer,
    /// Of the present request, once it is complete.
    pub(super) serial: u64,
    pub(super) stage: Stage,
    pub(super) call: Call,
    pub(super) deadline: Instant,
    /// When the wait for the client began that is going on.
    pub(super) since: Instant,
    pub(super) readable: bool,
    /// The client has closed its side: a short read is not the end of what there is to learn.
    pub(super) ended: bool,
    /// The answer was an error in the middle of a request: swallow the rest before closing.
    pub(super) abandoned: bool,
    pub(super) served: u32,
    /// Bytes that were read and not understood yet.
    pub(super) input: Vec<u8>,
    /// How much of the input is known not to end a head.
    pub(super) scanned: usize,
    /// The request as tiny_http gets it.
    pub(super) request: Vec<u8>,
    /// The part of the answer that the client has not taken.
    pub(super) answer: Vec<u8>,
    pub(super) answered: usize,
    /// What the buffers were last counted for.
    pub(super) weight: usize,
    writable_wanted: bool,
}

impl Connection {
    pub(super) fn new(socket: Socket, peer: Peer, now: Instant) -> Self {
        Self {
            socket,
            peer,
            serial: 0,
            stage: Stage::Idle,
            call: Call::default(),
            deadline: now,
            since: now,
            readable: false,
            ended: false,
            abandoned: false,
            served: 0,
            input: Vec::new(),
            scanned: 0,
            request: Vec::new(),
            answer: Vec::new(),
            answered: 0,
            weight: 0,
            writable_wanted: false,
        }
    }

    /// How many bytes may be read now. While a request is served the next ones stay in the kernel, and thereby with the
    /// client: that is the limit of pipelining.
    pub(super) fn appetite(&self) -> usize {
        match self.stage {
            Stage::Idle | Stage::Head => (HEAD_BYTES + 1).saturating_sub(self.input.len()),
            Stage::Body(missing) => missing,
            Stage::ChunkedBody(_) => HEAD_BYTES,
            Stage::Lingering(_) => LINGER_BYTES,
            Stage::Queued | Stage::Working | Stage::Answering => 0,
        }
    }

    /// Whether we wait for the client rather than the client for us.
    pub(super) fn owes(&self) -> bool {
        !matches!(self.stage, Stage::Queued | Stage::Working)
    }

    /// Bytes of memory that the buffers hold.
    pub(super) fn buffered(&self) -> usize {
        self.input.capacity() + self.request.capacity() + self.answer.capacity()
    }

    /// Asks for an event when the client can take more, which is only rarely needed: a unix socket would else wake the
    /// loop each time its peer reads.
    pub(super) fn want_writable(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        if self.writable_wanted {
            return Ok(());
        }
        self.writable_wanted = true;
        self.socket
            .reregister(registry, token, Interest::READABLE | Interest::WRITABLE)
    }
}

/// A client's socket of either kind.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(socket) => socket,
            Self::Unix(socket) => socket,
        }
    }

    /// Tells the client that nothing more will come.
    pub(super) fn finish(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Self::Unix(socket) => socket.shutdown(Shutdown::Write),
        }
    }
}

impl Source for Socket {
    fn register(&mut self, registry: &Registry, token: Token, what: Interest) -> io::Result<()> {
        self.source().register(registry, token, what)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, what: Interest) -> io::Result<()> {
        self.source().reregister(registry, token, what)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.source().deregister(registry)
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(buffer),
            Self::Unix(socket) => socket.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(bytes),
            Self::Unix(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The address of a client as a handler gets it.
pub(super) struct Client(pub(super) Option<IpAddr>);

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("unix"),
        }
    }
}
