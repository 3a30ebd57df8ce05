//! The forward proxy between the service and the public Internet.
//!
//! A fake because faults are wanted on demand, and because whatever public address it is asked for has to be a fake homeserver on
//! loopback. A real one is asked in `tests/e2e`. Its threads end with the test process.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::listen::listen;
use crate::request::Request;

/// What an endless answer has before it ends after all.
const HUGE: u64 = 10 * 1024 * 1024;

/// How it treats who asks for a tunnel.
#[derive(Clone, Debug)]
pub(crate) enum Treatment {
    /// A tunnel to this port of 127.0.0.1, whatever was asked for.
    LeadsTo(u16),
    /// These bytes, and the connection closes.
    Says(&'static str),
    /// These bytes, and then this piece for 10 MB.
    Endless(&'static str, &'static str),
    /// These bytes, one a second.
    Drips(&'static str),
    /// Nothing, while the connection stands.
    Silent,
}

/// A running proxy.
pub(crate) struct ForwardProxy {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    treatment: Treatment,
    asked: Mutex<Vec<Request>>,
    sent: AtomicU64,
}

impl ForwardProxy {
    pub(crate) fn start(treatment: Treatment) -> Self {
        let state = Arc::new(State {
            treatment,
            asked: Mutex::default(),
            sent: AtomicU64::new(0),
        });
        let address = listen(&state, State::serve);
        Self { address, state }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Every request so far.
    pub(crate) fn asked(&self) -> Vec<Request> {
        self.state.asked.lock().unwrap().clone()
    }

    /// Bytes of an endless answer that the service took.
    pub(crate) fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }
}

impl State {
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut client = BufReader::new(stream);
        let request = Request::read(&mut client)?;
        self.asked.lock().unwrap().push(request);
        let out = client.get_mut();
        match &self.treatment {
            Treatment::LeadsTo(port) => {
                let server = TcpStream::connect(("127.0.0.1", *port)).ok()?;
                out.write_all(b"HTTP/1.1 200 Connection established\r\nVia: fake\r\n\r\n")
                    .ok()?;
                let (mut there, mut back) = (server.try_clone().ok()?, out.try_clone().ok()?);
                thread::spawn(move || {
                    let _ = std::io::copy(&mut &server, &mut back);
                    let _ = back.shutdown(std::net::Shutdown::Both);
                });
                let _ = std::io::copy(&mut client, &mut there);
                let _ = there.shutdown(std::net::Shutdown::Both);
            }
            Treatment::Says(bytes) => out.write_all(bytes.as_bytes()).ok()?,
            Treatment::Endless(begin, piece) => {
                out.write_all(begin.as_bytes()).ok()?;
                let piece = piece.repeat(8192 / piece.len());
                while self.sent.load(Ordering::SeqCst) < HUGE {
                    out.write_all(piece.as_bytes()).ok()?;
                    self.sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
                }
            }
            Treatment::Drips(bytes) => {
                for byte in bytes.as_bytes() {
                    out.write_all(&[*byte]).ok()?;
                    // the pace is the attack, and no test waits for its end
                    thread::sleep(Duration::from_secs(1));
                }
            }
            Treatment::Silent => drop(client.read_to_end(&mut Vec::new())),
        }
        Some(())
    }
}
