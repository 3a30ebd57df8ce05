//! What systemd hears from a service of `Type=notify` (sd_notify(3)): that it is ready, reloads, stops, and lives.
//!
//! By hand on a datagram socket of the standard library: it is one line per message, and the crate for it brings `unsafe` of its own
//! to do what we must not anyway, to change the environment of a process with threads.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Signs of life per `WATCHDOG_USEC`: two, as sd_watchdog_enabled(3) advises.
const PINGS_PER_WATCHDOG_INTERVAL: u32 = 2;
/// Shortest time between two signs of life: a watchdog of microseconds must not keep an idle service busy.
const MIN_PING_INTERVAL: Duration = Duration::from_millis(10);

/// A turn in the life of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceState {
    /// Clients are let in; also the end of a reload.
    Ready,
    /// Settings are read anew; [`State::Ready`] follows.
    Reloading,
    /// No more clients are let in; who is here is served.
    Stopping,
}

/// Whoever has started the service and waits for word of it; nobody, if it was not a service manager. No failure to reach it is
/// worth more than a line at `debug`.
#[derive(Debug, Clone, Default)]
pub struct SystemdNotifier {
    socket: Option<Arc<UnixDatagram>>,
    /// Time between two signs of life, and when the next one is due.
    watchdog: Option<(Duration, Instant)>,
}

impl SystemdNotifier {
    /// Nobody waits.
    pub fn disabled() -> Self {
        Self::default()
    }

    /// Whom `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` name, for the process `pid`; `variable` gives their values.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<OsString>,
        pid: u32,
        now: Instant,
    ) -> Self {
        let socket = match variable("NOTIFY_SOCKET").map(|path| connect(&path)) {
            Some(Ok(socket)) => Arc::new(socket),
            Some(Err(error)) => {
                log::debug!("NOTIFY_SOCKET: {error}");
                return Self::disabled();
            }
            None => return Self::disabled(),
        };
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
        let ours = number("WATCHDOG_PID").is_none_or(|watched| watched == u64::from(pid));
        let patience = number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0);
        let beat = patience.map(|usec| {
            let every = Duration::from_micros(usec) / PINGS_PER_WATCHDOG_INTERVAL;
            (every.max(MIN_PING_INTERVAL), now)
        });
        let socket = Some(socket);
        Self {
            socket,
            watchdog: beat,
        }
    }

    /// Tells of a turn.
    pub fn notify(&self, state: ServiceState) {
        match state {
            ServiceState::Ready => self.send("READY=1"),
            ServiceState::Stopping => self.send("STOPPING=1"),
            ServiceState::Reloading => {
                // Type=notify-reload compares it with the time of its own signal
                let now = clock_gettime(ClockId::Monotonic);
                let usec = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
                self.send(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
            }
        }
    }

    /// Gives a sign of life if one is due. For the loop without which nothing is served, and no other thread.
    pub fn ping_watchdog(&mut self, now: Instant) {
        if let Some((every, due)) = self.watchdog
            && due <= now
        {
            self.send("WATCHDOG=1");
            self.watchdog = Some((every, now + every));
        }
    }

    /// When [`Supervisor::alive`] wants to be called again.
    pub fn next_ping(&self) -> Option<Instant> {
        self.watchdog.map(|(_, due)| due)
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(message.as_bytes()) {
            log::debug!("NOTIFY_SOCKET: {message:?} was not taken: {error}");
        }
    }
}

/// A path, or `@` and an abstract name. Never waits for the other side.
fn connect(name: &OsString) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => return Err(io::ErrorKind::Unsupported.into()),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}
