//! A connection to Redis. The crate `redis` encodes commands and parses replies; connecting, TLS and timeouts are our own.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, Parser, Value};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::address::{RedisAddress, RedisEndpoint};
use crate::delegation::store::Error;
use crate::net::address::{Host, Trust};
use crate::net::dns::lookup_addresses;
use crate::net::tls;

/// Time for the lookup of the name, and for each of its addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for a reply; a working Redis takes a millisecond.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);
/// Addresses of the name that are tried.
const MAX_ADDRESSES: usize = 3;
/// Longest reply in bytes; a page of a scan has about 100 records.
const MAX_REPLY_BYTES: u64 = 16 * 1024 * 1024;

/// Why a command has failed.
#[derive(Debug)]
pub(super) enum RedisCommandError {
    /// There is no reply, and the connection cannot be used any more.
    ConnectionLost(String),
    /// Redis replied with an error.
    Rejected(String),
}

impl fmt::Display for RedisCommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConnectionLost(reason) | Self::Rejected(reason) => f.write_str(reason),
        }
    }
}

impl From<io::Error> for RedisCommandError {
    fn from(error: io::Error) -> Self {
        Self::ConnectionLost(match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "timed out".to_owned(),
            _ => error.to_string(),
        })
    }
}

/// Result of one command of a pipeline.
pub(super) type RedisReply = Result<Value, RedisCommandError>;

/// A connection after authentication.
pub(super) struct RedisConnection {
    stream: Box<dyn RedisStream>,
    parser: Parser,
    /// Id of the Redis process. A restart can have lost the latest writes. `None` if Redis denies `INFO`.
    pub(super) run_id: Option<String>,
}

impl RedisConnection {
    pub(super) fn open(
        address: &RedisAddress,
        tls: &Arc<ClientConfig>,
    ) -> Result<Self, RedisCommandError> {
        let mut connection = Self {
            stream: open_stream(&address.endpoint, tls)?,
            parser: Parser::new(),
            run_id: None,
        };
        if let Some(password) = &address.password {
            let mut auth = redis::cmd("AUTH");
            if let Some(user) = &address.user {
                auth.arg(user);
            }
            connection.execute(auth.arg(password))?;
        }
        if address.database > 0 {
            connection.execute(redis::cmd("SELECT").arg(address.database))?;
        }
        match connection.execute(redis::cmd("INFO").arg("server")) {
            Ok(info) => connection.run_id = parse_run_id(&reply_text(&info).unwrap_or_default()),
            // without permission for INFO, each connection may be to a restarted Redis
            Err(RedisCommandError::Rejected(_)) => {}
            Err(error) => return Err(error),
        }
        Ok(connection)
    }

    pub(super) fn execute(&mut self, command: &Cmd) -> Result<Value, RedisCommandError> {
        let mut replies = self.execute_pipeline(std::slice::from_ref(command))?;
        let no_reply = || Err(RedisCommandError::ConnectionLost("no reply".into()));
        replies.pop().unwrap_or_else(no_reply)
    }

    /// Sends the commands together.
    pub(super) fn execute_pipeline(
        &mut self,
        commands: &[Cmd],
    ) -> Result<Vec<RedisReply>, RedisCommandError> {
        let mut packed = Vec::new();
        for command in commands {
            command.write_packed_command(&mut packed);
        }
        self.stream.write_all(&packed)?;
        self.stream.flush()?;
        let mut replies = Vec::with_capacity(commands.len());
        for _ in commands {
            let limited = (&mut self.stream).take(MAX_REPLY_BYTES);
            let reply = self.parser.parse_value(limited);
            replies.push(match reply {
                Ok(Value::ServerError(error)) => {
                    Err(RedisCommandError::Rejected(error.to_string()))
                }
                Ok(value) => Ok(value),
                Err(error) if error.is_timeout() => {
                    return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                }
                Err(error) => return Err(RedisCommandError::ConnectionLost(error.to_string())),
            });
        }
        Ok(replies)
    }
}

/// The text of a reply.
pub(super) fn reply_text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        Value::VerbatimString { text, .. } => Some(text.clone()),
        _ => None,
    }
}

fn parse_run_id(info: &str) -> Option<String> {
    let mut lines = info.lines();
    lines.find_map(|line| Some(line.strip_prefix("run_id:")?.trim().to_owned()))
}

impl From<RedisCommandError> for Error {
    fn from(error: RedisCommandError) -> Self {
        Self(format!("Redis: {error}"))
    }
}

/// TCP, TLS or a Unix socket.
trait RedisStream: Read + Write + Send {}

impl<T: Read + Write + Send> RedisStream for T {}

fn open_stream(
    endpoint: &RedisEndpoint,
    tls_config: &Arc<ClientConfig>,
) -> Result<Box<dyn RedisStream>, RedisCommandError> {
    let (host, port, use_tls) = match endpoint {
        RedisEndpoint::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
            stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
            return Ok(Box::new(stream));
        }
        RedisEndpoint::Tcp { host, port, tls } => (host, *port, *tls),
    };
    let stream = connect(host, port)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
    stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
    if !use_tls {
        return Ok(Box::new(stream));
    }
    let client = tls::server_name(host)
        .and_then(|name| ClientConnection::new(Arc::clone(tls_config), name))
        .map_err(|error| RedisCommandError::ConnectionLost(error.to_string()))?;
    Ok(Box::new(StreamOwned::new(client, stream)))
}

fn connect(host: &Host, port: u16) -> Result<TcpStream, RedisCommandError> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let addresses = lookup_addresses(host, port, Trust::Administrator, deadline)
        .map_err(|error| RedisCommandError::ConnectionLost(error.to_string()))?;
    let mut failure = RedisCommandError::ConnectionLost("the name has no address".into());
    for address in addresses.iter().take(MAX_ADDRESSES) {
        match TcpStream::connect_timeout(address, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
}
