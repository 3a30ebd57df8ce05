//! The store in Redis, tested on a real one: `cargo test --test redis`, with redis-server (7 or newer) in the PATH.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod conformance;
mod redis_connection;
mod redis_server;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use livekit_token_service::internal::{
    FencingToken, LeaveStore, Ownership, RedisAddress, RedisStore, RootCertificates,
};

use crate::conformance::{
    DurableStore, TestStore, adopt_all, adopt_records, conformance_tests, durability_tests, key,
};
use crate::redis_server::{RedisProxy, RedisServer};

/// Deadline that only a hang misses.
const DEADLINE: Duration = Duration::from_secs(60);

/// A replica's store, on a Redis that other replicas can share.
struct Replica {
    store: RedisStore,
    proxy: RedisProxy,
    server: Arc<RedisServer>,
}

impl Replica {
    fn on(server: &Arc<RedisServer>) -> Self {
        let proxy = RedisProxy::to(server);
        Self {
            store: open(&proxy.url()),
            proxy,
            server: server.clone(),
        }
    }

    fn put(&self, name: &str, record: &str) -> FencingToken {
        self.store.put(&key(name), record).unwrap()
    }

    /// `None`: the store does not know.
    fn ownership(&self, name: &str, fence: FencingToken) -> Option<Ownership> {
        self.store.check_ownership(&key(name), fence).ok()
    }
}

fn open(url: &str) -> RedisStore {
    RedisStore::open(
        RedisAddress::parse(url).unwrap(),
        &RootCertificates::built_in_and_system(),
    )
}

impl TestStore for Replica {
    fn start() -> Self {
        let replica = Self::on(&RedisServer::start());
        assert_eq!(replica.store.problem(), None);
        replica
    }

    fn store(&self) -> &dyn LeaveStore {
        &self.store
    }
}

impl DurableStore for Replica {
    fn after_crash(self) -> Self {
        self.proxy.cut();
        self.server.expire_leases();
        Self::on(&self.server)
    }

    fn after_stop(self) -> Self {
        self.store.close();
        Self::on(&self.server)
    }
}

conformance_tests!(Replica);
durability_tests!(Replica);

fn wait_until(condition: &str, mut is_met: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_met() {
        assert!(start.elapsed() < DEADLINE, "waited in vain: {condition}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until a replica without Redis does not rely on its lease any more.
fn wait_until_lease_expires(replica: &Replica, name: &str, fence: FencingToken) {
    wait_until("the lease expires", || {
        let error = replica.store.check_ownership(&key(name), fence);
        error.unwrap_err().to_string().contains("expired")
    });
}

fn pair() -> (Replica, Replica) {
    let first = Replica::start();
    let second = Replica::on(&first.server);
    (first, second)
}

#[test]
fn leaves_of_a_living_replica_are_not_adopted() {
    let (first, second) = pair();
    let fence = first.put("a", "a");
    let start = Instant::now();
    // longer than a lease
    while start.elapsed() < Duration::from_secs(7) {
        assert_eq!(adopt_all(&second.store), []);
        assert_eq!(first.ownership("a", fence), Some(Ownership::Owned));
        thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn leaves_of_a_dead_replica_are_adopted_after_it_has_stopped() {
    let (first, second) = pair();
    let fence = first.put("a", "a");
    first.proxy.cut();
    wait_until("the second replica adopts the leave", || {
        // without Redis the first replica cannot know whether another has claimed the leave
        assert_eq!(first.ownership("a", fence), None);
        !adopt_all(&second.store).is_empty()
    });
    assert_eq!(first.ownership("a", fence), None);
    first.proxy.restore();
    wait_until("the first replica learns of it", || {
        first.ownership("a", fence) == Some(Ownership::Lost)
    });
    assert_eq!(adopt_all(&first.store), []);
}

#[test]
fn a_replica_that_stops_releases_its_leaves_at_once() {
    let (first, second) = pair();
    let fence = first.put("a", "old");
    assert_eq!(
        first.store.update(&key("a"), fence, "new").unwrap(),
        Ownership::Owned
    );
    first.store.close();
    assert_eq!(adopt_records(&second.store), [(key("a"), "new".to_owned())]);
}

#[test]
fn a_claimed_leave_changes_its_owner() {
    let (first, second) = pair();
    let old = first.put("a", "the record");
    let (new, record) = second.store.claim(&key("a")).unwrap().unwrap();
    assert_eq!(record, "the record");
    assert!(new > old);
    // the first replica does not know yet, which is harmless
    let _ = first.store.update(&key("a"), old, "older");
    wait_until("the first replica learns of it", || {
        first.ownership("a", old) == Some(Ownership::Lost)
    });
    first.store.remove(&key("a"), old);
    assert_eq!(second.ownership("a", new), Some(Ownership::Owned));
    second.store.close();
    assert_eq!(
        adopt_records(&first.store),
        [(key("a"), "the record".to_owned())]
    );
}

#[test]
fn a_leave_is_claimed_while_the_removal_of_the_previous_one_is_unwritten() {
    let (first, second) = pair();
    for _ in 0..20 {
        let old = first.put("a", "old");
        first.store.remove(&key("a"), old);
        second.put("a", "new");
        let (_, record) = first.store.claim(&key("a")).unwrap().unwrap();
        assert_eq!(record, "new");
    }
}

#[test]
fn a_new_leave_replaces_one_of_another_replica() {
    let (first, second) = pair();
    let old = first.put("a", "old");
    let new = second.put("a", "new");
    assert!(new > old);
    assert_eq!(first.ownership("a", old), Some(Ownership::Lost));
    assert_eq!(second.ownership("a", new), Some(Ownership::Owned));
}

#[test]
fn no_orphan_is_adopted_twice() {
    let (first, second) = pair();
    let third = Replica::on(&first.server);
    for number in 0..500 {
        first.put(&number.to_string(), "x");
    }
    first.store.close();
    let (of_second, of_third) = thread::scope(|scope| {
        let second = scope.spawn(|| adopt_all(&second.store));
        let third = scope.spawn(|| adopt_all(&third.store));
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
fn a_short_interruption_loses_nothing() {
    let (first, second) = pair();
    let [a, b] = ["a", "b"].map(|name| first.put(name, "old"));
    first.proxy.cut();
    assert_eq!(
        first.store.update(&key("a"), a, "new").unwrap(),
        Ownership::Owned
    );
    first.store.remove(&key("b"), b);
    assert!(first.store.put(&key("c"), "refused").is_err());
    first.proxy.restore();
    wait_until("the store recovers", || first.store.problem().is_none());
    assert_eq!(first.ownership("a", a), Some(Ownership::Owned));
    assert_eq!(first.ownership("b", b), Some(Ownership::Lost));
    first.store.close();
    assert_eq!(adopt_records(&second.store), [(key("a"), "new".to_owned())]);
}

#[test]
fn a_replica_adopts_its_own_leaves_after_its_lease_has_expired() {
    let first = Replica::start();
    let fence = first.put("a", "old");
    first.proxy.cut();
    wait_until_lease_expires(&first, "a", fence);
    assert_eq!(first.ownership("a", fence), None);
    assert!(first.store.problem().unwrap().contains("Redis"));
    // changes made meanwhile are written later
    assert_eq!(
        first.store.update(&key("a"), fence, "new").unwrap(),
        Ownership::Owned
    );
    first.proxy.restore();
    wait_until("the store recovers", || first.store.problem().is_none());
    assert_eq!(first.ownership("a", fence), Some(Ownership::Lost));
    let mut found = Vec::new();
    wait_until("the leave is adopted", || {
        found.extend(adopt_all(&first.store));
        !found.is_empty()
    });
    let (_, new, record) = &found[0];
    assert_eq!(
        (&**record, first.ownership("a", *new)),
        ("new", Some(Ownership::Owned))
    );
    assert!(*new > fence);
}

#[test]
fn a_redis_without_data_gets_all_leaves_again() {
    let (first, second) = pair();
    let a = first.put("a", "of the first");
    let b = second.put("b", "of the second");
    // the second replica replaces one leave after the loss
    let old = first.put("c", "old");
    first.server.execute::<String>(&["FLUSHALL"]);
    let new = second.put("c", "new");
    wait_until("the leaves are restored", || {
        first.server.execute::<u32>(&["HLEN", "lk-jwt:jobs"]) == 3
    });
    wait_until("the leaves are owned", || {
        assert_ne!(first.ownership("a", a), Some(Ownership::Lost));
        assert_ne!(second.ownership("b", b), Some(Ownership::Lost));
        first.ownership("a", a).is_some() && second.ownership("b", b).is_some()
    });
    assert_eq!(first.ownership("c", old), Some(Ownership::Lost));
    assert_eq!(second.ownership("c", new), Some(Ownership::Owned));
}

#[test]
fn a_redis_that_restarts_empty_gets_all_leaves_again() {
    for longer_than_a_lease in [false, true] {
        let first = Replica::start();
        let a = first.put("a", "old");
        let b = first.put("b", "old");
        first.server.kill();
        first.store.update(&key("a"), a, "new").unwrap();
        first.store.remove(&key("b"), b);
        if longer_than_a_lease {
            wait_until_lease_expires(&first, "a", a);
        }
        first.server.start_again();
        wait_until("the store recovers", || first.store.problem().is_none());
        let second = Replica::on(&first.server);
        first.store.close();
        let mut found = Vec::new();
        wait_until("the leave is adopted", || {
            found.extend(adopt_records(&second.store));
            !found.is_empty()
        });
        assert_eq!(found, [(key("a"), "new".to_owned())]);
    }
}

#[test]
fn a_redis_with_an_old_snapshot_does_not_bring_back_earlier_owners() {
    let server = RedisServer::with(&["--dbfilename", "dump.rdb"]);
    let (first, second) = (Replica::on(&server), Replica::on(&server));
    let old = first.put("a", "old");
    server.execute::<String>(&["SAVE"]);
    let (new, _) = second.store.claim(&key("a")).unwrap().unwrap();
    let later = second.put("b", "after the snapshot");
    server.kill();
    server.start_again();
    wait_until("both stores recover", || {
        first.store.problem().is_none() && second.store.problem().is_none()
    });
    wait_until("the claims are restored", || {
        let owned = [second.ownership("a", new), second.ownership("b", later)];
        assert!(!owned.contains(&Some(Ownership::Lost)));
        owned == [Some(Ownership::Owned); 2]
    });
    wait_until("the first replica learns of it", || {
        first.ownership("a", old) == Some(Ownership::Lost)
    });
}

#[test]
fn a_silent_redis_does_not_block_callers() {
    let replica = Replica::start();
    let fence = replica.put("a", "a");
    replica.server.signal("-STOP");
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| replica.store.check_ownership(&key("a"), fence));
            scope.spawn(|| replica.store.put(&key("b"), "refused").unwrap_err());
            scope.spawn(|| replica.store.update(&key("a"), fence, "new"));
        }
    });
    // one timeout of a second, not one after the other
    assert!(start.elapsed() < DEADLINE);
    replica.server.signal("-CONT");
    wait_until("the store recovers", || replica.store.problem().is_none());
    // a put that Redis carried out after the timeout is adopted
    let mut found = Vec::new();
    wait_until("the put is adopted or was not carried out", || {
        found.extend(adopt_all(&replica.store).into_iter().map(|(key, _, _)| key));
        found.contains(&key("b")) || replica.server.execute::<u8>(&["HLEN", "lk-jwt:jobs"]) == 1
    });
}

#[test]
fn a_redis_that_is_down_at_the_start_is_used_later() {
    let server = RedisServer::start();
    let proxy = RedisProxy::to(&server);
    proxy.cut();
    let store = open(&proxy.url());
    assert!(store.problem().unwrap().contains(&proxy.url()));
    assert!(store.put(&key("a"), "refused").is_err());
    assert!(store.adopt(10).is_err() && store.claim(&key("a")).is_err());
    proxy.restore();
    wait_until("the put is adopted or was not carried out", || {
        store.problem().is_none()
    });
    store.put(&key("a"), "taken").unwrap();
}

#[test]
fn invalid_values_are_quarantined_up_to_a_limit() {
    let first = Replica::start();
    first.put("a", "a");
    for number in 0..150_u8 {
        let (field, value) = match number % 3 {
            0 => (format!("[\"{number}\"]"), "{}".to_owned()),
            1 => (
                format!("[\"r\",\"{number}\"]"),
                "{\"owner\":\"x\"}".to_owned(),
            ),
            _ => (format!("{number}"), "\u{1}".to_owned()),
        };
        first
            .server
            .execute::<u8>(&["HSET", "lk-jwt:jobs", &field, &value]);
    }
    let second = Replica::on(&first.server);
    assert_eq!(adopt_all(&second.store), []);
    assert_eq!(first.server.execute::<u32>(&["HLEN", "lk-jwt:jobs"]), 1);
    assert_eq!(first.server.execute::<u32>(&["HLEN", "lk-jwt:aside"]), 100);
    first.store.close();
    assert_eq!(adopt_records(&second.store).len(), 1);
}
