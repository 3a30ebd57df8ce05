//! What every journal has to do, as sentences that are tried on each of them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use livekit_token_service::internal::{
    FencingToken, LeaveStore, MAX_RECORD_BYTES, Ownership, ParticipantKey,
};

/// A journal under test.
pub(crate) trait Stand: Sync {
    fn start() -> Self;
    fn journal(&self) -> &dyn LeaveStore;
}

/// One that outlives whoever writes it.
pub(crate) trait Durable: Stand {
    /// What the next process finds after this one was killed.
    fn after_a_crash(self) -> Self;
    /// What it finds after this one has ended as it should.
    fn after_the_end(self) -> Self;
}

pub(crate) fn key(name: &str) -> ParticipantKey {
    let names = serde_json::json!(["a room", name]);
    ParticipantKey::from_json(&names.to_string()).unwrap()
}

/// All that there is to adopt.
pub(crate) fn adopted(journal: &dyn LeaveStore) -> Vec<(ParticipantKey, FencingToken, String)> {
    let mut all = Vec::new();
    loop {
        let some = journal.adopt(3).unwrap();
        let more = some.len() == 3;
        all.extend(some);
        if !more {
            all.sort();
            return all;
        }
    }
}

/// As [`adopted`], without the fences.
pub(crate) fn records(journal: &dyn LeaveStore) -> Vec<(ParticipantKey, String)> {
    let all = adopted(journal).into_iter();
    all.map(|(key, _, record)| (key, record)).collect()
}

fn assert_held(
    journal: &dyn LeaveStore,
    key: &ParticipantKey,
    fence: FencingToken,
    hold: Ownership,
) {
    assert_eq!(journal.check_ownership(key, fence).unwrap(), hold);
    assert_eq!(journal.update(key, fence, "a record").unwrap(), hold);
}

pub(crate) fn a_leave_is_ours_from_its_beginning_to_its_end<S: Stand>() {
    let stand = S::start();
    let journal = stand.journal();
    let fence = journal.put(&key("a"), "new").unwrap();
    assert_held(journal, &key("a"), fence, Ownership::Owned);
    assert_eq!(journal.remove(&key("a"), fence).unwrap(), Ownership::Owned);
    assert_held(journal, &key("a"), fence, Ownership::Lost);
    assert_eq!(journal.remove(&key("a"), fence).unwrap(), Ownership::Lost);
    assert_eq!(adopted(journal), []);
}

pub(crate) fn a_replaced_leave_is_lost<S: Stand>() {
    let stand = S::start();
    let journal = stand.journal();
    let old = journal.put(&key("a"), "old").unwrap();
    let new = journal.put(&key("a"), "new").unwrap();
    assert!(new > old);
    assert_held(journal, &key("a"), old, Ownership::Lost);
    assert_eq!(journal.remove(&key("a"), old).unwrap(), Ownership::Lost);
    assert_held(journal, &key("a"), new, Ownership::Owned);
    // also by one that comes when the first has ended
    journal.remove(&key("a"), new).unwrap();
    let next = journal.put(&key("a"), "next").unwrap();
    assert_held(journal, &key("a"), new, Ownership::Lost);
    assert_held(journal, &key("a"), next, Ownership::Owned);
}

pub(crate) fn leaves_of_different_people_do_not_meet<S: Stand>() {
    let stand = S::start();
    let journal = stand.journal();
    let names = ["a", "A", "a ", "\"a\"", "ä", "a\\u0000", "[a]", "{a}", "🦀"];
    let fences: Vec<_> = names
        .iter()
        .map(|name| journal.put(&key(name), name).unwrap())
        .collect();
    journal.remove(&key("a"), fences[0]).unwrap();
    for (name, fence) in names.iter().zip(&fences).skip(1) {
        assert_held(journal, &key(name), *fence, Ownership::Owned);
    }
    assert_held(journal, &key("a"), fences[0], Ownership::Lost);
}

pub(crate) fn what_is_ours_is_not_adopted_again<S: Stand>() {
    let stand = S::start();
    let journal = stand.journal();
    let fence = journal.put(&key("a"), "a").unwrap();
    assert_eq!(adopted(journal), []);
    assert!(journal.claim(&key("a")).unwrap().is_none());
    assert!(journal.claim(&key("nobody")).unwrap().is_none());
    assert_held(journal, &key("a"), fence, Ownership::Owned);
}

pub(crate) fn a_record_without_end_is_refused<S: Stand>() {
    let stand = S::start();
    let journal = stand.journal();
    let fence = journal
        .put(&key("a"), &"x".repeat(MAX_RECORD_BYTES))
        .unwrap();
    let huge = "x".repeat(MAX_RECORD_BYTES + 1);
    assert!(journal.put(&key("a"), &huge).is_err());
    assert!(journal.update(&key("a"), fence, &huge).is_err());
    assert_held(journal, &key("a"), fence, Ownership::Owned);
    assert!(journal.problem().is_none());
}

pub(crate) fn of_many_who_come_at_once_the_last_one_stays<S: Stand>() {
    let stand = S::start();
    let journal = stand.journal();
    let turn = AtomicUsize::new(0);
    let put = || {
        let mut fences: Vec<(ParticipantKey, FencingToken)> = Vec::new();
        for _ in 0..40 {
            let number = turn.fetch_add(1, Ordering::SeqCst);
            let key = key(&(number % 7).to_string());
            let fence = journal.put(&key, "of many").unwrap();
            journal.update(&key, fence, "updated").unwrap();
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
        let last = all.iter().filter(|(other, _)| other == key);
        let last = last.map(|(_, fence)| *fence).max().unwrap();
        let hold = if *fence == last {
            Ownership::Owned
        } else {
            Ownership::Lost
        };
        assert_held(journal, key, *fence, hold);
    }
}

pub(crate) fn a_record_that_is_set_aside_is_no_leave_any_more<S: Stand>() {
    let stand = S::start();
    let journal = stand.journal();
    let fence = journal.put(&key("a"), "nonsense").unwrap();
    let why = "it is nonsense";
    assert_eq!(
        journal.quarantine(&key("a"), fence, why).unwrap(),
        Ownership::Owned
    );
    assert_held(journal, &key("a"), fence, Ownership::Lost);
    assert_eq!(
        journal.quarantine(&key("a"), fence, why).unwrap(),
        Ownership::Lost
    );
    assert_eq!(adopted(journal), []);
}

pub(crate) fn a_closed_journal_takes_nothing<S: Durable>() {
    let stand = S::start();
    stand.journal().close();
    assert!(stand.journal().put(&key("a"), "late").is_err());
    let stand = stand.after_the_end();
    assert_eq!(adopted(stand.journal()), []);
}

pub(crate) fn what_was_acknowledged_is_there_after_a_crash<S: Durable>() {
    let stand = S::start();
    let journal = stand.journal();
    let expected: Vec<_> = (0..10)
        .map(|number| {
            let (key, record) = (key(&number.to_string()), format!("\"{number}\\é\u{1}"));
            journal.put(&key, &record).unwrap();
            (key, record)
        })
        .collect();
    journal.put(&key("5"), "replaced").unwrap();
    let stand = stand.after_a_crash();
    let mut found = records(stand.journal());
    assert_eq!(found.remove(5), (key("5"), "replaced".to_owned()));
    let mut expected = expected;
    expected.remove(5);
    assert_eq!(found, expected);
}

pub(crate) fn what_is_adopted_is_ours<S: Durable>() {
    let stand = S::start();
    stand.journal().put(&key("a"), "old").unwrap();
    let stand = stand.after_a_crash();
    let journal = stand.journal();
    let adopted_ones = adopted(journal);
    assert_eq!(adopted_ones.len(), 1);
    assert_held(journal, &key("a"), adopted_ones[0].1, Ownership::Owned);
    assert_eq!(adopted(journal), []);
    let new = journal.put(&key("a"), "new").unwrap();
    assert_held(journal, &key("a"), adopted_ones[0].1, Ownership::Lost);
    let stand = stand.after_a_crash();
    assert_eq!(records(stand.journal()), [(key("a"), "new".to_owned())]);
    assert_held(stand.journal(), &key("a"), new, Ownership::Lost);
}

pub(crate) fn a_new_leave_takes_the_place_of_one_that_was_not_adopted_yet<S: Durable>() {
    let stand = S::start();
    stand.journal().put(&key("a"), "old").unwrap();
    let stand = stand.after_a_crash();
    let fence = stand.journal().put(&key("a"), "new").unwrap();
    assert_eq!(adopted(stand.journal()), []);
    stand.journal().remove(&key("a"), fence).unwrap();
    assert_eq!(adopted(stand.journal()), []);
    let stand = stand.after_the_end();
    assert_eq!(adopted(stand.journal()), []);
}

pub(crate) fn what_was_waited_for_is_there_after_a_crash<S: Durable>() {
    let stand = S::start();
    let journal = stand.journal();
    let [ended, goes_on] = ["ended", "goes on"].map(|name| journal.put(&key(name), "new").unwrap());
    journal.sync().unwrap();
    journal.update(&key("goes on"), goes_on, "newest").unwrap();
    journal.remove(&key("ended"), ended).unwrap();
    journal.sync().unwrap();
    let stand = stand.after_a_crash();
    let expected = [(key("goes on"), "newest".to_owned())];
    assert_eq!(records(stand.journal()), expected);
}

pub(crate) fn a_leave_that_was_not_adopted_yet_can_be_taken<S: Durable>() {
    let stand = S::start();
    for name in ["a", "b"] {
        stand.journal().put(&key(name), name).unwrap();
    }
    let stand = stand.after_a_crash();
    let (fence, record) = stand.journal().claim(&key("b")).unwrap().unwrap();
    assert_eq!(record, "b");
    assert_held(stand.journal(), &key("b"), fence, Ownership::Owned);
    assert_eq!(records(stand.journal()), [(key("a"), "a".to_owned())]);
    assert!(stand.journal().claim(&key("b")).unwrap().is_none());
}

pub(crate) fn progress_and_ends_are_written_at_the_end<S: Durable>() {
    let stand = S::start();
    let journal = stand.journal();
    let [ended, goes_on, replaced] =
        ["ended", "goes on", "replaced"].map(|name| journal.put(&key(name), "new").unwrap());
    journal.update(&key("ended"), ended, "older").unwrap();
    journal.remove(&key("ended"), ended).unwrap();
    journal.update(&key("goes on"), goes_on, "older").unwrap();
    journal.update(&key("goes on"), goes_on, "newest").unwrap();
    journal.put(&key("replaced"), "newest").unwrap();
    journal.update(&key("replaced"), replaced, "older").unwrap();
    let stand = stand.after_the_end();
    let expected = ["goes on", "replaced"].map(|name| (key(name), "newest".to_owned()));
    assert_eq!(records(stand.journal()), expected);
}

/// Makes tests of the sentences.
macro_rules! sentences {
    ($stand:ty: $($sentence:ident)*) => {
        $(#[test]
        fn $sentence() {
            crate::conformance::$sentence::<$stand>();
        })*
    };
}

/// All sentences that hold for any journal.
macro_rules! conforms {
    ($stand:ty) => {
        crate::conformance::sentences! { $stand:
            a_leave_is_ours_from_its_beginning_to_its_end
            a_replaced_leave_is_lost
            leaves_of_different_people_do_not_meet
            what_is_ours_is_not_adopted_again
            a_record_without_end_is_refused
            of_many_who_come_at_once_the_last_one_stays
            a_record_that_is_set_aside_is_no_leave_any_more
        }
    };
}

/// All sentences that hold for a journal that outlives us.
macro_rules! outlives {
    ($stand:ty) => {
        crate::conformance::sentences! { $stand:
            a_closed_journal_takes_nothing
            what_was_acknowledged_is_there_after_a_crash
            what_was_waited_for_is_there_after_a_crash
            a_leave_that_was_not_adopted_yet_can_be_taken
            what_is_adopted_is_ours
            a_new_leave_takes_the_place_of_one_that_was_not_adopted_yet
            progress_and_ends_are_written_at_the_end
        }
    };
}

pub(crate) use {conforms, outlives, sentences};
