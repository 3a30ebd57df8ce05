//! Who keeps a place where there are too many.

use super::super::shares::{OF_STRANGERS, PER_STRANGER, PER_USER, TOTAL};
use super::*;

#[test]
fn strangers_leave_places_for_our_own() {
    let (mut table, now) = table();
    for n in 0..2 * TOTAL {
        let user = format!("@{n}:evil{}", n / 1000);
        let _ = table.found(key(&format!("evil{n}")), guest(&user), false, now);
    }
    assert_eq!(table.len(), OF_STRANGERS);
    let error = table.admit(key("more"), guest("@a:evil"), false, now);
    assert_eq!(error.unwrap_err().after, EVERY);
    let own = |n: usize| format!("own{n}");
    for n in 0..TOTAL - OF_STRANGERS {
        let user = format!("@{n}:hs");
        table.found(key(&own(n)), guest(&user), true, now).unwrap();
    }
    assert!(table.admit(key("own"), guest("@a:hs"), true, now).is_err());
    // a place is free as soon as it is known that somebody has left
    table.left(&key(&own(7)), now);
    let look = (0..).find_map(|_| {
        let look = task(&mut table, now + EVERY).unwrap();
        look.ask_sfu.then_some(look)
    });
    table.done(look.unwrap(), Verdict::Absent, now + EVERY);
    assert_eq!(
        table.admit(key("own"), guest("@a:hs"), true, now + EVERY),
        Ok(())
    );
    assert!(!table.came(&key(&own(7)), now + EVERY));
}

#[test]
fn a_full_share_loses_its_oldest_who_is_in_no_call() {
    for (share, of_user) in [(PER_USER, true), (PER_STRANGER, false)] {
        let (mut table, now) = table();
        let name = |n: usize| format!("m{n}");
        let mut admit = |n: usize, came: bool| {
            let user = if of_user { 0 } else { n };
            let (guest, at) = (guest(&format!("@{user}:x")), now + RETRY * n as u32 / 1000);
            let admitted = table.admit(key(&name(n)), guest, false, at);
            if came {
                assert!(table.came(&key(&name(n)), at));
            }
            (admitted, table.len())
        };
        // the first one is in the call, and the second one only has a token
        for n in 0..share {
            assert_eq!(admit(n, n != 1), (Ok(()), n + 1));
        }
        assert_eq!(admit(share, true), (Ok(()), share));
        let (refused, kept) = admit(share + 1, false);
        assert_eq!((refused.unwrap_err().after, kept), (EVERY, share));
        assert!(table.came(&key(&name(0)), now) && !table.came(&key(&name(1)), now));
    }
}

#[test]
fn as_many_of_a_user_as_the_sfu_lets_in_are_looked_at() {
    let (mut table, now) = table();
    for n in 0..2 * PER_USER {
        let key = key(&format!("m{n}"));
        table.found(key, guest("@a:x"), false, now).unwrap();
    }
    assert_eq!(table.len(), 2 * PER_USER);
    assert!(table.admit(key("more"), guest("@a:x"), false, now).is_err());
    let looks = std::iter::from_fn(|| task(&mut table, now + EVERY));
    assert_eq!(looks.count(), 2 * PER_USER);
}

#[test]
fn whoever_loses_their_place_during_a_look_is_not_looked_at_twice() {
    let (mut table, now) = table_with_a();
    table.doubt(&guest("@a:hs"), now);
    let look = task(&mut table, now).unwrap();
    for n in 0..PER_USER {
        let key = key(&format!("m{n}"));
        table.admit(key, guest("@a:hs"), true, now + RETRY).unwrap();
    }
    assert!(!table.guests.contains_key(&key("a")));
    table
        .admit(key("a"), guest("@a:hs"), true, now + RETRY)
        .unwrap();
    table.done(look, OUT, now + RETRY);
    assert_eq!(table.len(), PER_USER);
    let far = now + EVERY * RARELY + RETRY;
    let looks = std::iter::from_fn(|| task(&mut table, far));
    assert_eq!(looks.count(), PER_USER);
}
