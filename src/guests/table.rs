//! Who is to be looked at, and when. No clock of its own.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

use super::UNSURE;
use crate::journal::Key;
use crate::matrix::id::{RoomId, ServerName, UserId};

/// Most guests in all, at some 600 bytes.
const TOTAL: usize = 20_000;
/// Most of one user: one has few devices, but each time that one comes one may be another member.
const PER_USER: usize = 64;
/// Most of one other homeserver, which may make up as many users as it likes.
const PER_STRANGER: usize = 2_000;
/// Longest wait without anybody to look at.
const IDLE: Duration = Duration::from_secs(60);

/// Somebody who has a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// The Matrix room that they have to be in.
    pub room: RoomId,
    /// The user.
    pub user: UserId,
}

/// There is no room for one more guest: in all, of this user, or of their homeserver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "there are {TOTAL} guests already, {PER_USER} of the user, or {PER_STRANGER} of their homeserver"
        )
    }
}

impl std::error::Error for TooMany {}

/// Somebody to be looked at now.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) key: Key,
    pub(super) guest: Guest,
    /// Whether they were put out already.
    pub(super) out: bool,
    /// Whether the SFU is to say if they are there.
    pub(super) ask_sfu: bool,
}

/// What came of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// To be looked at again; unless `sure`, the SFU has not said what it was asked.
    Stays { out: bool, sure: bool },
    /// Not there, and without a token that still works.
    Gone,
}

#[derive(Debug)]
pub(super) enum Next {
    Now(Task),
    In(Duration),
}

#[derive(Debug)]
struct Entry {
    guest: Guest,
    local: bool,
    out: bool,
    /// When to look next; none while somebody looks.
    due: Option<Instant>,
    /// Whether to look again at once, for they came while somebody looked.
    again: bool,
    /// From when on their token brings nobody back, unless they come before.
    ask_sfu: Instant,
}

#[derive(Debug)]
pub(super) struct Table {
    every: Duration,
    stay: Duration,
    guests: HashMap<Key, Entry>,
    due: BTreeSet<(Instant, Key)>,
    of_user: HashMap<UserId, usize>,
    of_stranger: HashMap<ServerName, usize>,
}

impl Table {
    /// Guests are looked at every `every`; what brings them in works for `stay`.
    pub(super) fn new(every: Duration, stay: Duration) -> Self {
        Self {
            every,
            stay,
            guests: HashMap::new(),
            due: BTreeSet::new(),
            of_user: HashMap::new(),
            of_stranger: HashMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.guests.len()
    }

    pub(super) fn admit(
        &mut self,
        key: Key,
        guest: Guest,
        local: bool,
        now: Instant,
    ) -> Result<(), TooMany> {
        if let Some(entry) = self.guests.get_mut(&key) {
            entry.out = false;
            entry.ask_sfu = now + self.stay;
            return Ok(());
        }
        let (user, server) = (&guest.user, guest.user.server());
        let of_user = self.of_user.get(user).is_some_and(|n| *n >= PER_USER);
        let of_server = self.of_stranger.get(server);
        let of_server = of_server.is_some_and(|n| *n >= PER_STRANGER);
        if self.guests.len() >= TOTAL || of_user || of_server {
            return Err(TooMany);
        }
        *self.of_user.entry(user.clone()).or_default() += 1;
        if !local {
            *self.of_stranger.entry(server.clone()).or_default() += 1;
        }
        let due = now + self.every;
        self.due.insert((due, key.clone()));
        let entry = Entry {
            guest,
            local,
            out: false,
            due: Some(due),
            again: false,
            ask_sfu: now + self.stay,
        };
        self.guests.insert(key, entry);
        Ok(())
    }

    /// Somebody is in the call now.
    pub(super) fn came(&mut self, key: &Key, now: Instant) {
        let Some(entry) = self.guests.get_mut(key) else {
            return;
        };
        entry.ask_sfu = now + self.stay;
        match entry.due {
            None => entry.again = true,
            // before all others, whose time has only come by and by; who is there already waits for no more
            Some(due) if due > now => {
                self.due.remove(&(due, key.clone()));
                entry.due = Some(now);
                self.due.insert((now, key.clone()));
            }
            Some(_) => {}
        }
    }

    /// Whom to look at, or how long nobody is.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        let Some((due, key)) = self.due.first().cloned() else {
            return Next::In(IDLE);
        };
        if due > now {
            return Next::In(due - now);
        }
        self.due.pop_first();
        let Some(entry) = self.guests.get_mut(&key) else {
            return Next::In(Duration::ZERO);
        };
        entry.due = None;
        Next::Now(Task {
            guest: entry.guest.clone(),
            out: entry.out,
            ask_sfu: entry.ask_sfu <= now,
            key,
        })
    }

    /// Takes in what came of a look.
    pub(super) fn done(&mut self, task: Task, verdict: Verdict, now: Instant) {
        let Some(entry) = self.guests.get_mut(&task.key) else {
            return;
        };
        let came_meanwhile = entry.ask_sfu > now;
        match verdict {
            Verdict::Gone if !came_meanwhile && !entry.again => {
                let (user, server) = (entry.guest.user.clone(), entry.guest.user.server().clone());
                let local = entry.local;
                self.guests.remove(&task.key);
                take_off(&mut self.of_user, &user);
                if !local {
                    take_off(&mut self.of_stranger, &server);
                }
                return;
            }
            Verdict::Gone => {}
            Verdict::Stays { out, sure } => {
                entry.out = out;
                if task.ask_sfu && !came_meanwhile {
                    entry.ask_sfu = now + if sure { self.stay } else { UNSURE };
                }
            }
        }
        let due = if std::mem::take(&mut entry.again) {
            now
        } else {
            now + self.every
        };
        entry.due = Some(due);
        self.due.insert((due, task.key));
    }
}

fn take_off<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
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
}
