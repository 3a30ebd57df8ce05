//! One connection to Redis: ours to dial, to secure and to bound; the crate only knows what is said on it.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, Parser, Value};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::address::{Address, Place};
use crate::net::address::{Host, Trust};
use crate::net::dns::lookup_addresses;

/// How long a look-up of the name and each of its addresses may take.
const CONNECT: Duration = Duration::from_secs(1);
/// How long Redis may be silent when it should answer: it answers within a millisecond, or something is wrong.
const ANSWER: Duration = Duration::from_secs(1);
/// Addresses of one name that are tried.
const MOST_ADDRESSES: usize = 3;
/// Longest answer in bytes: a page of a scan has some 100 records.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection is of no use any more.
    Broken(String),
    /// Redis understood, and refuses.
    Refused(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(why) | Self::Refused(why) => f.write_str(why),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it took too long".to_owned(),
            _ => error.to_string(),
        })
    }
}

/// What came of one command, of which each may be refused by itself.
pub(super) type Answer = Result<Value, Failure>;

/// A connection that is logged in.
pub(super) struct Connection {
    stream: Stream,
    parser: Parser,
    /// Which run of Redis this is; a restart may have lost what was written last. None if it won't tell.
    pub(super) run: Option<String>,
}

impl Connection {
    pub(super) fn open(address: &Address, tls: &Arc<ClientConfig>) -> Result<Self, Failure> {
        let mut connection = Self {
            stream: Stream::open(&address.place, tls)?,
            parser: Parser::new(),
            run: None,
        };
        if let Some(password) = &address.password {
            let mut auth = redis::cmd("AUTH");
            if let Some(user) = &address.user {
                auth.arg(user);
            }
            connection.ask(auth.arg(password))?;
        }
        if address.database > 0 {
            connection.ask(redis::cmd("SELECT").arg(address.database))?;
        }
        match connection.ask(redis::cmd("INFO").arg("server")) {
            Ok(info) => connection.run = run(&text(&info).unwrap_or_default()),
            // a Redis that keeps it to itself may have been restarted at any time
            Err(Failure::Refused(_)) => {}
            Err(broken) => return Err(broken),
        }
        Ok(connection)
    }

    /// One command and its answer.
    pub(super) fn ask(&mut self, command: &Cmd) -> Result<Value, Failure> {
        let mut answers = self.ask_all(std::slice::from_ref(command))?;
        answers
            .pop()
            .unwrap_or(Err(Failure::Broken("no answer".into())))
    }

    /// Commands that go out together, and their answers.
    #[allow(clippy::type_complexity, reason = "each may be refused by itself")]
    pub(super) fn ask_all(
        &mut self,
        commands: &[Cmd],
    ) -> Result<Vec<Result<Value, Failure>>, Failure> {
        let mut packed = Vec::new();
        for command in commands {
            command.write_packed_command(&mut packed);
        }
        self.stream.write_all(&packed)?;
        self.stream.flush()?;
        let mut answers = Vec::with_capacity(commands.len());
        for _ in commands {
            let limited = (&mut self.stream).take(MAX_ANSWER);
            let answer = self.parser.parse_value(limited);
            answers.push(match answer {
                Ok(Value::ServerError(error)) => Err(Failure::Refused(error.to_string())),
                Ok(value) => Ok(value),
                Err(error) if error.is_timeout() => {
                    return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                }
                Err(error) => return Err(Failure::Broken(error.to_string())),
            });
        }
        Ok(answers)
    }
}

/// The text that an answer is.
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        Value::VerbatimString { text, .. } => Some(text.clone()),
        _ => None,
    }
}

fn run(info: &str) -> Option<String> {
    let mut lines = info.lines();
    lines.find_map(|line| Some(line.strip_prefix("run_id:")?.trim().to_owned()))
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Unix(UnixStream),
}

impl Stream {
    fn open(place: &Place, tls: &Arc<ClientConfig>) -> Result<Self, Failure> {
        let (host, port, secure) = match place {
            Place::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(ANSWER))?;
                stream.set_write_timeout(Some(ANSWER))?;
                return Ok(Self::Unix(stream));
            }
            Place::Tcp { host, port, tls } => (host, *port, *tls),
        };
        let stream = dial(host, port)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        if !secure {
            return Ok(Self::Plain(stream));
        }
        let name = match host {
            Host::Ip(ip) => ServerName::from(*ip),
            Host::Dns(name) => ServerName::try_from(name.to_string())
                .map_err(|error| Failure::Broken(error.to_string()))?,
        };
        let client = ClientConnection::new(Arc::clone(tls), name)
            .map_err(|error| Failure::Broken(error.to_string()))?;
        Ok(Self::Tls(Box::new(StreamOwned::new(client, stream))))
    }
}

fn dial(host: &Host, port: u16) -> Result<TcpStream, Failure> {
    let deadline = Instant::now() + CONNECT;
    let addresses = lookup_addresses(host, port, Trust::Administrator, deadline)
        .map_err(|error| Failure::Broken(error.to_string()))?;
    let mut failure = Failure::Broken("its name has no address".into());
    for address in addresses.iter().take(MOST_ADDRESSES) {
        match TcpStream::connect_timeout(address, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
            Self::Unix(stream) => stream.flush(),
        }
    }
}
