//! Quotas and evictions.

use super::*;
use crate::membership::table::quota::{
    MAX_PARTICIPANTS, MAX_PER_REMOTE_SERVER, MAX_PER_USER, MAX_REMOTE,
};

#[test]
fn participants_of_other_homeservers_leave_room_for_local_ones() {
    let (mut table, now) = table();
    for n in 0..2 * MAX_PARTICIPANTS {
        let user = format!("@{n}:evil{}", n / 1000);
        let _ = table.record_discovered(key(&format!("evil{n}")), member(&user), now);
    }
    assert_eq!(table.len(), MAX_REMOTE);
    let error = table.record_issued_token(key("more"), member("@a:evil"), now);
    assert_eq!(error.unwrap_err().retry_after, CHECK_INTERVAL);
    let local = |n: usize| format!("local{n}");
    for n in 0..MAX_PARTICIPANTS - MAX_REMOTE {
        let user = format!("@{n}:hs");
        table
            .record_discovered(key(&local(n)), member(&user), now)
            .unwrap();
    }
    assert!(
        table
            .record_issued_token(key("local"), member("@a:hs"), now)
            .is_err()
    );
    // an absent participant is evicted
    table.mark_left(&key(&local(7)), now);
    let check = (0..).find_map(|_| {
        let check = due_check(&mut table, now + CHECK_INTERVAL).unwrap();
        check.ask_sfu.then_some(check)
    });
    table.complete_check(check.unwrap(), CheckResult::Absent, now + CHECK_INTERVAL);
    assert_eq!(
        table.record_issued_token(key("local"), member("@a:hs"), now + CHECK_INTERVAL),
        Ok(())
    );
    assert!(!table.mark_joined(&key(&local(7)), now + CHECK_INTERVAL));
}

#[test]
fn a_full_quota_evicts_its_oldest_absent_participant() {
    for (limit, of_user) in [(MAX_PER_USER, true), (MAX_PER_REMOTE_SERVER, false)] {
        let (mut table, now) = table();
        let name = |n: usize| format!("m{n}");
        let mut record = |n: usize, joins: bool| {
            let user = format!("@{}:x", if of_user { 0 } else { n });
            let at = now + FIRST_RETRY * n as u32 / 1000;
            let recorded = table.record_issued_token(key(&name(n)), member(&user), at);
            if joins {
                assert!(table.mark_joined(&key(&name(n)), at));
            }
            (recorded, table.len())
        };
        // the second participant has not joined
        for n in 0..limit {
            assert_eq!(record(n, n != 1), (Ok(()), n + 1));
        }
        assert_eq!(record(limit, true), (Ok(()), limit));
        let (refused, count) = record(limit + 1, false);
        assert_eq!(
            (refused.unwrap_err().retry_after, count),
            (CHECK_INTERVAL, limit)
        );
        assert!(table.mark_joined(&key(&name(0)), now) && !table.mark_joined(&key(&name(1)), now));
    }
}

#[test]
fn connected_participants_are_checked_beyond_the_quota_of_their_user() {
    let (mut table, now) = table();
    for n in 0..2 * MAX_PER_USER {
        let key = key(&format!("m{n}"));
        table.record_discovered(key, member("@a:x"), now).unwrap();
    }
    assert_eq!(table.len(), 2 * MAX_PER_USER);
    assert!(
        table
            .record_issued_token(key("more"), member("@a:x"), now)
            .is_err()
    );
    let checks = std::iter::from_fn(|| due_check(&mut table, now + CHECK_INTERVAL));
    assert_eq!(checks.count(), 2 * MAX_PER_USER);
}

#[test]
fn an_entry_evicted_during_a_check_and_recorded_again_is_scheduled_once() {
    let (mut table, now) = table_with_a();
    table.recheck(&member("@a:hs"), now);
    let check = due_check(&mut table, now).unwrap();
    for n in 0..MAX_PER_USER {
        let key = key(&format!("m{n}"));
        table
            .record_issued_token(key, member("@a:hs"), now + FIRST_RETRY)
            .unwrap();
    }
    assert!(!table.entries.contains_key(&key("a")));
    table
        .record_issued_token(key("a"), member("@a:hs"), now + FIRST_RETRY)
        .unwrap();
    table.complete_check(check, REMOVED, now + FIRST_RETRY);
    assert_eq!(table.len(), MAX_PER_USER);
    let far = now + ABSENT_INTERVAL + FIRST_RETRY;
    let checks = std::iter::from_fn(|| due_check(&mut table, far));
    assert_eq!(checks.count(), MAX_PER_USER);
}
