//! One client's connection: what is known of it, and which bytes wait on it.

use super::limits::MAX_LINGER_BYTES;
use crate::server::head::{ChunkDecoder, MAX_HEAD_BYTES};
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
pub(super) struct RequestKey {
    pub(super) slot: usize,
    pub(super) request_id: u64,
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientPeer {
    /// `None` on a unix socket.
    pub(super) address: Option<IpAddr>,
    /// A proxy of ours, believed about whom it speaks for.
    pub(super) trusted_proxy: bool,
    /// What its connections are counted under, if they are.
    pub(super) limit_key: Option<IpAddr>,
    /// Which listener it came to, counted from 0.
    pub(super) listener_index: usize,
}

/// How far the present request has come.
#[derive(Debug)]
pub(super) enum RequestStage {
    /// Nothing of it is there.
    Idle,
    Head,
    /// So many bytes are missing.
    Body(usize),
    ChunkedBody(ChunkDecoder),
    /// It is complete, and waits for a worker.
    Queued,
    /// A worker has it.
    Processing,
    /// The client has not taken the whole answer yet.
    WritingResponse,
    /// All is said and our side closed; so many more bytes are swallowed.
    Lingering(usize),
}

/// What is known of the present request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RequestInfo {
    pub(super) http11: bool,
    pub(super) keep_alive: bool,
    /// It is HEAD: the answer has no body.
    pub(super) head_request: bool,
    /// The work will call other servers.
    pub(super) outbound: bool,
    /// The address that its work counts for, while it does.
    pub(super) charged_address: Option<IpAddr>,
    /// Where the body begins in the request.
    pub(super) body_start: usize,
}

pub(super) struct ClientConnection {
    pub(super) socket: ClientSocket,
    pub(super) peer: ClientPeer,
    /// Of the present request, once it is complete.
    pub(super) request_id: u64,
    pub(super) stage: RequestStage,
    pub(super) request_info: RequestInfo,
    pub(super) deadline: Instant,
    /// When the wait for the client began that is going on.
    pub(super) waiting_since: Instant,
    pub(super) readable: bool,
    /// The client has closed its side: a short read is not the end of what there is to learn.
    pub(super) read_closed: bool,
    /// The answer was an error in the middle of a request: swallow the rest before closing.
    pub(super) drain_before_close: bool,
    pub(super) requests_served: u32,
    /// Bytes that were read and not understood yet.
    pub(super) input: Vec<u8>,
    /// How much of the input is known not to end a head.
    pub(super) scanned: usize,
    /// The request as tiny_http gets it.
    pub(super) backend_request: Vec<u8>,
    /// The part of the answer that the client has not taken.
    pub(super) response: Vec<u8>,
    pub(super) response_sent: usize,
    /// What the buffers were last counted for.
    pub(super) accounted_bytes: usize,
    writable_registered: bool,
}

impl ClientConnection {
    pub(super) fn new(socket: ClientSocket, peer: ClientPeer, now: Instant) -> Self {
        Self {
            socket,
            peer,
            request_id: 0,
            stage: RequestStage::Idle,
            request_info: RequestInfo::default(),
            deadline: now,
            waiting_since: now,
            readable: false,
            read_closed: false,
            drain_before_close: false,
            requests_served: 0,
            input: Vec::new(),
            scanned: 0,
            backend_request: Vec::new(),
            response: Vec::new(),
            response_sent: 0,
            accounted_bytes: 0,
            writable_registered: false,
        }
    }

    /// How many bytes may be read now. While a request is served the next ones stay in the kernel, and thereby with the
    /// client: that is the limit of pipelining.
    pub(super) fn read_budget(&self) -> usize {
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

    /// Whether we wait for the client rather than the client for us.
    pub(super) fn awaits_client(&self) -> bool {
        !matches!(self.stage, RequestStage::Queued | RequestStage::Processing)
    }

    /// Bytes of memory that the buffers hold.
    pub(super) fn buffer_bytes(&self) -> usize {
        self.input.capacity() + self.backend_request.capacity() + self.response.capacity()
    }

    /// Asks for an event when the client can take more, which is only rarely needed: a unix socket would else wake the
    /// loop each time its peer reads.
    pub(super) fn register_writable(
        &mut self,
        registry: &Registry,
        token: Token,
    ) -> io::Result<()> {
        if self.writable_registered {
            return Ok(());
        }
        self.writable_registered = true;
        self.socket
            .reregister(registry, token, Interest::READABLE | Interest::WRITABLE)
    }
}

/// A client's socket of either kind.
#[derive(Debug)]
pub(super) enum ClientSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl ClientSocket {
    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(socket) => socket,
            Self::Unix(socket) => socket,
        }
    }

    /// Tells the client that nothing more will come.
    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Self::Unix(socket) => socket.shutdown(Shutdown::Write),
        }
    }
}

impl Source for ClientSocket {
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

impl Read for ClientSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(buffer),
            Self::Unix(socket) => socket.read(buffer),
        }
    }
}

impl Write for ClientSocket {
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
pub(super) struct ClientAddress(pub(super) Option<IpAddr>);

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("unix"),
        }
    }
}
