//! A homeserver's federation side: TLS, and the one answer that matters here, OpenID userinfo.
//!
//! A fake because faults are wanted on demand: a real homeserver cannot be made to drip a byte a second, to send 100 MB
//! or to vouch for another server's users. A real one is asked in `tests/e2e`. Its threads end with the test process.

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use crate::certificate::{Presents, server_config};
use crate::request::Request;
use crate::stage::User;

/// The path of the look-up, from the Matrix specification (server-server API, OpenID).
pub(crate) const USERINFO: &str = "/_matrix/federation/v1/openid/userinfo";
/// Far more than any look-up may cost.
const HUGE: u64 = 100 * 1024 * 1024;

/// How it treats a request.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    /// As a homeserver does.
    Honest,
    /// Honestly, after this time.
    Slow(Duration),
    /// Honestly, but it closes the connection after each answer without a word about it.
    ForgetsConnections,
    /// Always this status with these header lines and this body.
    Says(&'static str, String, String),
    /// Bytes that are not HTTP.
    Garbage,
    /// A body of 100 MB, whose length it announces or not.
    HugeBody { announced: bool },
    /// This beginning of an answer, and then this piece of it without end.
    Endless(&'static str, &'static str),
    /// A response head, a byte a second.
    DripsHead,
    /// A right answer, but its body comes a byte a second.
    DripsBody,
    /// Nothing, while the connection stands.
    NeverAnswers,
    /// Nothing, and the connection closes.
    ClosesAtOnce,
}

/// A running fake homeserver.
pub(crate) struct Homeserver {
    name: String,
    address: SocketAddr,
    state: Arc<State>,
}

/// One request, with the connection's SNI.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) request: Request,
    pub(crate) sni: Option<String>,
}

impl Homeserver {
    /// An honest one, `localhost:PORT`.
    pub(crate) fn honest() -> Self {
        Self::start("localhost", Behaviour::Honest)
    }

    /// One on `host` (`localhost` or an address of loopback) with the right certificate, called `host:PORT`.
    pub(crate) fn start(host: &str, behaviour: Behaviour) -> Self {
        Self::presenting(host, Presents::Name(host), behaviour)
    }

    pub(crate) fn presenting(host: &str, presents: Presents<'_>, behaviour: Behaviour) -> Self {
        let ip = match host {
            "localhost" => IpAddr::from([127, 0, 0, 1]),
            address => address.parse().unwrap(),
        };
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let host = match ip {
            IpAddr::V6(ip) => format!("[{ip}]"),
            IpAddr::V4(_) => host.to_owned(),
        };
        let state = Arc::new(State {
            behaviour,
            subjects: Mutex::default(),
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            frozen: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
        });
        let (shared, tls) = (Arc::clone(&state), server_config(presents));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let number = shared.connections.fetch_add(1, Ordering::SeqCst);
                let (state, tls) = (Arc::clone(&shared), Arc::clone(&tls));
                thread::spawn(move || state.serve(number, stream, tls));
            }
        });
        Self {
            name: format!("{host}:{}", address.port()),
            address,
            state,
        }
    }

    /// The same server under another name, which only an override can lead to it.
    pub(crate) fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// A user of this server, with a token that it accepts.
    pub(crate) fn user(&self, localpart: &str) -> User {
        let user = self.stranger(localpart);
        self.vouch(&user.token, &user.id);
        user
    }

    /// Someone who claims to be of this server with a token that it does not know.
    pub(crate) fn stranger(&self, localpart: &str) -> User {
        User::new(localpart, &self.name)
    }

    /// Answers `subject` to `token` from now on, whatever it is.
    pub(crate) fn vouch(&self, token: &str, subject: &str) {
        let mut subjects = self.state.subjects.lock().unwrap();
        subjects.insert(token.to_owned(), subject.to_owned());
    }

    /// Connections accepted so far, TLS or not.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Nothing more is said on the connections that stand, as after a router has forgotten them; new ones are served.
    pub(crate) fn freeze(&self) {
        let frozen = self.connections();
        self.state.frozen.store(frozen, Ordering::SeqCst);
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Bytes of a hostile answer that the service took.
    pub(crate) fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }
}

struct State {
    behaviour: Behaviour,
    subjects: Mutex<HashMap<String, String>>,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    /// The number of the first connection that is not frozen.
    frozen: AtomicUsize,
    sent: AtomicU64,
}

impl State {
    fn serve(&self, number: usize, stream: TcpStream, tls: Arc<ServerConfig>) {
        let _ = stream.set_nodelay(true);
        let tls = ServerConnection::new(tls).unwrap();
        let mut stream = BufReader::new(StreamOwned::new(tls, stream));
        while let Some(request) = Request::read(&mut stream) {
            let sni = stream.get_ref().conn.server_name().map(str::to_owned);
            let seen = Seen {
                request: request.clone(),
                sni,
            };
            self.seen.lock().unwrap().push(seen);
            if number < self.frozen.load(Ordering::SeqCst) {
                let _ = stream.read_to_end(&mut Vec::new());
                break;
            }
            let answered = self.answer(&request, stream.get_mut());
            let once = matches!(
                self.behaviour,
                Behaviour::ClosesAtOnce | Behaviour::ForgetsConnections
            );
            if answered.is_err() || once {
                break;
            }
            if let Behaviour::NeverAnswers = self.behaviour {
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
    }

    fn answer(&self, request: &Request, out: &mut impl Write) -> std::io::Result<()> {
        let (status, body) = self.userinfo(request);
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\n");
        if let Behaviour::Slow(time) = self.behaviour {
            thread::sleep(time);
        }
        match &self.behaviour {
            Behaviour::Honest | Behaviour::Slow(_) | Behaviour::ForgetsConnections => {
                let length = body.len();
                out.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes())
            }
            Behaviour::Says(status, fields, body) => {
                let length = body.len();
                let head = format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\n\r\n");
                out.write_all((head + body).as_bytes())
            }
            Behaviour::Garbage => out.write_all(b"SSH-2.0-OpenSSH_9.9\r\n\0\x01\x02\r\n\r\n"),
            Behaviour::HugeBody { announced } => {
                let framing = match announced {
                    true => format!("Content-Length: {HUGE}\r\n"),
                    false => "Connection: close\r\n".to_owned(),
                };
                out.write_all(format!("{head}{framing}\r\n{{\"sub\":\"").as_bytes())?;
                self.flood(out, &[b'a'; 16 * 1024])
            }
            Behaviour::Endless(begin, piece) => {
                out.write_all(begin.as_bytes())?;
                self.flood(out, piece.repeat(8192 / piece.len()).as_bytes())
            }
            Behaviour::DripsHead => drip(out, head.repeat(100).as_bytes()),
            Behaviour::DripsBody => {
                let length = body.len();
                out.write_all(format!("{head}Content-Length: {length}\r\n\r\n").as_bytes())?;
                drip(out, body.as_bytes())
            }
            Behaviour::NeverAnswers | Behaviour::ClosesAtOnce => Ok(()),
        }
    }

    fn userinfo(&self, request: &Request) -> (&'static str, String) {
        if request.method != "GET" || request.path() != USERINFO {
            return (
                "404 Not Found",
                json!({"errcode": "M_UNRECOGNIZED"}).to_string(),
            );
        }
        let token = request.parameter("access_token").unwrap_or_default();
        match self.subjects.lock().unwrap().get(&token) {
            Some(subject) => ("200 OK", json!({"sub": subject}).to_string()),
            None => {
                let body = json!({"errcode": "M_UNKNOWN_TOKEN", "error": "token unknown"});
                ("401 Unauthorized", body.to_string())
            }
        }
    }

    /// Writes `piece` until 100 MB are out or the service has gone.
    fn flood(&self, out: &mut impl Write, piece: &[u8]) -> std::io::Result<()> {
        let mut sent = 0;
        while sent < HUGE {
            out.write_all(piece)?;
            sent += piece.len() as u64;
            self.sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// A byte a second: the pace is the attack, and no test waits for its end.
fn drip(out: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    for byte in bytes {
        out.write_all(&[*byte])?;
        out.flush()?;
        thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}
