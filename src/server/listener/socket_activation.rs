//! Sockets that systemd opened for us (sd_listen_fds(3)): no client is refused while the service starts again.

use std::fmt;
use std::net::TcpListener;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use rustix::net::{AddressFamily, SocketType, sockopt};

use super::Listener;

/// Most sockets that are taken: both families of two addresses. More would need more of the descriptors that clients have.
pub(crate) const MAX_INHERITED_SOCKETS: usize = 4;

/// What was passed and cannot be used; shown after `LISTEN_FDS: `.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Error {
    /// `LISTEN_FDS` is no number, or too great a one.
    Count(String),
    /// One of the descriptors, counted from 3 as systemd does, is something else.
    Descriptor {
        /// Its number.
        number: usize,
        /// What it is.
        found: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(found) => write!(
                f,
                "LISTEN_FDS: expected 0 to {MAX_INHERITED_SOCKETS}, found {found:?}"
            ),
            Self::Descriptor { number, found } => write!(
                f,
                "LISTEN_FDS: expected a listening stream socket as descriptor {number}, found {found}"
            ),
        }
    }
}

impl std::error::Error for Error {}

/// Descriptors are counted from here (`SD_LISTEN_FDS_START`).
const FIRST_DESCRIPTOR: usize = 3;

/// The sockets that were opened for this process, if any. To be called once, before anything else opens a descriptor.
///
/// # Errors
/// [`Error`] if one of them cannot be used: whoever configured them would wait for clients in vain.
pub(crate) fn inherited_listeners() -> Result<Vec<Listener>, Error> {
    let ours = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    if !ours {
        return Ok(Vec::new());
    }
    let number = std::env::var("LISTEN_FDS").unwrap_or_default();
    let refused = || Error::Count(number.chars().take(20).collect());
    // the crate would believe any number
    if number
        .parse()
        .map_or(true, |count: usize| count > MAX_INHERITED_SOCKETS)
    {
        return Err(refused());
    }
    let passed = sd_listen_fds::get().map_err(|_| refused())?;
    let listeners = passed.into_iter().enumerate();
    listeners
        .map(|(index, (_, socket))| {
            let number = FIRST_DESCRIPTOR + index;
            classify_socket(socket.into_std()).map_err(|found| Error::Descriptor { number, found })
        })
        .collect()
}

fn classify_socket(socket: OwnedFd) -> Result<Listener, &'static str> {
    let Ok(kind) = sockopt::socket_type(&socket) else {
        // it may not even be open, and what is not must not be closed
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
        Ok(AddressFamily::INET | AddressFamily::INET6) => {
            Ok(Listener::Tcp(TcpListener::from(socket)))
        }
        Ok(AddressFamily::UNIX) => {
            let listener = UnixListener::from(socket);
            let address = listener.local_addr().ok();
            let path = address.and_then(|address| address.as_pathname().map(PathBuf::from));
            Ok(Listener::Unix(listener, path.unwrap_or_default()))
        }
        _ => Err("a socket of another family"),
    }
}
