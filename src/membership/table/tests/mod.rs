mod places;

use super::entry::{ABSENT_INTERVAL_FACTOR, FIRST_RETRY, REJOIN_GRACE};
use super::*;
use crate::livekit::id::{ParticipantIdentity, RoomName};

const EVERY: Duration = Duration::from_secs(30);
const LIFETIME: Duration = Duration::from_secs(400);
const STAYS: CheckResult = CheckResult::Allowed { shown: false };
const OUT: CheckResult = CheckResult::Removed { shown: false };

fn key(name: &str) -> ParticipantKey {
    ParticipantKey {
        room: RoomName::new("room".into()).unwrap(),
        identity: ParticipantIdentity::new(name.into()).unwrap(),
    }
}

fn guest(user: &str) -> TrackedParticipant {
    TrackedParticipant {
        room_id: RoomId::parse("!room").unwrap(),
        user_id: UserId::parse(user).unwrap(),
    }
}

fn table() -> (ParticipantTable, Instant) {
    (ParticipantTable::new(EVERY, LIFETIME), Instant::now())
}

/// With `@a:hs`, who has a token.
fn table_with_a() -> (ParticipantTable, Instant) {
    let (mut table, now) = table();
    table
        .record_issued_token(key("a"), guest("@a:hs"), true, now)
        .unwrap();
    (table, now)
}

/// With `@a:hs`, who is in the call and was looked at when they came.
fn table_with_a_present() -> (ParticipantTable, Instant) {
    let (mut table, now) = table_with_a();
    assert!(table.mark_joined(&key("a"), now));
    let first = task(&mut table, now).unwrap();
    table.complete_check(first, STAYS, now);
    (table, now)
}

fn task(table: &mut ParticipantTable, now: Instant) -> Option<CheckTask> {
    match table.next_check(now) {
        NextCheck::Due(task) => Some(task),
        NextCheck::Wait(_) => None,
    }
}

/// When somebody is looked at next, and the look.
fn next_after(table: &mut ParticipantTable, now: Instant) -> (CheckTask, Instant) {
    match table.next_check(now) {
        NextCheck::Due(task) => (task, now),
        NextCheck::Wait(wait) => (task(table, now + wait).expect("a look"), now + wait),
    }
}

fn is_empty(table: &ParticipantTable) -> bool {
    table.len() == 0
        && table.queue.is_empty()
        && table.keys_by_user.is_empty()
        && table.quota.is_empty()
}

#[test]
fn a_guest_is_looked_at_when_they_come_and_again_and_again() {
    let (mut table, now) = table_with_a();
    assert!(task(&mut table, now).is_none());
    assert!(table.mark_joined(&key("a"), now));
    let first = task(&mut table, now).unwrap();
    assert!(
        !first.ask_sfu && task(&mut table, now).is_none(),
        "one look at a time"
    );
    table.complete_check(first, STAYS, now);
    assert!(task(&mut table, now + EVERY / 2).is_none());
    let second = task(&mut table, now + EVERY).unwrap();
    // they come while somebody looks: that look may be older than their coming
    table.mark_joined(&key("a"), now + EVERY);
    table.complete_check(second, STAYS, now + EVERY);
    assert!(task(&mut table, now + EVERY).is_some());
    assert!(!table.mark_joined(&key("nobody"), now));
}

#[test]
fn whoever_has_only_a_token_is_looked_at_rarely_and_by_the_sfu_first() {
    let (mut table, now) = table_with_a();
    assert!(
        task(
            &mut table,
            now + EVERY * ABSENT_INTERVAL_FACTOR - FIRST_RETRY
        )
        .is_none()
    );
    let look = task(&mut table, now + EVERY * ABSENT_INTERVAL_FACTOR).unwrap();
    assert!(look.ask_sfu && !look.present);
    // no webhook has told of them
    let there = CheckResult::Allowed { shown: true };
    table.complete_check(look, there, now + EVERY * ABSENT_INTERVAL_FACTOR);
    let usual = now + EVERY * ABSENT_INTERVAL_FACTOR + EVERY;
    let look = task(&mut table, usual).unwrap();
    assert!(look.present && !look.ask_sfu);
}

#[test]
fn rarely_is_never_more_often_than_for_others() {
    let long = Duration::from_secs(3600);
    let (mut table, now) = (ParticipantTable::new(long, 24 * long), Instant::now());
    table
        .record_issued_token(key("a"), guest("@a:hs"), true, now)
        .unwrap();
    assert_eq!(next_after(&mut table, now).1, now + long);
}

#[test]
fn whoever_never_came_is_forgotten_when_their_token_brings_them_back_no_more() {
    let (mut table, now) = table_with_a();
    let mut at = now;
    while table.len() > 0 {
        let (look, then) = next_after(&mut table, at);
        at = then;
        assert!(look.ask_sfu && at - now < Duration::from_secs(3600));
        table.complete_check(look, CheckResult::Absent, at);
    }
    assert_eq!(at, now + LIFETIME + REJOIN_GRACE);
    assert!(is_empty(&table));
}

#[test]
fn whoever_was_away_for_a_moment_is_known_when_they_come_back() {
    let (mut table, now) = table_with_a_present();
    // their token is long too old, and the SFU has given them another
    let (mut at, mut asked) = (now, 0);
    while at < now + 2 * (LIFETIME + REJOIN_GRACE) {
        let (look, then) = next_after(&mut table, at);
        at = then;
        asked += usize::from(look.ask_sfu);
        let shown = look.ask_sfu;
        table.complete_check(look, CheckResult::Allowed { shown }, at);
    }
    assert!((1..5).contains(&asked), "the SFU was asked {asked} times");
    table.mark_left(&key("a"), at);
    let (look, gone_at) = next_after(&mut table, at);
    assert!(look.ask_sfu && look.present && gone_at - at <= EVERY);
    table.complete_check(look, CheckResult::Absent, gone_at);
    for back_at in [gone_at + EVERY, gone_at + REJOIN_GRACE - FIRST_RETRY] {
        assert!(table.mark_joined(&key("a"), back_at), "nobody knows them");
        let look = task(&mut table, back_at).unwrap();
        assert!(!look.ask_sfu, "they are there");
        table.complete_check(look, STAYS, back_at);
        table.mark_left(&key("a"), back_at);
        let (look, then) = next_after(&mut table, back_at);
        table.complete_check(look, CheckResult::Absent, then);
    }
}

#[test]
fn whoever_has_left_is_forgotten_once_they_were_missed_twice() {
    let (mut table, now) = table_with_a_present();
    let left = now + LIFETIME + REJOIN_GRACE;
    table.mark_left(&key("a"), left);
    let (look, first) = (task(&mut table, left).unwrap(), left);
    table.complete_check(look, CheckResult::Absent, first);
    let mut at = first;
    while table.len() > 0 {
        let (look, then) = next_after(&mut table, at);
        at = then;
        table.complete_check(look, CheckResult::Absent, at);
    }
    assert_eq!(at, first + REJOIN_GRACE);
    assert!(is_empty(&table));
}

#[test]
fn whoever_comes_or_gets_a_token_during_the_last_look_stays() {
    for comes in [true, false] {
        let (mut table, now) = table_with_a();
        let look = task(&mut table, now + LIFETIME).unwrap();
        table.complete_check(look, CheckResult::Absent, now + LIFETIME);
        let end = now + LIFETIME + REJOIN_GRACE;
        let last = task(&mut table, end).unwrap();
        if comes {
            assert!(table.mark_joined(&key("a"), end));
        } else {
            table
                .record_issued_token(key("a"), guest("@a:hs"), true, end)
                .unwrap();
        }
        table.complete_check(last, CheckResult::Absent, end);
        assert_eq!(table.len(), 1);
        assert_eq!(task(&mut table, end).is_some(), comes);
    }
}

#[test]
fn a_look_that_fails_is_repeated_soon_and_then_more_rarely() {
    let (mut table, now) = table_with_a_present();
    table.mark_joined(&key("a"), now);
    let mut look = task(&mut table, now).unwrap();
    let (mut at, mut waits) = (now, Vec::new());
    for _ in 0..7 {
        table.complete_check(look, CheckResult::Unknown, at);
        let (again, then) = next_after(&mut table, at);
        waits.push((then - at).as_secs());
        (look, at) = (again, then);
    }
    assert_eq!(waits, [2, 4, 8, 16, 30, 30, 30]);
    table.complete_check(look, STAYS, at);
    let (look, then) = next_after(&mut table, at);
    assert_eq!(then - at, EVERY);
    table.complete_check(look, CheckResult::RemovalFailed, then);
    assert_eq!(next_after(&mut table, then).1, then + FIRST_RETRY);
}

#[test]
fn whoever_was_put_out_is_looked_for_until_they_cannot_come_back() {
    let (mut table, now) = table_with_a_present();
    let look = task(&mut table, now + EVERY).unwrap();
    table.complete_check(look, OUT, now + EVERY);
    let mut at = now + EVERY;
    let mut looks = 0;
    while table.len() > 0 {
        let (look, then) = next_after(&mut table, at);
        assert!(look.removed && look.ask_sfu && then - at <= EVERY);
        table.complete_check(look, CheckResult::Absent, then);
        (at, looks) = (then, looks + 1);
    }
    assert!(looks > 10 && at - now >= LIFETIME + REJOIN_GRACE);
}

#[test]
fn whoever_comes_is_looked_at_before_those_whose_time_has_only_come() {
    let (mut table, now) = table();
    for n in 0..10 {
        let (key, user) = (key(&format!("g{n}")), format!("@g{n}:hs"));
        table
            .record_discovered(key, guest(&user), true, now)
            .unwrap();
    }
    let late = now + 2 * EVERY;
    assert_eq!(table.lag(late), EVERY);
    table
        .record_issued_token(key("new"), guest("@new:hs"), true, late)
        .unwrap();
    for name in ["new", "g9"] {
        table.mark_joined(&key(name), late);
        let next = task(&mut table, late).unwrap();
        assert_eq!(*next.key, key(name));
    }
}

#[test]
fn a_flood_of_those_who_come_does_not_keep_others_waiting_for_ever() {
    let (mut table, now) = table();
    let present = "present";
    for name in ["one", "two"].iter().chain([&present]) {
        let user = format!("@{name}:hs");
        table
            .record_discovered(key(name), guest(&user), true, now)
            .unwrap();
    }
    table
        .record_issued_token(key("token"), guest("@token:hs"), true, now)
        .unwrap();
    let late = now + EVERY * ABSENT_INTERVAL_FACTOR;
    let mut seen = Vec::new();
    for _ in 0..8 {
        table.mark_joined(&key("one"), late);
        table.mark_joined(&key("two"), late);
        let look = task(&mut table, late).unwrap();
        seen.push(look.key.identity.as_str().to_owned());
        table.complete_check(look, STAYS, late);
    }
    for name in [present, "token"] {
        assert!(seen.iter().any(|seen| seen == name), "{name} in {seen:?}");
    }
}

#[test]
fn whoever_may_have_left_is_looked_at_next_in_that_room_alone() {
    let (mut table, now) = table();
    let there = |room: &str| TrackedParticipant {
        room_id: RoomId::parse(room).unwrap(),
        ..guest("@a:x")
    };
    for (name, guest) in [
        ("phone", there("!r")),
        ("laptop", there("!r")),
        ("elsewhere", there("!other")),
        ("another", guest("@b:x")),
    ] {
        table
            .record_issued_token(key(name), guest, true, now)
            .unwrap();
    }
    assert_eq!(table.recheck(&guest("@nobody:x"), now), 0);
    assert_eq!(table.recheck(&there("!r"), now), 2);
    let mut seen: Vec<_> = std::iter::from_fn(|| task(&mut table, now)).collect();
    seen.sort_by(|a, b| a.key.identity.as_str().cmp(b.key.identity.as_str()));
    let names: Vec<_> = seen.iter().map(|t| t.key.identity.as_str()).collect();
    assert_eq!(names, ["laptop", "phone"]);
    assert!(seen.iter().all(|task| !task.ask_sfu), "they may be there");
    // while they are looked at what is asked may be too old
    assert_eq!(table.recheck(&there("!r"), now), 2);
    for task in seen {
        table.complete_check(task, STAYS, now);
    }
    for _ in 0..2 {
        let task = task(&mut table, now).unwrap();
        table.complete_check(task, OUT, now);
    }
    // whoever is out causes no more work, however often they ask
    assert_eq!(table.recheck(&there("!r"), now), 0);
    assert!(task(&mut table, now).is_none());
}
