//! Clients in numbers: idle, flooding, pipelining, more than there are descriptors; and the end in the middle of them.

use crate::attacks::{crowd, survived, threads};
use crate::client::{ATTACKER, Honest, connect_from, fresh_address, is_closed, read_answer};
use crate::service::Service;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

crate::tests![
    two_thousand_idle_clients_cost_next_to_nothing,
    ten_thousand_idle_clients_cost_next_to_nothing,
    an_idle_service_sleeps,
    fifteen_thousand_connections_at_once_shut_nobody_out,
    a_flood_beyond_all_room_shuts_nobody_out,
    ten_thousand_pipelined_requests_are_answered_if_read,
    sixty_four_descriptors_are_enough,
    the_end_under_load_loses_nothing,
];

const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";

/// Lets this process hold as many connections as it may.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, all).expect("the soft limit may be raised");
}

fn two_thousand_idle_clients_cost_next_to_nothing() {
    idle(2000);
}

fn ten_thousand_idle_clients_cost_next_to_nothing() {
    idle(10_000);
}

/// Half have asked for something before they fell silent, half have not.
fn idle(count: usize) {
    raise_descriptors();
    let service = Service::shipped();
    let (threads, honest) = (threads(&service), Honest::start(&service));
    let mut kept = Vec::new();
    // not all at once: more than the queue holds would be told to come again
    for _ in 0..count / 200 {
        let mut hundred = crowd(&service, 100, HEALTH);
        for stream in &mut hundred {
            assert_eq!(read_answer(stream, false).expect("an answer").status, 200);
        }
        kept.append(&mut hundred);
    }
    let silent = crowd(&service, count / 2, b"");
    let before = service.cpu_seconds();
    thread::sleep(Duration::from_secs(2));
    println!(
        "{count} idle: {:.1} % CPU, with the honest client",
        (service.cpu_seconds() - before) * 50.0
    );
    assert!(service.descriptors() > count);
    let mut some = kept.into_iter().step_by(100);
    assert!(some.all(|mut stream| {
        stream.write_all(HEALTH).expect("write");
        read_answer(&mut stream, false).is_ok_and(|answer| answer.status == 200)
    }));
    drop(silent);
    survived(service, honest, threads, &format!("{count} idle"));
}

fn an_idle_service_sleeps() {
    let service = Service::shipped();
    let kept = crowd(&service, 100, HEALTH);
    thread::sleep(Duration::from_millis(500));
    let (switches, cpu) = (service.switches(), service.cpu_seconds());
    thread::sleep(Duration::from_secs(3));
    let (switches, cpu) = (service.switches() - switches, service.cpu_seconds() - cpu);
    println!("100 idle: {switches} wake-ups and {cpu} s of CPU in 3 s");
    assert!(switches < 10, "{switches} wake-ups for nothing");
    drop(kept);
    service.stop();
}

fn fifteen_thousand_connections_at_once_shut_nobody_out() {
    flood(Service::shipped(), 15_000, "15,000 at once");
}

fn a_flood_beyond_all_room_shuts_nobody_out() {
    let service = Service::stand(&[("STAND_CONNECTIONS", "2000")]);
    flood(service, 15_000, "15,000 where 2,000 have room");
}

fn flood(service: Service, count: usize, attack: &str) {
    raise_descriptors();
    let (threads, honest) = (threads(&service), Honest::start(&service));
    let (to, begun) = (service.address(), Instant::now());
    let floods: Vec<_> = (0..3)
        .map(|_| {
            thread::spawn(move || {
                let from = fresh_address();
                let mut held: Vec<TcpStream> = Vec::new();
                for _ in 0..count / 3 {
                    let mut stream = connect_from(from, to).expect("connect");
                    let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nX: ");
                    held.push(stream);
                }
                held
            })
        })
        .collect();
    let held: Vec<_> = floods
        .into_iter()
        .map(|flood| flood.join().expect("a flood"))
        .collect();
    println!("{attack}: {count} connections in {:.1?}", begun.elapsed());
    thread::sleep(Duration::from_secs(1));
    drop(held);
    survived(service, honest, threads, attack);
}

fn ten_thousand_pipelined_requests_are_answered_if_read() {
    let service = Service::shipped();
    let (threads, honest) = (threads(&service), Honest::start(&service));
    let mut stream = connect_from(ATTACKER, service.address()).expect("connect");
    let mut writer = stream.try_clone().expect("clone");
    let sender = thread::spawn(move || writer.write_all(&HEALTH.repeat(10_000)));
    for index in 1..=10_000 {
        let answer = read_answer(&mut stream, false).expect("an answer");
        // the last one that a connection may carry says so
        let closes = answer.field("connection") == Some("close");
        assert_eq!((answer.status, closes), (200, index == 10_000));
    }
    assert!(is_closed(&mut stream));
    sender.join().expect("sender").expect("all were taken");
    survived(service, honest, threads, "10,000 pipelined");
}

fn sixty_four_descriptors_are_enough() {
    let service = Service::shipped_with_descriptors(64);
    let (threads, honest) = (threads(&service), Honest::start(&service));
    let begun = Instant::now();
    let mut opened = 0;
    let mut held: Vec<TcpStream> = Vec::new();
    while begun.elapsed() < Duration::from_secs(3) {
        let mut stream = connect_from(ATTACKER, service.address()).expect("connect");
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nX: ");
        held.push(stream);
        opened += 1;
        held.drain(..held.len().saturating_sub(200));
        thread::sleep(Duration::from_millis(2));
    }
    println!(
        "64 descriptors: {opened} connections were opened, {} are held",
        held.len()
    );
    survived(service, honest, threads, "64 descriptors");
}

fn the_end_under_load_loses_nothing() {
    for kept in [true, false] {
        let mut service = Service::shipped();
        let (to, over) = (service.address(), Arc::new(AtomicBool::new(false)));
        let clients: Vec<_> = (0..32)
            .map(|_| {
                let over = Arc::clone(&over);
                thread::spawn(move || busy_client(to, kept, &over))
            })
            .collect();
        thread::sleep(Duration::from_millis(700));
        service.terminate();
        let (exit, time) = service.ended();
        over.store(true, Ordering::Relaxed);
        let outcomes: Vec<_> = clients
            .into_iter()
            .map(|c| c.join().expect("client"))
            .collect();
        let answered: usize = outcomes.iter().map(|(answered, _)| answered).sum();
        let lost: Vec<_> = outcomes.into_iter().filter_map(|(_, lost)| lost).collect();
        println!(
            "SIGTERM under load, kept {kept}: {answered} answered, {} lost, ended in {time:.1?}",
            lost.len()
        );
        assert!(exit.success(), "{exit}");
        assert!(answered > 100, "that was no load");
        assert!(lost.is_empty(), "{lost:?}");
    }
}

/// Asks until nobody lets it in. A request is lost if its connection was there and no answer came.
fn busy_client(to: SocketAddr, kept: bool, over: &AtomicBool) -> (usize, Option<io::Error>) {
    let (mut answered, from) = (0, fresh_address());
    while !over.load(Ordering::Relaxed) {
        let Ok(mut stream) = connect_from(from, to) else {
            break;
        };
        loop {
            let outcome = stream
                .write_all(HEALTH)
                .and_then(|()| read_answer(&mut stream, false));
            match outcome {
                Ok(answer) => {
                    answered += 1;
                    if !kept || answer.field("connection") == Some("close") {
                        break;
                    }
                }
                // the kernel had let it in for us, but we never had it
                Err(error) if !kept && error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => return (answered, Some(error)),
            }
        }
    }
    (answered, None)
}
