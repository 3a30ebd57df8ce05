//! HTTP/1.1 server: a [`Service`] behind an event loop that faces clients and an unmodified tiny_http that runs worker threads.
//!
//! tiny_http has no deadlines and no limits, and reads more than one meaning into some requests, so it never meets a client. The
//! event loop reads a whole request, head and body, under deadlines and limits, refuses what is ambiguous, and writes the rest
//! anew for tiny_http: over a few persistent connections, one request at a time on each. A slow, hostile or idle client costs
//! a descriptor and a few bytes, never a thread.
//!
//! A request passes through
//! - `listener`, `admission`: accepts its connection, within the limits of descriptors, addresses and memory;
//! - `connection`, `head`: reads and parses it; [`Service::classify`];
//! - `dispatch`: queues it for a worker, and sends it there over a connection to tiny_http;
//! - `workers`: [`Service::respond`] on a thread;
//! - `connection` again: writes the response.
//!
//! `event_loop` ties these together, enforces deadlines and shuts down. `limits` has all timeouts and bounds.

mod admission;
mod connection;
mod dispatch;
mod event_loop;
mod head;
mod limits;
mod listener;
mod service;
mod socket;
mod workers;

pub use head::{
    BodyFraming, ChunkDecoder, MAX_BODY_BYTES, MAX_HEAD_BYTES, RequestHead, find_head_end,
    set_content_length,
};
pub use limits::ServerLimits;
pub(crate) use limits::{affordable_workers, max_outbound_workers};
pub use listener::Listener;
pub(crate) use listener::inherited_listeners;
pub use service::{
    ClientAddress, HttpRequest, HttpResponse, RequestClass, RequestOrigin, RequestRefusal, Service,
};

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::util::systemd::SystemdNotifier;

/// A server to [`run`](Server::run).
pub struct Server<S> {
    /// Sockets for clients.
    pub listeners: Vec<Listener>,
    /// What to serve.
    pub service: Arc<S>,
    /// Number of worker threads, at least 2.
    pub worker_count: usize,
    /// Limits for clients.
    pub limits: ServerLimits,
    /// Counters to update.
    pub stats: Arc<ServerStats>,
    /// Gets the states of the server and the pings of the watchdog.
    pub notifier: SystemdNotifier,
    /// A byte, or the end, starts the shutdown.
    pub shutdown: UnixStream,
}

/// Counters since the start, and gauges.
#[derive(Debug, Default)]
pub struct ServerStats {
    /// Open connections.
    pub open_connections: AtomicU64,
    /// Limit of open connections.
    pub max_connections: AtomicU64,
    /// Connections closed in favour of others, or for lack of memory.
    pub evicted_connections: AtomicU64,
    /// Connections closed at once: too many of one address, or no room.
    pub rejected_connections: AtomicU64,
    /// Requests answered by a worker.
    pub served_requests: AtomicU64,
    /// Requests refused because of load: 429, 503 and 504.
    pub shed_requests: AtomicU64,
    /// Requests refused for other reasons.
    pub refused_requests: AtomicU64,
}

fn increment(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// Why the server cannot start or go on.
#[derive(Debug)]
pub enum Error {
    /// The descriptor limit is too low for workers and clients.
    Descriptors {
        /// The hard limit (`ulimit -Hn`).
        limit: usize,
        /// The lowest sufficient limit.
        needed: usize,
    },
    /// A listener cannot be used.
    Listener(io::Error),
    /// The system's event queue failed.
    Poll(io::Error),
    /// tiny_http failed to start, or broke one of its connections.
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
            Self::Poll(error) => write!(f, "event queue: {error}"),
            Self::Backend(error) => write!(f, "tiny_http failed: {error}"),
        }
    }
}

impl std::error::Error for Error {}
