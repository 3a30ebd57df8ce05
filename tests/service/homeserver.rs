//! A fake homeserver: TLS and the OpenID userinfo endpoint of the federation API, with faults on demand.
//!
//! `tests/e2e` uses a real homeserver. The threads of the fake end with the test process.

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
use crate::setup::User;

/// The userinfo path (Matrix spec, server-server API, "OpenID").
pub(crate) const USERINFO: &str = "/_matrix/federation/v1/openid/userinfo";
/// Length of an oversized response in bytes, far above the limit of the service.
const HUGE: u64 = 100 * 1024 * 1024;

/// How the fake responds to a request.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    /// A correct response.
    Correct,
    /// A correct response after this delay.
    Slow(Duration),
    /// A correct response without `Connection: close`; then the fake closes the connection.
    ClosesAfterResponse,
    /// This status line, these header lines and this body for every request.
    FixedResponse(&'static str, String, String),
    /// Bytes that are not HTTP.
    NotHttp,
    /// A body of 100 MB, with or without `Content-Length`.
    HugeBody { announced: bool },
    /// The first string once, then the second one repeated up to 100 MB.
    Endless(&'static str, &'static str),
    /// A response head at one byte a second.
    DripsHead,
    /// A correct response whose body comes at one byte a second.
    DripsBody,
    /// No response; the connection stays open.
    NeverResponds,
    /// No response; the connection closes.
    ClosesAtOnce,
}

/// A running fake homeserver.
pub(crate) struct FakeHomeserver {
    name: String,
    address: SocketAddr,
    state: Arc<HomeserverState>,
}

/// A request and the SNI of its connection.
#[derive(Clone, Debug)]
pub(crate) struct ReceivedRequest {
    pub(crate) request: Request,
    pub(crate) sni: Option<String>,
}

impl FakeHomeserver {
    /// Starts a homeserver with correct responses, called `localhost:PORT`.
    pub(crate) fn well_behaved() -> Self {
        Self::start("localhost", Behaviour::Correct)
    }

    /// Starts a homeserver called `host:PORT` (`localhost` or a loopback address) with a valid certificate for `host`.
    pub(crate) fn start(host: &str, behaviour: Behaviour) -> Self {
        Self::with_certificate(host, Presents::Name(host), behaviour)
    }

    pub(crate) fn with_certificate(
        host: &str,
        presents: Presents<'_>,
        behaviour: Behaviour,
    ) -> Self {
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
        let state = Arc::new(HomeserverState {
            behaviour,
            subjects: Mutex::default(),
            requests: Mutex::default(),
            connections: AtomicUsize::new(0),
            first_active: AtomicUsize::new(0),
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

    /// Changes the server name of users; only an override leads the service from that name to this fake.
    pub(crate) fn with_name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// A user of this server whose OpenID token the server accepts.
    pub(crate) fn user(&self, localpart: &str) -> User {
        let user = self.user_with_unknown_token(localpart);
        self.set_userinfo(&user.token, &user.id);
        user
    }

    /// A user of this server whose OpenID token the server rejects.
    pub(crate) fn user_with_unknown_token(&self, localpart: &str) -> User {
        User::new(localpart, &self.name)
    }

    /// Sets the userinfo response for `token` to `subject`, which need not be a user of this server.
    pub(crate) fn set_userinfo(&self, token: &str, subject: &str) {
        let mut subjects = self.state.subjects.lock().unwrap();
        subjects.insert(token.to_owned(), subject.to_owned());
    }

    /// Number of accepted TCP connections.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Stops responding on the connections accepted so far, like a router that lost its state; new connections are served.
    pub(crate) fn freeze_connections(&self) {
        let accepted = self.connections();
        self.state.first_active.store(accepted, Ordering::SeqCst);
    }

    /// All requests received so far.
    pub(crate) fn requests(&self) -> Vec<ReceivedRequest> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Bytes written of an oversized or endless response.
    pub(crate) fn bytes_sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }
}

struct HomeserverState {
    behaviour: Behaviour,
    subjects: Mutex<HashMap<String, String>>,
    requests: Mutex<Vec<ReceivedRequest>>,
    connections: AtomicUsize,
    /// Connections with a smaller number get no response.
    first_active: AtomicUsize,
    sent: AtomicU64,
}

impl HomeserverState {
    fn serve(&self, number: usize, stream: TcpStream, tls: Arc<ServerConfig>) {
        let _ = stream.set_nodelay(true);
        let tls = ServerConnection::new(tls).unwrap();
        let mut stream = BufReader::new(StreamOwned::new(tls, stream));
        while let Some(request) = Request::read(&mut stream) {
            let sni = stream.get_ref().conn.server_name().map(str::to_owned);
            let received = ReceivedRequest {
                request: request.clone(),
                sni,
            };
            self.requests.lock().unwrap().push(received);
            if number < self.first_active.load(Ordering::SeqCst) {
                let _ = stream.read_to_end(&mut Vec::new());
                break;
            }
            let result = self.respond(&request, stream.get_mut());
            let closes = matches!(
                self.behaviour,
                Behaviour::ClosesAtOnce | Behaviour::ClosesAfterResponse
            );
            if result.is_err() || closes {
                break;
            }
            if let Behaviour::NeverResponds = self.behaviour {
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
    }

    fn respond(&self, request: &Request, out: &mut impl Write) -> std::io::Result<()> {
        let (status, body) = self.userinfo(request);
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\n");
        if let Behaviour::Slow(time) = self.behaviour {
            thread::sleep(time);
        }
        match &self.behaviour {
            Behaviour::Correct | Behaviour::Slow(_) | Behaviour::ClosesAfterResponse => {
                let length = body.len();
                out.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes())
            }
            Behaviour::FixedResponse(status, fields, body) => {
                let length = body.len();
                let head = format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\n\r\n");
                out.write_all((head + body).as_bytes())
            }
            Behaviour::NotHttp => out.write_all(b"SSH-2.0-OpenSSH_9.9\r\n\0\x01\x02\r\n\r\n"),
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
            Behaviour::DripsHead => write_one_byte_per_second(out, head.repeat(100).as_bytes()),
            Behaviour::DripsBody => {
                let length = body.len();
                out.write_all(format!("{head}Content-Length: {length}\r\n\r\n").as_bytes())?;
                write_one_byte_per_second(out, body.as_bytes())
            }
            Behaviour::NeverResponds | Behaviour::ClosesAtOnce => Ok(()),
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

    /// Writes `piece` until 100 MB are sent or the service closes the connection.
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

/// Writes one byte a second. No test waits for the end.
fn write_one_byte_per_second(out: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    for byte in bytes {
        out.write_all(&[*byte])?;
        out.flush()?;
        thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}
