//! Places for which one waits in line, one line for each key: whoever is slow holds up those in the same line, and no line takes all.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Lines of bounded length. Those who stand in one hold a worker, whether it is their turn or not.
#[derive(Debug)]
pub(crate) struct FairQueue<K> {
    max_total: usize,
    max_per_key: usize,
    state: Mutex<FairQueueState<K>>,
    changed: Condvar,
}

#[derive(Debug)]
struct FairQueueState<K> {
    members: usize,
    queues: HashMap<K, KeyQueue>,
}

#[derive(Debug, Default)]
struct KeyQueue {
    members: usize,
    /// Those whose turn it is.
    active: usize,
    /// Those who wait for theirs, the first one first.
    waiting: VecDeque<u64>,
    /// How many have waited so far.
    next_ticket: u64,
}

/// There is no room in the line, or it did not move in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueRejected;

impl<K: Hash + Eq + Clone> FairQueue<K> {
    /// No more than `most` stand in all lines together, and `longest` in one. Memory is bounded by that.
    pub(crate) fn new(most: usize, longest: usize) -> Arc<Self> {
        Arc::new(Self {
            max_total: most,
            max_per_key: longest,
            state: Mutex::new(FairQueueState {
                members: 0,
                queues: HashMap::new(),
            }),
            changed: Condvar::new(),
        })
    }

    /// Stands in the line of `key`, if there is room; this does not wait.
    pub(crate) fn join(self: &Arc<Self>, key: K) -> Result<FairQueueEntry<K>, QueueRejected> {
        self.join_with_limit(self.max_per_key, key)
    }

    /// The same where no more than `longest` are to stand in this line.
    pub(crate) fn join_with_limit(
        self: &Arc<Self>,
        longest: usize,
        key: K,
    ) -> Result<FairQueueEntry<K>, QueueRejected> {
        let mut state = self.lock();
        let length = state.queues.get(&key).map_or(0, |line| line.members);
        if state.members >= self.max_total || length >= longest {
            return Err(QueueRejected);
        }
        state.members += 1;
        state.queues.entry(key.clone()).or_default().members += 1;
        Ok(FairQueueEntry {
            queue: self.clone(),
            key,
        })
    }

    fn lock(&self) -> MutexGuard<'_, FairQueueState<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody in a line, until it is dropped.
#[derive(Debug)]
pub(crate) struct FairQueueEntry<K: Hash + Eq + Clone> {
    queue: Arc<FairQueue<K>>,
    key: K,
}

impl<K: Hash + Eq + Clone> FairQueueEntry<K> {
    /// Waits for one of `at_once` places, which is asked anew whenever the line moves; not beyond `until`.
    pub(crate) fn acquire(
        &mut self,
        at_once: impl Fn() -> usize,
        until: Instant,
    ) -> Result<QueuePermit<'_, K>, QueueRejected> {
        let lines = &self.queue;
        let mut state = lines.lock();
        let line = state.queues.entry(self.key.clone()).or_default();
        let ticket = line.next_ticket;
        line.next_ticket += 1;
        line.waiting.push_back(ticket);
        loop {
            let line = state.queues.entry(self.key.clone()).or_default();
            if line.waiting.front() == Some(&ticket) && line.active < at_once() {
                line.waiting.pop_front();
                line.active += 1;
                // there may be a place for the next one as well
                lines.changed.notify_all();
                return Ok(QueuePermit(self));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                line.waiting.retain(|other| *other != ticket);
                lines.changed.notify_all();
                return Err(QueueRejected);
            }
            let woken = lines.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl<K: Hash + Eq + Clone> Drop for FairQueueEntry<K> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.members -= 1;
        if let Some(line) = state.queues.get_mut(&self.key) {
            line.members -= 1;
            if line.members == 0 {
                state.queues.remove(&self.key);
            }
        }
    }
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct QueuePermit<'a, K: Hash + Eq + Clone>(&'a FairQueueEntry<K>);

impl<K: Hash + Eq + Clone> Drop for QueuePermit<'_, K> {
    fn drop(&mut self) {
        let FairQueueEntry { queue: of, key } = self.0;
        if let Some(line) = of.lock().queues.get_mut(key) {
            line.active -= 1;
        }
        of.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn waiting(lines: &FairQueue<&'static str>) -> usize {
        lines.lock().queues["slow"].waiting.len()
    }

    #[test]
    fn no_line_and_not_all_of_them_together_are_longer_than_they_may_be() {
        let lines = FairQueue::new(5, 3);
        let slow: Vec<_> = (0..3).map(|_| lines.join("slow").unwrap()).collect();
        assert_eq!(lines.join("slow").unwrap_err(), QueueRejected);
        let others = [lines.join("a").unwrap(), lines.join("b").unwrap()];
        assert_eq!(lines.join("c").unwrap_err(), QueueRejected);
        drop((slow, others));
        let state = lines.lock();
        assert!(state.queues.is_empty() && state.members == 0);
    }

    #[test]
    fn whoever_finds_no_place_waits_for_one_but_not_for_ever() {
        let lines = FairQueue::new(9, 9);
        let mut first = lines.join("slow").unwrap();
        let turn = first.acquire(|| 1, soon()).unwrap();
        let mut late = lines.join("slow").unwrap();
        assert_eq!(
            late.acquire(|| 1, Instant::now()).unwrap_err(),
            QueueRejected
        );
        let mut other = lines.join("other").unwrap();
        drop(other.acquire(|| 1, Instant::now()).unwrap());
        thread::scope(|scope| {
            let waits = scope.spawn(|| lines.join("slow").unwrap().acquire(|| 1, soon()).is_ok());
            while waiting(&lines) < 1 {
                thread::yield_now();
            }
            drop(turn);
            assert!(waits.join().unwrap());
        });
        assert!(late.acquire(|| 1, Instant::now()).is_ok());
    }

    #[test]
    fn more_places_are_there_for_those_who_wait_already() {
        let (lines, at_once) = (FairQueue::new(99, 99), AtomicUsize::new(1));
        let mut first = lines.join("slow").unwrap();
        let turn = first.acquire(|| 1, soon()).unwrap();
        let all_in = std::sync::Barrier::new(9);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut standing = lines.join("slow").unwrap();
                    let may = || at_once.load(Ordering::SeqCst);
                    let _turn = standing.acquire(may, soon()).unwrap();
                    all_in.wait();
                });
            }
            while waiting(&lines) < 8 {
                thread::yield_now();
            }
            at_once.store(8, Ordering::SeqCst);
            drop(turn);
            all_in.wait();
        });
    }
}
