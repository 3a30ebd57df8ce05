//! State machine of the tracked participants: which one to check, and when. Time is passed in.

mod queue;
mod quota;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::queue::{CheckPriority, CheckQueue, ScheduledCheck};
pub(crate) use self::quota::ParticipantQuotaExceeded;
use self::quota::{EvictionCandidate, ParticipantQuota, QuotaScope};
use crate::livekit::id::ParticipantKey;
use crate::matrix::id::{RoomMember, ServerName, UserId};
use crate::util::backoff::Backoff;

/// Longest wait of a thread when no check is scheduled.
const IDLE_WAIT: Duration = Duration::from_secs(60);
/// How long a participant can rejoin after the SFU reports absence or after the access token expires: the SFU's leeway of 60 s, and
/// the 10 minutes of the tokens with which the SFU lets a participant reconnect.
const REJOIN_GRACE: Duration = Duration::from_secs(660);
/// Factor of the check interval for participants who were never connected. Only the SFU is asked about them: they do no harm, and
/// anyone can obtain thousands of tokens.
const ABSENT_INTERVAL_FACTOR: u32 = 10;
/// Delay after a failed check, until the delay exceeds that of a regular check.
const RETRY: Backoff = Backoff::doubling(Duration::from_secs(2), Duration::from_secs(24 * 3600));

/// A check that is due.
#[derive(Debug)]
pub(super) struct CheckTask {
    pub(super) key: Arc<ParticipantKey>,
    pub(super) member: RoomMember,
    /// Whether the participant was removed before.
    pub(super) removed: bool,
    /// Whether the participant is connected, as far as known.
    pub(super) connected: bool,
    /// Whether to ask the SFU for the participant's presence first.
    pub(super) ask_sfu: bool,
    priority: CheckPriority,
}

#[derive(Debug)]
pub(super) enum NextCheck {
    Due(CheckTask),
    Wait(Duration),
}

/// The result of a check. `connected` tells whether the SFU was asked and reported the participant connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CheckResult {
    /// The user is in the Matrix room.
    Allowed { connected: bool },
    /// The user is not in the Matrix room; the participant was removed from the LiveKit room.
    Removed { connected: bool },
    /// The participant is not connected.
    Absent,
    /// The homeserver or the SFU has not answered.
    Unknown,
    /// The user is not in the Matrix room; the SFU has not removed the participant.
    RemovalFailed,
}

#[derive(Debug)]
pub(super) struct ParticipantTable {
    local_server: ServerName,
    check_interval: Duration,
    token_lifetime: Duration,
    entries: HashMap<Arc<ParticipantKey>, ParticipantEntry>,
    queue: CheckQueue,
    keys_by_user: HashMap<UserId, BTreeSet<Arc<ParticipantKey>>>,
    quota: ParticipantQuota,
}

impl ParticipantTable {
    /// Users of `local_server` have the larger quotas. Connected participants are checked every `check_interval`; access tokens are
    /// valid for `token_lifetime`.
    pub(super) fn new(
        local_server: ServerName,
        check_interval: Duration,
        token_lifetime: Duration,
    ) -> Self {
        Self {
            local_server,
            check_interval,
            token_lifetime,
            entries: HashMap::new(),
            queue: CheckQueue::default(),
            keys_by_user: HashMap::new(),
            quota: ParticipantQuota::default(),
        }
    }

    pub(super) fn set_local_server(&mut self, server: ServerName) {
        self.local_server = server;
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How long the most urgent check of a connected participant is overdue.
    pub(super) fn lag(&self, now: Instant) -> Duration {
        self.queue.lag(now)
    }

    /// Records a participant for whom an access token is issued. If a quota is used up, evicts the oldest entry whose participant is
    /// not connected; an evicted participant is recorded again on joining.
    pub(super) fn record_issued_token(
        &mut self,
        key: ParticipantKey,
        member: RoomMember,
        now: Instant,
    ) -> Result<(), ParticipantQuotaExceeded> {
        let token_expires_at = now + self.token_lifetime;
        let updated = self.update_entry(&key, |entry| {
            entry.removed = false;
            entry.token_expires_at = token_expires_at;
        });
        match updated {
            Some(()) => Ok(()),
            None => self.insert_entry(self.new_entry(key, member, now), now),
        }
    }

    /// Records a connected participant found with the SFU, such as after a restart. Returns whether the participant is new. One who
    /// is tracked, but not as connected, is checked at once.
    pub(super) fn record_discovered(
        &mut self,
        key: ParticipantKey,
        member: RoomMember,
        now: Instant,
    ) -> Result<bool, ParticipantQuotaExceeded> {
        let was_connected = self.update_entry(&key, |entry| {
            let was_connected = entry.is_connected();
            entry.mark_connected(now);
            was_connected
        });
        match was_connected {
            Some(true) => {}
            Some(false) => drop(self.schedule_now(&key, now)),
            None => {
                let mut entry = self.new_entry(key, member, now);
                entry.mark_connected(now);
                self.insert_entry(entry, now)?;
            }
        }
        Ok(was_connected.is_none())
    }

    /// Schedules the check of a participant who has joined. Returns whether the participant is tracked.
    pub(super) fn mark_joined(&mut self, key: &ParticipantKey, now: Instant) -> bool {
        self.update_entry(key, |entry| entry.mark_connected(now));
        self.schedule_now(key, now)
    }

    /// Records that a connection has ended. Whether the participant has another one is asked at the next check.
    pub(super) fn mark_left(&mut self, key: &ParticipantKey, now: Instant) {
        self.update_entry(key, |entry| entry.ask_sfu_at = now);
    }

    /// Schedules the checks of a user who may have left the Matrix room. Returns their number. Removed participants are not checked
    /// again: a user could cause any number of checks.
    pub(super) fn recheck(&mut self, member: &RoomMember, now: Instant) -> usize {
        let needs_check = |key: &&Arc<ParticipantKey>| {
            let entry = self.entries.get(*key);
            entry.is_some_and(|entry| entry.member == *member && !entry.removed)
        };
        let keys = self.keys_by_user.get(&member.user_id).into_iter().flatten();
        let keys: Vec<_> = keys.filter(needs_check).cloned().collect();
        keys.iter()
            .filter(|key| self.schedule_now(key, now))
            .count()
    }

    /// The next check, or the time until one is due.
    pub(super) fn next_check(&mut self, now: Instant) -> NextCheck {
        let (priority, key) = match self.queue.pop(now) {
            None => return NextCheck::Wait(IDLE_WAIT),
            Some(Err(due)) => return NextCheck::Wait(due.saturating_duration_since(now)),
            Some(Ok(next)) => next,
        };
        // queue and entries are changed together
        let Some(entry) = self.entries.get_mut(&key) else {
            return NextCheck::Wait(Duration::ZERO);
        };
        entry.scheduled = None;
        let connected = entry.is_connected();
        NextCheck::Due(CheckTask {
            member: entry.member.clone(),
            removed: entry.removed,
            connected,
            ask_sfu: priority != CheckPriority::Urgent && (!connected || entry.ask_sfu_at <= now),
            key,
            priority,
        })
    }

    /// Records the result of a check, and schedules the next one or removes the entry.
    pub(super) fn complete_check(&mut self, task: CheckTask, result: CheckResult, now: Instant) {
        let entry = self.entries.get(&task.key);
        if entry.is_none_or(|entry| entry.scheduled.is_some()) {
            // evicted during the check, and recorded again if it is scheduled
            return;
        }
        let check_interval = self.check_interval;
        let next = self.update_entry(&task.key, |entry| {
            entry.apply_result(result, now);
            entry.scheduled = entry.schedule_after(result, task.priority, check_interval, now);
            entry.scheduled
        });
        match next.flatten() {
            Some(next) => self.queue.push(next, task.key),
            None => self.remove_entry(&task.key),
        }
    }

    fn new_entry(&self, key: ParticipantKey, member: RoomMember, now: Instant) -> ParticipantEntry {
        let local = *member.user_id.server() == self.local_server;
        ParticipantEntry {
            key: Arc::new(key),
            scopes: QuotaScope::all_of(&member.user_id, local),
            member,
            recorded_at: now,
            token_expires_at: now + self.token_lifetime,
            removed: false,
            ever_connected: false,
            absent_since: None,
            ask_sfu_at: now,
            scheduled: None,
            check_again: false,
            failures: 0,
        }
    }

    fn insert_entry(
        &mut self,
        mut entry: ParticipantEntry,
        now: Instant,
    ) -> Result<(), ParticipantQuotaExceeded> {
        let evicted = self
            .quota
            .make_room(&entry.scopes, entry.is_connected())
            .map_err(|scope| ParticipantQuotaExceeded {
                scope,
                retry_after: self.check_interval,
            })?;
        if let Some(evicted) = evicted {
            self.remove_entry(&evicted);
        }
        self.quota.add(&entry.scopes, entry.eviction_candidate());
        let key = Arc::clone(&entry.key);
        self.keys_by_user
            .entry(entry.member.user_id.clone())
            .or_default()
            .insert(Arc::clone(&key));
        let first = entry.regular_schedule(self.check_interval, now);
        entry.scheduled = Some(first);
        self.queue.push(first, Arc::clone(&key));
        self.entries.insert(key, entry);
        Ok(())
    }

    /// Changes an entry, and its position among the eviction candidates. Returns `None` if the participant is not tracked.
    fn update_entry<R>(
        &mut self,
        key: &ParticipantKey,
        change: impl FnOnce(&mut ParticipantEntry) -> R,
    ) -> Option<R> {
        let entry = self.entries.get_mut(key)?;
        let before = entry.eviction_candidate();
        let result = change(entry);
        let after = entry.eviction_candidate();
        if before != after {
            self.quota.update(&entry.scopes, before.as_ref(), after);
        }
        Some(result)
    }

    /// Schedules a check at once. Returns whether the participant is tracked.
    fn schedule_now(&mut self, key: &ParticipantKey, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(key) else {
            return false;
        };
        match entry.scheduled {
            None => entry.check_again = true,
            Some((CheckPriority::Urgent, due)) if due <= now => {}
            Some(later) => {
                self.queue.remove(later, &entry.key);
                entry.scheduled = Some((CheckPriority::Urgent, now));
                self.queue
                    .push((CheckPriority::Urgent, now), Arc::clone(&entry.key));
            }
        }
        true
    }

    fn remove_entry(&mut self, key: &Arc<ParticipantKey>) {
        let Some(entry) = self.entries.remove(key) else {
            return;
        };
        if let Some(scheduled) = entry.scheduled {
            self.queue.remove(scheduled, key);
        }
        self.quota
            .remove(&entry.scopes, entry.eviction_candidate().as_ref());
        let user = &entry.member.user_id;
        if let Some(keys) = self.keys_by_user.get_mut(user) {
            keys.remove(key);
            if keys.is_empty() {
                self.keys_by_user.remove(user);
            }
        }
    }
}

#[derive(Debug)]
struct ParticipantEntry {
    key: Arc<ParticipantKey>,
    member: RoomMember,
    scopes: Vec<QuotaScope>,
    recorded_at: Instant,
    /// Until when the access token lets the participant join.
    token_expires_at: Instant,
    /// Whether the last check has removed the participant.
    removed: bool,
    /// Whether the SFU has ever reported the participant connected.
    ever_connected: bool,
    /// Since when the participant is not connected, by the SFU's report or by removal.
    absent_since: Option<Instant>,
    /// When to ask the SFU again whether the participant is connected.
    ask_sfu_at: Instant,
    /// The next check; `None` during a check.
    scheduled: Option<ScheduledCheck>,
    /// Whether to check again right after the current check: its result may be older than an event received meanwhile.
    check_again: bool,
    /// Failed checks in a row.
    failures: u32,
}

impl ParticipantEntry {
    fn is_connected(&self) -> bool {
        self.ever_connected && self.absent_since.is_none()
    }

    /// The entry as an eviction candidate; connected participants are not evicted.
    fn eviction_candidate(&self) -> Option<EvictionCandidate> {
        (!self.is_connected()).then(|| EvictionCandidate {
            removed: self.removed,
            ever_connected: self.ever_connected,
            recorded_at: self.recorded_at,
            key: Arc::clone(&self.key),
        })
    }

    fn mark_connected(&mut self, now: Instant) {
        self.ever_connected = true;
        self.absent_since = None;
        self.ask_sfu_at = now + REJOIN_GRACE;
    }

    fn apply_result(&mut self, result: CheckResult, now: Instant) {
        match result {
            CheckResult::Unknown | CheckResult::RemovalFailed => {
                self.failures = self.failures.saturating_add(1);
                return;
            }
            CheckResult::Allowed { connected } => {
                self.removed = false;
                if connected {
                    self.mark_connected(now);
                }
            }
            CheckResult::Removed { connected } => {
                self.removed = true;
                self.ever_connected |= connected;
                if !self.check_again {
                    self.absent_since = Some(now);
                }
            }
            // the participant has joined during the check
            CheckResult::Absent if self.check_again => {}
            CheckResult::Absent => {
                self.absent_since.get_or_insert(now);
            }
        }
        self.failures = 0;
    }

    /// The check after one with `result`; `None` if the participant is absent and cannot rejoin.
    fn schedule_after(
        &mut self,
        result: CheckResult,
        priority: CheckPriority,
        check_interval: Duration,
        now: Instant,
    ) -> Option<ScheduledCheck> {
        if std::mem::take(&mut self.check_again) {
            return Some((CheckPriority::Urgent, now));
        }
        let can_rejoin = self.rejoin_deadline().is_none_or(|deadline| deadline > now);
        if result == CheckResult::Absent && !can_rejoin {
            return None;
        }
        let regular = self.regular_schedule(check_interval, now);
        if self.failures == 0 {
            return Some(regular);
        }
        let priority = match result {
            CheckResult::RemovalFailed => CheckPriority::Urgent,
            _ if priority == CheckPriority::Urgent => priority,
            _ => regular.0,
        };
        Some((priority, regular.1.min(now + RETRY.delay(self.failures))))
    }

    /// Participants who are connected, or were removed and may reconnect, are checked every `check_interval`, others less often.
    fn regular_schedule(&self, check_interval: Duration, now: Instant) -> ScheduledCheck {
        if self.is_connected() || self.removed && self.ever_connected {
            return (CheckPriority::Connected, now + check_interval);
        }
        let absent_interval = (check_interval * ABSENT_INTERVAL_FACTOR)
            .min(REJOIN_GRACE)
            .max(check_interval);
        // not later than a time that changes the participant's state
        let milestones = [Some(self.token_expires_at), self.rejoin_deadline()];
        let due = milestones
            .into_iter()
            .flatten()
            .filter(|milestone| *milestone > now)
            .fold(now + absent_interval, Instant::min);
        (CheckPriority::Absent, due)
    }

    /// Until when an absent participant can rejoin.
    fn rejoin_deadline(&self) -> Option<Instant> {
        let absent_since = self.absent_since?;
        Some(absent_since.max(self.token_expires_at) + REJOIN_GRACE)
    }
}
