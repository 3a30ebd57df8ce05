//! `healthcheck`: asks the service that runs with the same settings whether it is well. For containers, which have no curl.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::EXIT_CONFIG;
use crate::config::{BindAddress, Config, Environment};
use crate::net::address::Host;

/// For the whole of it. A service that is well answers in milliseconds, and Kubernetes gives a probe one second by default.
const TIMEOUT: Duration = Duration::from_millis(900);
/// Bytes of the answer that are read: the status line is what counts.
const RESPONSE_BYTES: usize = 64;
const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
const HEALTHY_STATUS_LINE: &[u8] = b"HTTP/1.1 200 ";

/// Exit code of a service that is not well (as Docker has it).
const EXIT_UNHEALTHY: u8 = 1;

/// Asks where the settings say that the service listens; says why not to `err`. Gives the exit code.
pub(crate) fn run_healthcheck(env: &Environment, err: &mut impl Write) -> io::Result<u8> {
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
            Self::Unreachable(error) => write!(f, "cannot be reached: {error}"),
            Self::NoResponse(error) => write!(f, "does not answer: {error}"),
            Self::UnexpectedResponse(answer) => {
                let answer = String::from_utf8_lossy(answer);
                let line = answer.lines().next().unwrap_or_default();
                write!(f, "expected a healthy answer, found {line:?}")
            }
        }
    }
}

fn probe(bind: &BindAddress, deadline: Instant) -> Result<(), Error> {
    if let BindAddress::Unix(path) = bind {
        let stream = connect_unix(path, deadline).map_err(Error::Unreachable)?;
        return check_response(stream, deadline, UnixStream::set_read_timeout);
    }
    let mut failed = io::ErrorKind::NotFound.into();
    for address in local_addresses(bind).map_err(Error::Unreachable)? {
        let connected =
            remaining_time(deadline).and_then(|left| TcpStream::connect_timeout(&address, left));
        match connected {
            Ok(stream) => return check_response(stream, deadline, TcpStream::set_read_timeout),
            Err(error) => failed = error,
        }
    }
    Err(Error::Unreachable(failed))
}

fn connect_unix(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_write_timeout(Some(remaining_time(deadline)?))?;
    Ok(stream)
}

/// Where a client on this host gets to the service: an address that stands for all of them is not one to call.
fn local_addresses(bind: &BindAddress) -> io::Result<Vec<SocketAddr>> {
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let (ips, port): (Vec<IpAddr>, u16) = match bind {
        BindAddress::AllInterfaces(port) => (loopback.into(), *port),
        BindAddress::Tcp {
            host: Host::Ip(ip),
            port,
        } if ip.is_unspecified() => (loopback.into(), *port),
        BindAddress::Tcp {
            host: Host::Ip(ip),
            port,
        } => (vec![*ip], *port),
        BindAddress::Tcp {
            host: Host::Dns(name),
            port,
        } => return Ok((&**name, *port).to_socket_addrs()?.collect()),
        BindAddress::Unix(_) => (Vec::new(), 0),
    };
    Ok(ips.into_iter().map(|ip| (ip, port).into()).collect())
}

fn check_response<S: Read + Write>(
    mut stream: S,
    deadline: Instant,
    give: fn(&S, Option<Duration>) -> io::Result<()>,
) -> Result<(), Error> {
    stream.write_all(REQUEST).map_err(Error::NoResponse)?;
    let mut answer = Vec::with_capacity(RESPONSE_BYTES);
    let mut piece = [0; RESPONSE_BYTES];
    while answer.len() < HEALTHY_STATUS_LINE.len() {
        let read = remaining_time(deadline)
            .and_then(|left| give(&stream, Some(left)))
            .and_then(|()| stream.read(&mut piece));
        match read {
            Ok(0) => return Err(Error::UnexpectedResponse(answer)),
            Ok(length) => answer.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::NoResponse(error)),
        }
    }
    if answer.starts_with(HEALTHY_STATUS_LINE) {
        Ok(())
    } else {
        Err(Error::UnexpectedResponse(answer))
    }
}

fn remaining_time(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}
