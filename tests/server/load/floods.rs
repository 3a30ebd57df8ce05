//! Attacks with many connections, and the shutdown under load.

use crate::attack::{Attack, flood, resets, slow_requests};
use crate::client::{
    CLIENT, HEALTH, RegularClient, Retry, connect_from, fresh_address, is_closed, open_many,
    read_response, read_status, try_read_response, wait_until,
};
use crate::echo::EchoServer;
use crate::process::ServiceProcess;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Descriptors of the service and of this process that are no client connections.
const OTHER_DESCRIPTORS: usize = 1000;

/// As many connections, up to `wanted`, as the service and this process can have.
fn affordable(wanted: usize) -> usize {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised).expect("the soft limit may be raised");
    let limit = maximum.map_or(usize::MAX, |limit| limit as usize);
    let count = wanted.min(limit.saturating_sub(OTHER_DESCRIPTORS));
    assert!(count >= 1000, "descriptor limit: {limit}");
    count
}

#[test]
fn a_thousand_slow_heads_are_cut_off() {
    slow_requests(1000, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ");
}

#[test]
fn three_thousand_slow_heads_are_cut_off() {
    slow_requests(affordable(3000), b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ");
}

#[test]
fn a_thousand_slow_bodies_are_cut_off() {
    slow_requests(
        1000,
        b"POST /get_token HTTP/1.1\r\nHost: a\r\nContent-Length: 65536\r\n\r\n",
    );
}

#[test]
fn five_thousand_reset_connections_leave_nothing_behind() {
    resets(5000);
}

#[test]
fn two_thousand_idle_connections_cost_little() {
    idle_connections(affordable(2000));
}

#[test]
fn ten_thousand_idle_connections_cost_little() {
    idle_connections(affordable(10_000));
}

/// Half of the connections have carried a request before they are idle.
fn idle_connections(count: usize) {
    let attack = Attack::on(ServiceProcess::start(), Retry::Never);
    let mut reused = Vec::new();
    // not at once: requests beyond the queue are refused
    for _ in 0..count / 200 {
        let mut streams = open_many(attack.address(), 100, HEALTH);
        for stream in &mut streams {
            assert_eq!(read_status(stream), 200);
        }
        reused.append(&mut streams);
    }
    let silent = open_many(attack.address(), count - reused.len(), b"");
    wait_until("open connections", || attack.service.descriptors() > count);
    let before = attack.service.cpu_seconds();
    thread::sleep(Duration::from_secs(2));
    let cpu = (attack.service.cpu_seconds() - before) * 50.0;
    eprintln!("{count} idle connections: {cpu:.1} % CPU, with the regular client");
    for mut stream in reused.into_iter().step_by(100) {
        stream.write_all(HEALTH).expect("write");
        assert_eq!(read_status(&mut stream), 200);
    }
    drop(silent);
    attack.end(&format!("{count} idle connections"));
}

#[test]
fn a_flood_of_connections_does_not_keep_others_out() {
    let count = affordable(15_000);
    flood(ServiceProcess::start(), Retry::Never, count);
}

#[test]
fn a_flood_beyond_the_connection_limit_does_not_keep_others_out() {
    let count = affordable(15_000);
    let service = ServiceProcess::with_max_connections(count / 7);
    flood(service, Retry::Closed, count);
}

#[test]
fn ten_thousand_pipelined_requests_are_answered() {
    let attack = Attack::on(ServiceProcess::start(), Retry::Never);
    let mut stream = connect_from(CLIENT, attack.address()).expect("connect");
    let mut writer = stream.try_clone().expect("clone");
    let sender = thread::spawn(move || writer.write_all(&HEALTH.repeat(10_000)));
    for index in 1..=10_000 {
        let response = read_response(&mut stream);
        // the last request that a connection may carry
        let closes = response.header("connection") == Some("close");
        assert_eq!((response.status, closes), (200, index == 10_000));
    }
    assert!(is_closed(&mut stream));
    sender.join().expect("sender").expect("all were read");
    attack.end("10,000 pipelined requests");
}

#[test]
fn clients_that_never_read_cost_bounded_memory() {
    const RESPONSE_BYTES: usize = 4 << 20;
    const RESPONSES: usize = 100;
    let server = EchoServer::with_workers(2);
    let regular = RegularClient::start(server.address(), Retry::Never);
    let before = reset_peak_memory();
    // whole responses that are never read
    let request = format!("GET /big/{RESPONSE_BYTES} HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut unread = Vec::new();
    for _ in 0..RESPONSES {
        let evicted = server.stats.evicted_connections.load(Ordering::Relaxed);
        let mut streams = open_many(server.address(), 1, request.as_bytes());
        // the response, or at least a part of it, is in the kernel
        let arrived = |stream: &TcpStream| stream.peek(&mut [0]).is_ok();
        assert!(arrived(&streams[0]), "after {evicted} evictions");
        unread.append(&mut streams);
    }
    // and pipelines of requests whose responses are never read
    let mut pipelines = open_many(server.address(), 50, b"");
    let requests = HEALTH.repeat(100);
    for stream in &pipelines {
        stream.set_nonblocking(true).expect("nonblocking");
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        for stream in &mut pipelines {
            let _ = stream.write(&requests);
        }
        thread::sleep(Duration::from_millis(1));
    }
    regular.finish("100 x 4 MiB and 50 pipelines, unread");
    // the server buffers 32 MiB, and its two workers hold a few copies of a response
    let cost = peak_memory_mib() - before;
    eprintln!("unread responses: {cost:.1} MiB of memory");
    assert!(cost < 100.0, "{cost:.1} MiB");
    drop((unread, pipelines));
    server.stop();
}

/// Resets the peak of the resident memory of this process, and gives the new one in MiB.
fn reset_peak_memory() -> f64 {
    fs::write("/proc/self/clear_refs", "5").expect("proc(5)");
    peak_memory_mib()
}

fn peak_memory_mib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc(5)");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.expect("a number") / 1024.0
}

#[test]
fn the_shutdown_under_load_loses_no_request() {
    for reuse in [true, false] {
        let mut service = ServiceProcess::start();
        let (address, ended) = (service.address(), Arc::<AtomicBool>::default());
        let answered = Arc::<AtomicUsize>::default();
        let clients: Vec<_> = (0..32)
            .map(|_| {
                let (ended, answered) = (Arc::clone(&ended), Arc::clone(&answered));
                thread::spawn(move || busy_client(address, reuse, &ended, &answered))
            })
            .collect();
        wait_until("requests", || answered.load(Ordering::Relaxed) > 500);
        service.terminate();
        let exit = service.wait();
        ended.store(true, Ordering::Relaxed);
        let lost: Vec<_> = clients
            .into_iter()
            .filter_map(|client| client.join().expect("a client"))
            .collect();
        assert!(exit.success(), "{exit}");
        assert!(lost.is_empty(), "reused connections: {reuse}; {lost:?}");
    }
}

/// Of `server::limits`: an idle client has this long for one more request during the shutdown.
const SHUTDOWN_IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends requests until the service refuses connections. Gives the error of a request that was lost: one on an established
/// connection without a response.
fn busy_client(
    to: SocketAddr,
    reuse: bool,
    ended: &AtomicBool,
    answered: &AtomicUsize,
) -> Option<io::Error> {
    let from = fresh_address();
    while !ended.load(Ordering::Relaxed) {
        let Ok(mut stream) = connect_from(from, to) else {
            break;
        };
        loop {
            let start = Instant::now();
            let written = stream.write_all(HEALTH);
            let in_time = start.elapsed() < SHUTDOWN_IDLE_TIMEOUT / 2;
            match written.and_then(|()| try_read_response(&mut stream, false)) {
                Ok(response) => {
                    answered.fetch_add(1, Ordering::Relaxed);
                    if !reuse || response.header("connection") == Some("close") {
                        break;
                    }
                }
                // established by the kernel, but not accepted before the listener was closed
                Err(error) if !reuse && error.kind() == io::ErrorKind::ConnectionReset => break,
                Err(_) if !in_time => break,
                Err(error) => return Some(error),
            }
        }
    }
    None
}
