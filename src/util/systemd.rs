//! Notifications to systemd for a service of `Type=notify` (sd_notify(3)): ready, reloading, stopping, watchdog.
//!
//! Written for the datagram socket of the standard library: a message is one line, and the crate for it needs `unsafe` to change the
//! environment, which a process with threads must not do.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Pings per `WATCHDOG_USEC`: two, as sd_watchdog_enabled(3) advises.
const PINGS_PER_WATCHDOG_INTERVAL: u32 = 2;
/// Shortest time between two pings, so that a watchdog of microseconds does not keep an idle service busy.
const MIN_PING_INTERVAL: Duration = Duration::from_millis(10);

/// State of the service that systemd is notified of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServiceState {
    /// Clients are accepted; also the end of a reload.
    Ready,
    /// Settings are read again; [`Self::Ready`] follows.
    Reloading,
    /// New clients are refused; requests in progress are answered.
    Stopping,
}

/// The socket of the service manager, if one has started the process. Failures to reach it are logged at `debug`.
#[derive(Debug, Clone, Default)]
pub struct SystemdNotifier {
    socket: Option<Arc<UnixDatagram>>,
    /// Time between two pings, and the time of the next one.
    watchdog: Option<(Duration, Instant)>,
}

impl SystemdNotifier {
    /// Sends nothing.
    pub fn disabled() -> Self {
        Self::default()
    }

    /// Uses the variables `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`, which `variable` returns, for the process `pid`.
    pub(crate) fn from_environment(
        variable: impl Fn(&str) -> Option<OsString>,
        pid: u32,
        now: Instant,
    ) -> Self {
        let socket = match variable("NOTIFY_SOCKET").map(|path| connect(&path)) {
            Some(Ok(socket)) => Arc::new(socket),
            Some(Err(error)) => {
                log::debug!(cause:% = error; "cannot use NOTIFY_SOCKET");
                return Self::disabled();
            }
            None => return Self::disabled(),
        };
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
        let is_watched = number("WATCHDOG_PID").is_none_or(|watched| watched == u64::from(pid));
        let timeout = number("WATCHDOG_USEC").filter(|usec| is_watched && *usec > 0);
        let watchdog = timeout.map(|usec| {
            let interval = Duration::from_micros(usec) / PINGS_PER_WATCHDOG_INTERVAL;
            (interval.max(MIN_PING_INTERVAL), now)
        });
        Self {
            socket: Some(socket),
            watchdog,
        }
    }

    /// Sends the new state.
    pub(crate) fn notify(&self, state: ServiceState) {
        match state {
            ServiceState::Ready => self.send("READY=1"),
            ServiceState::Stopping => self.send("STOPPING=1"),
            ServiceState::Reloading => {
                // Type=notify-reload compares it with the time of its signal
                let now = clock_gettime(ClockId::Monotonic);
                let usec = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
                self.send(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
            }
        }
    }

    /// Sends a ping if one is due. Called by the event loop only, whose health it shows.
    pub(crate) fn ping_watchdog(&mut self, now: Instant) {
        if let Some((interval, due)) = self.watchdog
            && due <= now
        {
            self.send("WATCHDOG=1");
            self.watchdog = Some((interval, now + interval));
        }
    }

    /// The time at which [`Self::ping_watchdog`] is due.
    pub(crate) fn next_ping(&self) -> Option<Instant> {
        self.watchdog.map(|(_, due)| due)
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(message.as_bytes()) {
            log::debug!(message, cause:% = error; "cannot notify systemd");
        }
    }
}

/// Connects to a path, or to an abstract name after `@`. Writes to the socket never block.
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
