//! A listener that nobody should reach, or that holds whoever does: it accepts, counts, and never answers.
//!
//! A fake because no real server can say who did not come, and because a tarpit has to be slow on command.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// Longer than it takes a busy service to dial.
const PATIENCE: Duration = Duration::from_secs(20);

/// The listener. Its threads end with the test process.
pub(crate) struct Trap {
    address: SocketAddr,
    count: Arc<Count>,
}

impl Trap {
    /// Listens on a free port of `ip`.
    pub(crate) fn on(ip: &str) -> Self {
        Self::at(ip, 0).unwrap()
    }

    /// Two traps with one port, on both of loopback's addresses.
    pub(crate) fn on_both_loopbacks() -> [Self; 2] {
        for _ in 0..100 {
            let v4 = Self::on("127.0.0.1");
            if let Ok(v6) = Self::at("::1", v4.port()) {
                return [v4, v6];
            }
        }
        panic!("no port is free on 127.0.0.1 and ::1");
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connections accepted so far.
    pub(crate) fn visits(&self) -> usize {
        self.count.state.lock().unwrap().visits
    }

    /// The most connections that stood open at one time.
    pub(crate) fn peak(&self) -> usize {
        self.count.state.lock().unwrap().peak
    }

    /// Waits until `visits` connections have been accepted in all.
    pub(crate) fn wait_for(&self, visits: usize) {
        let state = self.count.state.lock().unwrap();
        let (state, _) = self
            .count
            .changed
            .wait_timeout_while(state, PATIENCE, |state| state.visits < visits)
            .unwrap();
        assert!(state.visits >= visits, "only {} came", state.visits);
    }

    fn at(ip: &str, port: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::new(ip.parse().unwrap(), port))?;
        let address = listener.local_addr()?;
        let count = Arc::new(Count::default());
        let counting = Arc::clone(&count);
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                counting.update(|state| {
                    state.visits += 1;
                    state.open += 1;
                    state.peak = state.peak.max(state.open);
                });
                let counting = Arc::clone(&counting);
                thread::spawn(move || {
                    let mut buffer = [0; 1024];
                    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
                    counting.update(|state| state.open -= 1);
                });
            }
        });
        Ok(Self { address, count })
    }
}

#[derive(Default)]
struct Count {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    visits: usize,
    open: usize,
    peak: usize,
}

impl Count {
    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }
}
