//! Who gets how much of the service, who is taken for whom, and an end without loss.

use crate::behaviour::{HEALTH, begin, open, request, status};
use crate::client::{HONEST, PATIENCE, ask, connect_from, is_closed, read_answer};
use crate::service::Service;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

crate::tests![
    the_address_of_a_client_is_not_its_own_to_choose,
    local_work_does_not_wait_for_strangers,
    one_address_cannot_take_all_workers,
    one_address_cannot_take_all_connections,
    late_work_is_answered_for_and_keeps_its_place,
    too_many_requests_are_told_to_come_again,
    the_end_waits_for_what_is_under_way,
    who_comes_at_the_very_end_does_no_harm,
    too_few_descriptors_are_a_clear_error,
];

/// What the handler is told about who asks.
fn client_of(service: &Service, fields: &str) -> String {
    let request = format!("GET /echo HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let answer = ask(service.address(), request.as_bytes()).expect("an answer");
    let text = answer.text();
    let line = text.lines().find_map(|line| line.strip_prefix("client: "));
    line.expect("a client").to_owned()
}

fn the_address_of_a_client_is_not_its_own_to_choose() {
    let behind_proxy = Service::stand(&[("STAND_TRUSTED", "127.0.0.0/8,10.0.0.0/8")]);
    for (fields, client) in [
        ("", "127.0.0.1"),
        ("X-Forwarded-For: 192.0.2.1\r\n", "192.0.2.1"),
        ("X-Forwarded-For: 198.51.100.7, 192.0.2.1\r\n", "192.0.2.1"),
        (
            "X-Forwarded-For: 198.51.100.7\r\nX-Forwarded-For: 192.0.2.1 , 10.1.2.3\r\n",
            "192.0.2.1",
        ),
        ("X-Forwarded-For: 192.0.2.1:4711\r\n", "192.0.2.1"),
        ("X-Forwarded-For: [2001:db8::1]:80\r\n", "2001:db8::1"),
        ("X-Forwarded-For: ::ffff:192.0.2.1\r\n", "192.0.2.1"),
        ("X-Forwarded-For: 192.0.2.1, unknown\r\n", "127.0.0.1"),
        (
            "X-Forwarded-For: 192.0.2.1, unknown, 10.1.2.3\r\n",
            "10.1.2.3",
        ),
    ] {
        assert_eq!(client_of(&behind_proxy, fields), client, "{fields}");
    }
    behind_proxy.stop();
    let in_the_street = Service::stand(&[("STAND_TRUSTED", "")]);
    assert_eq!(
        client_of(&in_the_street, "X-Forwarded-For: 192.0.2.1\r\n"),
        "127.0.0.1"
    );
    in_the_street.stop();
}

fn local_work_does_not_wait_for_strangers() {
    let service = Service::stand(&[("STAND_WORKERS", "8")]);
    let mut outbound: Vec<_> = (0..50).map(|_| begin(&service, "/outbound/1000")).collect();
    for _ in 0..20 {
        let begun = Instant::now();
        assert_eq!(
            ask(service.address(), HEALTH).expect("an answer").status,
            200
        );
        assert!(
            begun.elapsed() < Duration::from_millis(900),
            "it waited for strangers"
        );
    }
    // seven at a time, 5 s in the queue: the first are served, the last are told to come again
    let statuses: Vec<u16> = outbound.iter_mut().map(status).collect();
    assert!(
        statuses[..24].iter().all(|status| *status == 200),
        "{statuses:?}"
    );
    assert!(
        statuses.iter().all(|status| [200, 503].contains(status)),
        "{statuses:?}"
    );
    service.stop();
}

fn one_address_cannot_take_all_workers() {
    let service = Service::stand(&[("STAND_TRUSTED", ""), ("STAND_WORKERS", "8")]);
    let mut greedy: Vec<_> = (0..4).map(|_| begin(&service, "/local/500")).collect();
    // the charge is the worker's: hanging up does not free it
    let hung_up: Vec<_> = (0..4).map(|_| begin(&service, "/local/500")).collect();
    drop(hung_up);
    let mut fifth = begin(&service, "/local/500");
    let refused = read_answer(&mut fifth, false).expect("an answer");
    assert_eq!(refused.status, 429);
    let mut other = connect_from(HONEST, service.address()).expect("connect");
    other.write_all(HEALTH).expect("write");
    assert_eq!(status(&mut other), 200);
    assert!(greedy.iter_mut().all(|stream| status(stream) == 200));
    // a refusal for load does not cost the connection
    fifth.write_all(HEALTH).expect("write");
    assert_eq!(status(&mut fifth), 200);
    service.stop();
}

fn one_address_cannot_take_all_connections() {
    let service = Service::stand(&[("STAND_TRUSTED", ""), ("STAND_PER_ADDRESS", "20")]);
    let mut taken = Vec::new();
    for _ in 0..20 {
        let mut stream = begin(&service, "/healthz");
        assert_eq!(status(&mut stream), 200);
        taken.push(stream);
    }
    assert!(is_closed(&mut open(&service)));
    let mut other = connect_from(HONEST, service.address()).expect("connect");
    other.write_all(HEALTH).expect("write");
    assert_eq!(status(&mut other), 200);
    drop(taken.pop());
    let begun = Instant::now();
    while status(&mut begin(&service, "/healthz")) != 200 {
        assert!(begun.elapsed() < PATIENCE, "the place is not free again");
    }
    service.stop();
}

fn late_work_is_answered_for_and_keeps_its_place() {
    let service = Service::stand(&[("STAND_WORKERS", "2"), ("STAND_WORK_MS", "1500")]);
    let mut late = begin(&service, "/local/3000");
    let begun = Instant::now();
    assert_eq!(status(&mut late), 504);
    assert!(begun.elapsed() < Duration::from_millis(2900));
    // the connection goes on, with the other worker; the late answer finds it waiting for another one, and is for nobody
    while begun.elapsed() < Duration::from_millis(3500) {
        late.write_all(&request("/local/400")).expect("write");
        let text = read_answer(&mut late, false).expect("an answer").text();
        assert_eq!(text, "slept 400");
    }
    service.stop();
}

fn too_many_requests_are_told_to_come_again() {
    let service = Service::stand(&[("STAND_WORKERS", "2")]);
    let mut waiting: Vec<_> = (0..600).map(|_| begin(&service, "/local/20")).collect();
    let answers: Vec<_> = waiting
        .iter_mut()
        .map(|stream| read_answer(stream, false).expect("an answer"))
        .collect();
    let busy: Vec<_> = answers
        .iter()
        .filter(|answer| answer.status == 503)
        .collect();
    assert!(
        answers
            .iter()
            .all(|answer| [200, 503].contains(&answer.status))
    );
    assert!(busy.len() < 500, "{} of 600 were refused", busy.len());
    service.stop();
}

fn the_end_waits_for_what_is_under_way() {
    let mut service = Service::stand(&[("STAND_WORKERS", "4")]);
    let address = service.address();
    let mut working: Vec<_> = (0..8).map(|_| begin(&service, "/local/300")).collect();
    let mut kept = begin(&service, "/healthz");
    assert_eq!(status(&mut kept), 200);
    let mut unfinished = open(&service);
    unfinished
        .write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na")
        .expect("write");
    service.terminate();
    let begun = Instant::now();
    while TcpStream::connect(address).is_ok() {
        assert!(begun.elapsed() < PATIENCE, "it still lets clients in");
    }
    kept.write_all(HEALTH).expect("write");
    let last = read_answer(&mut kept, false).expect("an answer");
    assert_eq!(
        (last.status, last.field("connection")),
        (200, Some("close"))
    );
    unfinished.write_all(b"bc").expect("write");
    assert_eq!(status(&mut unfinished), 200);
    for stream in &mut working {
        assert_eq!(status(stream), 200);
        let mut rest = Vec::new();
        assert_eq!(stream.read_to_end(&mut rest).expect("closed"), 0);
    }
    let (exit, _) = service.ended();
    assert!(exit.success(), "{exit}");
}

/// A client may knock in the very turn of the loop in which the doors close. Which turn that is, nobody can choose: hence so often.
fn who_comes_at_the_very_end_does_no_harm() {
    for _ in 0..25 {
        let mut service = Service::stand(&[("STAND_WORKERS", "2")]);
        let address = service.address();
        let knocking: Vec<_> = (0..4)
            .map(|_| thread::spawn(move || while TcpStream::connect(address).is_ok() {}))
            .collect();
        // they are at it
        assert_eq!(status(&mut begin(&service, "/healthz")), 200);
        service.terminate();
        let (exit, _) = service.ended();
        assert!(exit.success(), "{exit}");
        for client in knocking {
            client.join().expect("it knocks in vain");
        }
    }
}

fn too_few_descriptors_are_a_clear_error() {
    let program = std::env::current_exe().expect("this program");
    let command = format!("ulimit -n 30 && exec {} stand", program.display());
    let output = std::process::Command::new("sh")
        .args(["-c", &command])
        .output()
        .expect("it runs");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        log.contains("descriptor limit (ulimit -n): expected ") && log.contains(", found 30"),
        "{log}"
    );
}
