//! Who is looked at next.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::livekit::id::ParticipantKey;

/// While others wait, one look in so many is not at those who come first but at who would wait for ever behind a flood of them.
const LOWER_PRIORITY_EVERY: u8 = 4;

/// Why somebody is looked at, and so who comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CheckPriority {
    /// They came, or may have left the Matrix room, or could not be put out.
    Urgent,
    /// They are in a call, and it is time again.
    Present,
    /// They have a token, and might have come without a word of the SFU.
    Absent,
}

const PRIORITIES: [CheckPriority; 3] = [
    CheckPriority::Urgent,
    CheckPriority::Present,
    CheckPriority::Absent,
];

/// When somebody is looked at, and in which lane.
pub(super) type ScheduledCheck = (CheckPriority, Instant);

/// All who wait for a look.
#[derive(Debug, Default)]
pub(super) struct CheckQueue {
    by_priority: [BTreeSet<(Instant, Arc<ParticipantKey>)>; PRIORITIES.len()],
    /// Looks since others had to wait.
    bypassed: u8,
}

impl CheckQueue {
    pub(super) fn push(&mut self, (lane, due): ScheduledCheck, key: Arc<ParticipantKey>) {
        self.by_priority[lane as usize].insert((due, key));
    }

    pub(super) fn remove(&mut self, (lane, due): ScheduledCheck, key: &Arc<ParticipantKey>) {
        self.by_priority[lane as usize].remove(&(due, key.clone()));
    }

    /// Whose turn it is, or when it is somebody's; nothing if nobody waits.
    pub(super) fn pop(
        &mut self,
        now: Instant,
    ) -> Option<Result<(CheckPriority, Arc<ParticipantKey>), Instant>> {
        let first = |queue: &Self, lane: CheckPriority| {
            queue.by_priority[lane as usize]
                .first()
                .map(|(due, _)| *due)
        };
        let ready = |lane: &&CheckPriority| first(self, **lane).is_some_and(|due| due <= now);
        let mut ready = PRIORITIES.iter().filter(ready).copied();
        let Some(lane) = ready.next() else {
            return PRIORITIES
                .iter()
                .filter_map(|lane| first(self, *lane))
                .min()
                .map(Err);
        };
        let lane = match ready.min_by_key(|lane| first(self, *lane)) {
            None => lane,
            Some(waits) => {
                self.bypassed = (self.bypassed + 1) % LOWER_PRIORITY_EVERY;
                if self.bypassed == 0 { waits } else { lane }
            }
        };
        let (_, key) = self.by_priority[lane as usize].pop_first()?;
        Some(Ok((lane, key)))
    }

    /// How long the first of those who are in calls, or come, should have been looked at.
    pub(super) fn lag(&self, now: Instant) -> Duration {
        let late = [CheckPriority::Urgent, CheckPriority::Present]
            .into_iter()
            .filter_map(|lane| {
                let (due, _) = self.by_priority[lane as usize].first()?;
                Some(now.saturating_duration_since(*due))
            });
        late.max().unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_priority.iter().all(BTreeSet::is_empty)
    }
}
