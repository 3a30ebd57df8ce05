//! `healthcheck`: checks the service that runs with the same settings. For containers without curl.
//!
//! It has its own small HTTP client: the check has to end within 900 ms in all and also works on unix sockets.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::EXIT_CONFIG;
use crate::config::{BindAddress, Config, Environment};
use crate::net::address::Host;
use crate::util::clock::time_left;

/// Time for all of it. A healthy service answers in milliseconds; Kubernetes gives a probe one second by default.
const TIMEOUT: Duration = Duration::from_millis(900);
/// Longest part of the response that is read at once: the status line decides.
const RESPONSE_BYTES: usize = 64;
const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
const HEALTHY_STATUS_LINE: &[u8] = b"HTTP/1.1 200 ";

/// Exit code for a service that is not healthy, as Docker defines it.
const EXIT_UNHEALTHY: u8 = 1;

/// Checks the service at the address of the settings. Prints problems to `err`. Returns the exit code.
pub(crate) fn run(env: &Environment, err: &mut impl Write) -> io::Result<u8> {
    let bind = match Config::read_bind(env) {
        Ok(bind) => bind,
        Err(errors) => {
            super::print_errors(&errors, err)?;
            return Ok(EXIT_CONFIG);
        }
    };
    match probe(&bind, Instant::now() + TIMEOUT) {
        Ok(()) => Ok(0),
        Err(error) => {
            writeln!(err, "{bind}: {error}")?;
            Ok(EXIT_UNHEALTHY)
        }
    }
}

enum Error {
    Unreachable(io::Error),
    NoResponse(io::Error),
    UnexpectedResponse(Vec<u8>),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(error) => write!(f, "cannot connect: {error}"),
            Self::NoResponse(error) => write!(f, "no response: {error}"),
            Self::UnexpectedResponse(response) => {
                let response = String::from_utf8_lossy(response);
                let line = response.lines().next().unwrap_or_default();
                write!(f, "expected status 200, found {line:?}")
            }
        }
    }
}

fn probe(bind: &BindAddress, deadline: Instant) -> Result<(), Error> {
    if let BindAddress::Unix(path) = bind {
        let stream = connect_unix(path, deadline).map_err(Error::Unreachable)?;
        return check_response(stream, deadline, UnixStream::set_read_timeout);
    }
    let mut last_error = io::ErrorKind::NotFound.into();
    for address in local_addresses(bind).map_err(Error::Unreachable)? {
        let connected =
            timeout(deadline).and_then(|timeout| TcpStream::connect_timeout(&address, timeout));
        match connected {
            Ok(stream) => return check_response(stream, deadline, TcpStream::set_read_timeout),
            Err(error) => last_error = error,
        }
    }
    Err(Error::Unreachable(last_error))
}

fn connect_unix(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_write_timeout(Some(timeout(deadline)?))?;
    Ok(stream)
}

/// The addresses at which a client on this host reaches the service: loopback for an address that stands for all of them.
fn local_addresses(bind: &BindAddress) -> io::Result<Vec<SocketAddr>> {
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let loopback = |port| loopback.map(|ip| SocketAddr::new(ip, port)).into();
    match bind {
        BindAddress::AllInterfaces(port) => Ok(loopback(*port)),
        BindAddress::Tcp {
            host: Host::Ip(ip),
            port,
        } if ip.is_unspecified() => Ok(loopback(*port)),
        BindAddress::Tcp { host, port } => BindAddress::resolve(host, *port),
        BindAddress::Unix(_) => Ok(Vec::new()),
    }
}

fn check_response<S: Read + Write>(
    mut stream: S,
    deadline: Instant,
    set_read_timeout: fn(&S, Option<Duration>) -> io::Result<()>,
) -> Result<(), Error> {
    stream.write_all(REQUEST).map_err(Error::NoResponse)?;
    let mut response = Vec::with_capacity(RESPONSE_BYTES);
    let mut buffer = [0; RESPONSE_BYTES];
    while response.len() < HEALTHY_STATUS_LINE.len() {
        let read = timeout(deadline)
            .and_then(|timeout| set_read_timeout(&stream, Some(timeout)))
            .and_then(|()| stream.read(&mut buffer));
        match read {
            Ok(0) => break,
            Ok(length) => response.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::NoResponse(error)),
        }
    }
    if response.starts_with(HEALTHY_STATUS_LINE) {
        Ok(())
    } else {
        Err(Error::UnexpectedResponse(response))
    }
}

fn timeout(deadline: Instant) -> io::Result<Duration> {
    time_left(deadline).ok_or_else(|| io::ErrorKind::TimedOut.into())
}
