//! A server whose responses say what arrived. A fake, because the real endpoints neither echo nor wait for a test.

use crate::client::{TIMEOUT, get, send};
use livekit_token_service::internal::{
    HttpRequest, HttpResponse, Listener, MAX_BODY_BYTES, RequestClass, RequestHead, RequestRefusal,
    Server, ServerLimits, ServerStats, Service, SystemdNotifier,
};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Largest body of `/echo/large`.
pub(crate) const MAX_LARGE_BODY_BYTES: usize = 16 << 20;

pub(crate) struct Options {
    /// An address, or `unix:` and a path.
    pub(crate) bind: String,
    pub(crate) workers: usize,
    /// Replaces the trusted proxies, which are those on loopback.
    pub(crate) trusted_proxies: Option<&'static [&'static str]>,
    pub(crate) max_connections_per_address: Option<usize>,
    pub(crate) work_timeout: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bind: "127.0.0.1:0".into(),
            workers: 4,
            trusted_proxies: None,
            max_connections_per_address: None,
            work_timeout: None,
        }
    }
}

/// The server, on threads of the test.
pub(crate) struct EchoServer {
    bound: String,
    held: Arc<HeldRequests>,
    pub(crate) stats: Arc<ServerStats>,
    /// Closed for the shutdown.
    shutdown: Option<UnixStream>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl EchoServer {
    pub(crate) fn start() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with_workers(workers: usize) -> Self {
        Self::with(Options {
            workers,
            ..Options::default()
        })
    }

    pub(crate) fn with(options: Options) -> Self {
        let listener = match options.bind.strip_prefix("unix:") {
            Some(path) => Listener::bind_unix(path.as_ref()),
            None => Listener::bind_tcp(&[options.bind.parse().expect("an address")]),
        };
        let listener = listener.expect("bind");
        let bound = listener.to_string();
        let mut limits = ServerLimits {
            // other loopback addresses stand for those of the Internet
            limit_private_addresses: true,
            ..ServerLimits::default()
        };
        if let Some(networks) = options.trusted_proxies {
            let parsed = networks.iter().map(|n| n.parse().expect("a network"));
            limits.trusted_proxies = parsed.collect();
        }
        if let Some(max) = options.max_connections_per_address {
            limits.max_connections_per_address = max;
        }
        if let Some(timeout) = options.work_timeout {
            limits.work_timeout = timeout;
        }
        let held = Arc::<HeldRequests>::default();
        let stats = Arc::<ServerStats>::default();
        let (shutdown, receiver) = UnixStream::pair().expect("a socket pair");
        let server = Server {
            listeners: vec![listener],
            service: Arc::new(EchoService(Arc::clone(&held))),
            worker_count: options.workers,
            limits,
            stats: Arc::clone(&stats),
            notifier: SystemdNotifier::disabled(),
            shutdown: receiver,
        };
        let (listening, started) = mpsc::channel();
        let thread = thread::spawn(move || {
            let served = server.run(|| listening.send(()).expect("a test"));
            served.map_err(|error| error.to_string())
        });
        started.recv_timeout(TIMEOUT).expect("listening");
        Self {
            bound,
            held,
            stats,
            shutdown: Some(shutdown),
            thread: Some(thread),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.bound.parse().expect("an address")
    }

    /// Sends `GET target` on a new connection.
    pub(crate) fn send_get(&self, target: &str) -> TcpStream {
        send(self.address(), &get(target))
    }

    /// Waits until `count` requests are held.
    pub(crate) fn wait_held(&self, count: usize) {
        let state = self.held.lock();
        let waited = self
            .held
            .changed
            .wait_timeout_while(state, TIMEOUT, |state| state.running.len() != count);
        let (state, timeout) = waited.expect("no panic");
        assert!(!timeout.timed_out(), "held: {:?}", state.running);
    }

    /// Lets the request `name` be answered.
    pub(crate) fn release(&self, name: &str) {
        self.held.lock().released.insert(name.to_owned());
        self.held.changed.notify_all();
    }

    /// Lets all requests be answered, those of the future as well.
    pub(crate) fn release_all(&self) {
        self.held.lock().all_released = true;
        self.held.changed.notify_all();
    }

    pub(crate) fn begin_shutdown(&mut self) {
        self.shutdown = None;
    }

    /// Waits for the end of the shutdown.
    pub(crate) fn stop(mut self) {
        self.release_all();
        self.begin_shutdown();
        let thread = self.thread.take().expect("running");
        thread.join().expect("no panic").expect("no error");
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.release_all();
    }
}

struct EchoService(Arc<HeldRequests>);

impl Service for EchoService {
    type Context = ();

    const ALLOWED_HEADERS: &'static [&'static str] = &["Host", "Authorization"];

    fn classify(&self, _listener: usize, head: &RequestHead<'_>) -> RequestClass<()> {
        RequestClass {
            outbound: head.target().starts_with("/outbound"),
            max_body_bytes: match head.target() {
                "/echo/large" => MAX_LARGE_BODY_BYTES,
                _ => MAX_BODY_BYTES,
            },
            address_limited: true,
            context: (),
        }
    }

    /// `/healthz`, `/echo`, `/local/NAME` and `/outbound/NAME` (until released), `/big/BYTES`, `/panic`.
    fn respond(&self, request: &HttpRequest<'_, ()>) -> HttpResponse {
        let mut parts = request.target.split('/').skip(1);
        let kind = parts.next().unwrap_or_default();
        let name = parts.next().unwrap_or_default();
        match kind {
            "healthz" => response(200, "ok".into()),
            "outbound" | "local" => {
                self.0.hold(name);
                response(200, format!("released {name}"))
            }
            "big" => response(200, "x".repeat(name.parse().unwrap_or(0))),
            "panic" => panic!("for the test"),
            "echo" => response(200, echo(request)),
            _ => response(404, "unknown".into()),
        }
    }

    fn refuse(&self, refusal: RequestRefusal) -> HttpResponse {
        response(refusal.status(), refusal.message().to_owned())
    }
}

fn response(status: u16, text: String) -> HttpResponse {
    HttpResponse {
        status,
        headers: Vec::new(),
        body: text.into_bytes(),
    }
}

/// What a handler gets: method, target, length and hash of the body; client; header fields, those that must not get
/// through included.
fn echo(request: &HttpRequest<'_, ()>) -> String {
    let hash = Sha256::digest(request.body);
    let mut text = format!(
        "{} {} {} {:02x}{:02x}{:02x}{:02x}\nclient: {}\n",
        request.method,
        request.target,
        request.body.len(),
        hash[0],
        hash[1],
        hash[2],
        hash[3],
        request.origin.client,
    );
    for (name, value) in request.headers() {
        text += &format!("{name}: {value}\n");
    }
    text
}

/// Requests that wait for the test.
#[derive(Default)]
struct HeldRequests {
    state: Mutex<HeldState>,
    changed: Condvar,
}

#[derive(Default)]
struct HeldState {
    running: Vec<String>,
    released: HashSet<String>,
    all_released: bool,
}

impl HeldRequests {
    fn lock(&self) -> MutexGuard<'_, HeldState> {
        self.state.lock().expect("no panic")
    }

    fn hold(&self, name: &str) {
        let mut state = self.lock();
        state.running.push(name.to_owned());
        self.changed.notify_all();
        let is_held = |state: &mut HeldState| !state.all_released && !state.released.contains(name);
        let waited = self.changed.wait_timeout_while(state, TIMEOUT, is_held);
        let (mut state, _) = waited.expect("no panic");
        if let Some(index) = state.running.iter().position(|held| held == name) {
            state.running.swap_remove(index);
        }
        self.changed.notify_all();
    }
}
