mod places;

use super::entry::{AFTERGLOW, RARELY, RETRY};
use super::*;
use crate::livekit::token::{Identity, RoomName};

const EVERY: Duration = Duration::from_secs(30);
const LIFETIME: Duration = Duration::from_secs(400);
const STAYS: Verdict = Verdict::Stays { shown: false };
const OUT: Verdict = Verdict::Out { shown: false };

fn key(name: &str) -> Key {
    Key {
        room: RoomName::new("room".into()).unwrap(),
        identity: Identity::new(name.into()).unwrap(),
    }
}

fn guest(user: &str) -> Guest {
    Guest {
        room: RoomId::parse("!room").unwrap(),
        user: UserId::parse(user).unwrap(),
    }
}

fn table() -> (Table, Instant) {
    (Table::new(EVERY, LIFETIME), Instant::now())
}

/// With `@a:hs`, who has a token.
fn table_with_a() -> (Table, Instant) {
    let (mut table, now) = table();
    table.admit(key("a"), guest("@a:hs"), true, now).unwrap();
    (table, now)
}

/// With `@a:hs`, who is in the call and was looked at when they came.
fn table_with_a_present() -> (Table, Instant) {
    let (mut table, now) = table_with_a();
    assert!(table.came(&key("a"), now));
    let first = task(&mut table, now).unwrap();
    table.done(first, STAYS, now);
    (table, now)
}

fn task(table: &mut Table, now: Instant) -> Option<Task> {
    match table.next(now) {
        Next::Now(task) => Some(task),
        Next::In(_) => None,
    }
}

/// When somebody is looked at next, and the look.
fn next_after(table: &mut Table, now: Instant) -> (Task, Instant) {
    match table.next(now) {
        Next::Now(task) => (task, now),
        Next::In(wait) => (task(table, now + wait).expect("a look"), now + wait),
    }
}

fn is_empty(table: &Table) -> bool {
    table.len() == 0
        && table.queue.is_empty()
        && table.of_user.is_empty()
        && table.shares.is_empty()
}

#[test]
fn a_guest_is_looked_at_when_they_come_and_again_and_again() {
    let (mut table, now) = table_with_a();
    assert!(task(&mut table, now).is_none());
    assert!(table.came(&key("a"), now));
    let first = task(&mut table, now).unwrap();
    assert!(
        !first.ask_sfu && task(&mut table, now).is_none(),
        "one look at a time"
    );
    table.done(first, STAYS, now);
    assert!(task(&mut table, now + EVERY / 2).is_none());
    let second = task(&mut table, now + EVERY).unwrap();
    // they come while somebody looks: that look may be older than their coming
    table.came(&key("a"), now + EVERY);
    table.done(second, STAYS, now + EVERY);
    assert!(task(&mut table, now + EVERY).is_some());
    assert!(!table.came(&key("nobody"), now));
}

#[test]
fn whoever_has_only_a_token_is_looked_at_rarely_and_by_the_sfu_first() {
    let (mut table, now) = table_with_a();
    assert!(task(&mut table, now + EVERY * RARELY - RETRY).is_none());
    let look = task(&mut table, now + EVERY * RARELY).unwrap();
    assert!(look.ask_sfu && !look.present);
    // no webhook has told of them
    let there = Verdict::Stays { shown: true };
    table.done(look, there, now + EVERY * RARELY);
    let usual = now + EVERY * RARELY + EVERY;
    let look = task(&mut table, usual).unwrap();
    assert!(look.present && !look.ask_sfu);
}

#[test]
fn rarely_is_never_more_often_than_for_others() {
    let long = Duration::from_secs(3600);
    let (mut table, now) = (Table::new(long, 24 * long), Instant::now());
    table.admit(key("a"), guest("@a:hs"), true, now).unwrap();
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
        table.done(look, Verdict::Absent, at);
    }
    assert_eq!(at, now + LIFETIME + AFTERGLOW);
    assert!(is_empty(&table));
}

#[test]
fn whoever_was_away_for_a_moment_is_known_when_they_come_back() {
    let (mut table, now) = table_with_a_present();
    // their token is long too old, and the SFU has given them another
    let (mut at, mut asked) = (now, 0);
    while at < now + 2 * (LIFETIME + AFTERGLOW) {
        let (look, then) = next_after(&mut table, at);
        at = then;
        asked += usize::from(look.ask_sfu);
        let shown = look.ask_sfu;
        table.done(look, Verdict::Stays { shown }, at);
    }
    assert!((1..5).contains(&asked), "the SFU was asked {asked} times");
    table.left(&key("a"), at);
    let (look, gone_at) = next_after(&mut table, at);
    assert!(look.ask_sfu && look.present && gone_at - at <= EVERY);
    table.done(look, Verdict::Absent, gone_at);
    for back_at in [gone_at + EVERY, gone_at + AFTERGLOW - RETRY] {
        assert!(table.came(&key("a"), back_at), "nobody knows them");
        let look = task(&mut table, back_at).unwrap();
        assert!(!look.ask_sfu, "they are there");
        table.done(look, STAYS, back_at);
        table.left(&key("a"), back_at);
        let (look, then) = next_after(&mut table, back_at);
        table.done(look, Verdict::Absent, then);
    }
}

#[test]
fn whoever_has_left_is_forgotten_once_they_were_missed_twice() {
    let (mut table, now) = table_with_a_present();
    let left = now + LIFETIME + AFTERGLOW;
    table.left(&key("a"), left);
    let (look, first) = (task(&mut table, left).unwrap(), left);
    table.done(look, Verdict::Absent, first);
    let mut at = first;
    while table.len() > 0 {
        let (look, then) = next_after(&mut table, at);
        at = then;
        table.done(look, Verdict::Absent, at);
    }
    assert_eq!(at, first + AFTERGLOW);
    assert!(is_empty(&table));
}

#[test]
fn whoever_comes_or_gets_a_token_during_the_last_look_stays() {
    for comes in [true, false] {
        let (mut table, now) = table_with_a();
        let look = task(&mut table, now + LIFETIME).unwrap();
        table.done(look, Verdict::Absent, now + LIFETIME);
        let end = now + LIFETIME + AFTERGLOW;
        let last = task(&mut table, end).unwrap();
        if comes {
            assert!(table.came(&key("a"), end));
        } else {
            table.admit(key("a"), guest("@a:hs"), true, end).unwrap();
        }
        table.done(last, Verdict::Absent, end);
        assert_eq!(table.len(), 1);
        assert_eq!(task(&mut table, end).is_some(), comes);
    }
}

#[test]
fn a_look_that_fails_is_repeated_soon_and_then_more_rarely() {
    let (mut table, now) = table_with_a_present();
    table.came(&key("a"), now);
    let mut look = task(&mut table, now).unwrap();
    let (mut at, mut waits) = (now, Vec::new());
    for _ in 0..7 {
        table.done(look, Verdict::Unknown, at);
        let (again, then) = next_after(&mut table, at);
        waits.push((then - at).as_secs());
        (look, at) = (again, then);
    }
    assert_eq!(waits, [2, 4, 8, 16, 30, 30, 30]);
    table.done(look, STAYS, at);
    let (look, then) = next_after(&mut table, at);
    assert_eq!(then - at, EVERY);
    table.done(look, Verdict::NotPutOut, then);
    assert_eq!(next_after(&mut table, then).1, then + RETRY);
}

#[test]
fn whoever_was_put_out_is_looked_for_until_they_cannot_come_back() {
    let (mut table, now) = table_with_a_present();
    let look = task(&mut table, now + EVERY).unwrap();
    table.done(look, OUT, now + EVERY);
    let mut at = now + EVERY;
    let mut looks = 0;
    while table.len() > 0 {
        let (look, then) = next_after(&mut table, at);
        assert!(look.out && look.ask_sfu && then - at <= EVERY);
        table.done(look, Verdict::Absent, then);
        (at, looks) = (then, looks + 1);
    }
    assert!(looks > 10 && at - now >= LIFETIME + AFTERGLOW);
}

#[test]
fn whoever_comes_is_looked_at_before_those_whose_time_has_only_come() {
    let (mut table, now) = table();
    for n in 0..10 {
        let (key, user) = (key(&format!("g{n}")), format!("@g{n}:hs"));
        table.found(key, guest(&user), true, now).unwrap();
    }
    let late = now + 2 * EVERY;
    assert_eq!(table.lag(late), EVERY);
    table
        .admit(key("new"), guest("@new:hs"), true, late)
        .unwrap();
    for name in ["new", "g9"] {
        table.came(&key(name), late);
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
        table.found(key(name), guest(&user), true, now).unwrap();
    }
    table
        .admit(key("token"), guest("@token:hs"), true, now)
        .unwrap();
    let late = now + EVERY * RARELY;
    let mut seen = Vec::new();
    for _ in 0..8 {
        table.came(&key("one"), late);
        table.came(&key("two"), late);
        let look = task(&mut table, late).unwrap();
        seen.push(look.key.identity.as_str().to_owned());
        table.done(look, STAYS, late);
    }
    for name in [present, "token"] {
        assert!(seen.iter().any(|seen| seen == name), "{name} in {seen:?}");
    }
}

#[test]
fn whoever_may_have_left_is_looked_at_next_in_that_room_alone() {
    let (mut table, now) = table();
    let there = |room: &str| Guest {
        room: RoomId::parse(room).unwrap(),
        ..guest("@a:x")
    };
    for (name, guest) in [
        ("phone", there("!r")),
        ("laptop", there("!r")),
        ("elsewhere", there("!other")),
        ("another", guest("@b:x")),
    ] {
        table.admit(key(name), guest, true, now).unwrap();
    }
    assert_eq!(table.doubt(&guest("@nobody:x"), now), 0);
    assert_eq!(table.doubt(&there("!r"), now), 2);
    let mut seen: Vec<_> = std::iter::from_fn(|| task(&mut table, now)).collect();
    seen.sort_by(|a, b| a.key.identity.as_str().cmp(b.key.identity.as_str()));
    let names: Vec<_> = seen.iter().map(|t| t.key.identity.as_str()).collect();
    assert_eq!(names, ["laptop", "phone"]);
    assert!(seen.iter().all(|task| !task.ask_sfu), "they may be there");
    // while they are looked at what is asked may be too old
    assert_eq!(table.doubt(&there("!r"), now), 2);
    for task in seen {
        table.done(task, STAYS, now);
    }
    for _ in 0..2 {
        let task = task(&mut table, now).unwrap();
        table.done(task, OUT, now);
    }
    // whoever is out causes no more work, however often they ask
    assert_eq!(table.doubt(&there("!r"), now), 0);
    assert!(task(&mut table, now).is_none());
}
