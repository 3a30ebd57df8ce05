//! Tests that every leave store has to pass.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use livekit_token_service::internal::{
    FencingToken, LeaveStore, MAX_RECORD_BYTES, Ownership, ParticipantKey,
};

/// A store under test.
pub(crate) trait TestStore: Sync {
    fn start() -> Self;
    fn store(&self) -> &dyn LeaveStore;
}

/// A store that outlives the process.
pub(crate) trait DurableStore: TestStore {
    /// The store as the next process finds it after this one was killed.
    fn after_crash(self) -> Self;
    /// The store as the next process finds it after this one has stopped.
    fn after_stop(self) -> Self;
}

pub(crate) fn key(name: &str) -> ParticipantKey {
    let names = serde_json::json!(["a room", name]);
    ParticipantKey::from_json(&names.to_string()).unwrap()
}

/// Adopts all leaves without an owner.
pub(crate) fn adopt_all(store: &dyn LeaveStore) -> Vec<(ParticipantKey, FencingToken, String)> {
    let mut all = Vec::new();
    loop {
        let batch = store.adopt(3).unwrap();
        let more = batch.len() == 3;
        all.extend(batch);
        if !more {
            all.sort();
            return all;
        }
    }
}

/// As [`adopt_all`], without the fencing tokens.
pub(crate) fn adopt_records(store: &dyn LeaveStore) -> Vec<(ParticipantKey, String)> {
    let all = adopt_all(store).into_iter();
    all.map(|(key, _, record)| (key, record)).collect()
}

fn assert_ownership(
    store: &dyn LeaveStore,
    key: &ParticipantKey,
    fence: FencingToken,
    expected: Ownership,
) {
    assert_eq!(store.check_ownership(key, fence).unwrap(), expected);
    assert_eq!(store.update(key, fence, "a record").unwrap(), expected);
}

pub(crate) fn a_leave_is_owned_from_put_to_remove<S: TestStore>() {
    let test = S::start();
    let store = test.store();
    let fence = store.put(&key("a"), "new").unwrap();
    assert_ownership(store, &key("a"), fence, Ownership::Owned);
    store.remove(&key("a"), fence);
    assert_ownership(store, &key("a"), fence, Ownership::Lost);
    // a second time without effect
    store.remove(&key("a"), fence);
    assert_eq!(adopt_all(store), []);
}

pub(crate) fn a_replaced_leave_is_lost<S: TestStore>() {
    let test = S::start();
    let store = test.store();
    let old = store.put(&key("a"), "old").unwrap();
    let new = store.put(&key("a"), "new").unwrap();
    assert!(new > old);
    assert_ownership(store, &key("a"), old, Ownership::Lost);
    store.remove(&key("a"), old);
    assert_ownership(store, &key("a"), new, Ownership::Owned);
    // also if it ended before it was replaced
    store.remove(&key("a"), new);
    let next = store.put(&key("a"), "next").unwrap();
    assert_ownership(store, &key("a"), new, Ownership::Lost);
    assert_ownership(store, &key("a"), next, Ownership::Owned);
}

pub(crate) fn similar_participants_have_their_own_leaves<S: TestStore>() {
    let test = S::start();
    let store = test.store();
    let names = ["a", "A", "a ", "\"a\"", "ä", "a\\u0000", "[a]", "{a}", "🦀"];
    let fences: Vec<_> = names
        .iter()
        .map(|name| store.put(&key(name), name).unwrap())
        .collect();
    store.remove(&key("a"), fences[0]);
    for (name, fence) in names.iter().zip(&fences).skip(1) {
        assert_ownership(store, &key(name), *fence, Ownership::Owned);
    }
    assert_ownership(store, &key("a"), fences[0], Ownership::Lost);
}

pub(crate) fn an_owned_leave_is_not_adopted_again<S: TestStore>() {
    let test = S::start();
    let store = test.store();
    let fence = store.put(&key("a"), "a").unwrap();
    assert_eq!(adopt_all(store), []);
    assert!(store.claim(&key("a")).unwrap().is_none());
    assert!(store.claim(&key("unknown")).unwrap().is_none());
    assert_ownership(store, &key("a"), fence, Ownership::Owned);
}

pub(crate) fn a_record_that_is_too_large_is_refused<S: TestStore>() {
    let test = S::start();
    let store = test.store();
    let fence = store.put(&key("a"), &"x".repeat(MAX_RECORD_BYTES)).unwrap();
    let too_large = "x".repeat(MAX_RECORD_BYTES + 1);
    assert!(store.put(&key("a"), &too_large).is_err());
    assert!(store.update(&key("a"), fence, &too_large).is_err());
    assert_ownership(store, &key("a"), fence, Ownership::Owned);
    assert!(store.problem().is_none());
}

pub(crate) fn the_last_of_concurrent_puts_owns_the_leave<S: TestStore>() {
    let test = S::start();
    let store = test.store();
    let counter = AtomicUsize::new(0);
    let put = || {
        let mut fences: Vec<(ParticipantKey, FencingToken)> = Vec::new();
        for _ in 0..40 {
            let number = counter.fetch_add(1, Ordering::SeqCst);
            let key = key(&(number % 7).to_string());
            let fence = store.put(&key, "concurrent").unwrap();
            store.update(&key, fence, "updated").unwrap();
            fences.push((key, fence));
        }
        fences
    };
    let all: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(put)).collect();
        let threads = threads.into_iter();
        threads.flat_map(|thread| thread.join().unwrap()).collect()
    });
    for (key, fence) in &all {
        let of_key = all.iter().filter(|(other, _)| other == key);
        let last = of_key.map(|(_, fence)| *fence).max().unwrap();
        let expected = if *fence == last {
            Ownership::Owned
        } else {
            Ownership::Lost
        };
        assert_ownership(store, key, *fence, expected);
    }
}

pub(crate) fn a_quarantined_leave_is_lost<S: TestStore>() {
    let test = S::start();
    let store = test.store();
    let fence = store.put(&key("a"), "invalid").unwrap();
    store.quarantine(&key("a"), fence, "invalid record");
    assert_ownership(store, &key("a"), fence, Ownership::Lost);
    // a second time without effect
    store.quarantine(&key("a"), fence, "invalid record");
    assert_eq!(adopt_all(store), []);
}

pub(crate) fn a_closed_store_refuses_new_leaves<S: DurableStore>() {
    let test = S::start();
    test.store().close();
    assert!(test.store().put(&key("a"), "late").is_err());
    let test = test.after_stop();
    assert_eq!(adopt_all(test.store()), []);
}

pub(crate) fn a_new_leave_survives_a_crash<S: DurableStore>() {
    let test = S::start();
    let store = test.store();
    let mut expected: Vec<_> = (0..10)
        .map(|number| {
            let (key, record) = (key(&number.to_string()), format!("\"{number}\\é\u{1}"));
            store.put(&key, &record).unwrap();
            (key, record)
        })
        .collect();
    store.put(&key("5"), "replaced").unwrap();
    expected[5].1 = "replaced".to_owned();
    let test = test.after_crash();
    assert_eq!(adopt_records(test.store()), expected);
}

pub(crate) fn an_adopted_leave_is_owned<S: DurableStore>() {
    let test = S::start();
    test.store().put(&key("a"), "old").unwrap();
    let test = test.after_crash();
    let store = test.store();
    let adopted = adopt_all(store);
    assert_eq!(adopted.len(), 1);
    assert_ownership(store, &key("a"), adopted[0].1, Ownership::Owned);
    assert_eq!(adopt_all(store), []);
    let new = store.put(&key("a"), "new").unwrap();
    assert_ownership(store, &key("a"), adopted[0].1, Ownership::Lost);
    let test = test.after_crash();
    assert_eq!(adopt_records(test.store()), [(key("a"), "new".to_owned())]);
    assert_ownership(test.store(), &key("a"), new, Ownership::Lost);
}

pub(crate) fn a_new_leave_replaces_one_that_was_not_adopted_yet<S: DurableStore>() {
    let test = S::start();
    test.store().put(&key("a"), "old").unwrap();
    let test = test.after_crash();
    let fence = test.store().put(&key("a"), "new").unwrap();
    assert_eq!(adopt_all(test.store()), []);
    test.store().remove(&key("a"), fence);
    assert_eq!(adopt_all(test.store()), []);
    let test = test.after_stop();
    assert_eq!(adopt_all(test.store()), []);
}

pub(crate) fn changes_before_a_sync_survive_a_crash<S: DurableStore>() {
    let test = S::start();
    let store = test.store();
    let [ended, changed] = ["ended", "changed"].map(|name| store.put(&key(name), "new").unwrap());
    store.sync().unwrap();
    store.update(&key("changed"), changed, "newest").unwrap();
    store.remove(&key("ended"), ended);
    store.sync().unwrap();
    let test = test.after_crash();
    let expected = [(key("changed"), "newest".to_owned())];
    assert_eq!(adopt_records(test.store()), expected);
}

pub(crate) fn a_leave_that_was_not_adopted_yet_can_be_claimed<S: DurableStore>() {
    let test = S::start();
    for name in ["a", "b"] {
        test.store().put(&key(name), name).unwrap();
    }
    let test = test.after_crash();
    let (fence, record) = test.store().claim(&key("b")).unwrap().unwrap();
    assert_eq!(record, "b");
    assert_ownership(test.store(), &key("b"), fence, Ownership::Owned);
    assert_eq!(adopt_records(test.store()), [(key("a"), "a".to_owned())]);
    assert!(test.store().claim(&key("b")).unwrap().is_none());
}

pub(crate) fn pending_changes_are_written_on_close<S: DurableStore>() {
    let test = S::start();
    let store = test.store();
    let [ended, changed, replaced] =
        ["ended", "changed", "replaced"].map(|name| store.put(&key(name), "new").unwrap());
    store.update(&key("ended"), ended, "older").unwrap();
    store.remove(&key("ended"), ended);
    store.update(&key("changed"), changed, "older").unwrap();
    store.update(&key("changed"), changed, "newest").unwrap();
    store.put(&key("replaced"), "newest").unwrap();
    store.update(&key("replaced"), replaced, "older").unwrap();
    let test = test.after_stop();
    let expected = ["changed", "replaced"].map(|name| (key(name), "newest".to_owned()));
    assert_eq!(adopt_records(test.store()), expected);
}

/// Defines a test function for each of the generic tests.
macro_rules! define_tests {
    ($store:ty: $($test:ident)*) => {
        $(#[test]
        fn $test() {
            crate::conformance::$test::<$store>();
        })*
    };
}

/// Tests of any store.
macro_rules! conformance_tests {
    ($store:ty) => {
        crate::conformance::define_tests! { $store:
            a_leave_is_owned_from_put_to_remove
            a_replaced_leave_is_lost
            similar_participants_have_their_own_leaves
            an_owned_leave_is_not_adopted_again
            a_record_that_is_too_large_is_refused
            the_last_of_concurrent_puts_owns_the_leave
            a_quarantined_leave_is_lost
        }
    };
}

/// Tests of a store that outlives the process.
macro_rules! durability_tests {
    ($store:ty) => {
        crate::conformance::define_tests! { $store:
            a_closed_store_refuses_new_leaves
            a_new_leave_survives_a_crash
            changes_before_a_sync_survive_a_crash
            a_leave_that_was_not_adopted_yet_can_be_claimed
            an_adopted_leave_is_owned
            a_new_leave_replaces_one_that_was_not_adopted_yet
            pending_changes_are_written_on_close
        }
    };
}

pub(crate) use {conformance_tests, define_tests, durability_tests};
