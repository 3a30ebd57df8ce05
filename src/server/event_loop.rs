//! The event loop: one thread that owns all client sockets. It accepts, reads, writes and enforces deadlines, and never waits
//! for a client or a worker.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use log::info;
use mio::{Events, Poll, Token};
use slab::Slab;

use super::admission::{AddressCounter, MAX_ACCEPTS_PER_TURN};
use super::connection::{ClientConnection, RequestStage};
use super::dispatch::WorkerConnection;
use super::limits::{
    LISTEN_BACKLOG, SHUTDOWN_IDLE_TIMEOUT, SHUTDOWN_READ_TIMEOUT, SHUTDOWN_TIMEOUT, ServerLimits,
    affordable_connections,
};
use super::listener::Acceptor;
use super::service::{RequestRefusal, Service};
use super::socket::Socket;
use super::workers::RequestOrigins;
use super::{Error, Server, ServerStats};
use crate::util::log_throttle::LogThrottle;
use crate::util::systemd::{ServiceState, SystemdNotifier};

const SHUTDOWN_TOKEN: Token = Token(0);
const FIRST_LISTENER_TOKEN: usize = 1;
const FIRST_WORKER_TOKEN: usize = 1 << 10;
const FIRST_CLIENT_TOKEN: usize = 1 << 20;

pub(super) fn worker_token(index: usize) -> Token {
    Token(FIRST_WORKER_TOKEN + index)
}

pub(super) fn client_token(slot: usize) -> Token {
    Token(FIRST_CLIENT_TOKEN + slot)
}

const EVENTS_PER_POLL: usize = 1024;
const READ_BUFFER_BYTES: usize = 64 << 10;
/// Shortest time between two searches for connections past their deadline; deadlines are long, and a search visits every
/// connection.
const MIN_SWEEP_INTERVAL: Duration = Duration::from_millis(100);
/// Empty buffers kept for later requests and responses.
const MAX_POOLED_BUFFERS: usize = 256;
/// Bytes of a pooled buffer: enough for most requests.
const MAX_POOLED_BUFFER_BYTES: usize = 4096;

/// State of the event loop. Only the statistics and the origins of dispatched requests are shared with other threads.
pub(super) struct EventLoop<S: Service> {
    pub(super) poll: Poll,
    /// Readable at the start of the shutdown.
    shutdown: Socket,
    pub(super) acceptors: Vec<Acceptor>,
    pub(super) limits: ServerLimits,
    pub(super) service: Arc<S>,
    pub(super) stats: Arc<ServerStats>,
    notifier: SystemdNotifier,
    pub(super) shed_throttle: LogThrottle,
    pub(super) accept_throttle: LogThrottle,

    pub(super) connections: Slab<ClientConnection<S::Context>>,
    pub(super) connections_per_address: AddressCounter,
    pub(super) last_request_id: u64,
    /// Slot at which the last search for a connection to evict ended.
    pub(super) eviction_cursor: usize,
    pub(super) accept_paused_until: Option<Instant>,

    pub(super) workers: Vec<WorkerConnection>,
    pub(super) idle_workers: Vec<usize>,
    /// Slots of requests that wait for a worker: local and outbound ones.
    pub(super) queues: [VecDeque<usize>; 2],
    pub(super) outbound_in_progress: usize,
    pub(super) requests_per_address: AddressCounter,
    pub(super) request_origins: Arc<RequestOrigins<S::Context>>,

    /// Time of the current turn.
    pub(super) now: Instant,
    next_sweep: Option<Instant>,
    pub(super) stopping_since: Option<Instant>,
    /// Ends the loop at the end of the turn.
    pub(super) backend_error: Option<io::Error>,
    /// Connections with work for which there is no event.
    pub(super) ready: Vec<usize>,
    pub(super) buffered_bytes: usize,
    pub(super) read_buffer: Vec<u8>,
    pub(super) buffer_pool: Vec<Vec<u8>>,
}

impl<S: Service> EventLoop<S> {
    /// Connects to tiny_http at `backend`, once for each of its worker threads, which must be running, and listens.
    ///
    /// # Errors
    /// [`Error`]; no request was served.
    pub(super) fn new(
        server: Server<S>,
        backend: &SocketAddr,
        request_origins: Arc<RequestOrigins<S::Context>>,
    ) -> Result<Self, Error> {
        let mut limits = server.limits;
        let affordable = affordable_connections(server.worker_count);
        limits.max_connections = limits.max_connections.min(affordable);
        let max_connections = limits.max_connections as u64;
        server.stats.max_connections.store(max_connections, Relaxed);
        let poll = Poll::new().map_err(Error::Poll)?;
        let workers: Vec<_> = (0..server.worker_count)
            .map(|index| WorkerConnection::connect(backend, poll.registry(), worker_token(index)))
            .collect::<Result<_, _>>()
            .map_err(Error::Backend)?;
        let acceptors = server
            .listeners
            .into_iter()
            .zip(FIRST_LISTENER_TOKEN..)
            .map(|(listener, token)| Acceptor::register(listener, poll.registry(), Token(token)))
            .collect::<Result<_, _>>()
            .map_err(Error::Listener)?;
        let shutdown = Socket::register(server.shutdown.into(), poll.registry(), SHUTDOWN_TOKEN)
            .map_err(Error::Poll)?;
        Ok(Self {
            poll,
            shutdown,
            acceptors,
            limits,
            service: server.service,
            stats: server.stats,
            notifier: server.notifier,
            shed_throttle: LogThrottle::default(),
            accept_throttle: LogThrottle::default(),
            connections: Slab::new(),
            connections_per_address: AddressCounter::default(),
            last_request_id: 0,
            eviction_cursor: 0,
            accept_paused_until: None,
            idle_workers: (0..workers.len()).collect(),
            workers,
            queues: [VecDeque::new(), VecDeque::new()],
            outbound_in_progress: 0,
            requests_per_address: AddressCounter::default(),
            request_origins,
            now: Instant::now(),
            next_sweep: None,
            stopping_since: None,
            backend_error: None,
            ready: Vec::new(),
            buffered_bytes: 0,
            read_buffer: vec![0; READ_BUFFER_BYTES],
            buffer_pool: Vec::new(),
        })
    }

    /// Serves until the shutdown, which takes [`SHUTDOWN_TIMEOUT`] at most. True if every request was finished.
    ///
    /// # Errors
    /// [`Error::Poll`] and [`Error::Backend`]: no request can be served any more.
    pub(super) fn run(mut self) -> Result<bool, Error> {
        self.notifier.notify(ServiceState::Ready);
        let mut events = Events::with_capacity(EVENTS_PER_POLL);
        loop {
            match self.poll.poll(&mut events, self.poll_timeout()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled.map_err(Error::Poll)?,
            }
            self.now = Instant::now();
            self.notifier.ping_watchdog(self.now);
            for event in &events {
                match event.token() {
                    SHUTDOWN_TOKEN => self.on_shutdown_event(),
                    // the shutdown may have closed the listener in the same turn
                    Token(token) if token < FIRST_WORKER_TOKEN => {
                        if let Some(acceptor) = self.acceptors.get_mut(token - FIRST_LISTENER_TOKEN)
                        {
                            acceptor.ready = true;
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

    /// Time until something is due; `None` if nothing is.
    fn poll_timeout(&self) -> Option<Duration> {
        let clients_wait = self.accept_paused_until.is_none()
            && self.acceptors.iter().any(|acceptor| acceptor.ready);
        if clients_wait || !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let shutdown_end = self.stopping_since.map(|since| since + SHUTDOWN_TIMEOUT);
        let ping = self.notifier.next_ping();
        [
            self.next_sweep,
            self.accept_paused_until,
            shutdown_end,
            ping,
        ]
        .into_iter()
        .flatten()
        .min()
        .map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// Sets the end of a connection's current stage.
    pub(super) fn set_deadline(&mut self, slot: usize, deadline: Instant) {
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.deadline = deadline;
            if self.next_sweep.is_none_or(|at| deadline < at) {
                self.next_sweep = Some(deadline);
            }
        }
    }

    /// Ends stages that are past their deadline.
    fn enforce_deadlines(&mut self) {
        if self.next_sweep.is_none_or(|at| self.now < at) {
            return;
        }
        let mut late = Vec::new();
        self.next_sweep = None;
        for (slot, connection) in &self.connections {
            if connection.deadline <= self.now {
                late.push(slot);
            } else if self.next_sweep.is_none_or(|at| connection.deadline < at) {
                self.next_sweep = Some(connection.deadline);
            }
        }
        self.next_sweep = self
            .next_sweep
            .map(|at| at.max(self.now + MIN_SWEEP_INTERVAL));
        for slot in late {
            // a worker goes on working after its deadline; its response is discarded
            self.expire(
                slot,
                Some(RequestRefusal::RequestTimeout),
                RequestRefusal::WorkerTimeout,
            );
        }
    }

    /// Ends a connection's current stage: refuses a queued request, one with a worker, and one that is being read if there is
    /// a refusal for that; closes the connection otherwise.
    fn expire(
        &mut self,
        slot: usize,
        while_reading: Option<RequestRefusal>,
        while_processing: RequestRefusal,
    ) {
        let stage = self.connections.get(slot).map(|c| &c.stage);
        let refusal = match stage {
            Some(stage) if stage.is_reading() => while_reading,
            Some(RequestStage::Queued) => Some(RequestRefusal::Busy),
            Some(RequestStage::Processing) => Some(while_processing),
            _ => None,
        };
        match refusal {
            Some(refusal) => self.refuse(slot, refusal),
            None => self.close(slot),
        }
    }

    fn on_shutdown_event(&mut self) {
        // without a byte the event was spurious
        let read = self.shutdown.read(&mut [0; 8]);
        if self.stopping_since.is_none() && matches!(read, Ok(Some(_))) {
            self.begin_shutdown();
        }
    }

    /// Stops listening; connections that clients have made are still served.
    fn begin_shutdown(&mut self) {
        info!(connections = self.connections.len(); "stopping");
        self.notifier.notify(ServiceState::Stopping);
        // to their clients, connections that the kernel has completed are established
        for acceptor in &mut self.acceptors {
            acceptor.ready = true;
        }
        self.accept_paused_until = None;
        for _ in 0..LISTEN_BACKLOG as usize / MAX_ACCEPTS_PER_TURN + 1 {
            self.accept();
        }
        self.acceptors.clear();
        self.stopping_since = Some(self.now);
        for slot in self.slots() {
            self.shorten_deadline(slot);
        }
    }

    /// Shortens the time for the client. A request that has arrived by now is answered, with `Connection: close`.
    fn shorten_deadline(&mut self, slot: usize) {
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.readable = true;
        }
        self.read(slot);
        let Some(connection) = self.connections.get(slot) else {
            return;
        };
        let time = match &connection.stage {
            RequestStage::Idle => SHUTDOWN_IDLE_TIMEOUT,
            stage if stage.is_reading() => SHUTDOWN_READ_TIMEOUT,
            _ => return,
        };
        let deadline = connection.deadline.min(self.now + time);
        self.set_deadline(slot, deadline);
    }

    /// Whether the shutdown is over, and whether every request was finished then.
    fn check_shutdown(&mut self) -> Option<bool> {
        let since = self.stopping_since?;
        if self.connections.is_empty() && self.idle_workers.len() == self.workers.len() {
            return Some(true);
        }
        if self.now < since + SHUTDOWN_TIMEOUT {
            return None;
        }
        for slot in self.slots() {
            self.expire(slot, None, RequestRefusal::Busy);
        }
        Some(false)
    }

    fn slots(&self) -> Vec<usize> {
        self.connections.iter().map(|(slot, _)| slot).collect()
    }

    /// Keeps a small buffer for a later request.
    pub(super) fn recycle_buffer(&mut self, mut buffer: Vec<u8>) {
        if (1..=MAX_POOLED_BUFFER_BYTES).contains(&buffer.capacity())
            && self.buffer_pool.len() < MAX_POOLED_BUFFERS
        {
            buffer.clear();
            self.buffer_pool.push(buffer);
        }
    }
}
