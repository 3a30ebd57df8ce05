//! A listener that accepts connections, counts them and never responds: an address that the service must not reach, or a tarpit.
//!
//! A fake, because a real server cannot report connections that were not made.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// Longer than a connection takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The listener. Its threads end with the test process.
pub(crate) struct SilentListener {
    address: SocketAddr,
    count: Arc<Count>,
}

impl SilentListener {
    /// Listens on a free port of `ip`.
    pub(crate) fn on(ip: &str) -> Self {
        Self::at(ip, 0).unwrap()
    }

    /// Two listeners with the same port, on both of loopback's addresses.
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
    pub(crate) fn connections(&self) -> usize {
        self.count.state.lock().unwrap().connections
    }

    /// Largest number of connections that were open at the same time.
    pub(crate) fn peak(&self) -> usize {
        self.count.state.lock().unwrap().peak
    }

    /// Waits until `connections` connections have been accepted in all.
    pub(crate) fn wait_for(&self, connections: usize) {
        let state = self.count.state.lock().unwrap();
        let (state, _) = self
            .count
            .changed
            .wait_timeout_while(state, TIMEOUT, |state| state.connections < connections)
            .unwrap();
        assert!(
            state.connections >= connections,
            "only {} connections",
            state.connections
        );
    }

    fn at(ip: &str, port: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::new(ip.parse().unwrap(), port))?;
        let address = listener.local_addr()?;
        let count = Arc::new(Count::default());
        let counter = Arc::clone(&count);
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                counter.update(|state| {
                    state.connections += 1;
                    state.open += 1;
                    state.peak = state.peak.max(state.open);
                });
                let counter = Arc::clone(&counter);
                thread::spawn(move || {
                    let mut buffer = [0; 1024];
                    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
                    counter.update(|state| state.open -= 1);
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
    connections: usize,
    open: usize,
    peak: usize,
}

impl Count {
    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }
}
