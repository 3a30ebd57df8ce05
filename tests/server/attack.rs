//! Attacks on the real service, beside which the regular client is served.

use crate::client::{
    HEALTH, RegularClient, Retry, connect_from, exchange, fresh_address, open_many, read_status,
    wait_until,
};
use crate::process::ServiceProcess;
use rustix::net::sockopt::set_socket_linger;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

/// Of `server::limits`, less what a search for late connections may add: a slow request is not cut off earlier.
const MIN_HEAD_TIME: Duration = Duration::from_secs(9);

/// Memory of the service under attack, in MiB: the server buffers at most 32 MiB for clients, and a connection less than
/// 1 KiB.
const MAX_MIB: f64 = 96.0;

/// The real service and the regular client, before and after an attack.
pub(crate) struct Attack {
    pub(crate) service: ServiceProcess,
    client: RegularClient,
    threads: usize,
}

impl Attack {
    pub(crate) fn on(service: ServiceProcess, retry: Retry) -> Self {
        Self {
            client: RegularClient::start(service.address(), retry),
            // tiny_http may start a thread for a request while another one is about to wait
            threads: service.threads() + 2,
            service,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.service.address()
    }

    /// Ends the attack: the regular client was always served, and the cost was bounded.
    pub(crate) fn end(self, attack: &str) {
        self.client.finish(attack);
        let (threads, peak) = (self.service.threads(), self.service.peak_mib());
        eprintln!("{attack}: {threads} threads, peak {peak:.1} MiB");
        assert!(
            threads <= self.threads,
            "{threads} threads, {} before",
            self.threads
        );
        assert!(peak < MAX_MIB, "{peak:.1} MiB");
        assert_eq!(exchange(self.service.address(), HEALTH).status, 200);
        self.service.stop();
    }
}

/// Sends a byte now and then on each of `count` connections: every one is answered with 408, not before its deadline.
pub(crate) fn slow_requests(count: usize, opening: &[u8]) {
    let attack = Attack::on(ServiceProcess::start(), Retry::Never);
    let start = Instant::now();
    let mut streams = open_many(attack.address(), count, opening);
    while start.elapsed() < MIN_HEAD_TIME {
        for stream in &mut streams {
            stream.set_nonblocking(true).expect("nonblocking");
            let _ = stream.write(b"y");
            let peeked = stream.peek(&mut [0]).map_err(|error| error.kind());
            if start.elapsed() < MIN_HEAD_TIME {
                assert_eq!(peeked, Err(ErrorKind::WouldBlock), "cut off too early");
            }
        }
        thread::sleep(Duration::from_millis(500));
    }
    for stream in &mut streams {
        stream.set_nonblocking(false).expect("blocking");
        assert_eq!(read_status(stream), 408);
    }
    attack.end(&format!("{count} slow requests"));
}

/// Resets `count` connections at different points of a request.
pub(crate) fn resets(count: usize) {
    let attack = Attack::on(ServiceProcess::start(), Retry::Never);
    let before = attack.service.descriptors();
    let openings: [&[u8]; 5] = [
        b"",
        b"GET /heal",
        b"POST /get_token HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
        HEALTH,
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /healthz HTTP/1.1\r\nHo",
    ];
    let from = fresh_address();
    for opening in openings.iter().cycle().take(count) {
        let mut stream = connect_from(from, attack.address()).expect("connect");
        let _ = stream.write_all(opening);
        set_socket_linger(&stream, Some(Duration::ZERO)).expect("linger");
    }
    // the regular client may have one connection closing and one opening
    wait_until("closed descriptors", || {
        attack.service.descriptors() <= before + 2
    });
    attack.end(&format!("{count} resets"));
}

/// Opens `count` connections at once that never complete a request.
pub(crate) fn flood(service: ServiceProcess, retry: Retry, count: usize) {
    let attack = Attack::on(service, retry);
    let to = attack.address();
    let floods: Vec<_> = (0..3)
        .map(|_| thread::spawn(move || open_many(to, count / 3, b"GET /healthz HTTP/1.1\r\nX: ")))
        .collect();
    let streams: Vec<_> = floods
        .into_iter()
        .map(|flood| flood.join().expect("a flood"))
        .collect();
    thread::sleep(Duration::from_secs(1));
    drop(streams);
    attack.end(&format!("{count} connections at once"));
}
