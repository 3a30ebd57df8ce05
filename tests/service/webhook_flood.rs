//! A flood of forged webhooks blocks neither other requests nor the SFU's webhooks.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::call::{CallSetup, webhook_authorization, webhook_body};
use crate::client::Connection;
use crate::webhook_signature::request_bytes;

/// Connections with forged webhooks, one after the other.
const FLOODERS: usize = 8;
/// Calls during the flood.
const SERVED: usize = 20;
const HOUR: u64 = 3_600_000;

#[test]
fn forged_webhooks_do_not_block_other_requests() {
    let setup = CallSetup::start();
    let (service, forged, over) = (setup.service(), AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for number in 0..FLOODERS {
            let (forged, over) = (&forged, &over);
            scope.spawn(move || {
                // the largest body, with a signature for another one
                let body = vec![b'x'; 60_000];
                let fields = format!(
                    "Authorization: {}\r\n",
                    webhook_authorization(number.to_string().as_bytes())
                );
                let request = request_bytes(&fields, &body);
                let mut connection = Connection::open(service.address()).unwrap();
                while !over.load(Ordering::SeqCst) {
                    connection.send(&request);
                    match connection.receive(false).map(|reply| reply.status) {
                        Ok(401) => drop(forged.fetch_add(1, Ordering::SeqCst)),
                        // rate limits are as good
                        Ok(429 | 503) => {}
                        Ok(status) => panic!("{status}"),
                        Err(_) => connection = Connection::open(service.address()).unwrap(),
                    }
                }
            });
        }
        let served = scope.spawn(|| {
            for number in 0..SERVED {
                assert_eq!(service.request("GET", "/healthz").status, 200);
                let alice = setup.new_member();
                let id = format!("syd_{number}");
                setup.join(&alice, &id, HOUR);
                setup.send_webhook("participant_joined", &alice, "PA_1");
                setup.delayed.wait_for(1, "restart", &id);
                setup.send_webhook("participant_left", &alice, "PA_1");
                setup.delayed.wait_for(1, "send", &id);
            }
        });
        let served = served.join();
        over.store(true, Ordering::SeqCst);
        served.unwrap();
    });
    let forged = forged.load(Ordering::SeqCst);
    assert!(forged > SERVED, "only {forged} were refused");
    // the log is throttled to a line a second
    let log = service.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("endpoint=sfu_webhook"))
        .count();
    assert!(
        lines > 0 && lines * 4 < forged,
        "{lines} lines about {forged}"
    );
}

#[test]
fn a_webhook_can_arrive_in_pieces() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", HOUR);
    let body = webhook_body("participant_joined", &alice, "PA_1").to_string();
    let fields = format!(
        "Authorization: {}\r\n",
        webhook_authorization(body.as_bytes())
    );
    let request = request_bytes(&fields, body.as_bytes());
    let mut connection = Connection::open(setup.service().address()).unwrap();
    for piece in request.chunks(97) {
        connection.send(piece);
    }
    assert_eq!(connection.receive(false).unwrap().status, 200);
    setup.delayed.wait_for(1, "restart", "syd_1");
    // chunked, on the same connection
    let body = webhook_body("participant_left", &alice, "PA_1").to_string();
    let length = body.len();
    let chunked = format!(
        "POST /livekit/jwt/sfu_webhook HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nAuthorization: {}\r\n\r\n\
         {length:x}\r\n{body}\r\n0\r\n\r\n",
        webhook_authorization(body.as_bytes())
    );
    connection.send(chunked.as_bytes());
    assert_eq!(connection.receive(false).unwrap().status, 200);
    setup.delayed.wait_for(1, "send", "syd_1");
}
