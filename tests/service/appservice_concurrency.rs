//! Many users of several homeservers request tokens at once, as at the start of a call; slow servers do not delay the others.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::appservice_setup::{
    AppServiceSetup, FakeResponse, HS_TOKEN, SERVER_PATH, USER_PATH, hs_token_header,
    json_response, origin_header, relay_response, user_header,
};
use crate::client::{Address, Reply};
use crate::process::Service;

/// Concurrent requests.
const CONCURRENT: usize = 30;
/// Longer than anything here takes on a slow machine.
const DEADLINE: Duration = Duration::from_secs(30);

fn delayed(ms: u64, response: FakeResponse) -> FakeResponse {
    FakeResponse::Delayed(Duration::from_millis(ms), Box::new(response))
}

/// Sends requests at the same time. Returns the statuses other than 200.
fn send_concurrently(count: usize, send: impl Fn(usize) -> Reply + Sync) -> Vec<u16> {
    let start = Barrier::new(count);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|number| {
                let (start, send) = (&start, &send);
                scope.spawn(move || {
                    start.wait();
                    send(number).status
                })
            })
            .collect();
        let statuses = threads.into_iter().map(|thread| thread.join().unwrap());
        statuses.filter(|status| *status != 200).collect()
    })
}

fn request_as_local_user(setup: &AppServiceSetup, number: usize, body: &Value) -> Reply {
    let user = format!("@u{number}:own.example");
    setup.post(USER_PATH, &[hs_token_header(), user_header(&user)], body)
}

fn request_for_server(setup: &AppServiceSetup, server: &str) -> Value {
    let mut body = setup.token_request();
    body["server_name"] = server.into();
    body
}

#[test]
fn concurrent_requests_for_another_servers_sfu_all_succeed() {
    for both_modes in [false, true] {
        let setup = AppServiceSetup::start_with(|settings| match both_modes {
            true => settings.set("LIVEKIT_FULL_ACCESS_HOMESERVERS", "elsewhere.example"),
            false => settings,
        });
        setup.set_relay_response(delayed(
            300,
            relay_response(200, &json!({ "jwt": "a.b.c" })),
        ));
        let body = request_for_server(&setup, "b.org");
        let refused = send_concurrently(CONCURRENT, |number| {
            request_as_local_user(&setup, number, &body)
        });
        assert!(refused.is_empty(), "{both_modes} {refused:?}");
    }
}

#[test]
fn concurrent_requests_of_another_servers_users_all_succeed() {
    let setup = AppServiceSetup::start();
    setup.set_membership_response(delayed(
        100,
        json_response("200 OK", &json!({ "joined": true })),
    ));
    let refused = send_concurrently(CONCURRENT, |number| {
        setup.request_from_server("b.org", &format!("@u{number}:b.org"))
    });
    assert!(refused.is_empty(), "{refused:?}");
}

/// The server accepts 32 concurrent requests of one address. A homeserver has more users than that.
#[test]
fn the_limit_of_an_address_does_not_apply_to_the_homeserver() {
    let setup = AppServiceSetup::start();
    setup.set_membership_response(delayed(
        1000,
        json_response("200 OK", &json!({ "joined": true })),
    ));
    let request = |number: usize, token: &str| {
        let fields = [
            format!("Authorization: Bearer {token}"),
            user_header(&format!("@u{number}:own.example")),
            "X-Forwarded-For: 1.2.3.4".to_owned(),
        ];
        setup.post(USER_PATH, &fields, &setup.token_request())
    };
    let refused = send_concurrently(48, |number| request(number, HS_TOKEN));
    assert!(refused.is_empty(), "{refused:?}");
    assert_eq!(request(0, "another").status, 403);
}

/// Posts a body without waiting for the response. The request is in progress until the connection is dropped.
fn post_without_waiting(
    setup: &AppServiceSetup,
    path: &str,
    fields: [String; 2],
    body: &Value,
) -> TcpStream {
    let Address::Tcp(address) = setup.service.address() else {
        panic!("not on TCP")
    };
    let (fields, body) = (fields.join("\r\n"), body.to_string());
    let length = body.len();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    stream
}

/// Starts requests of local users for the SFUs of other servers.
fn start_relayed_requests(
    setup: &AppServiceSetup,
    count: usize,
    server: impl Fn(usize) -> String,
) -> Vec<TcpStream> {
    let requests = (0..count).map(|number| {
        let user = user_header(&format!("@m{number}:own.example"));
        let body = request_for_server(setup, &server(number));
        post_without_waiting(setup, USER_PATH, [hs_token_header(), user], &body)
    });
    requests.collect()
}

/// Waits until this number of requests were refused for lack of a permit.
fn wait_for_refusals(service: &Service, count: usize) {
    let start = Instant::now();
    while service.log().matches("no permit available").count() < count {
        assert!(start.elapsed() < DEADLINE, "{}", service.log());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn hanging_servers_leave_permits_for_the_local_sfu() {
    let setup = AppServiceSetup::start();
    setup.set_relay_response(FakeResponse::Hang);
    // of 56 permits, 42 are for relayed requests
    let _hanging = start_relayed_requests(&setup, 56, |number| format!("e{}.org", number % 14));
    wait_for_refusals(&setup.service, 56 - 42);
    let refused = send_concurrently(20, |number| {
        request_as_local_user(&setup, number, &setup.token_request())
    });
    assert!(refused.is_empty(), "{refused:?}");
}

#[test]
fn a_hanging_server_leaves_permits_for_other_servers() {
    let setup = AppServiceSetup::start();
    setup.set_relay_response(FakeResponse::Hang);
    let _hanging = start_relayed_requests(&setup, 56, |_| "hangs.org".to_owned());
    wait_for_refusals(&setup.service, 56 - 32);
    let refused = setup.request_as_alice(&request_for_server(&setup, "hangs.org"));
    assert_eq!(refused.status_and_errcode(), (503, "M_UNKNOWN".into()));
    assert_eq!(refused.header("Retry-After"), Some("1"));
    let words = ["no permit available", "hangs.org"];
    setup.service.wait_for_line_with(&words);
    setup.set_relay_response(relay_response(200, &json!({ "jwt": "a.b.c" })));
    let body = request_for_server(&setup, "b.org");
    for number in 0..20 {
        let reply = request_as_local_user(&setup, number, &body);
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

#[test]
fn waiting_requests_of_one_server_leave_permits_for_other_servers() {
    let setup = AppServiceSetup::start();
    setup.set_membership_response(FakeResponse::Hang);
    let _hanging: Vec<_> = (0..48)
        .map(|number| {
            let mut body = setup.token_request();
            body["user_id"] = format!("@u{number}:b.org").into();
            let fields = [hs_token_header(), origin_header("b.org")];
            post_without_waiting(&setup, SERVER_PATH, fields, &body)
        })
        .collect();
    wait_for_refusals(&setup.service, 48 - 32);
    setup.set_joined(true);
    assert_eq!(setup.request_from_server("c.org", "@c:c.org").status, 200);
    assert_eq!(setup.request_as_alice(&setup.token_request()).status, 200);
}
