//! Who keeps a place where there are too many.

use super::*;
use crate::membership::table::quota::{
    MAX_PARTICIPANTS, MAX_PER_REMOTE_SERVER, MAX_PER_USER, MAX_REMOTE,
};

#[test]
fn strangers_leave_places_for_our_own() {
    let (mut table, now) = table();
    for n in 0..2 * MAX_PARTICIPANTS {
        let user = format!("@{n}:evil{}", n / 1000);
        let _ = table.record_discovered(key(&format!("evil{n}")), guest(&user), false, now);
    }
    assert_eq!(table.len(), MAX_REMOTE);
    let error = table.record_issued_token(key("more"), guest("@a:evil"), false, now);
    assert_eq!(error.unwrap_err().retry_after, EVERY);
    let own = |n: usize| format!("own{n}");
    for n in 0..MAX_PARTICIPANTS - MAX_REMOTE {
        let user = format!("@{n}:hs");
        table
            .record_discovered(key(&own(n)), guest(&user), true, now)
            .unwrap();
    }
    assert!(
        table
            .record_issued_token(key("own"), guest("@a:hs"), true, now)
            .is_err()
    );
    // a place is free as soon as it is known that somebody has left
    table.mark_left(&key(&own(7)), now);
    let look = (0..).find_map(|_| {
        let look = task(&mut table, now + EVERY).unwrap();
        look.ask_sfu.then_some(look)
    });
    table.complete_check(look.unwrap(), CheckResult::Absent, now + EVERY);
    assert_eq!(
        table.record_issued_token(key("own"), guest("@a:hs"), true, now + EVERY),
        Ok(())
    );
    assert!(!table.mark_joined(&key(&own(7)), now + EVERY));
}

#[test]
fn a_full_share_loses_its_oldest_who_is_in_no_call() {
    for (share, of_user) in [(MAX_PER_USER, true), (MAX_PER_REMOTE_SERVER, false)] {
        let (mut table, now) = table();
        let name = |n: usize| format!("m{n}");
        let mut admit = |n: usize, came: bool| {
            let user = if of_user { 0 } else { n };
            let (guest, at) = (
                guest(&format!("@{user}:x")),
                now + FIRST_RETRY * n as u32 / 1000,
            );
            let admitted = table.record_issued_token(key(&name(n)), guest, false, at);
            if came {
                assert!(table.mark_joined(&key(&name(n)), at));
            }
            (admitted, table.len())
        };
        // the first one is in the call, and the second one only has a token
        for n in 0..share {
            assert_eq!(admit(n, n != 1), (Ok(()), n + 1));
        }
        assert_eq!(admit(share, true), (Ok(()), share));
        let (refused, kept) = admit(share + 1, false);
        assert_eq!((refused.unwrap_err().retry_after, kept), (EVERY, share));
        assert!(table.mark_joined(&key(&name(0)), now) && !table.mark_joined(&key(&name(1)), now));
    }
}

#[test]
fn as_many_of_a_user_as_the_sfu_lets_in_are_looked_at() {
    let (mut table, now) = table();
    for n in 0..2 * MAX_PER_USER {
        let key = key(&format!("m{n}"));
        table
            .record_discovered(key, guest("@a:x"), false, now)
            .unwrap();
    }
    assert_eq!(table.len(), 2 * MAX_PER_USER);
    assert!(
        table
            .record_issued_token(key("more"), guest("@a:x"), false, now)
            .is_err()
    );
    let looks = std::iter::from_fn(|| task(&mut table, now + EVERY));
    assert_eq!(looks.count(), 2 * MAX_PER_USER);
}

#[test]
fn whoever_loses_their_place_during_a_look_is_not_looked_at_twice() {
    let (mut table, now) = table_with_a();
    table.recheck(&guest("@a:hs"), now);
    let look = task(&mut table, now).unwrap();
    for n in 0..MAX_PER_USER {
        let key = key(&format!("m{n}"));
        table
            .record_issued_token(key, guest("@a:hs"), true, now + FIRST_RETRY)
            .unwrap();
    }
    assert!(!table.entries.contains_key(&key("a")));
    table
        .record_issued_token(key("a"), guest("@a:hs"), true, now + FIRST_RETRY)
        .unwrap();
    table.complete_check(look, OUT, now + FIRST_RETRY);
    assert_eq!(table.len(), MAX_PER_USER);
    let far = now + EVERY * ABSENT_INTERVAL_FACTOR + FIRST_RETRY;
    let looks = std::iter::from_fn(|| task(&mut table, far));
    assert_eq!(looks.count(), MAX_PER_USER);
}
