//! Ids of the SFU's recent events, so that a repeated webhook is handled once.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::util::bounded_map::BoundedMap;
use crate::util::sync::lock;

/// How long an id is remembered. The SFU stops repeating an event after a few minutes.
const RETENTION: Duration = Duration::from_secs(15 * 60);
/// Most ids: about 10 MB, and 70 events a second during [`RETENTION`]. Beyond that the oldest id is evicted. The ids are authentic: a
/// client cannot flood the deduplicator.
const MAX_EVENT_IDS: usize = 65_536;
/// After this time the thread that handles an event is taken for dead, and a repeat is handled.
const PROCESSING_TIMEOUT: Duration = Duration::from_secs(60);

/// The first half of the SHA-256 of an id, which bounds the memory of an id.
type EventIdHash = [u8; 16];

/// What was known of an id before [`WebhookDeduplicator::begin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventIdState {
    New,
    InProgress,
    Processed,
}

/// Start of processing, or `None` for a processed event, by the hash of its id; ranked by the time of arrival.
#[derive(Debug)]
pub(super) struct WebhookDeduplicator(Mutex<BoundedMap<EventIdHash, Option<Instant>>>);

impl Default for WebhookDeduplicator {
    fn default() -> Self {
        Self(Mutex::new(BoundedMap::new(MAX_EVENT_IDS)))
    }
}

impl WebhookDeduplicator {
    /// Records the start of processing, unless the event was processed or is in progress. An event without id is always new.
    pub(super) fn begin(&self, id: &str, now: Instant) -> EventIdState {
        if id.is_empty() {
            return EventIdState::New;
        }
        let mut ids = lock(&self.0);
        let expired = |arrival: Instant| now.saturating_duration_since(arrival) >= RETENTION;
        while ids.lowest_rank().is_some_and(expired) {
            ids.pop_lowest();
        }
        let hash = hash_event_id(id);
        match ids.get_mut(&hash) {
            Some(None) => EventIdState::Processed,
            Some(Some(since)) if now.saturating_duration_since(*since) < PROCESSING_TIMEOUT => {
                EventIdState::InProgress
            }
            Some(since) => {
                *since = Some(now);
                EventIdState::New
            }
            None => {
                ids.insert(hash, Some(now), now);
                EventIdState::New
            }
        }
    }

    pub(super) fn mark_processed(&self, id: &str) {
        if let Some(since) = lock(&self.0).get_mut(&hash_event_id(id)) {
            *since = None;
        }
    }

    /// Removes an id, which is new again.
    pub(super) fn mark_failed(&self, id: &str) {
        lock(&self.0).remove(&hash_event_id(id));
    }
}

fn hash_event_id(id: &str) -> EventIdHash {
    let hash: [u8; 32] = Sha256::digest(id).into();
    let mut half = EventIdHash::default();
    half.copy_from_slice(&hash[..16]);
    half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_new_until_processed_and_again_after_its_retention() {
        let deduplicator = WebhookDeduplicator::default();
        let now = Instant::now();
        assert_eq!(deduplicator.begin("EV_a", now), EventIdState::New);
        assert_eq!(deduplicator.begin("EV_b", now), EventIdState::New);
        deduplicator.mark_processed("EV_a");
        let later = now + Duration::from_secs(10 * 60);
        assert_eq!(deduplicator.begin("EV_a", now), EventIdState::Processed);
        assert_eq!(deduplicator.begin("EV_a", later), EventIdState::Processed);
        assert_eq!(
            deduplicator.begin("EV_a", now + RETENTION),
            EventIdState::New
        );
    }

    #[test]
    fn an_event_without_id_is_always_new() {
        let deduplicator = WebhookDeduplicator::default();
        for _ in 0..2 {
            assert_eq!(deduplicator.begin("", Instant::now()), EventIdState::New);
            deduplicator.mark_processed("");
        }
    }

    #[test]
    fn an_id_in_progress_is_new_after_failure_or_timeout() {
        let deduplicator = WebhookDeduplicator::default();
        let now = Instant::now();
        assert_eq!(deduplicator.begin("EV_a", now), EventIdState::New);
        assert_eq!(deduplicator.begin("EV_a", now), EventIdState::InProgress);
        deduplicator.mark_failed("EV_a");
        assert_eq!(deduplicator.begin("EV_a", now), EventIdState::New);
        let later = now + PROCESSING_TIMEOUT;
        assert_eq!(deduplicator.begin("EV_a", later), EventIdState::New);
        assert_eq!(deduplicator.begin("EV_a", later), EventIdState::InProgress);
        assert_eq!(lock(&deduplicator.0).len(), 1);
    }

    #[test]
    fn a_failed_id_uses_no_memory() {
        let deduplicator = WebhookDeduplicator::default();
        let now = Instant::now();
        for _ in 0..1000 {
            assert_eq!(deduplicator.begin("EV_a", now), EventIdState::New);
            deduplicator.mark_failed("EV_a");
        }
        deduplicator.mark_failed("EV_never");
        deduplicator.mark_processed("EV_never");
        assert_eq!(lock(&deduplicator.0).len(), 0);
    }

    #[test]
    fn a_flood_of_events_evicts_the_oldest_ids() {
        let deduplicator = WebhookDeduplicator::default();
        let now = Instant::now();
        for n in 0..=MAX_EVENT_IDS {
            assert_eq!(deduplicator.begin(&n.to_string(), now), EventIdState::New);
            deduplicator.mark_processed(&n.to_string());
        }
        assert_eq!(lock(&deduplicator.0).len(), MAX_EVENT_IDS);
        let newest = MAX_EVENT_IDS.to_string();
        assert_eq!(deduplicator.begin(&newest, now), EventIdState::Processed);
        assert_eq!(deduplicator.begin("0", now), EventIdState::New);
    }
}
