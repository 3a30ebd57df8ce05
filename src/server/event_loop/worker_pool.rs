//! tiny_http behind the gate: its private socket, its worker threads, and the end of both.

use super::{Error, EventLoop, ListenSocket, RequestClass, ServerLimits, ServerStats, descriptors};
use crate::server::head::RequestHead;
use crate::util::systemd::SystemdNotifier;
use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::mem::ManuallyDrop;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use tiny_http::{Request, ResponseBox, Server};

/// Serves requests until SIGTERM or SIGINT, with as many of `wanted` workers as the descriptor limit allows, at least two.
///
/// `handle` is called on a worker's thread; what it panics costs that request an answer of `panicked`, nothing else. `opened`
/// is told the counters once clients are let in, and gives whom the loop tells that it lives, and that it ends. See
/// [`Gate::new`] for `prospects`.
///
/// # Errors
/// Any of [`Error`]. The process ends at once, with a line in the log and status 1, if tiny_http fails while it serves:
/// a service that looks alive and answers nobody is worse than one that its supervisor starts again.
pub fn serve<H>(
    listeners: Vec<ListenSocket>,
    wanted: usize,
    limits: ServerLimits,
    prospects: impl Fn(&RequestHead<'_>) -> RequestClass + 'static,
    handle: H,
    panicked: fn() -> ResponseBox,
    opened: impl FnOnce(Arc<ServerStats>) -> SystemdNotifier,
) -> Result<(), Error>
where
    H: Fn(&mut Request) -> ResponseBox + Send + Sync + 'static,
{
    let count = descriptors::affordable_workers(wanted)?;
    if count < wanted {
        log::warn!("the descriptor limit allows {count} workers instead of {wanted}");
    }
    let back_door = InternalSocket::bind().map_err(Error::Backend)?;
    let listener = back_door.listener.try_clone().map_err(Error::Backend)?;
    let server = Server::from_listener(listener, None)
        .map_err(|error| Error::Backend(io::Error::other(error)))?;
    let work = Arc::new(WorkerPool {
        server: ManuallyDrop::new(server),
        handle,
        panic_response: panicked,
        listener_closed: AtomicBool::new(false),
        shutting_down: AtomicBool::new(false),
    });
    let mut workers = Vec::with_capacity(count);
    for index in 0..count {
        workers.push(work.spawn_worker(index).map_err(Error::Backend)?);
    }
    let address = back_door.listener.local_addr().map_err(Error::Backend)?;
    let mut gate = EventLoop::new(listeners, &address, count, limits, prospects)?;
    back_door
        .close(&work.listener_closed)
        .map_err(Error::Backend)?;
    gate.supervisor = opened(gate.stats());
    let finished = gate.run()?;
    work.shutting_down.store(true, Ordering::SeqCst);
    for _ in 0..count {
        work.server.unblock();
    }
    if !finished {
        log::warn!("ended with work unfinished");
        return Ok(());
    }
    for worker in workers {
        let _ = worker.join();
    }
    Ok(())
}

struct WorkerPool<H> {
    /// Never dropped, for that panics where the socket has no path; the process ends with it.
    server: ManuallyDrop<Server>,
    handle: H,
    panic_response: fn() -> ResponseBox,
    /// tiny_http will report once that its listener is closed, which we did.
    listener_closed: AtomicBool,
    shutting_down: AtomicBool,
}

impl<H> WorkerPool<H>
where
    H: Fn(&mut Request) -> ResponseBox + Send + Sync + 'static,
{
    fn spawn_worker(self: &Arc<Self>, index: usize) -> io::Result<JoinHandle<()>> {
        let work = Arc::clone(self);
        thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || work.run_worker())
    }

    fn run_worker(&self) {
        loop {
            match self.server.recv() {
                Ok(mut request) => {
                    let answer = catch_unwind(AssertUnwindSafe(|| (self.handle)(&mut request)));
                    let answer = answer.unwrap_or_else(|_| (self.panic_response)());
                    // if it cannot be sent, the connection is broken, and the gate ends the service
                    let _ = request.respond(answer);
                }
                Err(_) if self.shutting_down.load(Ordering::SeqCst) => return,
                Err(_) if self.listener_closed.swap(false, Ordering::SeqCst) => {}
                Err(error) => {
                    log::error!("tiny_http has failed: {error}");
                    process::exit(1);
                }
            }
        }
    }
}

/// Where the gate gets to tiny_http, and nobody else: closed as soon as the gate has all its connections.
struct InternalSocket {
    listener: UnixListener,
    /// The private directory of its path.
    directory: Option<PathBuf>,
}

impl InternalSocket {
    /// Opens it in a directory that is ours alone; where none can be made, as in a container without a writable file,
    /// under an abstract name that nobody can guess.
    fn bind() -> io::Result<Self> {
        let name = format!("livekit-token-service-{:016x}", random_u64()?);
        let runtime = env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
        let places = [
            Some(env::temp_dir()),
            runtime,
            Some("/dev/shm".into()),
            Some("/run".into()),
        ];
        for place in places.into_iter().flatten() {
            let directory = place.join(&name);
            if DirBuilder::new().mode(0o700).create(&directory).is_err() {
                continue;
            }
            let bound = UnixListener::bind(directory.join("http"));
            let door = Self {
                listener: match bound {
                    Ok(listener) => listener,
                    Err(_) => {
                        let _ = fs::remove_dir_all(&directory);
                        continue;
                    }
                },
                directory: Some(directory),
            };
            return Ok(door);
        }
        let name = SocketAddr::from_abstract_name(format!("{name}{:016x}", random_u64()?))?;
        Ok(Self {
            listener: UnixListener::bind_addr(&name)?,
            directory: None,
        })
    }

    /// Lets nobody in any more; those who are in stay. Without its path nobody finds it. A name cannot be taken away, so
    /// there the listener itself must end, about which tiny_http complains once: `closing` tells that we know.
    fn close(mut self, closing: &AtomicBool) -> io::Result<()> {
        match self.directory.take() {
            Some(directory) => fs::remove_dir_all(directory),
            None => {
                closing.store(true, Ordering::SeqCst);
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

fn random_u64() -> io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::getrandom(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(u64::from_ne_bytes(bytes))
}
