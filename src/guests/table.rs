//! Who is to be looked at, and when. No clock of its own.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

use super::UNSURE;
use crate::journal::Key;
use crate::matrix::id::{RoomId, ServerName, UserId};

/// Most guests in all, at some 700 bytes.
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
    of_user: HashMap<UserId, Vec<Key>>,
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
        let of_user = self.of_user.get(user);
        let of_user = of_user.is_some_and(|keys| keys.len() >= PER_USER);
        let of_server = self.of_stranger.get(server);
        let of_server = of_server.is_some_and(|n| *n >= PER_STRANGER);
        if self.guests.len() >= TOTAL || of_user || of_server {
            return Err(TooMany);
        }
        let of_user = self.of_user.entry(user.clone()).or_default();
        of_user.push(key.clone());
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
        entry.hasten(key, &mut self.due, now);
    }

    /// Somebody may have left the Matrix room. Gives how many places in calls they have; where they were put out, nobody has to look.
    pub(super) fn doubt(&mut self, guest: &Guest, now: Instant) -> usize {
        let mut count = 0;
        for key in self.of_user.get(&guest.user).into_iter().flatten() {
            let entry = self.guests.get_mut(key);
            if let Some(entry) = entry.filter(|entry| entry.guest == *guest && !entry.out) {
                entry.hasten(key, &mut self.due, now);
                count += 1;
            }
        }
        count
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
                self.forget(&task.key);
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

    fn forget(&mut self, key: &Key) {
        let Some(entry) = self.guests.remove(key) else {
            return;
        };
        let (user, server) = (&entry.guest.user, entry.guest.user.server());
        if let Some(keys) = self.of_user.get_mut(user) {
            keys.retain(|other| other != key);
            if keys.is_empty() {
                self.of_user.remove(user);
            }
        }
        if !entry.local
            && let Some(count) = self.of_stranger.get_mut(server)
        {
            *count -= 1;
            if *count == 0 {
                self.of_stranger.remove(server);
            }
        }
    }
}

impl Entry {
    /// Has them looked at next.
    fn hasten(&mut self, key: &Key, queue: &mut BTreeSet<(Instant, Key)>, now: Instant) {
        match self.due {
            None => self.again = true,
            // before all others, whose time has only come by and by; who is there already waits for no more
            Some(due) if due > now => {
                queue.remove(&(due, key.clone()));
                self.due = Some(now);
                queue.insert((now, key.clone()));
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
