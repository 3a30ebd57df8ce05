//! Which events were received already, for long enough that no repeat of the SFU's is worked on twice.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// How long an id is remembered. The SFU gives up after a few minutes.
const LASTING: Duration = Duration::from_secs(15 * 60);
/// Ids that are remembered: some 5 MB, and 70 events a second for a quarter of an hour. With more, the oldest go first; each has
/// to be signed by the SFU.
const MOST: usize = 65_536;

/// How long an event may be under way; after that, whoever was at it is not any more.
const UNDER_WAY: Duration = Duration::from_secs(60);

/// Half of an id's SHA-256: of one size, and nobody finds two ids with the same.
type Mark = [u8; 16];

/// What is known of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// It was not seen before; from now on it is under way.
    New,
    /// Somebody is at it, and may fail.
    UnderWay,
    /// It was worked on.
    Done,
}

#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<Marks>);

#[derive(Debug, Default)]
struct Marks {
    /// In the order in which they came.
    order: VecDeque<(Instant, Mark)>,
    /// Since when it is under way, unless it is done.
    known: HashMap<Mark, Option<Instant>>,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Marks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at an id. An event without one is always new.
    pub(super) fn look(&self, id: &str, now: Instant) -> Sight {
        if id.is_empty() {
            return Sight::New;
        }
        let mut marks = self.lock();
        let too_old = |at: Instant| now.saturating_duration_since(at) >= LASTING;
        while marks.order.len() >= MOST || marks.order.front().is_some_and(|(at, _)| too_old(*at)) {
            if let Some((_, mark)) = marks.order.pop_front() {
                marks.known.remove(&mark);
            }
        }
        let mark = mark(id);
        match marks.known.get_mut(&mark) {
            Some(None) => Sight::Done,
            Some(Some(since)) if now.saturating_duration_since(*since) < UNDER_WAY => {
                Sight::UnderWay
            }
            Some(since) => {
                *since = Some(now);
                Sight::New
            }
            None => {
                marks.known.insert(mark, Some(now));
                marks.order.push_back((now, mark));
                Sight::New
            }
        }
    }

    /// An id was worked on.
    pub(super) fn done(&self, id: &str) {
        if let Some(since) = self.lock().known.get_mut(&mark(id)) {
            *since = None;
        }
    }

    /// Makes an id new again.
    pub(super) fn forget(&self, id: &str) {
        let mark = mark(id);
        let mut marks = self.lock();
        if marks.known.remove(&mark).is_some() {
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
        assert_eq!(seen.look("EV_a", now), Sight::New);
        assert_eq!(seen.look("EV_b", now), Sight::New);
        seen.done("EV_a");
        let later = now + Duration::from_secs(10 * 60);
        assert_eq!(seen.look("EV_a", now), Sight::Done);
        assert_eq!(seen.look("EV_a", later), Sight::Done);
        assert_eq!(seen.look("EV_a", now + LASTING), Sight::New);
        assert_eq!(seen.look("", now), Sight::New);
        seen.done("");
        assert_eq!(seen.look("", now), Sight::New);
    }

    #[test]
    fn what_is_under_way_may_still_fail() {
        let seen = Seen::default();
        let now = Instant::now();
        assert_eq!(seen.look("EV_a", now), Sight::New);
        assert_eq!(seen.look("EV_a", now), Sight::UnderWay);
        seen.forget("EV_a");
        assert_eq!(seen.look("EV_a", now), Sight::New);
        // whoever was at it has gone without a word
        assert_eq!(seen.look("EV_a", now + UNDER_WAY), Sight::New);
        assert_eq!(seen.look("EV_a", now + UNDER_WAY), Sight::UnderWay);
        assert_eq!(seen.lock().order.len(), 1);
    }

    #[test]
    fn a_forgotten_id_is_new_and_leaves_nothing_behind() {
        let seen = Seen::default();
        let now = Instant::now();
        for _ in 0..1000 {
            assert_eq!(seen.look("EV_a", now), Sight::New);
            seen.forget("EV_a");
        }
        seen.forget("EV_never");
        seen.done("EV_never");
        assert!(seen.lock().order.is_empty() && seen.lock().known.is_empty());
    }

    #[test]
    fn memory_is_bounded_however_many_events_there_are() {
        let seen = Seen::default();
        let now = Instant::now();
        for n in 0..=MOST {
            assert_eq!(seen.look(&n.to_string(), now), Sight::New);
            seen.done(&n.to_string());
        }
        let marks = seen.lock();
        assert_eq!((marks.order.len(), marks.known.len()), (MOST, MOST));
        drop(marks);
        assert_eq!(seen.look(&MOST.to_string(), now), Sight::Done);
        assert_eq!(seen.look("0", now), Sight::New, "the oldest goes first");
    }
}
