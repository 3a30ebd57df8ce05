//! Floods of requests with invalid tokens for an unlisted homeserver: each client and each server name has its own limits, and
//! the log says which limit was reached, in few lines.

use std::thread;
use std::time::Instant;

use crate::client::{Connection, Reply, forwarded};
use crate::fields::field;
use crate::homeserver::FakeHomeserver;
use crate::process::Service;
use crate::settings::Settings;
use crate::setup::{LOOPBACK, TestSetup, User};
use crate::silent_listener::SilentListener;

/// Requests of one client for one unlisted server: the burst, and the rate after it.
const BURST: usize = 20;
const PER_SECOND: usize = 2;
/// Requests of all clients for one unlisted server: the burst, and the rate after it.
const NAME_BURST: usize = 200;
const NAME_PER_SECOND: usize = 50;
/// Concurrent calls to one server that has never responded, and to one subnet of such servers.
const CALLS_PER_NAME: usize = 4;
const CALLS_PER_SUBNET: usize = 8;
/// Far more than any limit.
const FLOOD: usize = 400;

#[test]
fn a_flood_by_one_client_leaves_the_limits_of_others() {
    let setup = TestSetup::restricted();
    for attackers in [
        ["8.8.8.8", "8.8.8.8"],
        // one /64
        ["2001:4860:1:2::1", "2001:4860:1:2:3:4:5:6"],
    ] {
        let mut connection = Connection::open(setup.service.address()).unwrap();
        let start = Instant::now();
        let mut refused = 0;
        for number in 0..FLOOD / 4 {
            let user = setup.homeserver.user_with_unknown_token("mallory");
            let reply = send(&mut connection, attackers[number % 2], &user);
            match reply.status {
                401 => {}
                429 => refused += 1,
                _ => panic!("{reply:?}"),
            }
            if number % 10 == 9 {
                let other_client = format!("9.9.9.{number}");
                let alice = setup.homeserver.user("alice");
                let reply = send(&mut connection, &other_client, &alice);
                assert_eq!(reply.status, 200, "after {number}: {reply:?}");
            }
        }
        let allowed = BURST + (start.elapsed().as_secs() as usize + 1) * PER_SECOND;
        assert!(refused >= FLOOD / 4 - allowed, "only {refused} refused");
    }
}

#[test]
fn a_flood_for_one_homeserver_leaves_the_client_s_limit_for_others() {
    let setup = TestSetup::restricted();
    let other = FakeHomeserver::start("127.0.0.1", crate::homeserver::Behaviour::Correct);
    let mut connection = Connection::open(setup.service.address()).unwrap();
    let limited = (0..FLOOD).any(|_| {
        let user = setup.homeserver.user_with_unknown_token("mallory");
        send(&mut connection, "8.8.8.8", &user).status == 429
    });
    assert!(limited);
    let reply = send(&mut connection, "8.8.8.8", &other.user("alice"));
    assert_eq!(reply.status, 200, "{reply:?}");
}

/// They are proxies missing in the settings, or routers.
#[test]
fn private_addresses_have_no_rate_limit() {
    let setup = TestSetup::restricted();
    let mut connection = Connection::open(setup.service.address()).unwrap();
    for client in ["10.0.0.1", "192.168.1.1", "fd00::1"] {
        for number in 0..2 * BURST {
            let user = setup.homeserver.user_with_unknown_token("bob");
            let reply = send(&mut connection, client, &user);
            assert_eq!(reply.status, 401, "{client} {number}: {reply:?}");
        }
    }
}

#[test]
fn requests_of_many_clients_for_one_server_are_limited() {
    let setup = TestSetup::restricted();
    let mut connection = Connection::open(setup.service.address()).unwrap();
    let start = Instant::now();
    for number in 0..2 * FLOOD {
        let client = format!("8.{}.{}.8", 8 + number / 250, number % 250);
        let user = setup.homeserver.user_with_unknown_token("mallory");
        let reply = send(&mut connection, &client, &user);
        assert!(matches!(reply.status, 401 | 429), "{reply:?}");
    }
    let limit = NAME_BURST + (start.elapsed().as_secs() as usize + 1) * NAME_PER_SECOND;
    let requests = setup.homeserver.requests().len();
    assert!(
        (NAME_BURST..=limit).contains(&requests),
        "{requests} requests"
    );
}

#[test]
fn a_flood_of_refusals_writes_few_lines() {
    let setup = TestSetup::restricted_with(|settings| settings.set("LIVEKIT_LOG_LEVEL", "info"));
    let mut connection = Connection::open(setup.service.address()).unwrap();
    let start = Instant::now();
    let mut allowed = 0;
    for _ in 0..FLOOD {
        let user = setup.homeserver.user_with_unknown_token("mallory");
        let reply = send(&mut connection, "8.8.8.8", &user);
        allowed += usize::from(reply.status == 401);
    }
    let seconds = start.elapsed().as_secs() as usize;
    let first =
        setup
            .service
            .wait_for_line_with(&["level=warn", "requests refused", "reason=busy"]);
    assert_eq!(field(&first, "count").unwrap(), "1", "{first}");
    let log = setup.service.log();
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.contains("refused"))
        .collect();
    let warnings: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("level=warn"))
        .collect();
    assert!(warnings.len() <= seconds + 2, "{warnings:#?}");
    // a line for each request that reached the homeserver
    assert!(lines.len() <= allowed + warnings.len(), "{lines:#?}");
}

#[test]
fn the_log_says_which_limit_was_reached() {
    let setup = TestSetup::restricted();
    let mut connection = Connection::open(setup.service.address()).unwrap();
    let limited = (0..FLOOD).find_map(|_| {
        let user = setup.homeserver.user_with_unknown_token("mallory");
        let reply = send(&mut connection, "8.8.8.8", &user);
        (reply.status == 429).then_some((user, reply))
    });
    let (user, reply) = limited.unwrap();
    assert_limited(
        &setup.service,
        &user,
        &reply,
        "too many calls to this server in a short time",
    );

    let service = Service::start(&Settings::complete().set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK));
    let listeners: Vec<SilentListener> = (0..3).map(|_| SilentListener::on("127.0.33.1")).collect();
    let user_of =
        |listener: &SilentListener| User::new("alice", &format!("127.0.33.1:{}", listener.port()));
    thread::scope(|scope| {
        for listener in &listeners[..CALLS_PER_SUBNET / CALLS_PER_NAME] {
            for _ in 0..CALLS_PER_NAME {
                let (service, user) = (&service, user_of(listener));
                scope.spawn(move || service.post("/get_token", &user.get_token()));
            }
            listener.wait_for(CALLS_PER_NAME);
        }
        for (listener, cause) in [
            (&listeners[0], "too many calls to this server in progress"),
            (&listeners[2], "subnet of this server in progress"),
        ] {
            let user = user_of(listener);
            let reply = service.post("/get_token", &user.get_token());
            assert_limited(&service, &user, &reply, cause);
        }
    });
    assert_eq!(listeners[2].connections(), 0);
}

fn send(connection: &mut Connection, client: &str, user: &User) -> Reply {
    connection.send(&forwarded(client, "/get_token", &user.get_token()));
    connection.receive(false).unwrap()
}

fn assert_limited(service: &Service, user: &User, reply: &Reply, cause: &str) {
    assert_eq!(
        reply.status_and_errcode(),
        (429, "M_LIMIT_EXCEEDED".to_owned())
    );
    let server = format!("server={}", user.server_name);
    let line = service.wait_for_line_with(&["refused", "status=429", &server]);
    assert!(field(&line, "cause").unwrap().contains(cause), "{line}");
}
