//! Whoever forges webhooks without pause keeps nobody from being served, and the SFU from being heard.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::call::{CallStage, webhook_authorization, webhook_body};
use crate::client::Connection;
use crate::webhook_signature::written;

/// Connections that flood, each with one request after the other.
const FLOODERS: usize = 8;
/// How often the others are served meanwhile.
const SERVED: usize = 20;
/// For a call from its token to its end, on a machine that has much to check.
const IN_TIME: Duration = Duration::from_secs(60);
const HOUR: u64 = 3_600_000;

#[test]
fn a_flood_of_forged_webhooks_shuts_out_nobody() {
    let calls = CallStage::start();
    let (service, forged, over) = (calls.service(), AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for number in 0..FLOODERS {
            let (forged, over) = (&forged, &over);
            scope.spawn(move || {
                // as long as a body may be, and a token that is of another body
                let body = vec![b'x'; 60_000];
                let fields = format!(
                    "Authorization: {}\r\n",
                    webhook_authorization(number.to_string().as_bytes())
                );
                let request = written(&fields, &body);
                let mut connection = Connection::open(service.address()).unwrap();
                while !over.load(Ordering::SeqCst) {
                    connection.send(&request);
                    match connection.receive(false).map(|reply| reply.status) {
                        Ok(401) => drop(forged.fetch_add(1, Ordering::SeqCst)),
                        // too many at once: as good
                        Ok(429 | 503) => {}
                        Ok(status) => panic!("{status}"),
                        Err(_) => connection = Connection::open(service.address()).unwrap(),
                    }
                }
            });
        }
        let served = scope.spawn(|| {
            for number in 0..SERVED {
                let start = Instant::now();
                assert_eq!(service.request("GET", "/healthz").status, 200);
                let alice = calls.new_member();
                let id = format!("syd_{number}");
                calls.join(&alice, &id, HOUR);
                calls.send_webhook("participant_joined", &alice, "PA_1");
                calls.delayed.wait_for(1, "restart", &id);
                calls.send_webhook("participant_left", &alice, "PA_1");
                calls.delayed.wait_for(1, "send", &id);
                assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
            }
        });
        let served = served.join();
        over.store(true, Ordering::SeqCst);
        served.unwrap();
    });
    let forged = forged.load(Ordering::SeqCst);
    assert!(forged > SERVED, "only {forged} were refused");
    // one line a second at the most, not one for each
    let log = service.log();
    let told = log
        .lines()
        .filter(|line| line.contains("endpoint=sfu_webhook"))
        .count();
    assert!(told * 4 < forged, "{told} lines about {forged}");
}

#[test]
fn a_webhook_that_comes_in_pieces_is_one() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", HOUR);
    let body = webhook_body("participant_joined", &alice, "PA_1").to_string();
    let fields = format!(
        "Authorization: {}\r\n",
        webhook_authorization(body.as_bytes())
    );
    let request = written(&fields, body.as_bytes());
    let mut connection = Connection::open(calls.service().address()).unwrap();
    for piece in request.chunks(97) {
        connection.send(piece);
    }
    assert_eq!(connection.receive(false).unwrap().status, 200);
    calls.delayed.wait_for(1, "restart", "syd_1");
    // the SFU keeps its connection
    let body = webhook_body("participant_left", &alice, "PA_1").to_string();
    let length = body.len();
    let chunked = format!(
        "POST /livekit/jwt/sfu_webhook HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nAuthorization: {}\r\n\r\n\
         {length:x}\r\n{body}\r\n0\r\n\r\n",
        webhook_authorization(body.as_bytes())
    );
    connection.send(chunked.as_bytes());
    assert_eq!(connection.receive(false).unwrap().status, 200);
    calls.delayed.wait_for(1, "send", "syd_1");
}
