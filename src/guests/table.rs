//! Who is to be looked at, and when. No clock of its own.

mod entry;
mod queue;
mod shares;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::entry::Entry;
pub(super) use self::entry::Verdict;
use self::queue::{Lane, Queue};
use self::shares::Shares;
pub use self::shares::TooMany;
use crate::journal::Key;
use crate::matrix::id::{RoomId, UserId};

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

/// Somebody to be looked at now.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) key: Arc<Key>,
    pub(super) guest: Guest,
    /// Whether they were put out already.
    pub(super) out: bool,
    /// Whether they are in the call, as far as one knows.
    pub(super) present: bool,
    /// Whether the SFU is to say first if they are there.
    pub(super) ask_sfu: bool,
    lane: Lane,
}

#[derive(Debug)]
pub(super) enum Next {
    Now(Task),
    In(Duration),
}

#[derive(Debug)]
pub(super) struct Table {
    every: Duration,
    lifetime: Duration,
    guests: HashMap<Arc<Key>, Entry>,
    queue: Queue,
    of_user: HashMap<UserId, BTreeSet<Arc<Key>>>,
    shares: Shares,
}

impl Table {
    /// Guests are looked at every `every`; their tokens let them in for `lifetime`.
    pub(super) fn new(every: Duration, lifetime: Duration) -> Self {
        Self {
            every,
            lifetime,
            guests: HashMap::new(),
            queue: Queue::default(),
            of_user: HashMap::new(),
            shares: Shares::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.guests.len()
    }

    /// How much too late it is for those who are in calls, or come.
    pub(super) fn lag(&self, now: Instant) -> Duration {
        self.queue.lag(now)
    }

    /// Somebody gets a token. Where all places are taken, that of somebody is taken who is in no call: it is known when they come.
    pub(super) fn admit(
        &mut self,
        key: Key,
        guest: Guest,
        local: bool,
        now: Instant,
    ) -> Result<(), TooMany> {
        let (key, until) = (Arc::new(key), now + self.lifetime);
        let known = self.change(&key, |entry| {
            entry.out = false;
            entry.token_until = until;
        });
        if known {
            return Ok(());
        }
        self.enter(key, Entry::new(guest, local, now, until), now)
    }

    /// Whether anything is known of somebody.
    pub(super) fn knows(&self, key: &Key) -> bool {
        self.guests.contains_key(key)
    }

    /// Somebody is in the call of whom nothing was known, such as before a restart; or not that they are, and so they are looked at at
    /// once.
    pub(super) fn found(
        &mut self,
        key: Key,
        guest: Guest,
        local: bool,
        now: Instant,
    ) -> Result<(), TooMany> {
        let key = Arc::new(key);
        let mut missed = false;
        let known = self.change(&key, |entry| {
            missed = !entry.is_present();
            entry.show(now);
        });
        if known {
            if missed {
                self.hasten(&key, now);
            }
            return Ok(());
        }
        let mut entry = Entry::new(guest, local, now, now + self.lifetime);
        entry.show(now);
        self.enter(key, entry, now)
    }

    /// Somebody is in the call now, and looked at at once. Gives whether they are known.
    pub(super) fn came(&mut self, key: &Key, now: Instant) -> bool {
        self.change(key, |entry| entry.show(now)) && self.hasten(key, now)
    }

    /// Somebody has left the call, or one connection of theirs has: the SFU is asked when their time comes.
    pub(super) fn left(&mut self, key: &Key, now: Instant) {
        self.change(key, |entry| entry.ask_sfu = now);
    }

    /// Somebody may have left the Matrix room. Gives how many places in calls they have; where they were put out, nobody has to look.
    pub(super) fn doubt(&mut self, guest: &Guest, now: Instant) -> usize {
        let keys = self.of_user.get(&guest.user).into_iter().flatten().cloned();
        let doubted = |key: &Arc<Key>| {
            let entry = self.guests.get(key);
            entry.is_some_and(|entry| entry.guest == *guest && !entry.out)
        };
        let keys: Vec<_> = keys.filter(doubted).collect();
        keys.iter().filter(|key| self.hasten(key, now)).count()
    }

    /// Whom to look at, or how long nobody is.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        let (lane, key) = match self.queue.pop(now) {
            None => return Next::In(IDLE),
            Some(Err(due)) => return Next::In(due.saturating_duration_since(now)),
            Some(Ok(found)) => found,
        };
        let Some(entry) = self.guests.get_mut(&key) else {
            return Next::In(Duration::ZERO);
        };
        entry.turn = None;
        let present = entry.is_present();
        Next::Now(Task {
            guest: entry.guest.clone(),
            out: entry.out,
            present,
            ask_sfu: lane != Lane::Urgent && (!present || entry.ask_sfu <= now),
            key,
            lane,
        })
    }

    /// Takes in what came of a look.
    pub(super) fn done(&mut self, task: Task, verdict: Verdict, now: Instant) {
        let mut turn = None;
        let every = self.every;
        self.change(&task.key, |entry| {
            // whoever has lost their place meanwhile, and has a new one, has a turn already
            if entry.turn.is_none() {
                entry.learn(verdict, now);
                turn = entry.turn_after(verdict, task.lane, every, now);
            } else {
                turn = entry.turn;
            }
        });
        match (turn, self.guests.get_mut(&task.key)) {
            (Some(turn), Some(entry)) if entry.turn.is_none() => {
                entry.turn = Some(turn);
                self.queue.push(turn, task.key);
            }
            (None, Some(_)) => self.forget(&task.key),
            _ => {}
        }
    }

    fn enter(&mut self, key: Arc<Key>, mut entry: Entry, now: Instant) -> Result<(), TooMany> {
        let (user, local) = (entry.guest.user.clone(), entry.local);
        let goes = self
            .shares
            .place(&user, local, entry.is_present(), self.every)?;
        if let Some(goes) = goes {
            self.forget(&goes);
        }
        self.shares.enter(&user, local, entry.idle(&key).as_ref());
        self.of_user.entry(user).or_default().insert(key.clone());
        let turn = entry.usual_turn(self.every, now);
        entry.turn = Some(turn);
        self.queue.push(turn, key.clone());
        self.guests.insert(key, entry);
        Ok(())
    }

    /// Changes what is known of somebody. Gives whether anything was.
    fn change(&mut self, key: &Key, change: impl FnOnce(&mut Entry)) -> bool {
        let Some((known, _)) = self.guests.get_key_value(key) else {
            return false;
        };
        let key = known.clone();
        let Some(entry) = self.guests.get_mut(&key) else {
            return false;
        };
        let before = entry.idle(&key);
        change(entry);
        let after = entry.idle(&key);
        if before != after {
            let (user, local) = (&entry.guest.user, entry.local);
            self.shares
                .change(user, local, before.as_ref(), after.as_ref());
        }
        true
    }

    /// Has them looked at next. Gives whether they are known.
    fn hasten(&mut self, key: &Key, now: Instant) -> bool {
        let Some((known, _)) = self.guests.get_key_value(key) else {
            return false;
        };
        let key = known.clone();
        let Some(entry) = self.guests.get_mut(&key) else {
            return false;
        };
        match entry.turn {
            None => entry.again = true,
            Some((Lane::Urgent, due)) if due <= now => {}
            Some(turn) => {
                self.queue.remove(turn, &key);
                entry.turn = Some((Lane::Urgent, now));
                self.queue.push((Lane::Urgent, now), key);
            }
        }
        true
    }

    fn forget(&mut self, key: &Arc<Key>) {
        let Some(entry) = self.guests.remove(key) else {
            return;
        };
        if let Some(turn) = entry.turn {
            self.queue.remove(turn, key);
        }
        let user = &entry.guest.user;
        self.shares
            .leave(user, entry.local, entry.idle(key).as_ref());
        if let Some(keys) = self.of_user.get_mut(user) {
            keys.remove(key);
            if keys.is_empty() {
                self.of_user.remove(user);
            }
        }
    }
}

#[cfg(test)]
mod tests;
