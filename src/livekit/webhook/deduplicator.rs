//! Which events were received already, for long enough that no repeat of the SFU's is worked on twice.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// How long an id is remembered. The SFU gives up after a few minutes.
const RETENTION: Duration = Duration::from_secs(15 * 60);
/// Ids that are remembered: some 5 MB, and 70 events a second for a quarter of an hour. With more, the oldest go first; each has
/// to be signed by the SFU.
const MAX_EVENT_IDS: usize = 65_536;

/// How long an event may be under way; after that, whoever was at it is not any more.
const PROCESSING_TIMEOUT: Duration = Duration::from_secs(60);

/// Half of an id's SHA-256: of one size, and nobody finds two ids with the same.
type EventIdHash = [u8; 16];

/// What is known of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventIdState {
    /// It was not seen before; from now on it is under way.
    New,
    /// Somebody is at it, and may fail.
    InProgress,
    /// It was worked on.
    Processed,
}

#[derive(Debug, Default)]
pub(super) struct WebhookDeduplicator(Mutex<SeenEventIds>);

#[derive(Debug, Default)]
struct SeenEventIds {
    /// In the order in which they came.
    insertion_order: VecDeque<(Instant, EventIdHash)>,
    /// Since when it is under way, unless it is done.
    in_progress_since: HashMap<EventIdHash, Option<Instant>>,
}

impl WebhookDeduplicator {
    fn lock(&self) -> MutexGuard<'_, SeenEventIds> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at an id. An event without one is always new.
    pub(super) fn begin(&self, id: &str, now: Instant) -> EventIdState {
        if id.is_empty() {
            return EventIdState::New;
        }
        let mut marks = self.lock();
        let too_old = |at: Instant| now.saturating_duration_since(at) >= RETENTION;
        while marks.insertion_order.len() >= MAX_EVENT_IDS
            || marks
                .insertion_order
                .front()
                .is_some_and(|(at, _)| too_old(*at))
        {
            if let Some((_, mark)) = marks.insertion_order.pop_front() {
                marks.in_progress_since.remove(&mark);
            }
        }
        let mark = hash_event_id(id);
        match marks.in_progress_since.get_mut(&mark) {
            Some(None) => EventIdState::Processed,
            Some(Some(since)) if now.saturating_duration_since(*since) < PROCESSING_TIMEOUT => {
                EventIdState::InProgress
            }
            Some(since) => {
                *since = Some(now);
                EventIdState::New
            }
            None => {
                marks.in_progress_since.insert(mark, Some(now));
                marks.insertion_order.push_back((now, mark));
                EventIdState::New
            }
        }
    }

    /// An id was worked on.
    pub(super) fn mark_processed(&self, id: &str) {
        if let Some(since) = self.lock().in_progress_since.get_mut(&hash_event_id(id)) {
            *since = None;
        }
    }

    /// Makes an id new again.
    pub(super) fn mark_failed(&self, id: &str) {
        let mark = hash_event_id(id);
        let mut marks = self.lock();
        if marks.in_progress_since.remove(&mark).is_some() {
            // it is among the last ones, as it has just come
            let at = marks
                .insertion_order
                .iter()
                .rposition(|(_, other)| *other == mark);
            at.and_then(|at| marks.insertion_order.remove(at));
        }
    }
}

fn hash_event_id(id: &str) -> EventIdHash {
    let hash: [u8; 32] = Sha256::digest(id).into();
    let mut mark = EventIdHash::default();
    mark.copy_from_slice(&hash[..16]);
    mark
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_new_once_and_again_when_its_time_is_over() {
        let seen = WebhookDeduplicator::default();
        let now = Instant::now();
        assert_eq!(seen.begin("EV_a", now), EventIdState::New);
        assert_eq!(seen.begin("EV_b", now), EventIdState::New);
        seen.mark_processed("EV_a");
        let later = now + Duration::from_secs(10 * 60);
        assert_eq!(seen.begin("EV_a", now), EventIdState::Processed);
        assert_eq!(seen.begin("EV_a", later), EventIdState::Processed);
        assert_eq!(seen.begin("EV_a", now + RETENTION), EventIdState::New);
        assert_eq!(seen.begin("", now), EventIdState::New);
        seen.mark_processed("");
        assert_eq!(seen.begin("", now), EventIdState::New);
    }

    #[test]
    fn what_is_under_way_may_still_fail() {
        let seen = WebhookDeduplicator::default();
        let now = Instant::now();
        assert_eq!(seen.begin("EV_a", now), EventIdState::New);
        assert_eq!(seen.begin("EV_a", now), EventIdState::InProgress);
        seen.mark_failed("EV_a");
        assert_eq!(seen.begin("EV_a", now), EventIdState::New);
        // whoever was at it has gone without a word
        assert_eq!(
            seen.begin("EV_a", now + PROCESSING_TIMEOUT),
            EventIdState::New
        );
        assert_eq!(
            seen.begin("EV_a", now + PROCESSING_TIMEOUT),
            EventIdState::InProgress
        );
        assert_eq!(seen.lock().insertion_order.len(), 1);
    }

    #[test]
    fn a_forgotten_id_is_new_and_leaves_nothing_behind() {
        let seen = WebhookDeduplicator::default();
        let now = Instant::now();
        for _ in 0..1000 {
            assert_eq!(seen.begin("EV_a", now), EventIdState::New);
            seen.mark_failed("EV_a");
        }
        seen.mark_failed("EV_never");
        seen.mark_processed("EV_never");
        assert!(seen.lock().insertion_order.is_empty() && seen.lock().in_progress_since.is_empty());
    }

    #[test]
    fn memory_is_bounded_however_many_events_there_are() {
        let seen = WebhookDeduplicator::default();
        let now = Instant::now();
        for n in 0..=MAX_EVENT_IDS {
            assert_eq!(seen.begin(&n.to_string(), now), EventIdState::New);
            seen.mark_processed(&n.to_string());
        }
        let marks = seen.lock();
        assert_eq!(
            (marks.insertion_order.len(), marks.in_progress_since.len()),
            (MAX_EVENT_IDS, MAX_EVENT_IDS)
        );
        drop(marks);
        assert_eq!(
            seen.begin(&MAX_EVENT_IDS.to_string(), now),
            EventIdState::Processed
        );
        assert_eq!(
            seen.begin("0", now),
            EventIdState::New,
            "the oldest goes first"
        );
    }
}
