//! What is known of one guest, and what follows from it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::TrackedParticipant;
use super::queue::{CheckPriority, ScheduledCheck};
use super::quota::EvictionCandidate;
use crate::livekit::id::ParticipantKey;

/// For how long somebody may come back of whom the SFU says that they are not there, or whose token is too old: the SFU's leeway,
/// and the 10 minutes of the tokens by which it lets those reconnect who were connected.
pub(super) const REJOIN_GRACE: Duration = Duration::from_secs(660);
/// How many times more rarely those are looked at whom nothing has shown in a call: they are no harm there, and anybody can make
/// up thousands of them. Only the SFU is asked about them.
pub(super) const ABSENT_INTERVAL_FACTOR: u32 = 10;
/// After a look that has failed; twice as long after each further one, until it is the usual time.
pub(super) const FIRST_RETRY: Duration = Duration::from_secs(2);

/// What came of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::membership) enum CheckResult {
    /// They may be where they are; whether the SFU has shown them there.
    Allowed { shown: bool },
    /// They were put out.
    Removed { shown: bool },
    /// The SFU says that they are not there.
    Absent,
    /// Somebody has not answered.
    Unknown,
    /// They are to be put out, and the SFU does not do it.
    RemovalFailed,
}

#[derive(Debug)]
pub(super) struct ParticipantEntry {
    pub(super) participant: TrackedParticipant,
    pub(super) local: bool,
    recorded_at: Instant,
    /// Until when their token lets them in.
    pub(super) token_expires_at: Instant,
    pub(super) removed: bool,
    /// Whether the SFU has ever shown them in the call.
    ever_connected: bool,
    /// Since when they are not there, as the SFU says or because they were put out.
    absent_since: Option<Instant>,
    /// When to ask the SFU again whether they are there still.
    pub(super) ask_sfu_at: Instant,
    /// When to look next; none while somebody looks.
    pub(super) scheduled: Option<ScheduledCheck>,
    /// Whether to look again at once, for they came while somebody looked.
    pub(super) check_again: bool,
    /// Looks in a row that have failed.
    failures: u32,
}

impl ParticipantEntry {
    pub(super) fn new(
        guest: TrackedParticipant,
        local: bool,
        now: Instant,
        token_until: Instant,
    ) -> Self {
        Self {
            participant: guest,
            local,
            recorded_at: now,
            token_expires_at: token_until,
            removed: false,
            ever_connected: false,
            absent_since: None,
            ask_sfu_at: now,
            scheduled: None,
            check_again: false,
            failures: 0,
        }
    }

    pub(super) fn is_present(&self) -> bool {
        self.ever_connected && self.absent_since.is_none()
    }

    pub(super) fn eviction_candidate(
        &self,
        key: &Arc<ParticipantKey>,
    ) -> Option<EvictionCandidate> {
        (!self.is_present()).then(|| EvictionCandidate {
            removed: self.removed,
            ever_connected: self.ever_connected,
            recorded_at: self.recorded_at,
            key: key.clone(),
        })
    }

    /// The SFU shows them in the call.
    pub(super) fn mark_present(&mut self, now: Instant) {
        self.ever_connected = true;
        self.absent_since = None;
        self.ask_sfu_at = now + REJOIN_GRACE;
    }

    pub(super) fn apply_result(&mut self, verdict: CheckResult, now: Instant) {
        match verdict {
            CheckResult::Unknown | CheckResult::RemovalFailed => {
                self.failures = self.failures.saturating_add(1);
                return;
            }
            CheckResult::Allowed { shown } => {
                self.removed = false;
                if shown {
                    self.mark_present(now);
                }
            }
            CheckResult::Removed { shown } => {
                self.removed = true;
                self.ever_connected |= shown;
                if !self.check_again {
                    self.absent_since = Some(now);
                }
            }
            CheckResult::Absent if self.check_again => {}
            CheckResult::Absent => {
                self.absent_since.get_or_insert(now);
            }
        }
        self.failures = 0;
    }

    /// When to look again; never, if they were not there twice and nothing has let them in between or will now.
    pub(super) fn schedule_after(
        &mut self,
        verdict: CheckResult,
        lane: CheckPriority,
        every: Duration,
        now: Instant,
    ) -> Option<ScheduledCheck> {
        if std::mem::take(&mut self.check_again) {
            return Some((CheckPriority::Urgent, now));
        }
        if verdict == CheckResult::Absent
            && self.rejoin_deadline().is_some_and(|barred| barred <= now)
        {
            return None;
        }
        let usual = self.regular_schedule(every, now);
        if self.failures == 0 {
            return Some(usual);
        }
        let wait = FIRST_RETRY.saturating_mul(1 << (self.failures - 1).min(16));
        let lane = match verdict {
            CheckResult::RemovalFailed => CheckPriority::Urgent,
            _ if lane == CheckPriority::Urgent => lane,
            _ => usual.0,
        };
        Some((lane, usual.1.min(now + wait)))
    }

    /// Those who are in the call, or were put out of it and might come back, are looked at again and again; others rarely.
    pub(super) fn regular_schedule(&self, every: Duration, now: Instant) -> ScheduledCheck {
        if self.is_present() || self.removed && self.ever_connected {
            return (CheckPriority::Present, now + every);
        }
        let rarely = now
            + (every * ABSENT_INTERVAL_FACTOR)
                .min(REJOIN_GRACE)
                .max(every);
        let marks = [Some(self.token_expires_at), self.rejoin_deadline()];
        let mark = marks.into_iter().flatten().filter(|mark| *mark > now).min();
        (
            CheckPriority::Absent,
            mark.map_or(rarely, |mark| rarely.min(mark)),
        )
    }

    /// From when on nothing brings them back, unless they come before.
    fn rejoin_deadline(&self) -> Option<Instant> {
        let away = self.absent_since?;
        Some(away.max(self.token_expires_at) + REJOIN_GRACE)
    }
}
