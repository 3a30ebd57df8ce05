use super::*;
use crate::livekit::token::{Identity, RoomName};

const EVERY: Duration = Duration::from_secs(30);
const STAY: Duration = Duration::from_secs(1000);
const STAYS: Verdict = Verdict::Stays {
    out: false,
    sure: true,
};

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
    (Table::new(EVERY, STAY), Instant::now())
}

fn task(table: &mut Table, now: Instant) -> Option<Task> {
    match table.next(now) {
        Next::Now(task) => Some(task),
        Next::In(_) => None,
    }
}

#[test]
fn a_guest_is_looked_at_when_they_come_and_again_and_again() {
    let (mut table, now) = table();
    table.admit(key("a"), guest("@a:hs"), true, now).unwrap();
    assert!(task(&mut table, now).is_none());
    table.came(&key("a"), now);
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
}

#[test]
fn a_guest_is_forgotten_once_they_are_gone_and_cannot_come_back() {
    let (mut table, now) = table();
    table.admit(key("a"), guest("@a:hs"), false, now).unwrap();
    let early = task(&mut table, now + EVERY).unwrap();
    table.done(early, STAYS, now + EVERY);
    let late = task(&mut table, now + STAY).unwrap();
    assert!(late.ask_sfu);
    table.done(late, STAYS, now + STAY);
    let there = task(&mut table, now + STAY + EVERY).unwrap();
    assert!(!there.ask_sfu, "they were there");
    table.done(there, STAYS, now + STAY + EVERY);
    let gone = task(&mut table, now + 2 * STAY).unwrap();
    table.done(gone, Verdict::Gone, now + 2 * STAY);
    assert_eq!(table.len(), 0);
    assert!(table.due.is_empty() && table.of_user.is_empty() && table.of_stranger.is_empty());
}

#[test]
fn whoever_comes_or_gets_a_token_during_the_last_look_stays() {
    for comes in [true, false] {
        let (mut table, now) = table();
        table.admit(key("a"), guest("@a:hs"), true, now).unwrap();
        let last = task(&mut table, now + STAY).unwrap();
        if comes {
            table.came(&key("a"), now + STAY);
        } else {
            table
                .admit(key("a"), guest("@a:hs"), true, now + STAY)
                .unwrap();
        }
        table.done(last, Verdict::Gone, now + STAY);
        assert_eq!(table.len(), 1);
    }
}

#[test]
fn an_sfu_that_does_not_say_is_asked_again_soon() {
    let (mut table, now) = table();
    table.admit(key("a"), guest("@a:hs"), true, now).unwrap();
    let asked = task(&mut table, now + STAY).unwrap();
    let unsure = Verdict::Stays {
        out: true,
        sure: false,
    };
    table.done(asked, unsure, now + STAY);
    let again = task(&mut table, now + STAY + UNSURE).unwrap();
    assert!(again.ask_sfu && again.out);
}

#[test]
fn nobody_takes_all_places() {
    let (mut table, now) = table();
    let mut many = |user: &dyn Fn(usize) -> String, local, count: usize, name: &str| {
        (0..count)
            .filter(|n| {
                let key = key(&format!("{name}{n}"));
                table.admit(key, guest(&user(*n)), local, now).is_ok()
            })
            .count()
    };
    assert_eq!(many(&|_| "@one:hs".into(), true, 100, "one"), PER_USER);
    assert_eq!(
        many(&|n| format!("@{n}:evil"), false, 3000, "evil"),
        PER_STRANGER
    );
    let rest = TOTAL - PER_USER - PER_STRANGER;
    assert_eq!(many(&|n| format!("@{n}:hs"), true, TOTAL, "all"), rest);
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
    // while they are looked at what is asked may be too old
    assert_eq!(table.doubt(&there("!r"), now), 2);
    for task in seen {
        table.done(task, STAYS, now);
    }
    let out = Verdict::Stays {
        out: true,
        sure: true,
    };
    for _ in 0..2 {
        let task = task(&mut table, now).unwrap();
        table.done(task, out, now);
    }
    // whoever is out causes no more work, however often they ask
    assert_eq!(table.doubt(&there("!r"), now), 0);
    assert!(task(&mut table, now).is_none());
}
