//! The journal in Redis, on a real one: `cargo test --test redis`, with redis-server (7 or newer) in the PATH.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod conformance;
mod entry;
mod server;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use livekit_token_service::internal::RootCertificates;
use livekit_token_service::internal::{
    FencingToken, LeaveStore, Ownership, RedisAddress, RedisStore,
};

use crate::conformance::{Durable, Stand, adopted, conforms, key, outlives, records};
use crate::server::{Cable, Server};

/// Far longer than a lease and all the patience of a replica.
const PATIENCE: Duration = Duration::from_secs(60);

/// A replica, with the Redis that it shares with others.
struct Replica {
    journal: RedisStore,
    cable: Cable,
    server: Arc<Server>,
}

impl Replica {
    fn on(server: &Arc<Server>) -> Self {
        let cable = Cable::to(server);
        Self {
            journal: open(&cable.url()),
            cable,
            server: server.clone(),
        }
    }

    fn put(&self, name: &str, record: &str) -> FencingToken {
        self.journal.put(&key(name), record).unwrap()
    }

    fn holds(&self, name: &str, fence: FencingToken) -> Option<Ownership> {
        self.journal.check_ownership(&key(name), fence).ok()
    }
}

fn open(url: &str) -> RedisStore {
    RedisStore::open(
        RedisAddress::parse(url).unwrap(),
        &RootCertificates::built_in_and_system(),
    )
}

impl Stand for Replica {
    fn start() -> Self {
        let replica = Self::on(&Server::start());
        assert_eq!(replica.journal.problem(), None);
        replica
    }

    fn journal(&self) -> &dyn LeaveStore {
        &self.journal
    }
}

impl Durable for Replica {
    fn after_a_crash(self) -> Self {
        self.cable.cut();
        self.server.forget_keepers();
        Self::on(&self.server)
    }

    fn after_the_end(self) -> Self {
        self.journal.close();
        Self::on(&self.server)
    }
}

conforms!(Replica);
outlives!(Replica);

fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !happened() {
        assert!(begin.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn pair() -> (Replica, Replica) {
    let first = Replica::start();
    let second = Replica::on(&first.server);
    (first, second)
}

#[test]
fn nobody_takes_what_a_living_replica_keeps() {
    let (first, second) = pair();
    let fence = first.put("a", "a");
    let begin = Instant::now();
    // longer than a lease
    while begin.elapsed() < Duration::from_secs(7) {
        assert_eq!(adopted(&second.journal), []);
        assert_eq!(first.holds("a", fence), Some(Ownership::Owned));
        thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn what_a_dead_replica_kept_goes_to_another_after_it_has_stopped() {
    let (first, second) = pair();
    let fence = first.put("a", "a");
    first.cable.cut();
    wait_until("the second one has it", || {
        // another one may have taken it for an event, for all that it knows
        assert_eq!(first.holds("a", fence), None);
        !adopted(&second.journal).is_empty()
    });
    assert_eq!(first.holds("a", fence), None);
    first.cable.mend();
    wait_until("the first one knows", || {
        first.holds("a", fence) == Some(Ownership::Lost)
    });
    assert_eq!(adopted(&first.journal), []);
}

#[test]
fn a_replica_that_ends_lets_go_at_once() {
    let (first, second) = pair();
    let fence = first.put("a", "old");
    assert_eq!(
        first.journal.update(&key("a"), fence, "new").unwrap(),
        Ownership::Owned
    );
    first.journal.close();
    assert_eq!(records(&second.journal), [(key("a"), "new".to_owned())]);
}

#[test]
fn a_replica_that_hears_of_a_leave_takes_it_over() {
    let (first, second) = pair();
    let old = first.put("a", "the record");
    let (new, record) = second.journal.claim(&key("a")).unwrap().unwrap();
    assert_eq!(record, "the record");
    assert!(new > old);
    // whatever the first one does not know yet does no harm
    let _ = first.journal.update(&key("a"), old, "older");
    wait_until("the first one knows", || {
        first.holds("a", old) == Some(Ownership::Lost)
    });
    assert_eq!(
        first.journal.remove(&key("a"), old).unwrap(),
        Ownership::Lost
    );
    assert_eq!(second.holds("a", new), Some(Ownership::Owned));
    second.journal.close();
    assert_eq!(
        records(&first.journal),
        [(key("a"), "the record".to_owned())]
    );
}

#[test]
fn a_new_leave_replaces_that_of_another_replica() {
    let (first, second) = pair();
    let old = first.put("a", "old");
    let new = second.put("a", "new");
    assert!(new > old);
    assert_eq!(first.holds("a", old), Some(Ownership::Lost));
    assert_eq!(second.holds("a", new), Some(Ownership::Owned));
}

#[test]
fn orphans_are_shared_and_none_is_taken_twice() {
    let (first, second) = pair();
    let third = Replica::on(&first.server);
    for number in 0..500 {
        first.put(&number.to_string(), "x");
    }
    first.journal.close();
    let (of_second, of_third) = thread::scope(|scope| {
        let second = scope.spawn(|| adopted(&second.journal));
        let third = scope.spawn(|| adopted(&third.journal));
        (second.join().unwrap(), third.join().unwrap())
    });
    let mut all: Vec<_> = of_second
        .iter()
        .chain(&of_third)
        .map(|(key, _, _)| key)
        .collect();
    all.sort();
    all.dedup();
    assert_eq!((all.len(), of_second.len() + of_third.len()), (500, 500));
}

#[test]
fn a_short_interruption_changes_nothing_and_loses_nothing() {
    let (first, second) = pair();
    let [a, b] = ["a", "b"].map(|name| first.put(name, "old"));
    first.cable.cut();
    assert_eq!(
        first.journal.update(&key("a"), a, "new").unwrap(),
        Ownership::Owned
    );
    assert_eq!(
        first.journal.remove(&key("b"), b).unwrap(),
        Ownership::Owned
    );
    assert!(first.journal.put(&key("c"), "refused").is_err());
    first.cable.mend();
    wait_until("it is back", || first.journal.problem().is_none());
    assert_eq!(first.holds("a", a), Some(Ownership::Owned));
    assert_eq!(first.holds("b", b), Some(Ownership::Lost));
    first.journal.close();
    assert_eq!(records(&second.journal), [(key("a"), "new".to_owned())]);
}

#[test]
fn a_replica_that_was_away_for_long_finds_what_nobody_has_taken() {
    let first = Replica::start();
    let fence = first.put("a", "old");
    first.cable.cut();
    wait_until("the lease lapses", || first.journal.check_lease().is_err());
    assert_eq!(first.holds("a", fence), None);
    assert!(first.journal.problem().unwrap().contains("Redis"));
    // what happened meanwhile is not forgotten
    assert_eq!(
        first.journal.update(&key("a"), fence, "new").unwrap(),
        Ownership::Owned
    );
    first.cable.mend();
    wait_until("it is back", || first.journal.problem().is_none());
    assert_eq!(first.holds("a", fence), Some(Ownership::Lost));
    let mut found = Vec::new();
    wait_until("it is adopted", || {
        found.extend(adopted(&first.journal));
        !found.is_empty()
    });
    let (_, new, record) = &found[0];
    assert_eq!(
        (&**record, first.holds("a", *new)),
        ("new", Some(Ownership::Owned))
    );
    assert!(*new > fence);
}

#[test]
fn a_redis_that_lost_everything_is_told_again() {
    let (first, second) = pair();
    let a = first.put("a", "of the first");
    let b = second.put("b", "of the second");
    // one of them is replaced by the other after the loss
    let old = first.put("c", "old");
    first.server.ask::<String>(&["FLUSHALL"]);
    let new = second.put("c", "new");
    wait_until("it is there again", || {
        first.server.ask::<u32>(&["HLEN", "lk-jwt:jobs"]) == 3
    });
    wait_until("they are ours", || {
        assert_ne!(first.holds("a", a), Some(Ownership::Lost));
        assert_ne!(second.holds("b", b), Some(Ownership::Lost));
        first.holds("a", a).is_some() && second.holds("b", b).is_some()
    });
    assert_eq!(first.holds("c", old), Some(Ownership::Lost));
    assert_eq!(second.holds("c", new), Some(Ownership::Owned));
}

#[test]
fn a_redis_that_was_restarted_empty_is_told_again() {
    for longer_than_a_lease in [false, true] {
        let first = Replica::start();
        let a = first.put("a", "old");
        let b = first.put("b", "old");
        first.server.kill();
        first.journal.update(&key("a"), a, "new").unwrap();
        first.journal.remove(&key("b"), b).unwrap();
        if longer_than_a_lease {
            wait_until("the lease lapses", || first.journal.check_lease().is_err());
        }
        first.server.start_again();
        wait_until("it is back", || first.journal.problem().is_none());
        let second = Replica::on(&first.server);
        first.journal.close();
        let mut found = Vec::new();
        wait_until("it is adopted", || {
            found.extend(records(&second.journal));
            !found.is_empty()
        });
        assert_eq!(found, [(key("a"), "new".to_owned())]);
    }
}

#[test]
fn an_old_copy_of_redis_does_not_bring_back_old_keepers() {
    let server = Server::with(&["--dbfilename", "dump.rdb"]);
    let (first, second) = (Replica::on(&server), Replica::on(&server));
    let old = first.put("a", "old");
    server.ask::<String>(&["SAVE"]);
    let (new, _) = second.journal.claim(&key("a")).unwrap().unwrap();
    let later = second.put("b", "after the copy");
    server.kill();
    server.start_again();
    wait_until("both are back", || {
        first.journal.problem().is_none() && second.journal.problem().is_none()
    });
    wait_until("all is as it was", || {
        let held = [second.holds("a", new), second.holds("b", later)];
        assert!(!held.contains(&Some(Ownership::Lost)));
        held == [Some(Ownership::Owned); 2]
    });
    wait_until("the first one knows", || {
        first.holds("a", old) == Some(Ownership::Lost)
    });
}

#[test]
fn a_redis_that_is_silent_holds_nobody_up() {
    let replica = Replica::start();
    let fence = replica.put("a", "a");
    replica.server.signal("-STOP");
    let begin = Instant::now();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| replica.journal.check_ownership(&key("a"), fence));
            scope.spawn(|| replica.journal.put(&key("b"), "refused").unwrap_err());
            scope.spawn(|| replica.journal.update(&key("a"), fence, "new"));
        }
    });
    // a second or two, but ten times that on a busy host
    assert!(begin.elapsed() < Duration::from_secs(20));
    replica.server.signal("-CONT");
    wait_until("it is back", || replica.journal.problem().is_none());
    // what was refused, but carried out later, is worked nevertheless
    let mut found = Vec::new();
    wait_until("it is found", || {
        found.extend(adopted(&replica.journal).into_iter().map(|(key, _, _)| key));
        found.contains(&key("b")) || replica.server.ask::<u8>(&["HLEN", "lk-jwt:jobs"]) == 1
    });
}

#[test]
fn a_redis_that_is_gone_at_the_start_is_found_later() {
    let server = Server::start();
    let cable = Cable::to(&server);
    cable.cut();
    let journal = open(&cable.url());
    assert!(journal.problem().unwrap().contains(&cable.url()));
    assert!(journal.put(&key("a"), "refused").is_err());
    assert!(journal.adopt(10).is_err() && journal.claim(&key("a")).is_err());
    cable.mend();
    wait_until("it is found", || journal.problem().is_none());
    journal.put(&key("a"), "taken").unwrap();
}

#[test]
fn what_makes_no_sense_is_kept_aside_and_only_so_much_of_it() {
    let first = Replica::start();
    first.put("a", "a");
    for number in 0..150_u8 {
        let (field, value) = match number % 3 {
            0 => (format!("[\"{number}\"]"), "{}".to_owned()),
            1 => (
                format!("[\"r\",\"{number}\"]"),
                "{\"keeper\":\"x\"}".to_owned(),
            ),
            _ => (format!("{number}"), "\u{1}".to_owned()),
        };
        first
            .server
            .ask::<u8>(&["HSET", "lk-jwt:jobs", &field, &value]);
    }
    let second = Replica::on(&first.server);
    assert_eq!(adopted(&second.journal), []);
    assert_eq!(first.server.ask::<u32>(&["HLEN", "lk-jwt:jobs"]), 1);
    assert_eq!(first.server.ask::<u32>(&["HLEN", "lk-jwt:aside"]), 100);
    first.journal.close();
    assert_eq!(records(&second.journal).len(), 1);
}
