//! Which events were received already, for long enough that no repeat of the SFU's is worked on twice.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// How long an id is remembered. The SFU gives up after a few minutes.
const LASTING: Duration = Duration::from_secs(15 * 60);
/// Ids that are remembered: some 5 MB, and 70 events a second for a quarter of an hour. With more, the oldest go first; each has
/// to be signed by the SFU.
const MOST: usize = 65_536;

/// Half of an id's SHA-256: of one size, and nobody finds two ids with the same.
type Mark = [u8; 16];

#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<Marks>);

#[derive(Debug, Default)]
struct Marks {
    /// In the order in which they came. May hold forgotten ones.
    order: VecDeque<(Instant, Mark)>,
    known: HashSet<Mark>,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Marks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an id was seen before, and from now on it was. An event without one is always new.
    pub(super) fn before(&self, id: &str, now: Instant) -> bool {
        if id.is_empty() {
            return false;
        }
        let mut marks = self.lock();
        let too_old = |at: Instant| now.saturating_duration_since(at) >= LASTING;
        while marks.order.len() >= MOST || marks.order.front().is_some_and(|(at, _)| too_old(*at)) {
            if let Some((_, mark)) = marks.order.pop_front() {
                marks.known.remove(&mark);
            }
        }
        let mark = mark(id);
        if !marks.known.insert(mark) {
            return true;
        }
        marks.order.push_back((now, mark));
        false
    }

    /// Makes an id new again.
    pub(super) fn forget(&self, id: &str) {
        let mark = mark(id);
        let mut marks = self.lock();
        if marks.known.remove(&mark) {
            // it is among the last ones, as it has just come
            let at = marks.order.iter().rposition(|(_, other)| *other == mark);
            at.and_then(|at| marks.order.remove(at));
        }
    }
}

fn mark(id: &str) -> Mark {
    let hash: [u8; 32] = Sha256::digest(id).into();
    let mut mark = Mark::default();
    mark.copy_from_slice(&hash[..16]);
    mark
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_new_once_and_again_when_its_time_is_over() {
        let seen = Seen::default();
        let now = Instant::now();
        assert!(!seen.before("EV_a", now));
        assert!(!seen.before("EV_b", now));
        let later = now + Duration::from_secs(10 * 60);
        assert!(seen.before("EV_a", now) && seen.before("EV_a", later));
        assert!(!seen.before("EV_a", now + LASTING));
        assert!(!seen.before("", now) && !seen.before("", now));
    }

    #[test]
    fn a_forgotten_id_is_new_and_leaves_nothing_behind() {
        let seen = Seen::default();
        let now = Instant::now();
        for _ in 0..1000 {
            assert!(!seen.before("EV_a", now));
            seen.forget("EV_a");
        }
        seen.forget("EV_never");
        assert!(seen.lock().order.is_empty() && seen.lock().known.is_empty());
    }

    #[test]
    fn memory_is_bounded_however_many_events_there_are() {
        let seen = Seen::default();
        let now = Instant::now();
        for n in 0..=MOST {
            assert!(!seen.before(&n.to_string(), now));
        }
        let marks = seen.lock();
        assert_eq!((marks.order.len(), marks.known.len()), (MOST, MOST));
        drop(marks);
        assert!(seen.before(&MOST.to_string(), now), "the newest stays");
        assert!(!seen.before("0", now), "the oldest goes first");
    }
}
