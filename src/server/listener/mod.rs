//! Sockets, the gate before them, and tiny_http behind it, whose requests and responses become ours here.

mod metrics;
mod socket_activation;

use std::fmt;
use std::fs::Permissions;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub(crate) use self::socket_activation::inherited_listeners;
use tiny_http::{Header, Request, ResponseBox};

use super::event_loop;
use super::event_loop::limits::LISTEN_BACKLOG;
use super::event_loop::{RequestClass, ServerLimits};
use super::head::{CLIENT_ADDRESS_HEADER, LISTENER_HEADER, MAX_BODY_BYTES, RequestHead};
use crate::api::response::{CORS_HEADERS, Response};
use crate::api::router::{ApiRequest, Router};
use crate::api::token::{API_KEY_HEADER, parse_credentials};
use crate::token::source::Credentials;
use crate::util::systemd::{ServiceState, SystemdNotifier};

/// Whoever may enter the directory may connect to a unix socket, as whoever is on the host may connect to loopback.
const SOCKET_MODE: u32 = 0o666;

/// A socket that clients connect to.
#[derive(Debug)]
pub(crate) enum Listener {
    /// The network.
    Tcp(TcpListener),
    /// A proxy on the same host.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens on the first of `addresses` that can be had.
    pub(crate) fn bind_tcp(addresses: &[SocketAddr]) -> io::Result<Self> {
        TcpListener::bind(addresses).map(Self::Tcp)
    }

    /// Listens on a port of every address: IPv6 and IPv4 on one socket, whatever the system's default is; IPv4 alone where the
    /// kernel has no IPv6.
    pub(crate) fn bind_all_addresses(port: u16) -> io::Result<Self> {
        use rustix::net::{
            AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt,
        };
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

    /// Listens on a path; a socket that nobody listens on any more is replaced, anything else is not touched.
    pub(crate) fn bind_unix(path: &Path) -> io::Result<Self> {
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

/// Where clients come in, and where operators look.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// For clients.
    pub clients: Vec<Listener>,
    /// For `/metrics`, which nobody else gets to see.
    pub metrics: Option<Listener>,
}

/// Serves until SIGTERM or SIGINT, with `workers` threads; `opened` is called once clients are let in, and `supervisor` hears of it.
///
/// # Errors
/// Those of the gate: it could not open, or tiny_http has failed.
pub(crate) fn serve(
    doors: Listeners,
    workers: usize,
    limits: ServerLimits,
    routes: Router,
    supervisor: SystemdNotifier,
    opened: impl FnOnce(),
) -> Result<(), event_loop::Error> {
    let clients = doors.clients.len();
    let listeners = doors.clients.into_iter().chain(doors.metrics);
    let listeners = listeners.map(|listener| match listener {
        Listener::Tcp(listener) => event_loop::ListenSocket::Tcp(listener),
        Listener::Unix(listener, _) => event_loop::ListenSocket::Unix(listener),
    });
    let stats = Arc::new(OnceLock::new());
    let seen = Arc::clone(&stats);
    let routes = Arc::new(routes);
    let lanes = Arc::clone(&routes);
    let large = Mutex::default();
    event_loop::serve(
        listeners.collect(),
        workers,
        limits,
        move |head: &RequestHead<'_>| {
            let text = |value| std::str::from_utf8(value).unwrap_or_default();
            let values = |name| head.header_values_reversed(name).map(text);
            let shown = parse_credentials(values(API_KEY_HEADER), values("Authorization"));
            let authorization = values("Authorization").last();
            RequestClass {
                outbound: lanes.needs_upstream(head.method(), head.target(), shown),
                max_body_bytes: lanes.max_body_bytes(head.target(), authorization),
                address_limited: !lanes.is_from_homeserver(head.target(), authorization),
            }
        },
        move |request: &mut Request| {
            let door = RequestHeaders(request.headers()).first(LISTENER_HEADER);
            let door = door.and_then(|door| door.parse().ok());
            if door.is_some_and(|door: usize| door < clients) {
                return tiny_http_response(respond(request, &routes, &large));
            }
            metrics::metrics_response(request, seen.get(), routes.gauge_values())
        },
        || tiny_http_response(Response::internal_error()),
        move |counted| {
            let _ = stats.set(counted);
            opened();
            supervisor.notify(ServiceState::Ready);
            supervisor
        },
    )
}

/// Reads the body, all of which the gate has, and has the request answered. `large` is where a large one is put: only our homeserver
/// sends such, one after the other, and on each thread's own heap they would stay for long.
fn respond(request: &mut Request, routes: &Router, large: &Mutex<Vec<u8>>) -> Response {
    let length = request.body_length().unwrap_or(0);
    if length > MAX_BODY_BYTES {
        let mut body = large.lock().unwrap_or_else(PoisonError::into_inner);
        body.clear();
        return respond_with_buffer(request, routes, &mut body);
    }
    respond_with_buffer(request, routes, &mut Vec::with_capacity(length))
}

fn respond_with_buffer(request: &mut Request, routes: &Router, body: &mut Vec<u8>) -> Response {
    if request.as_reader().read_to_end(body).is_err() {
        return Response::internal_error();
    }
    let fields = RequestHeaders(request.headers());
    routes.respond(&ApiRequest {
        method: request.method().as_str(),
        target: request.url(),
        client: fields.first(CLIENT_ADDRESS_HEADER).unwrap_or_default(),
        authorization: fields.single("Authorization"),
        body,
        credentials: fields.credentials(),
        content_type: fields.first("Content-Type"),
        origin: fields.first("Origin"),
        matrix_user: fields.single("X-Matrix-User-Identifier"),
        matrix_origin: fields.single("X-Matrix-Origin"),
        preflight: fields
            .first("Access-Control-Request-Method")
            .map(|method| (method, fields.first("Access-Control-Request-Headers"))),
    })
}

/// The fields that the gate let through.
struct RequestHeaders<'a>(&'a [Header]);

impl<'a> RequestHeaders<'a> {
    fn values(&self, name: &'static str) -> impl Iterator<Item = &'a str> {
        let named = self.0.iter().filter(move |header| header.field.equiv(name));
        named.map(|header| header.value.as_str())
    }

    fn first(&self, name: &'static str) -> Option<&'a str> {
        self.values(name).next()
    }

    /// The value if there is one, and a text that means nothing if there are several.
    fn single(&self, name: &'static str) -> Option<&'a str> {
        let mut values = self.values(name);
        let first = values.next();
        if values.next().is_none() {
            first
        } else {
            Some("")
        }
    }

    fn credentials(&self) -> Credentials<'a> {
        parse_credentials(self.values(API_KEY_HEADER), self.values("Authorization"))
    }
}

fn tiny_http_response(reply: Response) -> ResponseBox {
    let mut response = tiny_http::Response::from_data(reply.body).with_status_code(reply.status);
    let mut add = |name: &str, value: &str| {
        // ours are all ASCII without line breaks
        if let Ok(header) = Header::from_bytes(name, value) {
            response.add_header(header);
        }
    };
    match &reply.headers {
        None => CORS_HEADERS
            .iter()
            .for_each(|(name, value)| add(name, value)),
        Some(fields) => fields.iter().for_each(|(name, value)| add(name, value)),
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
