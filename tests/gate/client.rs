//! Raw HTTP clients: one exchange at a time, from a chosen loopback address; and the honest client that must be served
//! whatever others do.

use crate::service::Service;
use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// For any single answer that must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The attacker's address.
pub(crate) const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
/// The honest client's.
pub(crate) const HONEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Connects from an address of one's choice.
pub(crate) fn connect_from(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    // ports of connections that are over may be used again at once
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddr::new(IpAddr::V4(from), 0))?;
    connect(&socket, &to)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// An address that nothing has been sent from yet: ports of closed connections stay taken for a minute.
pub(crate) fn fresh_address() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 1 + high, low, 1)
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    }
}

/// Reads one answer; one to HEAD has no body.
pub(crate) fn read_answer(stream: &mut impl Read, to_head: bool) -> io::Result<Answer> {
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
    let mut answer = Answer {
        status,
        head,
        body: Vec::new(),
    };
    let length = answer.field("content-length").and_then(|l| l.parse().ok());
    if !to_head && status >= 200 {
        answer.body.resize(length.unwrap_or(0), 0);
        stream.read_exact(&mut answer.body)?;
    }
    Ok(answer)
}

/// One request on a new connection, and its answer.
pub(crate) fn ask(to: SocketAddr, request: &[u8]) -> io::Result<Answer> {
    let mut stream = connect_from(ATTACKER, to)?;
    stream.write_all(request)?;
    read_answer(&mut stream, request.starts_with(b"HEAD "))
}

/// Whether the other side has closed, reading over what it still said.
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

/// Asks `/healthz` again and again, on new and on kept connections, until it is stopped.
pub(crate) struct Honest {
    over: Arc<AtomicBool>,
    thread: JoinHandle<(Vec<Duration>, Vec<io::Error>)>,
}

const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: honest\r\n\r\n";

impl Honest {
    pub(crate) fn start(service: &Service) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (to, stop) = (service.address(), Arc::clone(&over));
        let thread = thread::spawn(move || {
            let (mut times, mut errors) = (Vec::new(), Vec::new());
            while !stop.load(Ordering::Relaxed) {
                match visit(to, &mut times) {
                    Ok(()) => {}
                    Err(error) => errors.push(error),
                }
            }
            (times, errors)
        });
        Self { over, thread }
    }

    /// Ends it: every one of its requests was answered. Prints what it felt and what the service had cost.
    pub(crate) fn satisfied(self, service: &Service, attack: &str) {
        self.over.store(true, Ordering::Relaxed);
        let (mut times, errors) = self.thread.join().expect("the honest client");
        times.sort();
        let at = |part: usize| times.get((times.len() * part / 100).min(times.len() - 1));
        println!(
            "{attack}: honest {} answered, {} not; p50 {:.1?} p99 {:.1?} max {:.1?}; {} threads, peak {:.1} MiB",
            times.len(),
            errors.len(),
            at(50).copied().unwrap_or_default(),
            at(99).copied().unwrap_or_default(),
            times.last().copied().unwrap_or_default(),
            service.threads(),
            service.peak_mib(),
        );
        assert!(times.len() >= 10, "too few answers to judge");
        assert!(
            errors.is_empty(),
            "unanswered: {:?}",
            &errors[..errors.len().min(5)]
        );
    }
}

/// Three requests on one connection, a few milliseconds apart.
fn visit(to: SocketAddr, times: &mut Vec<Duration>) -> io::Result<()> {
    let mut begin = Instant::now();
    let mut stream = connect_from(HONEST, to)?;
    for _ in 0..3 {
        stream.write_all(HEALTH)?;
        let answer = read_answer(&mut stream, false)?;
        times.push(begin.elapsed());
        if answer.status != 200 {
            return Err(io::Error::other(format!("status {}", answer.status)));
        }
        thread::sleep(Duration::from_millis(5));
        begin = Instant::now();
    }
    Ok(())
}
