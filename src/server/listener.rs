//! Listening sockets: bound by the service, or opened by systemd (sd_listen_fds(3)), so that no client is refused during a
//! restart.

use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use mio::{Registry, Token};
use rustix::io::ioctl_fionbio;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

use super::limits::LISTEN_BACKLOG;
use super::socket::register_readable;

/// Permissions of a unix socket: the directory decides who can reach it.
const SOCKET_MODE: u32 = 0o666;
/// Sockets accepted from systemd: both families of two addresses.
const MAX_INHERITED_SOCKETS: usize = 4;
/// `SD_LISTEN_FDS_START`.
const FIRST_INHERITED_DESCRIPTOR: usize = 3;

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// For clients in the network.
    Tcp(TcpListener),
    /// For a proxy on the same host, with its path.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Binds the first of `addresses` that is available.
    pub fn bind_tcp(addresses: &[SocketAddr]) -> io::Result<Self> {
        TcpListener::bind(addresses).map(Self::Tcp)
    }

    /// Binds `port` of all addresses: IPv6 and IPv4 with one socket, whatever the system's default is; IPv4 alone if the
    /// kernel has no IPv6.
    pub(crate) fn bind_all_addresses(port: u16) -> io::Result<Self> {
        let (family, kind) = (AddressFamily::INET6, SocketType::STREAM);
        let Ok(socket) = socket_with(family, kind, SocketFlags::CLOEXEC, None) else {
            return Self::bind_tcp(&[(Ipv4Addr::UNSPECIFIED, port).into()]);
        };
        sockopt::set_ipv6_v6only(&socket, false)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        match bind(&socket, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
            Err(rustix::io::Errno::ADDRNOTAVAIL) => {
                return Self::bind_tcp(&[(Ipv4Addr::UNSPECIFIED, port).into()]);
            }
            bound => bound?,
        }
        listen(&socket, LISTEN_BACKLOG)?;
        Ok(Self::Tcp(socket.into()))
    }

    /// Binds a path. Replaces a socket that refuses connections, nothing else.
    pub fn bind_unix(path: &Path) -> io::Result<Self> {
        if UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
        Ok(Self::Unix(listener, path.to_owned()))
    }

    /// Wraps a socket that systemd passed; otherwise says what the descriptor is.
    fn from_descriptor(socket: OwnedFd) -> Result<Self, &'static str> {
        let Ok(kind) = sockopt::socket_type(&socket) else {
            // a descriptor that may not be open must not be closed
            let _ = socket.into_raw_fd();
            return Err("no socket");
        };
        if kind != SocketType::STREAM {
            return Err("another kind of socket");
        }
        if !sockopt::socket_acceptconn(&socket).unwrap_or(false) {
            return Err("a connection (Accept=yes?)");
        }
        match sockopt::socket_domain(&socket) {
            Ok(AddressFamily::INET | AddressFamily::INET6) => Ok(Self::Tcp(socket.into())),
            Ok(AddressFamily::UNIX) => {
                let listener = UnixListener::from(socket);
                let address = listener.local_addr().ok();
                let path = address.and_then(|address| address.as_pathname().map(PathBuf::from));
                Ok(Self::Unix(listener, path.unwrap_or_default()))
            }
            _ => Err("a socket of another family"),
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.fmt(f),
                Err(error) => write!(f, "({error})"),
            },
            Self::Unix(_, path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Sockets that systemd opened for this process; none without `LISTEN_PID`. Call it once, before any other descriptor is
/// opened.
///
/// # Errors
/// What is wrong with the sockets, if one of them cannot be used: its clients would wait in vain.
pub(crate) fn inherited_listeners() -> Result<Vec<Listener>, String> {
    let ours = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    if !ours {
        return Ok(Vec::new());
    }
    let number = std::env::var("LISTEN_FDS").unwrap_or_default();
    let count = number.parse().ok();
    let sockets = count
        // sd_listen_fds accepts any number
        .filter(|count: &usize| *count <= MAX_INHERITED_SOCKETS)
        .and_then(|_| sd_listen_fds::get().ok())
        .ok_or_else(|| {
            let found: String = number.chars().take(20).collect();
            format!("LISTEN_FDS: expected 0 to {MAX_INHERITED_SOCKETS}, found {found:?}")
        })?;
    let listeners = sockets.into_iter().zip(FIRST_INHERITED_DESCRIPTOR..);
    listeners
        .map(|((_, socket), number)| {
            Listener::from_descriptor(socket.into_std()).map_err(|found| {
                format!("LISTEN_FDS: expected a listening stream socket as descriptor {number}, found {found}")
            })
        })
        .collect()
}

/// A listening socket in the event loop.
pub(super) struct Acceptor {
    pub(super) socket: OwnedFd,
    /// Clients may be waiting. The event comes only once.
    pub(super) ready: bool,
}

impl Acceptor {
    pub(super) fn register(
        listener: Listener,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let socket: OwnedFd = match listener {
            Listener::Tcp(listener) => {
                // accepted sockets inherit it
                sockopt::set_tcp_nodelay(&listener, true)?;
                listener.into()
            }
            Listener::Unix(listener, _) => listener.into(),
        };
        ioctl_fionbio(&socket, true)?;
        listen(&socket, LISTEN_BACKLOG)?;
        register_readable(&socket, registry, token)?;
        Ok(Self {
            socket,
            ready: false,
        })
    }
}
