//! tiny_http and its workers: the only room that names it.

use std::fmt;
use std::fs::Permissions;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use log::error;
use tiny_http::{Header, Request, Response, Server};

use crate::http::reply::{CORS, Reply};
use crate::http::route::{Call, Routes};

/// Threads that answer requests. Most of them may wait for other servers: see `net::bulkhead`.
pub const WORKERS: usize = 64;
/// Largest body of a request, in bytes. Those of Element Call have some 600.
pub const MAX_BODY: usize = 64 * 1024;
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

/// Answers requests until tiny_http fails, and says why it did.
pub fn serve(listener: Listener, routes: &Routes) -> io::Error {
    let socket: tiny_http::Listener = match listener {
        Listener::Tcp(listener) => listener.into(),
        Listener::Unix(listener, _) => listener.into(),
    };
    let server = match Server::from_listener(socket, None) {
        Ok(server) => server,
        Err(error) => return io::Error::other(error.to_string()),
    };
    let work = || loop {
        match server.recv() {
            Ok(request) => answer(request, routes),
            Err(error) => return error,
        }
    };
    std::thread::scope(|scope| {
        let mut workers = Vec::with_capacity(WORKERS);
        for index in 0..WORKERS {
            match std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn_scoped(scope, work)
            {
                Ok(worker) => workers.push(worker),
                Err(error) => return error,
            }
        }
        // they all wait on one queue, so they end together
        let ended = workers.into_iter().map(|worker| worker.join());
        ended
            .flatten()
            .next()
            .unwrap_or_else(|| io::Error::other("every worker panicked"))
    })
}

fn answer(mut request: Request, routes: &Routes) {
    let reply =
        catch_unwind(AssertUnwindSafe(|| work(&mut request, routes))).unwrap_or_else(|_| {
            error!(
                "panic method={:?} path={:?}",
                request.method().as_str(),
                request.url().split('?').next()
            );
            Reply::broken()
        });
    // a client that is gone needs no answer
    let _ = request.respond(response(reply));
}

fn work(request: &mut Request, routes: &Routes) -> Reply {
    if request
        .body_length()
        .is_some_and(|length| length > MAX_BODY)
    {
        return Reply::too_large(MAX_BODY);
    }
    let mut body = Vec::new();
    let most = MAX_BODY as u64 + 1;
    if let Err(error) = request.as_reader().take(most).read_to_end(&mut body) {
        return Reply::error(
            400,
            "M_UNKNOWN",
            &format!("The body could not be read: {error}"),
        );
    }
    if body.len() > MAX_BODY {
        return Reply::too_large(MAX_BODY);
    }
    let (method, target) = (request.method().to_string(), request.url().to_owned());
    routes.answer(&Call {
        method: &method,
        target: &target,
        body: &body,
    })
}

fn response(reply: Reply) -> Response<io::Cursor<Vec<u8>>> {
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
    response
}
