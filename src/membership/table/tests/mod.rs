mod quotas;

use super::*;
use crate::livekit::id::{ParticipantIdentity, RoomName};
use crate::matrix::id::RoomId;

const CHECK_INTERVAL: Duration = Duration::from_secs(30);
const TOKEN_LIFETIME: Duration = Duration::from_secs(400);
const ABSENT_INTERVAL: Duration = Duration::from_secs(300);
const FIRST_RETRY: Duration = Duration::from_secs(2);
const ALLOWED: CheckResult = CheckResult::Allowed { connected: false };
const REMOVED: CheckResult = CheckResult::Removed { connected: false };

fn key(name: &str) -> ParticipantKey {
    ParticipantKey {
        room: RoomName::new("room".into()).unwrap(),
        identity: ParticipantIdentity::new(name.into()).unwrap(),
    }
}

fn member(user: &str) -> RoomMember {
    RoomMember {
        room_id: RoomId::parse("!room").unwrap(),
        user_id: UserId::parse(user).unwrap(),
    }
}

fn table_with_interval(check_interval: Duration, token_lifetime: Duration) -> ParticipantTable {
    let local_server = ServerName::parse("hs").unwrap();
    ParticipantTable::new(local_server, check_interval, token_lifetime)
}

fn table() -> (ParticipantTable, Instant) {
    let table = table_with_interval(CHECK_INTERVAL, TOKEN_LIFETIME);
    (table, Instant::now())
}

/// A table with the participant `a` of `@a:hs`, who has an access token.
fn table_with_a() -> (ParticipantTable, Instant) {
    let (mut table, now) = table();
    table
        .record_issued_token(key("a"), member("@a:hs"), now)
        .unwrap();
    (table, now)
}

/// A table with the participant `a`, who is connected and was checked on joining.
fn table_with_a_connected() -> (ParticipantTable, Instant) {
    let (mut table, now) = table_with_a();
    assert!(table.mark_joined(&key("a"), now));
    let first = due_check(&mut table, now).unwrap();
    table.complete_check(first, ALLOWED, now);
    (table, now)
}

fn due_check(table: &mut ParticipantTable, now: Instant) -> Option<CheckTask> {
    match table.next_check(now) {
        NextCheck::Due(task) => Some(task),
        NextCheck::Wait(_) => None,
    }
}

/// The next check and its time.
fn next_check(table: &mut ParticipantTable, now: Instant) -> (CheckTask, Instant) {
    match table.next_check(now) {
        NextCheck::Due(task) => (task, now),
        NextCheck::Wait(wait) => {
            let at = now + wait;
            (due_check(table, at).expect("a check is due"), at)
        }
    }
}

fn is_empty(table: &ParticipantTable) -> bool {
    table.len() == 0
        && table.queue.is_empty()
        && table.keys_by_user.is_empty()
        && table.quota.is_empty()
}

#[test]
fn a_participant_is_checked_on_joining_and_regularly() {
    let (mut table, now) = table_with_a();
    assert!(due_check(&mut table, now).is_none());
    assert!(table.mark_joined(&key("a"), now));
    let first = due_check(&mut table, now).unwrap();
    assert!(
        !first.ask_sfu && due_check(&mut table, now).is_none(),
        "one check of a participant at a time"
    );
    table.complete_check(first, ALLOWED, now);
    assert!(due_check(&mut table, now + CHECK_INTERVAL / 2).is_none());
    let second = due_check(&mut table, now + CHECK_INTERVAL).unwrap();
    // the participant joins again during a check, whose result may be older
    table.mark_joined(&key("a"), now + CHECK_INTERVAL);
    table.complete_check(second, ALLOWED, now + CHECK_INTERVAL);
    assert!(due_check(&mut table, now + CHECK_INTERVAL).is_some());
    assert!(!table.mark_joined(&key("unknown"), now));
}

#[test]
fn an_absent_participant_is_checked_less_often_and_with_the_sfu_first() {
    let (mut table, now) = table_with_a();
    assert!(due_check(&mut table, now + ABSENT_INTERVAL - FIRST_RETRY).is_none());
    let check = due_check(&mut table, now + ABSENT_INTERVAL).unwrap();
    assert!(check.ask_sfu && !check.connected);
    // the webhook of the join was lost
    let connected = CheckResult::Allowed { connected: true };
    table.complete_check(check, connected, now + ABSENT_INTERVAL);
    let regular = now + ABSENT_INTERVAL + CHECK_INTERVAL;
    let check = due_check(&mut table, regular).unwrap();
    assert!(check.connected && !check.ask_sfu);
}

#[test]
fn absent_participants_are_never_checked_more_often_than_connected_ones() {
    let long = Duration::from_secs(3600);
    let (mut table, now) = (table_with_interval(long, 24 * long), Instant::now());
    table
        .record_issued_token(key("a"), member("@a:hs"), now)
        .unwrap();
    assert_eq!(next_check(&mut table, now).1, now + long);
}

#[test]
fn a_participant_who_never_joined_is_dropped_when_the_token_has_expired() {
    let (mut table, now) = table_with_a();
    let mut at = now;
    while table.len() > 0 {
        let (check, then) = next_check(&mut table, at);
        at = then;
        assert!(check.ask_sfu && at - now < Duration::from_secs(3600));
        table.complete_check(check, CheckResult::Absent, at);
    }
    assert_eq!(at, now + TOKEN_LIFETIME + REJOIN_GRACE);
    assert!(is_empty(&table));
}

#[test]
fn a_participant_can_rejoin_within_the_grace_time() {
    let (mut table, now) = table_with_a_connected();
    // connected long after the token has expired
    let (mut at, mut sfu_calls) = (now, 0);
    while at < now + 2 * (TOKEN_LIFETIME + REJOIN_GRACE) {
        let (check, then) = next_check(&mut table, at);
        at = then;
        sfu_calls += usize::from(check.ask_sfu);
        let connected = check.ask_sfu;
        table.complete_check(check, CheckResult::Allowed { connected }, at);
    }
    assert!((1..5).contains(&sfu_calls), "{sfu_calls} calls to the SFU");
    table.mark_left(&key("a"), at);
    let (check, absent_at) = next_check(&mut table, at);
    assert!(check.ask_sfu && check.connected && absent_at - at <= CHECK_INTERVAL);
    table.complete_check(check, CheckResult::Absent, absent_at);
    for rejoins_at in [
        absent_at + CHECK_INTERVAL,
        absent_at + REJOIN_GRACE - FIRST_RETRY,
    ] {
        assert!(table.mark_joined(&key("a"), rejoins_at), "still tracked");
        let check = due_check(&mut table, rejoins_at).unwrap();
        assert!(!check.ask_sfu, "known to be connected");
        table.complete_check(check, ALLOWED, rejoins_at);
        table.mark_left(&key("a"), rejoins_at);
        let (check, then) = next_check(&mut table, rejoins_at);
        table.complete_check(check, CheckResult::Absent, then);
    }
}

#[test]
fn a_participant_who_has_left_is_dropped_after_the_grace_time() {
    let (mut table, now) = table_with_a_connected();
    let left = now + TOKEN_LIFETIME + REJOIN_GRACE;
    table.mark_left(&key("a"), left);
    let (check, first) = (due_check(&mut table, left).unwrap(), left);
    table.complete_check(check, CheckResult::Absent, first);
    let mut at = first;
    while table.len() > 0 {
        let (check, then) = next_check(&mut table, at);
        at = then;
        table.complete_check(check, CheckResult::Absent, at);
    }
    assert_eq!(at, first + REJOIN_GRACE);
    assert!(is_empty(&table));
}

#[test]
fn joining_or_a_new_token_during_the_last_check_keeps_the_entry() {
    for joins in [true, false] {
        let (mut table, now) = table_with_a();
        let check = due_check(&mut table, now + TOKEN_LIFETIME).unwrap();
        table.complete_check(check, CheckResult::Absent, now + TOKEN_LIFETIME);
        let end = now + TOKEN_LIFETIME + REJOIN_GRACE;
        let last = due_check(&mut table, end).unwrap();
        if joins {
            assert!(table.mark_joined(&key("a"), end));
        } else {
            table
                .record_issued_token(key("a"), member("@a:hs"), end)
                .unwrap();
        }
        table.complete_check(last, CheckResult::Absent, end);
        assert_eq!(table.len(), 1);
        assert_eq!(due_check(&mut table, end).is_some(), joins);
    }
}

#[test]
fn a_failed_check_is_repeated_with_backoff() {
    let (mut table, now) = table_with_a_connected();
    table.mark_joined(&key("a"), now);
    let mut check = due_check(&mut table, now).unwrap();
    let (mut at, mut waits) = (now, Vec::new());
    for _ in 0..7 {
        table.complete_check(check, CheckResult::Unknown, at);
        let (again, then) = next_check(&mut table, at);
        waits.push((then - at).as_secs());
        (check, at) = (again, then);
    }
    assert_eq!(waits, [2, 4, 8, 16, 30, 30, 30]);
    table.complete_check(check, ALLOWED, at);
    let (check, then) = next_check(&mut table, at);
    assert_eq!(then - at, CHECK_INTERVAL);
    table.complete_check(check, CheckResult::RemovalFailed, then);
    assert_eq!(next_check(&mut table, then).1, then + FIRST_RETRY);
}

#[test]
fn a_removed_participant_is_checked_until_rejoining_is_impossible() {
    let (mut table, now) = table_with_a_connected();
    let check = due_check(&mut table, now + CHECK_INTERVAL).unwrap();
    table.complete_check(check, REMOVED, now + CHECK_INTERVAL);
    let mut at = now + CHECK_INTERVAL;
    let mut checks = 0;
    while table.len() > 0 {
        let (check, then) = next_check(&mut table, at);
        assert!(check.removed && check.ask_sfu && then - at <= CHECK_INTERVAL);
        table.complete_check(check, CheckResult::Absent, then);
        (at, checks) = (then, checks + 1);
    }
    assert!(checks > 10 && at - now >= TOKEN_LIFETIME + REJOIN_GRACE);
}

#[test]
fn a_joining_participant_is_checked_before_regular_checks() {
    let (mut table, now) = table();
    for n in 0..10 {
        let (key, user) = (key(&format!("g{n}")), format!("@g{n}:hs"));
        table.record_discovered(key, member(&user), now).unwrap();
    }
    let late = now + 2 * CHECK_INTERVAL;
    assert_eq!(table.lag(late), CHECK_INTERVAL);
    table
        .record_issued_token(key("new"), member("@new:hs"), late)
        .unwrap();
    for name in ["new", "g9"] {
        table.mark_joined(&key(name), late);
        let next = due_check(&mut table, late).unwrap();
        assert_eq!(*next.key, key(name));
    }
}

#[test]
fn a_flood_of_joins_does_not_starve_other_checks() {
    let (mut table, now) = table();
    let connected = "connected";
    for name in ["one", "two"].iter().chain([&connected]) {
        let user = format!("@{name}:hs");
        table
            .record_discovered(key(name), member(&user), now)
            .unwrap();
    }
    table
        .record_issued_token(key("token"), member("@token:hs"), now)
        .unwrap();
    let late = now + ABSENT_INTERVAL;
    let mut seen = Vec::new();
    for _ in 0..8 {
        table.mark_joined(&key("one"), late);
        table.mark_joined(&key("two"), late);
        let check = due_check(&mut table, late).unwrap();
        seen.push(check.key.identity.as_str().to_owned());
        table.complete_check(check, ALLOWED, late);
    }
    for name in [connected, "token"] {
        assert!(seen.iter().any(|seen| seen == name), "{name} in {seen:?}");
    }
}

#[test]
fn a_user_who_may_have_left_a_room_is_checked_for_that_room_alone() {
    let (mut table, now) = table();
    let member_of = |room: &str| RoomMember {
        room_id: RoomId::parse(room).unwrap(),
        ..member("@a:x")
    };
    for (name, member) in [
        ("phone", member_of("!r")),
        ("laptop", member_of("!r")),
        ("elsewhere", member_of("!other")),
        ("another user", member("@b:x")),
    ] {
        table.record_issued_token(key(name), member, now).unwrap();
    }
    assert_eq!(table.recheck(&member("@unknown:x"), now), 0);
    assert_eq!(table.recheck(&member_of("!r"), now), 2);
    let mut seen: Vec<_> = std::iter::from_fn(|| due_check(&mut table, now)).collect();
    seen.sort_by(|a, b| a.key.identity.as_str().cmp(b.key.identity.as_str()));
    let names: Vec<_> = seen.iter().map(|t| t.key.identity.as_str()).collect();
    assert_eq!(names, ["laptop", "phone"]);
    assert!(seen.iter().all(|task| !task.ask_sfu), "possibly connected");
    // a recheck during a check: the result may be older
    assert_eq!(table.recheck(&member_of("!r"), now), 2);
    for task in seen {
        table.complete_check(task, ALLOWED, now);
    }
    for _ in 0..2 {
        let task = due_check(&mut table, now).unwrap();
        table.complete_check(task, REMOVED, now);
    }
    // a removed participant cannot cause further checks
    assert_eq!(table.recheck(&member_of("!r"), now), 0);
    assert!(due_check(&mut table, now).is_none());
}
