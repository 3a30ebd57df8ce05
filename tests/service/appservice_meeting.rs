//! A meeting across homeservers begins: all users of one want the SFU of the other at once, and get it, whatever other servers do.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::appservice_homeserver::{
    Answer, Beside, HS_TOKEN, SERVER_PATH, USER_PATH, bearer, of_server, of_user, relayed, says,
};
use crate::client::{Address, Reply};
use crate::process::Service;

/// Those who come.
const TOGETHER: usize = 30;
/// Longer than anything here may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn after(ms: u64, answer: Answer) -> Answer {
    Answer::Late(Duration::from_millis(ms), Box::new(answer))
}

/// How often each status comes, when so many ask all at once.
fn all_at_once(count: usize, ask: impl Fn(usize) -> Reply + Sync) -> Vec<u16> {
    let together = Barrier::new(count);
    thread::scope(|scope| {
        let asking: Vec<_> = (0..count)
            .map(|number| {
                let (together, ask) = (&together, &ask);
                scope.spawn(move || {
                    together.wait();
                    ask(number).status
                })
            })
            .collect();
        let statuses = asking.into_iter().map(|asks| asks.join().unwrap());
        statuses.filter(|status| *status != 200).collect()
    })
}

fn local(beside: &Beside, number: usize, body: &Value) -> Reply {
    let user = format!("@u{number}:own.example");
    beside.post(USER_PATH, &[bearer(), of_user(&user)], body)
}

fn wish_at(beside: &Beside, server: &str) -> Value {
    let mut body = beside.place();
    body["server_name"] = server.into();
    body
}

#[test]
fn our_users_get_tokens_for_another_server_s_sfu_together() {
    for both_doors in [false, true] {
        let beside = Beside::start_with(|settings| match both_doors {
            true => settings.set("LIVEKIT_FULL_ACCESS_HOMESERVERS", "elsewhere.example"),
            false => settings,
        });
        beside.relays(after(300, relayed(200, &json!({ "jwt": "a.b.c" }))));
        let body = wish_at(&beside, "b.org");
        let refused = all_at_once(TOGETHER, |number| local(&beside, number, &body));
        assert!(refused.is_empty(), "{both_doors} {refused:?}");
    }
}

#[test]
fn another_server_s_users_get_tokens_for_our_sfu_together() {
    let beside = Beside::start();
    beside.memberships(after(100, says("200 OK", &json!({ "joined": true }))));
    let refused = all_at_once(TOGETHER, |number| {
        beside.for_server("b.org", &format!("@u{number}:b.org"))
    });
    assert!(refused.is_empty(), "{refused:?}");
}

/// The gate has room for 32 requests of one address at once, and more users than that have one homeserver.
#[test]
fn the_homeserver_s_address_is_not_charged_for_its_users_but_whoever_poses_as_it_is() {
    let beside = Beside::start();
    beside.memberships(after(1000, says("200 OK", &json!({ "joined": true }))));
    let ask = |number: usize, token: &str| {
        let fields = [
            format!("Authorization: Bearer {token}"),
            of_user(&format!("@u{number}:own.example")),
            "X-Forwarded-For: 1.2.3.4".to_owned(),
        ];
        beside.post(USER_PATH, &fields, &beside.place())
    };
    let refused = all_at_once(48, |number| ask(number, HS_TOKEN));
    assert!(refused.is_empty(), "{refused:?}");
    assert_eq!(ask(0, "another").status, 403);
}

/// Sends wishes, for whose answers nobody waits: they end with these connections.
fn wishes(beside: &Beside, count: usize, server: impl Fn(usize) -> String) -> Vec<TcpStream> {
    let Address::Tcp(address) = beside.service.address() else {
        panic!("not on TCP")
    };
    (0..count)
        .map(|number| {
            let body = wish_at(beside, &server(number)).to_string();
            let (bearer, user) = (bearer(), of_user(&format!("@m{number}:own.example")));
            let length = body.len();
            let mut stream = TcpStream::connect(address).unwrap();
            write!(
                stream,
                "POST {USER_PATH} HTTP/1.1\r\nHost: x\r\n{bearer}\r\n{user}\r\nContent-Length: {length}\r\n\r\n{body}"
            )
            .unwrap();
            stream
        })
        .collect()
}

/// Waits until so many were refused for want of a place.
fn wait_for_refusals(service: &Service, count: usize) {
    let begin = Instant::now();
    while service.log().matches("no permit available").count() < count {
        assert!(begin.elapsed() < PATIENCE, "{}", service.log());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn servers_that_hang_leave_places_for_our_own_sfu() {
    let beside = Beside::start();
    beside.relays(Answer::Hangs);
    // of 56 places, 42 are for wishes like these
    let _hanging = wishes(&beside, 56, |number| format!("e{}.org", number % 14));
    wait_for_refusals(&beside.service, 56 - 42);
    let refused = all_at_once(20, |number| local(&beside, number, &beside.place()));
    assert!(refused.is_empty(), "{refused:?}");
}

#[test]
fn one_server_that_hangs_leaves_places_for_the_others() {
    let beside = Beside::start();
    beside.relays(Answer::Hangs);
    let _hanging = wishes(&beside, 56, |_| "hangs.org".to_owned());
    wait_for_refusals(&beside.service, 56 - 32);
    let refused = beside.for_alice(&wish_at(&beside, "hangs.org"));
    assert_eq!(refused.verdict(), (503, "M_UNKNOWN".into()));
    assert_eq!(refused.header("Retry-After"), Some("1"));
    let told = ["no permit available", "hangs.org"];
    beside.service.wait_for_words(&told);
    beside.relays(relayed(200, &json!({ "jwt": "a.b.c" })));
    let body = wish_at(&beside, "b.org");
    for number in 0..20 {
        let reply = local(&beside, number, &body);
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

#[test]
fn one_server_s_users_who_wait_leave_places_for_the_others() {
    let beside = Beside::start();
    beside.memberships(Answer::Hangs);
    let mut body = beside.place();
    body["user_id"] = "@u:b.org".into();
    let Address::Tcp(address) = beside.service.address() else {
        panic!("not on TCP")
    };
    let _hanging: Vec<_> = (0..48)
        .map(|number| {
            body["user_id"] = format!("@u{number}:b.org").into();
            let (body, bearer, server) = (body.to_string(), bearer(), of_server("b.org"));
            let length = body.len();
            let mut stream = TcpStream::connect(address).unwrap();
            write!(
                stream,
                "POST {SERVER_PATH} HTTP/1.1\r\nHost: x\r\n{bearer}\r\n{server}\r\nContent-Length: {length}\r\n\r\n{body}"
            )
            .unwrap();
            stream
        })
        .collect();
    wait_for_refusals(&beside.service, 48 - 32);
    beside.memberships(says("200 OK", &json!({ "joined": true })));
    assert_eq!(beside.for_server("c.org", "@c:c.org").status, 200);
    assert_eq!(beside.for_alice(&beside.place()).status, 200);
}
