//! Who is to be looked at, and when. No clock of its own.

mod entry;
mod queue;
mod quota;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use self::entry::CheckResult;
use self::entry::ParticipantEntry;
use self::queue::{CheckPriority, CheckQueue};
use self::quota::ParticipantQuota;
pub(crate) use self::quota::ParticipantQuotaExceeded;
use crate::livekit::id::ParticipantKey;
use crate::matrix::id::{RoomId, UserId};

/// Longest wait without anybody to look at.
const IDLE_WAIT: Duration = Duration::from_secs(60);

/// Somebody who has a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedParticipant {
    /// The Matrix room that they have to be in.
    pub room_id: RoomId,
    /// The user.
    pub user_id: UserId,
}

/// Somebody to be looked at now.
#[derive(Debug)]
pub(super) struct CheckTask {
    pub(super) key: Arc<ParticipantKey>,
    pub(super) participant: TrackedParticipant,
    /// Whether they were put out already.
    pub(super) removed: bool,
    /// Whether they are in the call, as far as one knows.
    pub(super) present: bool,
    /// Whether the SFU is to say first if they are there.
    pub(super) ask_sfu: bool,
    priority: CheckPriority,
}

#[derive(Debug)]
pub(super) enum NextCheck {
    Due(CheckTask),
    Wait(Duration),
}

#[derive(Debug)]
pub(super) struct ParticipantTable {
    check_interval: Duration,
    token_lifetime: Duration,
    entries: HashMap<Arc<ParticipantKey>, ParticipantEntry>,
    queue: CheckQueue,
    keys_by_user: HashMap<UserId, BTreeSet<Arc<ParticipantKey>>>,
    quota: ParticipantQuota,
}

impl ParticipantTable {
    /// Guests are looked at every `every`; their tokens let them in for `lifetime`.
    pub(super) fn new(every: Duration, lifetime: Duration) -> Self {
        Self {
            check_interval: every,
            token_lifetime: lifetime,
            entries: HashMap::new(),
            queue: CheckQueue::default(),
            keys_by_user: HashMap::new(),
            quota: ParticipantQuota::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How much too late it is for those who are in calls, or come.
    pub(super) fn lag(&self, now: Instant) -> Duration {
        self.queue.lag(now)
    }

    /// Somebody gets a token. Where all places are taken, that of somebody is taken who is in no call: it is known when they come.
    pub(super) fn record_issued_token(
        &mut self,
        key: ParticipantKey,
        guest: TrackedParticipant,
        local: bool,
        now: Instant,
    ) -> Result<(), ParticipantQuotaExceeded> {
        let (key, until) = (Arc::new(key), now + self.token_lifetime);
        let known = self.update_entry(&key, |entry| {
            entry.removed = false;
            entry.token_expires_at = until;
        });
        if known {
            return Ok(());
        }
        self.insert_entry(key, ParticipantEntry::new(guest, local, now, until), now)
    }

    /// Whether anything is known of somebody.
    pub(super) fn contains(&self, key: &ParticipantKey) -> bool {
        self.entries.contains_key(key)
    }

    /// Somebody is in the call of whom nothing was known, such as before a restart; or not that they are, and so they are looked at at
    /// once.
    pub(super) fn record_discovered(
        &mut self,
        key: ParticipantKey,
        guest: TrackedParticipant,
        local: bool,
        now: Instant,
    ) -> Result<(), ParticipantQuotaExceeded> {
        let key = Arc::new(key);
        let mut missed = false;
        let known = self.update_entry(&key, |entry| {
            missed = !entry.is_present();
            entry.mark_present(now);
        });
        if known {
            if missed {
                self.schedule_now(&key, now);
            }
            return Ok(());
        }
        let mut entry = ParticipantEntry::new(guest, local, now, now + self.token_lifetime);
        entry.mark_present(now);
        self.insert_entry(key, entry, now)
    }

    /// Somebody is in the call now, and looked at at once. Gives whether they are known.
    pub(super) fn mark_joined(&mut self, key: &ParticipantKey, now: Instant) -> bool {
        self.update_entry(key, |entry| entry.mark_present(now)) && self.schedule_now(key, now)
    }

    /// Somebody has left the call, or one connection of theirs has: the SFU is asked when their time comes.
    pub(super) fn mark_left(&mut self, key: &ParticipantKey, now: Instant) {
        self.update_entry(key, |entry| entry.ask_sfu_at = now);
    }

    /// Somebody may have left the Matrix room. Gives how many places in calls they have; where they were put out, nobody has to look.
    pub(super) fn recheck(&mut self, guest: &TrackedParticipant, now: Instant) -> usize {
        let keys = self
            .keys_by_user
            .get(&guest.user_id)
            .into_iter()
            .flatten()
            .cloned();
        let doubted = |key: &Arc<ParticipantKey>| {
            let entry = self.entries.get(key);
            entry.is_some_and(|entry| entry.participant == *guest && !entry.removed)
        };
        let keys: Vec<_> = keys.filter(doubted).collect();
        keys.iter()
            .filter(|key| self.schedule_now(key, now))
            .count()
    }

    /// Whom to look at, or how long nobody is.
    pub(super) fn next_check(&mut self, now: Instant) -> NextCheck {
        let (lane, key) = match self.queue.pop(now) {
            None => return NextCheck::Wait(IDLE_WAIT),
            Some(Err(due)) => return NextCheck::Wait(due.saturating_duration_since(now)),
            Some(Ok(found)) => found,
        };
        let Some(entry) = self.entries.get_mut(&key) else {
            return NextCheck::Wait(Duration::ZERO);
        };
        entry.scheduled = None;
        let present = entry.is_present();
        NextCheck::Due(CheckTask {
            participant: entry.participant.clone(),
            removed: entry.removed,
            present,
            ask_sfu: lane != CheckPriority::Urgent && (!present || entry.ask_sfu_at <= now),
            key,
            priority: lane,
        })
    }

    /// Takes in what came of a look.
    pub(super) fn complete_check(&mut self, task: CheckTask, verdict: CheckResult, now: Instant) {
        let mut turn = None;
        let every = self.check_interval;
        self.update_entry(&task.key, |entry| {
            // whoever has lost their place meanwhile, and has a new one, has a turn already
            if entry.scheduled.is_none() {
                entry.apply_result(verdict, now);
                turn = entry.schedule_after(verdict, task.priority, every, now);
            } else {
                turn = entry.scheduled;
            }
        });
        match (turn, self.entries.get_mut(&task.key)) {
            (Some(turn), Some(entry)) if entry.scheduled.is_none() => {
                entry.scheduled = Some(turn);
                self.queue.push(turn, task.key);
            }
            (None, Some(_)) => self.remove_entry(&task.key),
            _ => {}
        }
    }

    fn insert_entry(
        &mut self,
        key: Arc<ParticipantKey>,
        mut entry: ParticipantEntry,
        now: Instant,
    ) -> Result<(), ParticipantQuotaExceeded> {
        let (user, local) = (entry.participant.user_id.clone(), entry.local);
        let goes =
            self.quota
                .check_capacity(&user, local, entry.is_present(), self.check_interval)?;
        if let Some(goes) = goes {
            self.remove_entry(&goes);
        }
        self.quota
            .add(&user, local, entry.eviction_candidate(&key).as_ref());
        self.keys_by_user
            .entry(user)
            .or_default()
            .insert(key.clone());
        let turn = entry.regular_schedule(self.check_interval, now);
        entry.scheduled = Some(turn);
        self.queue.push(turn, key.clone());
        self.entries.insert(key, entry);
        Ok(())
    }

    /// Changes what is known of somebody. Gives whether anything was.
    fn update_entry(
        &mut self,
        key: &ParticipantKey,
        change: impl FnOnce(&mut ParticipantEntry),
    ) -> bool {
        let Some((known, _)) = self.entries.get_key_value(key) else {
            return false;
        };
        let key = known.clone();
        let Some(entry) = self.entries.get_mut(&key) else {
            return false;
        };
        let before = entry.eviction_candidate(&key);
        change(entry);
        let after = entry.eviction_candidate(&key);
        if before != after {
            let (user, local) = (&entry.participant.user_id, entry.local);
            self.quota
                .update(user, local, before.as_ref(), after.as_ref());
        }
        true
    }

    /// Has them looked at next. Gives whether they are known.
    fn schedule_now(&mut self, key: &ParticipantKey, now: Instant) -> bool {
        let Some((known, _)) = self.entries.get_key_value(key) else {
            return false;
        };
        let key = known.clone();
        let Some(entry) = self.entries.get_mut(&key) else {
            return false;
        };
        match entry.scheduled {
            None => entry.check_again = true,
            Some((CheckPriority::Urgent, due)) if due <= now => {}
            Some(turn) => {
                self.queue.remove(turn, &key);
                entry.scheduled = Some((CheckPriority::Urgent, now));
                self.queue.push((CheckPriority::Urgent, now), key);
            }
        }
        true
    }

    fn remove_entry(&mut self, key: &Arc<ParticipantKey>) {
        let Some(entry) = self.entries.remove(key) else {
            return;
        };
        if let Some(turn) = entry.scheduled {
            self.queue.remove(turn, key);
        }
        let user = &entry.participant.user_id;
        self.quota
            .remove(user, entry.local, entry.eviction_candidate(key).as_ref());
        if let Some(keys) = self.keys_by_user.get_mut(user) {
            keys.remove(key);
            if keys.is_empty() {
                self.keys_by_user.remove(user);
            }
        }
    }
}
