//! Fake forward proxy (CONNECT) with faults, which connects every public address to a fake homeserver on loopback. A real proxy is
//! tested in `tests/e2e`. The threads end with the test process.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::listen::listen;
use crate::request::Request;

/// Bytes after which an endless response stops.
const ENDLESS_BYTES: u64 = 10 * 1024 * 1024;

/// Response to CONNECT.
#[derive(Clone, Debug)]
pub(crate) enum ConnectResponse {
    /// A tunnel to this port of 127.0.0.1, whatever the requested address.
    TunnelTo(u16),
    /// These bytes, then the connection closes.
    Bytes(&'static str),
    /// The first bytes, then the second ones again and again, 10 MB of them.
    Endless(&'static str, &'static str),
    /// These bytes, one per second.
    Slow(&'static str),
    /// Nothing, on an open connection.
    Silent,
}

pub(crate) struct ForwardProxy {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    response: ConnectResponse,
    requests: Mutex<Vec<Request>>,
    sent: AtomicU64,
}

impl ForwardProxy {
    pub(crate) fn start(response: ConnectResponse) -> Self {
        let state = Arc::new(State {
            response,
            requests: Mutex::default(),
            sent: AtomicU64::new(0),
        });
        let address = listen(&state, State::serve);
        Self { address, state }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Bytes of an endless response that the service has read.
    pub(crate) fn bytes_sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }
}

impl State {
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut client = BufReader::new(stream);
        let request = Request::read(&mut client)?;
        self.requests.lock().unwrap().push(request);
        let out = client.get_mut();
        match &self.response {
            ConnectResponse::TunnelTo(port) => {
                let server = TcpStream::connect(("127.0.0.1", *port)).ok()?;
                out.write_all(b"HTTP/1.1 200 Connection established\r\nVia: fake\r\n\r\n")
                    .ok()?;
                let (mut to_server, mut to_client) =
                    (server.try_clone().ok()?, out.try_clone().ok()?);
                thread::spawn(move || {
                    let _ = std::io::copy(&mut &server, &mut to_client);
                    let _ = to_client.shutdown(std::net::Shutdown::Both);
                });
                let _ = std::io::copy(&mut client, &mut to_server);
                let _ = to_server.shutdown(std::net::Shutdown::Both);
            }
            ConnectResponse::Bytes(bytes) => out.write_all(bytes.as_bytes()).ok()?,
            ConnectResponse::Endless(start, piece) => {
                out.write_all(start.as_bytes()).ok()?;
                let piece = piece.repeat(8192 / piece.len());
                while self.sent.load(Ordering::SeqCst) < ENDLESS_BYTES {
                    out.write_all(piece.as_bytes()).ok()?;
                    self.sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
                }
            }
            ConnectResponse::Slow(bytes) => {
                for byte in bytes.as_bytes() {
                    out.write_all(&[*byte]).ok()?;
                    // no test waits for the end
                    thread::sleep(Duration::from_secs(1));
                }
            }
            ConnectResponse::Silent => drop(client.read_to_end(&mut Vec::new())),
        }
        Some(())
    }
}
