//! Someone asks for a stranger's homeserver without pause and with made-up tokens: they use up their own share, not that of
//! others, and the log says what ran out, in few words.

use std::thread;
use std::time::Instant;

use crate::client::{Connection, Reply, forwarded};
use crate::fields::field;
use crate::homeserver::Homeserver;
use crate::process::Service;
use crate::settings::Settings;
use crate::stage::{LOOPBACK, Stage, User};
use crate::trap::Trap;

/// Requests of one client for one stranger's server in a burst, and in each second after it.
const BURST: usize = 20;
const PER_SECOND: usize = 2;
/// Requests for one stranger's server of all clients in a burst, and in each second after it.
const NAME_BURST: usize = 200;
const NAME_PER_SECOND: usize = 50;
/// Calls at a time to one stranger's server that never answered, and to one network of them.
const PLACES_PER_NAME: usize = 4;
const PLACES_PER_NETWORK: usize = 8;
/// Far more than any share.
const FLOOD: usize = 400;

#[test]
fn a_flood_by_one_client_shuts_out_no_other() {
    let stage = Stage::restricted();
    for attackers in [
        ["8.8.8.8", "8.8.8.8"],
        // one subscriber's network
        ["2001:4860:1:2::1", "2001:4860:1:2:3:4:5:6"],
    ] {
        let mut connection = Connection::open(stage.service.address()).unwrap();
        let start = Instant::now();
        let mut refused = 0;
        for number in 0..FLOOD / 4 {
            let user = stage.homeserver.user_with_unknown_token("mallory");
            let reply = ask(&mut connection, attackers[number % 2], &user);
            match reply.status {
                401 => {}
                429 => refused += 1,
                _ => panic!("{reply:?}"),
            }
            if number % 10 == 9 {
                let honest = format!("9.9.9.{number}");
                let alice = stage.homeserver.user("alice");
                let reply = ask(&mut connection, &honest, &alice);
                assert_eq!(reply.status, 200, "after {number}: {reply:?}");
            }
        }
        let share = BURST + (start.elapsed().as_secs() as usize + 1) * PER_SECOND;
        assert!(refused >= FLOOD / 4 - share, "only {refused} refused");
    }
}

#[test]
fn a_flood_for_one_homeserver_leaves_others_to_the_client() {
    let stage = Stage::restricted();
    let other = Homeserver::start("127.0.0.1", crate::homeserver::Behaviour::Honest);
    let mut connection = Connection::open(stage.service.address()).unwrap();
    let last = (0..2 * BURST).map(|_| {
        let user = stage.homeserver.user_with_unknown_token("mallory");
        ask(&mut connection, "8.8.8.8", &user).status
    });
    assert_eq!(last.last(), Some(429));
    let reply = ask(&mut connection, "8.8.8.8", &other.user("alice"));
    assert_eq!(reply.status, 200, "{reply:?}");
}

/// They are proxies that nobody named, or routers.
#[test]
fn private_addresses_share_no_rate() {
    let stage = Stage::restricted();
    let mut connection = Connection::open(stage.service.address()).unwrap();
    for client in ["10.0.0.1", "192.168.1.1", "fd00::1"] {
        for number in 0..2 * BURST {
            let user = stage.homeserver.user_with_unknown_token("bob");
            let reply = ask(&mut connection, client, &user);
            assert_eq!(reply.status, 401, "{client} {number}: {reply:?}");
        }
    }
}

#[test]
fn a_crowd_of_clients_cannot_make_one_server_answer_without_end() {
    let stage = Stage::restricted();
    let mut connection = Connection::open(stage.service.address()).unwrap();
    let start = Instant::now();
    for number in 0..2 * FLOOD {
        let client = format!("8.{}.{}.8", 8 + number / 250, number % 250);
        let user = stage.homeserver.user_with_unknown_token("mallory");
        let reply = ask(&mut connection, &client, &user);
        assert!(matches!(reply.status, 401 | 429), "{reply:?}");
    }
    let share = NAME_BURST + (start.elapsed().as_secs() as usize + 1) * NAME_PER_SECOND;
    let asked = stage.homeserver.requests().len();
    assert!((NAME_BURST..=share).contains(&asked), "asked {asked} times");
}

#[test]
fn a_flood_of_refusals_writes_few_lines() {
    let stage = Stage::restricted_with(|settings| settings.set("LIVEKIT_LOG_LEVEL", "info"));
    let mut connection = Connection::open(stage.service.address()).unwrap();
    let start = Instant::now();
    let mut allowed = 0;
    for _ in 0..FLOOD {
        let user = stage.homeserver.user_with_unknown_token("mallory");
        let reply = ask(&mut connection, "8.8.8.8", &user);
        allowed += usize::from(reply.status == 401);
    }
    let seconds = start.elapsed().as_secs() as usize;
    let first = stage
        .service
        .wait_for_words(&["level=warn", "requests refused", "reason=busy"]);
    assert_eq!(field(&first, "count").unwrap(), "1", "{first}");
    let log = stage.service.log();
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.contains("refused"))
        .collect();
    let warnings: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("level=warn"))
        .collect();
    assert!(warnings.len() <= seconds + 2, "{warnings:#?}");
    // a line for each that was asked about
    assert!(lines.len() <= allowed + warnings.len(), "{lines:#?}");
}

#[test]
fn the_log_says_which_share_was_used_up() {
    let stage = Stage::restricted();
    let mut connection = Connection::open(stage.service.address()).unwrap();
    let too_often = (0..FLOOD).find_map(|_| {
        let user = stage.homeserver.user_with_unknown_token("mallory");
        let reply = ask(&mut connection, "8.8.8.8", &user);
        (reply.status == 429).then_some((user, reply))
    });
    let (user, reply) = too_often.unwrap();
    assert_limited(
        &stage.service,
        &user,
        &reply,
        "too many calls to this server in a short time",
    );

    let service = Service::start(&Settings::complete().set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK));
    let traps: Vec<Trap> = (0..3).map(|_| Trap::on("127.0.33.1")).collect();
    let caught = |trap: &Trap| User::new("alice", &format!("127.0.33.1:{}", trap.port()));
    thread::scope(|scope| {
        for trap in &traps[..PLACES_PER_NETWORK / PLACES_PER_NAME] {
            for _ in 0..PLACES_PER_NAME {
                let (service, user) = (&service, caught(trap));
                scope.spawn(move || service.post("/get_token", &user.get_token()));
            }
            trap.wait_for(PLACES_PER_NAME);
        }
        for (trap, cause) in [
            (&traps[0], "too many calls to this server in progress"),
            (&traps[2], "subnet of this server in progress"),
        ] {
            let user = caught(trap);
            let reply = service.post("/get_token", &user.get_token());
            assert_limited(&service, &user, &reply, cause);
        }
    });
    assert_eq!(traps[2].connections(), 0);
}

fn ask(connection: &mut Connection, client: &str, user: &User) -> Reply {
    connection.send(&forwarded(client, "/get_token", &user.get_token()));
    connection.receive(false).unwrap()
}

fn assert_limited(service: &Service, user: &User, reply: &Reply, cause: &str) {
    assert_eq!(reply.verdict(), (429, "M_LIMIT_EXCEEDED".to_owned()));
    let server = format!("server={}", user.server_name);
    let line = service.wait_for_words(&["refused", "status=429", &server]);
    assert!(field(&line, "cause").unwrap().contains(cause), "{line}");
}
