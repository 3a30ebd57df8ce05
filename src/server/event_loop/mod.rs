//! The door: one event-loop thread that owns every client's socket, in front of an unmodified tiny_http.
//!
//! tiny_http has no deadlines and no limits, and reads more into a request than one meaning. So it never meets a client.
//! The gate reads a whole request, head and body, under deadlines and limits, refuses what is ambiguous, and hands the
//! rest over a few persistent unix-socket connections to tiny_http, one request at a time on each; the answer goes back
//! under a deadline too. A slow, hostile or idle client therefore costs a descriptor and some bytes, never a thread.
//!
//! The way of a request: `admission` -> `reading` -> `serving` -> `answering`; `closing` is for all that takes too long.
//! What may be spent on it is in `limits`, what it looks like in `connection`, the other side in `place`, and `workers`
//! puts tiny_http behind the gate.

mod admission;
mod connection;
mod descriptors;
mod dispatch;
pub mod limits;
mod reading;
mod shutdown;
mod stats;
mod worker_connection;
mod worker_pool;
mod writing;

pub use self::worker_pool::serve;
pub use descriptors::affordable_workers;
pub use limits::ServerLimits;
pub use stats::ServerStats;

use self::worker_connection::WorkerConnection;
#[cfg(doc)]
use super::head::MAX_BODY_BYTES;
use super::head::RequestHead;
use crate::util::log_throttle::LogThrottle;
use crate::util::systemd::SystemdNotifier;
use admission::Acceptor;
use connection::{ClientConnection, RequestKey};
use mio::net::UnixStream;
use mio::{Events, Interest, Poll, Token};
use signal_hook::consts::{SIGINT, SIGTERM};
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::unix::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Where clients come in; several may be open.
#[derive(Debug)]
pub enum ListenSocket {
    /// The network.
    Tcp(std::net::TcpListener),
    /// A proxy on the same host.
    Unix(std::os::unix::net::UnixListener),
}

/// Why the gate cannot stand, or cannot go on.
#[derive(Debug)]
pub enum Error {
    /// The descriptor limit leaves no room for workers and clients.
    Descriptors {
        /// `ulimit -n`, the hard one.
        limit: usize,
        /// What is needed at least.
        needed: usize,
    },
    /// A listener cannot be used.
    Listener(io::Error),
    /// Signals cannot be caught.
    Signals(io::Error),
    /// The system's event queue failed.
    Poll(io::Error),
    /// tiny_http does not start, or has closed or broken one of its connections.
    Backend(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Descriptors { limit, needed } => write!(
                f,
                "descriptor limit (ulimit -n): expected {needed} or more, found {limit}"
            ),
            Self::Listener(error) => write!(f, "listener: {error}"),
            Self::Signals(error) => write!(f, "signals: {error}"),
            Self::Poll(error) => write!(f, "event queue: {error}"),
            Self::Backend(error) => write!(f, "tiny_http has failed: {error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Descriptors { .. } => None,
            Self::Listener(error)
            | Self::Signals(error)
            | Self::Poll(error)
            | Self::Backend(error) => Some(error),
        }
    }
}

const SIGNAL_TOKEN: Token = Token(0);
const FIRST_LISTENER_TOKEN: usize = 1;
const FIRST_WORKER_TOKEN: usize = 1 << 10;
const FIRST_CLIENT_TOKEN: usize = 1 << 20;
/// Events taken at once.
const EVENTS_PER_POLL: usize = 1024;
/// Bytes read at once.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// Deadlines are looked at no more often than this: they are for attackers, and 100 ms more are no gift.
const MIN_SWEEP_INTERVAL: Duration = Duration::from_millis(100);
/// Empty buffers that are kept for the next requests, at most [`SPARE_BYTES`] each.
const MAX_POOLED_BUFFERS: usize = 256;
/// Most requests fit in.
const MAX_POOLED_BUFFER_BYTES: usize = 4096;

/// What is known of a request by its head alone.
#[derive(Clone, Copy, Debug)]
pub struct RequestClass {
    /// Whether its work will call other servers.
    pub outbound: bool,
    /// Bytes that its body may have if their number is told beforehand; in chunks there are never more than [`BODY_BYTES`].
    pub max_body_bytes: usize,
    /// Whether its address is charged for it: not for what a server proves to ask for its many users.
    pub address_limited: bool,
}

type RequestClassifier = Box<dyn Fn(&RequestHead<'_>) -> RequestClass>;

/// The gate. All its state belongs to the one thread that runs it; only [`Stats`] are shared.
pub struct EventLoop {
    poll: Poll,
    signal_pipe: UnixStream,
    acceptors: Vec<Acceptor>,
    limits: ServerLimits,
    classify: RequestClassifier,
    stats: Arc<ServerStats>,
    supervisor: SystemdNotifier,
    shed_throttle: LogThrottle,

    connections: Slab<ClientConnection>,
    connections_per_address: HashMap<IpAddr, usize>,
    /// Requests so far that were complete.
    last_request_id: u64,
    /// Where the search for a connection to evict goes on.
    eviction_cursor: usize,
    accept_paused_until: Option<Instant>,

    worker_connections: Vec<WorkerConnection>,
    idle_workers: Vec<usize>,
    /// Complete requests that wait, by lane: local work and outbound.
    queues: [VecDeque<RequestKey>; 2],
    outbound_in_progress: usize,
    requests_per_address: HashMap<IpAddr, usize>,

    now: Instant,
    next_sweep: Option<Instant>,
    stopping_since: Option<Instant>,
    backend_error: Option<io::Error>,
    /// Connections with more to do that no event will tell.
    ready: Vec<usize>,
    buffered_bytes: usize,
    read_buffer: Vec<u8>,
    response_buffer: Vec<u8>,
    buffer_pool: Vec<Vec<u8>>,
}

impl EventLoop {
    /// Opens the gate: connects to tiny_http, which `workers` threads must serve already, at its unix socket `backend`,
    /// once for each of them. Nobody else may reach that socket: close it when this has returned.
    ///
    /// `prospects` tells which requests call other servers. They never take the last eighth of the workers, so that what is
    /// local is answered whatever strangers' servers do. SIGTERM and SIGINT are caught from here on.
    ///
    /// # Errors
    /// Any of [`Error`]: nothing has been served then.
    pub fn new(
        listeners: Vec<ListenSocket>,
        backend: &SocketAddr,
        workers: usize,
        mut limits: ServerLimits,
        prospects: impl Fn(&RequestHead<'_>) -> RequestClass + 'static,
    ) -> Result<Self, Error> {
        limits.max_connections = limits
            .max_connections
            .min(descriptors::affordable_clients(workers)?);
        let poll = Poll::new().map_err(Error::Poll)?;
        let mut places = Vec::with_capacity(workers);
        for place in 0..workers {
            let place = WorkerConnection::connect(
                backend,
                poll.registry(),
                Token(FIRST_WORKER_TOKEN + place),
            );
            places.push(place.map_err(Error::Backend)?);
        }
        let mut doors = Vec::with_capacity(listeners.len());
        for listener in listeners {
            let token = Token(FIRST_LISTENER_TOKEN + doors.len());
            let door = Acceptor::open(listener, poll.registry(), token);
            doors.push(door.map_err(Error::Listener)?);
        }
        let stats = Arc::new(ServerStats::default());
        stats
            .max_connections
            .store(limits.max_connections as u64, Relaxed);
        let signal = catch_signals(&poll).map_err(Error::Signals)?;
        Ok(Self {
            poll,
            signal_pipe: signal,
            acceptors: doors,
            limits,
            classify: Box::new(prospects),
            stats,
            supervisor: SystemdNotifier::disabled(),
            shed_throttle: LogThrottle::default(),
            connections: Slab::new(),
            connections_per_address: HashMap::new(),
            last_request_id: 0,
            eviction_cursor: 0,
            accept_paused_until: None,
            idle_workers: (0..places.len()).collect(),
            worker_connections: places,
            queues: [VecDeque::new(), VecDeque::new()],
            outbound_in_progress: 0,
            requests_per_address: HashMap::new(),
            now: Instant::now(),
            next_sweep: None,
            stopping_since: None,
            backend_error: None,
            ready: Vec::new(),
            buffered_bytes: 0,
            read_buffer: vec![0; READ_BUFFER_BYTES],
            response_buffer: Vec::new(),
            buffer_pool: Vec::new(),
        })
    }

    /// The counters, which live on while the gate runs.
    pub fn stats(&self) -> Arc<ServerStats> {
        Arc::clone(&self.stats)
    }

    /// Serves until SIGTERM or SIGINT, and then what was under way, for 10 s at most. True if all of it was finished.
    ///
    /// # Errors
    /// [`Error::Events`] and [`Error::Backend`]: the service must end then, for it could not answer any more.
    pub fn run(mut self) -> Result<bool, Error> {
        let mut events = Events::with_capacity(EVENTS_PER_POLL);
        loop {
            match self.poll.poll(&mut events, self.poll_timeout()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled.map_err(Error::Poll)?,
            }
            self.now = Instant::now();
            self.supervisor.ping_watchdog(self.now);
            for event in &events {
                match event.token() {
                    SIGNAL_TOKEN => self.on_signal(),
                    // a signal in the same turn has closed it
                    Token(token) if token < FIRST_WORKER_TOKEN => {
                        if let Some(door) = self.acceptors.get_mut(token - FIRST_LISTENER_TOKEN) {
                            door.ready = true;
                        }
                    }
                    Token(token) if token < FIRST_CLIENT_TOKEN => {
                        self.on_worker_event(token - FIRST_WORKER_TOKEN)
                    }
                    Token(token) => self.on_client_event(token - FIRST_CLIENT_TOKEN, event),
                }
            }
            for slot in std::mem::take(&mut self.ready) {
                self.process_input(slot);
                self.read(slot);
            }
            self.accept();
            self.enforce_deadlines();
            if let Some(error) = self.backend_error.take() {
                return Err(Error::Backend(error));
            }
            if let Some(finished) = self.check_shutdown() {
                return Ok(finished);
            }
        }
    }

    /// How long the loop may sleep: for ever, if nothing is due.
    fn poll_timeout(&self) -> Option<Duration> {
        let clients_wait =
            self.accept_paused_until.is_none() && self.acceptors.iter().any(|door| door.ready);
        if clients_wait || !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let grace = self
            .stopping_since
            .map(|since| since + limits::SHUTDOWN_TIMEOUT);
        let beat = self.supervisor.next_ping();
        [self.next_sweep, self.accept_paused_until, grace, beat]
            .into_iter()
            .flatten()
            .min()
            .map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// Sets when a connection's present stage must be over.
    fn set_deadline(&mut self, slot: usize, deadline: Instant) {
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.deadline = deadline;
            if self.next_sweep.is_none_or(|at| deadline < at) {
                self.next_sweep = Some(deadline);
            }
        }
    }

    /// Keeps an empty buffer for the next request, unless a large one or enough of them.
    fn recycle_buffer(&mut self, mut buffer: Vec<u8>) {
        if (1..=MAX_POOLED_BUFFER_BYTES).contains(&buffer.capacity())
            && self.buffer_pool.len() < MAX_POOLED_BUFFERS
        {
            buffer.clear();
            self.buffer_pool.push(buffer);
        }
    }
}

impl fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("connections", &self.connections.len())
            .field("places", &self.worker_connections.len())
            .finish_non_exhaustive()
    }
}

fn catch_signals(poll: &Poll) -> io::Result<UnixStream> {
    let (receiver, sender) = std::os::unix::net::UnixStream::pair()?;
    receiver.set_nonblocking(true)?;
    for signal in [SIGTERM, SIGINT] {
        signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
    }
    let mut receiver = UnixStream::from_std(receiver);
    poll.registry()
        .register(&mut receiver, SIGNAL_TOKEN, Interest::READABLE)?;
    Ok(receiver)
}
