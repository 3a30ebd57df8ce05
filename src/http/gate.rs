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
mod answering;
mod closing;
mod connection;
mod descriptors;
pub mod limits;
mod place;
mod reading;
mod serving;
mod stats;
mod workers;

pub use descriptors::workers;
pub use limits::Limits;
pub use stats::Stats;
pub use workers::serve;

#[cfg(doc)]
use crate::http::head::BODY_BYTES;
use crate::http::head::Head;
use crate::notify::Supervisor;
use crate::tally::Tally;
use admission::Door;
use connection::{Connection, Ticket};
use mio::net::UnixStream;
use mio::{Events, Interest, Poll, Token};
use place::Place;
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
pub enum Listener {
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
    Events(io::Error),
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
            Self::Events(error) => write!(f, "event queue: {error}"),
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
            | Self::Events(error)
            | Self::Backend(error) => Some(error),
        }
    }
}

const SIGNAL: Token = Token(0);
const DOORS: usize = 1;
const PLACES: usize = 1 << 10;
const CLIENTS: usize = 1 << 20;
/// Events taken at once.
const EVENTS: usize = 1024;
/// Bytes read at once.
const SCRATCH: usize = 64 << 10;
/// Deadlines are looked at no more often than this: they are for attackers, and 100 ms more are no gift.
const SWEEP: Duration = Duration::from_millis(100);
/// Empty buffers that are kept for the next requests, at most [`SPARE_BYTES`] each.
const SPARES: usize = 256;
/// Most requests fit in.
const SPARE_BYTES: usize = 4096;

/// What is known of a request by its head alone.
#[derive(Clone, Copy, Debug)]
pub struct Prospect {
    /// Whether its work will call other servers.
    pub outbound: bool,
    /// Bytes that its body may have if their number is told beforehand; in chunks there are never more than [`BODY_BYTES`].
    pub body: usize,
    /// Whether its address is charged for it: not for what a server proves to ask for its many users.
    pub counted: bool,
}

type Prospects = Box<dyn Fn(&Head<'_>) -> Prospect>;

/// The gate. All its state belongs to the one thread that runs it; only [`Stats`] are shared.
pub struct Gate {
    poll: Poll,
    signal: UnixStream,
    doors: Vec<Door>,
    limits: Limits,
    prospects: Prospects,
    stats: Arc<Stats>,
    supervisor: Supervisor,
    shed: Tally,

    connections: Slab<Connection>,
    per_address: HashMap<IpAddr, usize>,
    /// Requests so far that were complete.
    serial: u64,
    /// Where the search for a connection to evict goes on.
    eldest: usize,
    accept_paused: Option<Instant>,

    places: Vec<Place>,
    free: Vec<usize>,
    /// Complete requests that wait, by lane: local work and outbound.
    queues: [VecDeque<Ticket>; 2],
    outbound: usize,
    active: HashMap<IpAddr, usize>,

    now: Instant,
    sweep_at: Option<Instant>,
    stopping: Option<Instant>,
    broken: Option<io::Error>,
    /// Connections with more to do that no event will tell.
    woken: Vec<usize>,
    held: usize,
    scratch: Vec<u8>,
    out: Vec<u8>,
    spares: Vec<Vec<u8>>,
}

impl Gate {
    /// Opens the gate: connects to tiny_http, which `workers` threads must serve already, at its unix socket `backend`,
    /// once for each of them. Nobody else may reach that socket: close it when this has returned.
    ///
    /// `prospects` tells which requests call other servers. They never take the last eighth of the workers, so that what is
    /// local is answered whatever strangers' servers do. SIGTERM and SIGINT are caught from here on.
    ///
    /// # Errors
    /// Any of [`Error`]: nothing has been served then.
    pub fn new(
        listeners: Vec<Listener>,
        backend: &SocketAddr,
        workers: usize,
        mut limits: Limits,
        prospects: impl Fn(&Head<'_>) -> Prospect + 'static,
    ) -> Result<Self, Error> {
        limits.connections = limits.connections.min(descriptors::room(workers)?);
        let poll = Poll::new().map_err(Error::Events)?;
        let mut places = Vec::with_capacity(workers);
        for place in 0..workers {
            let place = Place::open(backend, poll.registry(), Token(PLACES + place));
            places.push(place.map_err(Error::Backend)?);
        }
        let mut doors = Vec::with_capacity(listeners.len());
        for listener in listeners {
            let token = Token(DOORS + doors.len());
            let door = Door::open(listener, poll.registry(), token);
            doors.push(door.map_err(Error::Listener)?);
        }
        let stats = Arc::new(Stats::default());
        stats.room.store(limits.connections as u64, Relaxed);
        let signal = catch_signals(&poll).map_err(Error::Signals)?;
        Ok(Self {
            poll,
            signal,
            doors,
            limits,
            prospects: Box::new(prospects),
            stats,
            supervisor: Supervisor::none(),
            shed: Tally::default(),
            connections: Slab::new(),
            per_address: HashMap::new(),
            serial: 0,
            eldest: 0,
            accept_paused: None,
            free: (0..places.len()).collect(),
            places,
            queues: [VecDeque::new(), VecDeque::new()],
            outbound: 0,
            active: HashMap::new(),
            now: Instant::now(),
            sweep_at: None,
            stopping: None,
            broken: None,
            woken: Vec::new(),
            held: 0,
            scratch: vec![0; SCRATCH],
            out: Vec::new(),
            spares: Vec::new(),
        })
    }

    /// The counters, which live on while the gate runs.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Serves until SIGTERM or SIGINT, and then what was under way, for 10 s at most. True if all of it was finished.
    ///
    /// # Errors
    /// [`Error::Events`] and [`Error::Backend`]: the service must end then, for it could not answer any more.
    pub fn run(mut self) -> Result<bool, Error> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            match self.poll.poll(&mut events, self.patience()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled.map_err(Error::Events)?,
            }
            self.now = Instant::now();
            self.supervisor.alive(self.now);
            for event in &events {
                match event.token() {
                    SIGNAL => self.hear_signal(),
                    // a signal in the same turn has closed it
                    Token(token) if token < PLACES => {
                        if let Some(door) = self.doors.get_mut(token - DOORS) {
                            door.ready = true;
                        }
                    }
                    Token(token) if token < CLIENTS => self.hear_worker(token - PLACES),
                    Token(token) => self.hear_client(token - CLIENTS, event),
                }
            }
            for slot in std::mem::take(&mut self.woken) {
                self.advance(slot);
                self.read(slot);
            }
            self.accept();
            self.sweep();
            if let Some(error) = self.broken.take() {
                return Err(Error::Backend(error));
            }
            if let Some(finished) = self.over() {
                return Ok(finished);
            }
        }
    }

    /// How long the loop may sleep: for ever, if nothing is due.
    fn patience(&self) -> Option<Duration> {
        let clients_wait = self.accept_paused.is_none() && self.doors.iter().any(|door| door.ready);
        if clients_wait || !self.woken.is_empty() {
            return Some(Duration::ZERO);
        }
        let grace = self.stopping.map(|since| since + limits::GRACE_TIME);
        let beat = self.supervisor.due();
        [self.sweep_at, self.accept_paused, grace, beat]
            .into_iter()
            .flatten()
            .min()
            .map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// Sets when a connection's present stage must be over.
    fn give_until(&mut self, slot: usize, deadline: Instant) {
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.deadline = deadline;
            if self.sweep_at.is_none_or(|at| deadline < at) {
                self.sweep_at = Some(deadline);
            }
        }
    }

    /// Keeps an empty buffer for the next request, unless a large one or enough of them.
    fn spare(&mut self, mut buffer: Vec<u8>) {
        if (1..=SPARE_BYTES).contains(&buffer.capacity()) && self.spares.len() < SPARES {
            buffer.clear();
            self.spares.push(buffer);
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("connections", &self.connections.len())
            .field("places", &self.places.len())
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
        .register(&mut receiver, SIGNAL, Interest::READABLE)?;
    Ok(receiver)
}
