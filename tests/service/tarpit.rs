//! 200 logins that name a tarpit, a server that accepts connections and never responds, while users of a listed homeserver log in.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Connection, Reply, written};
use crate::homeserver::{Behaviour, FakeHomeserver};
use crate::process::Service;
use crate::settings::Settings;
use crate::setup::{LOOPBACK, TestSetup, User};
use crate::sfu::SfuBehaviour;
use crate::silent_listener::SilentListener;

/// Logins of the attacker.
const ATTACKS: usize = 200;
/// Users of the listed homeserver, who log in during the attack.
const USERS: usize = 50;
/// Outbound permits for unlisted homeservers.
const MAX_CALLS: usize = 40;
/// Permits for one unlisted server name.
const MAX_CALLS_PER_NAME: usize = 4;
/// Permits for one subnet (IPv4 /24) of unlisted servers.
const MAX_CALLS_PER_SUBNET: usize = 8;
/// Response time of the listed homeserver: its users hold their permits at the same time.
const RESPONSE_TIME: Duration = Duration::from_millis(100);
/// Longest wait of a login without a permit, below the 15 s budget of those with one.
const MAX_WAIT: Duration = Duration::from_secs(12);
/// Deadline for connections to the tarpits; only a hang exceeds it.
const HANG: Duration = Duration::from_secs(60);

#[test]
fn a_tarpit_with_one_name_delays_no_other_homeserver() {
    let tarpit = SilentListener::on("127.0.30.1");
    let name = format!("127.0.30.1:{}", tarpit.port());
    let attackers: Vec<User> = (0..ATTACKS).map(|_| User::new("mallory", &name)).collect();
    let refused = serve_users_during("one name", &attackers, || tarpit.wait_for(1));
    assert!(
        tarpit.peak() <= MAX_CALLS_PER_NAME,
        "{} connections at a time",
        tarpit.peak()
    );
    assert!(
        refused >= ATTACKS - 3 * MAX_CALLS_PER_NAME,
        "{refused} refused"
    );
}

#[test]
fn a_tarpit_with_many_names_and_addresses_delays_no_other_homeserver() {
    let tarpits: Vec<SilentListener> = (0..50)
        .map(|n| SilentListener::on(&format!("127.0.{}.1", 40 + n)))
        .collect();
    let names: Vec<String> = tarpits
        .iter()
        .enumerate()
        .map(|(n, tarpit)| format!("127.0.{}.1:{}", 40 + n, tarpit.port()))
        .collect();
    let attackers: Vec<User> = (0..ATTACKS)
        .map(|number| User::new("mallory", &names[number % names.len()]))
        .collect();
    let connected = || {
        tarpits
            .iter()
            .filter(|tarpit| tarpit.connections() > 0)
            .count()
    };
    let refused = serve_users_during("many names", &attackers, || {
        wait_until("too few tarpits were connected to", || {
            connected() >= MAX_CALLS / 4
        });
    });
    let peak: usize = tarpits.iter().map(SilentListener::peak).sum();
    assert!(peak <= MAX_CALLS, "{peak} connections to tarpits");
    assert!(refused >= ATTACKS / 2, "{refused} refused");
}

#[test]
fn many_ports_of_one_address_share_the_permits_of_their_subnet() {
    let tarpits: Vec<SilentListener> = (0..20).map(|_| SilentListener::on("127.0.31.1")).collect();
    let attackers: Vec<User> = (0..ATTACKS)
        .map(|number| {
            let port = tarpits[number % tarpits.len()].port();
            User::new("mallory", &format!("127.0.31.1:{port}"))
        })
        .collect();
    let refused = serve_users_during("one subnet", &attackers, || {
        wait_until("no tarpit was connected to", || {
            tarpits.iter().any(|tarpit| tarpit.connections() > 0)
        });
    });
    let peak: usize = tarpits.iter().map(SilentListener::peak).sum();
    assert!(
        peak <= MAX_CALLS_PER_SUBNET,
        "{peak} connections to tarpits"
    );
    assert!(refused >= ATTACKS / 2, "{refused} refused");
}

/// Starts the logins of `attackers` at once, waits until the attack is `under_way`, and asserts that 50 users get tokens. Returns how
/// many attackers were refused for want of a permit.
fn serve_users_during(attack: &str, attackers: &[User], under_way: impl FnOnce()) -> usize {
    let homeserver = FakeHomeserver::start("localhost", Behaviour::Slow(RESPONSE_TIME));
    let name = homeserver.name().to_owned();
    let setup = TestSetup::with(homeserver, SfuBehaviour::Serves, |settings: Settings| {
        settings
            .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", name)
            .set("LIVEKIT_LOG_LEVEL", "info")
            .set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
    });
    // the first round opens the connections
    serve_users(&setup);
    let without = serve_users(&setup);
    // all attackers are connected before the first one sends, so that they compete for the permits on a slow machine too
    let all_connected = Barrier::new(attackers.len());
    thread::scope(|scope| {
        let (service, all_connected) = (&setup.service, &all_connected);
        let logins: Vec<_> = attackers
            .iter()
            .map(|user| scope.spawn(move || timed_get_token(service, user, all_connected)))
            .collect();
        under_way();
        let with = serve_users(&setup);
        for _ in 0..10 {
            assert_eq!(service.request("GET", "/healthz").status, 200);
            assert_eq!(service.request("OPTIONS", "/get_token").status, 200);
        }
        let pending = logins.iter().filter(|login| !login.is_finished()).count();
        eprintln!("{attack}: {pending} attackers still waited when the last user was served");
        eprintln!("{attack}: p50, p99 without {without:.1?}, with the attack {with:.1?}");

        let mut refused = 0;
        for login in logins {
            let (reply, elapsed) = login.join().unwrap();
            match reply.status {
                401 => {}
                429 | 503 => {
                    refused += 1;
                    assert!(elapsed < MAX_WAIT, "{elapsed:?} {reply:?}");
                    assert_retryable(&reply);
                }
                _ => panic!("{reply:?}"),
            }
        }
        refused
    })
}

/// Asserts that 50 users at once, each with a connection and an OpenID token, get a token. Returns p50 and p99 of their waits.
fn serve_users(setup: &TestSetup) -> [Duration; 2] {
    let users: Vec<User> = (0..USERS)
        .map(|number| setup.homeserver.user(&format!("user{number}")))
        .collect();
    let all_connected = Barrier::new(USERS);
    let replies: Vec<(Reply, Duration)> = thread::scope(|scope| {
        let logins: Vec<_> = users
            .iter()
            .map(|user| scope.spawn(|| timed_get_token(&setup.service, user, &all_connected)))
            .collect();
        logins
            .into_iter()
            .map(|login| login.join().unwrap())
            .collect()
    });
    let refused: Vec<&Reply> = replies
        .iter()
        .map(|(reply, _)| reply)
        .filter(|reply| reply.status != 200)
        .collect();
    let first = refused.first();
    assert!(
        refused.is_empty(),
        "{} of {USERS}: {first:?}",
        refused.len()
    );
    let mut waits: Vec<Duration> = replies.into_iter().map(|(_, elapsed)| elapsed).collect();
    waits.sort();
    [waits[USERS / 2], waits[USERS * 99 / 100]]
}

/// Connects, waits for the others, and sends `/get_token`.
fn timed_get_token(service: &Service, user: &User, all_connected: &Barrier) -> (Reply, Duration) {
    let mut connection = Connection::open(service.address()).unwrap();
    let body = user.get_token().to_string();
    all_connected.wait();
    let start = Instant::now();
    connection.send(&written("POST", "/get_token", body.as_bytes()));
    (connection.receive(false).unwrap(), start.elapsed())
}

fn wait_until(otherwise: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !condition() {
        assert!(Instant::now() < deadline, "{otherwise}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn assert_retryable(reply: &Reply) {
    let seconds = reply.header("retry-after").map(str::parse::<u64>);
    assert!(matches!(seconds, Some(Ok(1..))), "{reply:?}");
    assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    let body = reply.json();
    if reply.status == 429 {
        assert_eq!(body["errcode"], "M_LIMIT_EXCEEDED");
        assert!(body["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0));
    } else {
        assert_eq!(body["errcode"], "M_UNKNOWN");
    }
}
