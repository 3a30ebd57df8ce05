//! Worker threads: a tiny_http server on a private socket, which only the event loop can reach.

use std::collections::HashMap;
use std::env;
use std::fs::{self, DirBuilder};
use std::io::{self, Cursor};
use std::mem::{ManuallyDrop, take};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use log::{error, warn};
use tiny_http::{Request, Response, StatusCode};

use super::event_loop::EventLoop;
use super::head::{MAX_BODY_BYTES, REQUEST_ID_HEADER};
use super::service::{HttpRequest, HttpResponse, RequestOrigin, RequestRefusal, Service};
use super::{Error, Server};
use crate::util::random;
use crate::util::sync::{lock, spawn};

impl<S: Service> Server<S> {
    /// Serves until the shutdown. `on_listening` is called when clients are accepted.
    ///
    /// # Errors
    /// [`Error`]. If tiny_http fails while it serves, the process ends with status 1, so that the supervisor restarts it.
    pub fn run(self, on_listening: impl FnOnce()) -> Result<(), Error> {
        let socket = InternalSocket::bind().map_err(Error::Backend)?;
        let listener = socket.listener.try_clone().map_err(Error::Backend)?;
        let http_server = tiny_http::Server::from_listener(listener, None)
            .map_err(|error| Error::Backend(io::Error::other(error)))?;
        let request_origins = Arc::new(RequestOrigins::default());
        let pool = Arc::new(HttpWorkers {
            http_server: ManuallyDrop::new(http_server),
            service: Arc::clone(&self.service),
            request_origins: Arc::clone(&request_origins),
            large_body: Mutex::default(),
            listener_closed: AtomicBool::new(false),
            shutting_down: AtomicBool::new(false),
        });
        let workers = (0..self.worker_count)
            .map(|index| {
                let pool = Arc::clone(&pool);
                spawn(format!("worker-{index}"), move || pool.run_worker())
            })
            .collect::<Result<Vec<JoinHandle<()>>, _>>()
            .map_err(Error::Backend)?;
        let address = socket.listener.local_addr().map_err(Error::Backend)?;
        let event_loop = EventLoop::new(self, &address, request_origins)?;
        socket
            .close(&pool.listener_closed)
            .map_err(Error::Backend)?;
        on_listening();
        let finished = event_loop.run()?;
        pool.shutting_down.store(true, Ordering::SeqCst);
        for _ in &workers {
            pool.http_server.unblock();
        }
        if !finished {
            warn!("stopped with unfinished requests");
            return Ok(());
        }
        for worker in workers {
            let _ = worker.join();
        }
        Ok(())
    }
}

/// Origins of the requests that are on their way through tiny_http, by request number.
pub(super) type RequestOrigins<C> = Mutex<HashMap<u64, RequestOrigin<C>>>;

struct HttpWorkers<S: Service> {
    /// Never dropped: that panics for a socket without a path.
    http_server: ManuallyDrop<tiny_http::Server>,
    service: Arc<S>,
    request_origins: Arc<RequestOrigins<S::Context>>,
    /// Reused for large bodies: in the heap of each worker thread their memory would stay allocated.
    large_body: Mutex<Vec<u8>>,
    /// The listener was closed, which tiny_http reports once as an error.
    listener_closed: AtomicBool,
    shutting_down: AtomicBool,
}

impl<S: Service> HttpWorkers<S> {
    fn run_worker(&self) {
        loop {
            match self.http_server.recv() {
                Ok(mut request) => {
                    let response = self.respond(&mut request);
                    // an error has broken the connection, which the event loop notices
                    let _ = request.respond(tiny_http_response(response));
                }
                Err(_) if self.shutting_down.load(Ordering::SeqCst) => return,
                Err(_) if self.listener_closed.swap(false, Ordering::SeqCst) => {}
                Err(error) => {
                    error!(error:% = error; "tiny_http failed");
                    process::exit(1);
                }
            }
        }
    }

    fn respond(&self, request: &mut Request) -> HttpResponse {
        let mut headers = request.headers().iter();
        let header = headers.find(|header| header.field.equiv(REQUEST_ID_HEADER));
        let request_id = header.and_then(|header| header.value.as_str().parse().ok());
        let origin = request_id.and_then(|id: u64| lock(&self.request_origins).remove(&id));
        let Some(origin) = origin else {
            // the probe of a new connection
            return HttpResponse {
                status: 200,
                ..HttpResponse::default()
            };
        };
        let length = request.body_length().unwrap_or(0);
        let large = length > MAX_BODY_BYTES;
        let mut body = Vec::new();
        if large {
            body = take(&mut *lock(&self.large_body));
        }
        body.reserve_exact(length);
        let response = catch_unwind(AssertUnwindSafe(|| {
            if request.as_reader().read_to_end(&mut body).is_err() {
                return self.service.refuse(RequestRefusal::InternalError);
            }
            self.service.respond(&HttpRequest {
                method: request.method().as_str(),
                target: request.url(),
                body: &body,
                origin,
                headers: request.headers(),
            })
        }));
        if large {
            body.clear();
            *lock(&self.large_body) = body;
        }
        response.unwrap_or_else(|_| self.service.refuse(RequestRefusal::InternalError))
    }
}

fn tiny_http_response(response: HttpResponse) -> Response<Cursor<Vec<u8>>> {
    let headers = response.headers.iter();
    let headers = headers
        .filter_map(|(name, value)| tiny_http::Header::from_bytes(*name, value.as_bytes()).ok());
    let (headers, length) = (headers.collect(), response.body.len());
    let (status, body) = (StatusCode(response.status), Cursor::new(response.body));
    Response::new(status, headers, body, Some(length), None)
}

/// Listens for the event loop alone: closed as soon as the event loop has all its connections.
struct InternalSocket {
    listener: UnixListener,
    /// Directory of its path, for the owner alone.
    directory: Option<PathBuf>,
}

impl InternalSocket {
    /// Binds in a new directory. Where no directory can be made, as in a container without a writable file system, binds an
    /// abstract name that cannot be guessed.
    fn bind() -> io::Result<Self> {
        let name = format!("livekit-token-service-{:016x}", random_u64());
        let parents = [
            Some(env::temp_dir()),
            env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from),
            Some("/dev/shm".into()),
            Some("/run".into()),
        ];
        for parent in parents.into_iter().flatten() {
            let directory = parent.join(&name);
            if DirBuilder::new().mode(0o700).create(&directory).is_err() {
                continue;
            }
            match UnixListener::bind(directory.join("http")) {
                Ok(listener) => {
                    return Ok(Self {
                        listener,
                        directory: Some(directory),
                    });
                }
                Err(_) => drop(fs::remove_dir_all(&directory)),
            }
        }
        let name = SocketAddr::from_abstract_name(format!("{name}{:016x}", random_u64()))?;
        Ok(Self {
            listener: UnixListener::bind_addr(&name)?,
            directory: None,
        })
    }

    /// Refuses further connections; existing ones stay. Without its path the socket cannot be reached. An abstract name cannot
    /// be removed, so there the listener itself is shut down, and `listener_closed` set.
    fn close(mut self, listener_closed: &AtomicBool) -> io::Result<()> {
        match self.directory.take() {
            Some(directory) => fs::remove_dir_all(directory),
            None => {
                listener_closed.store(true, Ordering::SeqCst);
                let both = rustix::net::Shutdown::Both;
                Ok(rustix::net::shutdown(&self.listener, both)?)
            }
        }
    }
}

impl Drop for InternalSocket {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

fn random_u64() -> u64 {
    u64::from_ne_bytes(random::bytes())
}
