//! kill -9 in the midst of everything: whatever was acknowledged is known to the next process. `tests/e2e` does it two hundred times.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::call::{CallMember, CallStage, webhook_authorization, webhook_body};
use crate::client::Address;
use crate::delayed::Delayed;
use crate::process::Service;

const KILLS: u32 = 15;
/// Far longer than it takes a service to stop answering that was killed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than the test, in milliseconds: nothing is restarted but for a reason.
const DELAY: u64 = 3_600_000;

/// Somebody whose leave was acknowledged.
struct Story {
    caller: CallMember,
    delay: String,
    /// What the SFU has still to tell of them, in order.
    untold: VecDeque<&'static str>,
    /// Whether they are gone, be it heard or not.
    left: bool,
}

impl Story {
    /// The SFU tells what it can, as it would: the same again until it is heard.
    fn tell(&mut self, calls: &CallStage, address: &Address) -> Option<()> {
        while let Some(event) = self.untold.front() {
            let sid = (*event == "participant_joined").then_some("PA_1");
            let (room, identity) = (self.caller.room_name(), self.caller.identity());
            calls.sfu().connect(&room, &identity, sid);
            self.left = *event == "participant_left";
            let body = webhook_body(event, &self.caller, "PA_1").to_string();
            let token = webhook_authorization(body.as_bytes());
            let fields = format!("Authorization: {token}\r\n");
            (status(address, "/sfu_webhook", &fields, &body)? == 200).then_some(())?;
            self.untold.pop_front();
        }
        Some(())
    }
}

/// The status of the answer, if there is one.
fn status(address: &Address, path: &str, fields: &str, body: &str) -> Option<u16> {
    let Address::Tcp(address) = address else {
        panic!("it listens on {address:?}");
    };
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\n{fields}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).ok()?;
    let mut answer = String::new();
    // the last bytes may be lost with the process
    let _ = stream.read_to_string(&mut answer);
    answer.split(' ').nth(1)?.parse().ok()
}

/// Has people come and leave until the service is dead.
fn live(calls: &CallStage, service: &Service, stories: &mut Vec<Story>) -> Option<()> {
    let address = service.address();
    for story in stories.iter_mut() {
        story.tell(calls, address)?;
    }
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < PATIENCE, "it is not dead");
        let (caller, delay) = (calls.new_member(), format!("syd_{}", stories.len()));
        let body = caller.body(&delay, json!(DELAY)).to_string();
        if status(address, "/delegate_delayed_leave", "", &body)? != 200 {
            continue;
        }
        let untold = match stories.len() % 3 {
            0 => vec![],
            1 => vec!["participant_joined"],
            _ => vec!["participant_joined", "participant_left"],
        };
        stories.push(Story {
            caller,
            delay,
            untold: untold.into(),
            left: false,
        });
        stories.last_mut()?.tell(calls, address)?;
    }
}

#[test]
fn no_leave_is_lost_with_a_process_that_is_killed() {
    let mut calls = CallStage::start_with(Delayed::start(), |settings| {
        let state = settings.path("state");
        std::fs::create_dir(&state).unwrap();
        settings.set("LIVEKIT_STATE_DIR", state.to_str().unwrap())
    });
    let mut stories = Vec::new();
    for kill in 0..KILLS {
        thread::scope(|scope| {
            let (calls, stories) = (&calls, &mut stories);
            let life = scope.spawn(move || live(calls, calls.service(), stories));
            // any moment will do; those of the start are the next one's first
            thread::sleep(Duration::from_millis(u64::from(kill * 37 % 200)));
            calls.service().crash();
            life.join().unwrap();
        });
        calls.stage.service.ended();
        calls.stage.service = calls.stage.service.again();
    }
    assert!(
        stories.len() > KILLS as usize,
        "hardly anything was acknowledged"
    );
    for story in &mut stories {
        if !story.left {
            assert!(
                !calls
                    .delayed
                    .actions(&story.delay)
                    .contains(&"send".to_owned())
            );
            story.untold = ["participant_joined", "participant_left"].into();
        }
        story.tell(&calls, calls.service().address()).unwrap();
    }
    for story in &stories {
        calls.delayed.wait_for(1, "send", &story.delay);
    }
    for story in &stories {
        let sent = calls.delayed.calls();
        let sent = sent.iter().filter(|call| {
            call.id == story.delay && call.action == "send" && call.status == "200 OK"
        });
        assert_eq!(sent.count(), 1, "{}", story.delay);
    }
}
