//! `kill -9` at any moment: the next process has every acknowledged leave. `tests/e2e` kills the service two hundred times.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::call::{CallMember, CallSetup, webhook_authorization, webhook_body};
use crate::client::Address;
use crate::fake_delayed_events::FakeDelayedEvents;

const KILLS: usize = 15;
/// Deadline that only a hang misses.
const DEADLINE: Duration = Duration::from_secs(60);
/// A delay in milliseconds that does not end during the test.
const DELAY: u64 = 3_600_000;

/// A member whose delegated leave was acknowledged.
struct Participant {
    member: CallMember,
    delay_id: String,
    /// Webhooks that the service has not accepted yet.
    webhooks: VecDeque<&'static str>,
    has_left: bool,
}

impl Participant {
    /// Delivers the webhooks in order, and repeats each until it is accepted, as the SFU does. `None` if the service is dead.
    fn deliver_webhooks(&mut self, setup: &CallSetup) -> Option<()> {
        let start = Instant::now();
        while let Some(event) = self.webhooks.front().copied() {
            let sid = (event == "participant_joined").then_some("PA_1");
            let (room, identity) = (self.member.room_name(), self.member.identity());
            setup.sfu().set_connection(&room, &identity, sid);
            self.has_left = event == "participant_left";
            let body = webhook_body(event, &self.member, "PA_1").to_string();
            let token = webhook_authorization(body.as_bytes());
            let fields = format!("Authorization: {token}\r\n");
            match post_status(setup, "/sfu_webhook", &fields, &body)? {
                200 => drop(self.webhooks.pop_front()),
                // too busy
                503 => thread::sleep(Duration::from_millis(50)),
                status => panic!("{event}: {status}"),
            }
            assert!(start.elapsed() < DEADLINE, "{event} is not accepted");
        }
        Some(())
    }
}

/// The status of the response; `None` if the service dies before it is sent.
fn post_status(setup: &CallSetup, path: &str, fields: &str, body: &str) -> Option<u16> {
    let Address::Tcp(address) = setup.service().address() else {
        panic!("not a TCP address: {:?}", setup.service().address());
    };
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\n{fields}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).ok()?;
    let mut response = String::new();
    // a response that is cut off after its status counts, as the client has read it
    let _ = stream.read_to_string(&mut response);
    response.split(' ').nth(1)?.parse().ok()
}

/// Has participants delegate, join and leave until the service is dead. Counts acknowledgements of all kinds.
fn run_until_killed(
    setup: &CallSetup,
    participants: &mut Vec<Participant>,
    acknowledged: &AtomicUsize,
) -> Option<()> {
    for participant in participants.iter_mut() {
        participant.deliver_webhooks(setup)?;
    }
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < DEADLINE, "the service is not dead");
        let member = setup.new_member();
        let delay_id = format!("syd_{}", participants.len());
        let body = member.body(&delay_id, json!(DELAY)).to_string();
        if post_status(setup, "/delegate_delayed_leave", "", &body)? != 200 {
            continue;
        }
        acknowledged.fetch_add(1, Ordering::SeqCst);
        let webhooks = match participants.len() % 3 {
            0 => vec![],
            1 => vec!["participant_joined"],
            _ => vec!["participant_joined", "participant_left"],
        };
        participants.push(Participant {
            member,
            delay_id,
            webhooks: webhooks.into(),
            has_left: false,
        });
        participants.last_mut()?.deliver_webhooks(setup)?;
        acknowledged.fetch_add(1, Ordering::SeqCst);
    }
}

/// Waits until the service has acknowledged this many requests, to kill it in the midst of the next ones.
fn wait_for_acknowledgements(acknowledged: &AtomicUsize, count: usize) {
    let start = Instant::now();
    while acknowledged.load(Ordering::SeqCst) < count {
        assert!(start.elapsed() < DEADLINE, "no further acknowledgements");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn no_acknowledged_leave_is_lost_when_the_service_is_killed() {
    let mut setup = CallSetup::start_with(FakeDelayedEvents::start(), |settings| {
        let state = settings.path("state");
        std::fs::create_dir(&state).unwrap();
        settings.set("LIVEKIT_STATE_DIR", state.to_str().unwrap())
    });
    let mut participants = Vec::new();
    for kill in 0..KILLS {
        let acknowledged = AtomicUsize::new(0);
        thread::scope(|scope| {
            let (setup, participants, acknowledged) = (&setup, &mut participants, &acknowledged);
            let run = scope.spawn(move || run_until_killed(setup, participants, acknowledged));
            wait_for_acknowledgements(acknowledged, 1 + kill * 7 % 11);
            // some of the kills between two requests, some within one
            thread::sleep(Duration::from_micros((kill * 377 % 5_000) as u64));
            setup.service().send_sigkill();
            run.join().unwrap();
        });
        setup.setup.service.wait_for_exit();
        setup.setup.service = setup.setup.service.restart();
    }
    for participant in &mut participants {
        if !participant.has_left {
            let actions = setup.delayed.actions(&participant.delay_id);
            assert!(!actions.contains(&"send".to_owned()), "{actions:?}");
            participant.webhooks = ["participant_joined", "participant_left"].into();
        }
        participant.deliver_webhooks(&setup).unwrap();
    }
    for Participant { delay_id, .. } in &participants {
        setup.delayed.wait_for(1, "send", delay_id);
        assert_eq!(setup.delayed.times_sent(delay_id), 1, "{delay_id}");
    }
}
