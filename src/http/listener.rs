//! Sockets, the gate before them, and tiny_http behind it, whose requests and responses become ours here.

use std::fmt;
use std::fs::Permissions;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use tiny_http::{Header, Request, Response, ResponseBox};

use crate::http::gate::limits::BACKLOG;
use crate::http::gate::{self, Limits};
use crate::http::head::{BODY_BYTES, CLIENT_ADDRESS_HEADER, Head};
use crate::http::reply::{CORS, Reply};
use crate::http::route::{Call, Routes};

/// Whoever may enter the directory may connect to a unix socket, as whoever is on the host may connect to loopback.
const SOCKET_MODE: u32 = 0o666;

/// A socket that clients connect to.
#[derive(Debug)]
pub enum Listener {
    /// The network.
    Tcp(TcpListener),
    /// A proxy on the same host.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens on the first of `addresses` that can be had.
    pub fn tcp(addresses: &[SocketAddr]) -> io::Result<Self> {
        TcpListener::bind(addresses).map(Self::Tcp)
    }

    /// Listens on a port of every address: IPv6 and IPv4 on one socket, whatever the system's default is; IPv4 alone where the
    /// kernel has no IPv6.
    pub fn everywhere(port: u16) -> io::Result<Self> {
        use rustix::net::{
            AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt,
        };
        let (family, kind) = (AddressFamily::INET6, SocketType::STREAM);
        let Ok(socket) = socket_with(family, kind, SocketFlags::CLOEXEC, None) else {
            return Self::tcp(&[(Ipv4Addr::UNSPECIFIED, port).into()]);
        };
        sockopt::set_ipv6_v6only(&socket, false)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        match bind(&socket, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
            Err(rustix::io::Errno::ADDRNOTAVAIL) => {
                return Self::tcp(&[(Ipv4Addr::UNSPECIFIED, port).into()]);
            }
            bound => bound?,
        }
        listen(&socket, BACKLOG)?;
        Ok(Self::Tcp(socket.into()))
    }

    /// Listens on a path; a socket that nobody listens on any more is replaced, anything else is not touched.
    pub fn unix(path: &Path) -> io::Result<Self> {
        if UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
        Ok(Self::Unix(listener, path.to_owned()))
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

/// Serves until SIGTERM or SIGINT, with `workers` threads; `opened` is called once clients are let in.
///
/// # Errors
/// Those of the gate: it could not open, or tiny_http has failed.
pub fn serve(
    listener: Listener,
    workers: usize,
    limits: Limits,
    routes: Routes,
    opened: impl FnOnce(),
) -> Result<(), gate::Error> {
    let listener = match listener {
        Listener::Tcp(listener) => gate::Listener::Tcp(listener),
        Listener::Unix(listener, _) => gate::Listener::Unix(listener),
    };
    gate::serve(
        vec![listener],
        workers,
        limits,
        |head: &Head<'_>| Routes::goes_outbound(head.method(), head.target()),
        move |request: &mut Request| response(answer(request, &routes)),
        || response(Reply::broken()),
        |_stats| opened(),
    )
}

fn answer(request: &mut Request, routes: &Routes) -> Reply {
    // the gate has the whole of it, and it is no longer than this
    let mut body = Vec::with_capacity(request.body_length().unwrap_or(0).min(BODY_BYTES));
    if request.as_reader().read_to_end(&mut body).is_err() {
        return Reply::broken();
    }
    let field = |name| {
        let mut fields = request.headers().iter();
        let field = fields.find(|header| header.field.equiv(name));
        field.map(|field| field.value.as_str())
    };
    routes.answer(&Call {
        method: request.method().as_str(),
        target: request.url(),
        client: field(CLIENT_ADDRESS_HEADER).unwrap_or_default(),
        authorization: field("Authorization"),
        body: &body,
    })
}

fn response(reply: Reply) -> ResponseBox {
    let mut response = Response::from_data(reply.body).with_status_code(reply.status);
    let mut add = |name: &str, value: &str| {
        // ours are all ASCII without line breaks
        if let Ok(header) = Header::from_bytes(name, value) {
            response.add_header(header);
        }
    };
    for (name, value) in CORS {
        add(name, value);
    }
    add("Content-Type", "application/json");
    add("Cache-Control", "no-store");
    if let Some(seconds) = reply.retry_after {
        add("Retry-After", &seconds.to_string());
    }
    if let Some(methods) = reply.allow {
        add("Allow", methods);
    }
    response.boxed()
}
