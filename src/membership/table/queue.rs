//! Queue of scheduled checks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::livekit::id::ParticipantKey;

/// While checks of several priorities are due, every fourth one is of a lower priority than the first: otherwise a flood of urgent
/// checks would starve the others.
const LOWER_PRIORITY_EVERY: u8 = 4;

/// Priority of a check, highest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CheckPriority {
    /// The participant has joined, may have left the Matrix room, or could not be removed.
    Urgent,
    /// The regular check of a connected participant.
    Connected,
    /// The check of a participant who is not known to be connected, in case a webhook was lost.
    Absent,
}

const PRIORITIES: [CheckPriority; 3] = [
    CheckPriority::Urgent,
    CheckPriority::Connected,
    CheckPriority::Absent,
];

/// Priority and time of a check.
pub(super) type ScheduledCheck = (CheckPriority, Instant);

#[derive(Debug, Default)]
pub(super) struct CheckQueue {
    by_priority: [BTreeSet<(Instant, Arc<ParticipantKey>)>; PRIORITIES.len()],
    /// Checks since the last one of a lower priority, while such were due.
    bypassed: u8,
}

impl CheckQueue {
    pub(super) fn push(&mut self, (priority, due): ScheduledCheck, key: Arc<ParticipantKey>) {
        self.by_priority[priority as usize].insert((due, key));
    }

    pub(super) fn remove(&mut self, (priority, due): ScheduledCheck, key: &Arc<ParticipantKey>) {
        self.by_priority[priority as usize].remove(&(due, Arc::clone(key)));
    }

    /// Removes the next check that is due. Returns the time of the next one if none is due, `None` if the queue is empty.
    pub(super) fn pop(
        &mut self,
        now: Instant,
    ) -> Option<Result<(CheckPriority, Arc<ParticipantKey>), Instant>> {
        let mut due = PRIORITIES
            .into_iter()
            .filter_map(|priority| Some((self.first_due(priority)?, priority)))
            .filter(|(due, _)| *due <= now);
        let Some((_, highest)) = due.next() else {
            let next = PRIORITIES.into_iter().filter_map(|p| self.first_due(p));
            return next.min().map(Err);
        };
        let longest_waiting = due.min_by_key(|(due, _)| *due);
        let mut priority = highest;
        if let Some((_, lower)) = longest_waiting {
            self.bypassed = (self.bypassed + 1) % LOWER_PRIORITY_EVERY;
            if self.bypassed == 0 {
                priority = lower;
            }
        }
        let (_, key) = self.by_priority[priority as usize].pop_first()?;
        Some(Ok((priority, key)))
    }

    fn first_due(&self, priority: CheckPriority) -> Option<Instant> {
        let (due, _) = self.by_priority[priority as usize].first()?;
        Some(*due)
    }

    /// How long the most urgent check of a connected participant is overdue.
    pub(super) fn lag(&self, now: Instant) -> Duration {
        [CheckPriority::Urgent, CheckPriority::Connected]
            .into_iter()
            .filter_map(|priority| self.first_due(priority))
            .min()
            .map_or(Duration::ZERO, |due| now.saturating_duration_since(due))
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_priority.iter().all(BTreeSet::is_empty)
    }
}
