//! 200 requests that name a tarpit, which accepts and never answers, while the users of the administrator's own homeserver
//! ask: the latter are served.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Connection, Reply, written};
use crate::homeserver::{Behaviour, Homeserver};
use crate::process::Service;
use crate::settings::Settings;
use crate::sfu::Conduct;
use crate::stage::{LOOPBACK, Stage, User};
use crate::trap::Trap;

/// Requests of the attacker.
const ATTACKS: usize = 200;
/// Users of the good homeserver, who ask during the attack.
const USERS: usize = 50;
/// Outbound places for strangers (discovery, "Bulkheads").
const PLACES: usize = 40;
/// Places for one stranger's name.
const PLACES_PER_NAME: usize = 4;
/// Places for one network of strangers (IPv4 /24).
const PLACES_PER_NETWORK: usize = 8;
/// What the good homeserver takes for an answer, as a busy one does: its users then need their places at the same time.
const ANSWER: Duration = Duration::from_millis(100);
/// What "promptly" means to a request that found no place: far less than the budget of those that found one.
const PROMPTLY: Duration = Duration::from_secs(4);

#[test]
fn a_tarpit_with_one_name_holds_up_nobody_else() {
    let tarpit = Trap::on("127.0.30.1");
    let name = format!("127.0.30.1:{}", tarpit.port());
    let attack: Vec<User> = (0..ATTACKS).map(|_| User::new("mallory", &name)).collect();
    let refused = under_attack("one name", &attack, || tarpit.wait_for(1));
    assert!(
        tarpit.peak() <= PLACES_PER_NAME,
        "{} at a time",
        tarpit.peak()
    );
    assert!(
        refused >= ATTACKS - 3 * PLACES_PER_NAME,
        "{refused} refused"
    );
}

#[test]
fn a_tarpit_with_many_names_and_addresses_holds_up_nobody_else() {
    let tarpits: Vec<Trap> = (0..50)
        .map(|n| Trap::on(&format!("127.0.{}.1", 40 + n)))
        .collect();
    let names: Vec<String> = tarpits
        .iter()
        .enumerate()
        .map(|(n, tarpit)| format!("127.0.{}.1:{}", 40 + n, tarpit.port()))
        .collect();
    let attack: Vec<User> = (0..ATTACKS)
        .map(|number| User::new("mallory", &names[number % names.len()]))
        .collect();
    let visited = || tarpits.iter().filter(|tarpit| tarpit.visits() > 0).count();
    let refused = under_attack("many names", &attack, || {
        let deadline = Instant::now() + PROMPTLY;
        while visited() < PLACES / 4 && Instant::now() < deadline {
            thread::yield_now();
        }
        assert!(
            visited() >= PLACES / 4,
            "only {} tarpits were dialled",
            visited()
        );
    });
    let held: usize = tarpits.iter().map(Trap::peak).sum();
    assert!(held <= PLACES, "{held} connections held by tarpits");
    assert!(refused >= ATTACKS / 2, "{refused} refused");
}

#[test]
fn many_ports_of_one_address_are_one_network() {
    let tarpits: Vec<Trap> = (0..20).map(|_| Trap::on("127.0.31.1")).collect();
    let attack: Vec<User> = (0..ATTACKS)
        .map(|number| {
            let port = tarpits[number % tarpits.len()].port();
            User::new("mallory", &format!("127.0.31.1:{port}"))
        })
        .collect();
    let visits = || tarpits.iter().map(Trap::visits).sum::<usize>();
    let refused = under_attack("one network", &attack, || {
        let deadline = Instant::now() + PROMPTLY;
        while visits() == 0 && Instant::now() < deadline {
            thread::yield_now();
        }
        assert!(visits() > 0, "no tarpit was dialled");
    });
    let held: usize = tarpits.iter().map(Trap::peak).sum();
    assert!(
        held <= PLACES_PER_NETWORK,
        "{held} connections held by tarpits"
    );
    assert!(refused >= ATTACKS / 2, "{refused} refused");
}

/// Lets `attack` loose, waits until it is `under_way`, and has 50 users served. Returns how many attacks found no place.
fn under_attack(what: &str, attack: &[User], under_way: impl FnOnce()) -> usize {
    let homeserver = Homeserver::start("localhost", Behaviour::Slow(ANSWER));
    let name = homeserver.name().to_owned();
    let stage = Stage::with(homeserver, Conduct::Serves, |settings: Settings| {
        settings
            .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", name)
            .set("LIVEKIT_LOG_LEVEL", "info")
            .set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
    });
    // connections are opened by the first round
    users_served(&stage);
    let quiet = users_served(&stage);
    thread::scope(|scope| {
        let service = &stage.service;
        let attacks: Vec<_> = attack
            .iter()
            .map(|user| scope.spawn(move || timed(service, user)))
            .collect();
        under_way();
        let attacked = users_served(&stage);
        for _ in 0..10 {
            assert_eq!(service.request("GET", "/healthz").status, 200);
            assert_eq!(service.request("OPTIONS", "/get_token").status, 200);
        }
        let still = attacks
            .iter()
            .filter(|attack| !attack.is_finished())
            .count();
        eprintln!("{what}: {still} attacks unanswered when the last user was served");
        eprintln!("{what}: p50, p99 without {quiet:.1?}, with the attack {attacked:.1?}");

        let mut refused = 0;
        for attack in attacks {
            let (reply, took) = attack.join().unwrap();
            match reply.status {
                401 => {}
                429 | 503 => {
                    refused += 1;
                    assert!(took < PROMPTLY, "{took:?} {reply:?}");
                    assert_refused_kindly(&reply);
                }
                _ => panic!("{reply:?}"),
            }
        }
        refused
    })
}

/// 50 users at once, each with a connection and a token of their own; the 50th and 99th percentile of what they waited.
fn users_served(stage: &Stage) -> [Duration; 2] {
    let users: Vec<User> = (0..USERS)
        .map(|number| stage.homeserver.user(&format!("user{number}")))
        .collect();
    let together = Barrier::new(USERS);
    let answers: Vec<(Reply, Duration)> = thread::scope(|scope| {
        let asking: Vec<_> = users
            .iter()
            .map(|user| {
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    timed(&stage.service, user)
                })
            })
            .collect();
        asking
            .into_iter()
            .map(|user| user.join().unwrap())
            .collect()
    });
    let refused: Vec<&Reply> = answers
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
    let mut waited: Vec<Duration> = answers.into_iter().map(|(_, took)| took).collect();
    waited.sort();
    [waited[USERS / 2], waited[USERS * 99 / 100]]
}

fn timed(service: &Service, user: &User) -> (Reply, Duration) {
    let start = Instant::now();
    let mut connection = Connection::open(service.address()).unwrap();
    let body = user.get_token().to_string();
    connection.send(&written("POST", "/get_token", body.as_bytes()));
    (connection.receive(false).unwrap(), start.elapsed())
}

fn assert_refused_kindly(reply: &Reply) {
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
