//! Raw HTTP clients: one exchange at a time, from any loopback address; and the regular client that must be served during an
//! attack.

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// For anything that must happen: only a hang takes longer.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);
/// Address of attackers, and of tests with a single client.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
/// Another address.
pub(crate) const OTHER_CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

pub(crate) const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";

/// Responses to the regular client before its end.
const MIN_RESPONSES: usize = 10;

/// Connects from the address `from`.
pub(crate) fn connect_from(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
    // services that other tests start must not inherit it
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    // ports of closed connections are available at once
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddr::new(IpAddr::V4(from), 0))?;
    connect(&socket, &to)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// An unused address: ports of closed connections stay occupied for a minute.
pub(crate) fn fresh_address() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 1 + high, low, 1)
}

#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(':'));
        let found = headers.find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    }
}

/// Reads a response; that to HEAD has no body.
pub(crate) fn try_read_response(
    stream: &mut impl Read,
    head_request: bool,
) -> io::Result<Response> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let status = head
        .get(9..12)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0);
    let mut response = Response {
        status,
        head,
        body: Vec::new(),
    };
    let length = response
        .header("content-length")
        .and_then(|length| length.parse().ok());
    if !head_request && status >= 200 {
        response.body.resize(length.unwrap_or(0), 0);
        stream.read_exact(&mut response.body)?;
    }
    Ok(response)
}

pub(crate) fn read_response(stream: &mut impl Read) -> Response {
    try_read_response(stream, false).expect("a response")
}

pub(crate) fn read_status(stream: &mut impl Read) -> u16 {
    read_response(stream).status
}

/// Sends a request on a new connection and reads the response.
pub(crate) fn exchange(to: SocketAddr, request: &[u8]) -> Response {
    let mut stream = send(to, request);
    try_read_response(&mut stream, request.starts_with(b"HEAD ")).expect("a response")
}

/// Sends a request on a new connection.
pub(crate) fn send(to: SocketAddr, request: &[u8]) -> TcpStream {
    let mut stream = connect_from(CLIENT, to).expect("connect");
    stream.write_all(request).expect("write");
    stream
}

pub(crate) fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes()
}

/// Whether the server has closed the connection; discards what it sent before.
pub(crate) fn is_closed(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
    }
}

/// Opens `count` connections, and sends `opening` on each of them.
pub(crate) fn open_many(to: SocketAddr, count: usize, opening: &[u8]) -> Vec<TcpStream> {
    let mut streams = Vec::with_capacity(count);
    let mut from = fresh_address();
    for index in 1..=count {
        let mut stream = connect_from(from, to).expect("connect");
        if index % 1000 == 0 {
            from = fresh_address();
        }
        let _ = stream.write_all(opening);
        streams.push(stream);
    }
    streams
}

/// Waits until `condition` holds.
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < TIMEOUT, "{what}: not within {TIMEOUT:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// How often the regular client sends a request again whose connection was closed before the response.
#[derive(Clone, Copy)]
pub(crate) enum Retry {
    /// Where there is room for every client.
    Never,
    /// Where the server has to evict connections: a client that was not scheduled for a while may look as slow as an attacker.
    Closed,
}

/// Attempts with [`Retry::Closed`].
const MAX_ATTEMPTS: usize = 20;

/// Sends `GET /healthz` again and again, on new and on reused connections.
pub(crate) struct RegularClient {
    stop: Arc<AtomicBool>,
    responses: Arc<AtomicUsize>,
    thread: JoinHandle<(Vec<Duration>, Vec<io::Error>)>,
}

impl RegularClient {
    /// Starts the client, and waits for a response.
    pub(crate) fn start(to: SocketAddr, retry: Retry) -> Self {
        let (stop, responses) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&responses));
        let thread = thread::spawn(move || {
            let (mut times, mut errors) = (Vec::new(), Vec::new());
            let mut attempts = 0;
            while !stopped.load(Ordering::Relaxed) {
                let before = times.len();
                let visited = visit(to, &mut times);
                count.store(times.len(), Ordering::Relaxed);
                attempts = if times.len() > before {
                    1
                } else {
                    attempts + 1
                };
                match visited {
                    Err(error)
                        if is_closed_error(&error)
                            && matches!(retry, Retry::Closed)
                            && attempts < MAX_ATTEMPTS => {}
                    Err(error) => errors.push(error),
                    Ok(()) => {}
                }
            }
            (times, errors)
        });
        let client = Self {
            stop,
            responses,
            thread,
        };
        client.wait_for_responses(1);
        client
    }

    fn wait_for_responses(&self, count: usize) {
        wait_until("responses to the regular client", || {
            self.thread.is_finished() || self.responses.load(Ordering::Relaxed) >= count
        });
    }

    /// Ends the client after some more responses; every request must have been answered.
    pub(crate) fn finish(self, attack: &str) {
        self.wait_for_responses(self.responses.load(Ordering::Relaxed) + MIN_RESPONSES);
        self.stop.store(true, Ordering::Relaxed);
        let (mut times, errors) = self.thread.join().expect("the regular client");
        times.sort();
        let percentile = |percent| times[(times.len() - 1) * percent / 100];
        eprintln!(
            "{attack}: regular client: {} responses, {} errors; p50 {:.1?}, p99 {:.1?}, max {:.1?}",
            times.len(),
            errors.len(),
            percentile(50),
            percentile(99),
            percentile(100),
        );
        assert!(errors.is_empty(), "{:?}", &errors[..errors.len().min(5)]);
    }
}

fn is_closed_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// Three requests on one connection, a few milliseconds apart.
fn visit(to: SocketAddr, times: &mut Vec<Duration>) -> io::Result<()> {
    let mut start = Instant::now();
    let mut stream = connect_from(OTHER_CLIENT, to)?;
    for _ in 0..3 {
        stream.write_all(HEALTH)?;
        let response = try_read_response(&mut stream, false)?;
        if response.status != 200 {
            return Err(io::Error::other(format!("status {}", response.status)));
        }
        times.push(start.elapsed());
        thread::sleep(Duration::from_millis(5));
        start = Instant::now();
    }
    Ok(())
}
