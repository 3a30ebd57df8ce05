//! Places for which one waits in line, one line for each key: whoever is slow holds up those in the same line, and no line takes all.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Lines of bounded length. Those who stand in one hold a worker, whether it is their turn or not.
#[derive(Debug)]
pub struct Lines<K> {
    most: usize,
    longest: usize,
    state: Mutex<State<K>>,
    moved: Condvar,
}

#[derive(Debug)]
struct State<K> {
    standing: usize,
    lines: HashMap<K, Line>,
}

#[derive(Debug, Default)]
struct Line {
    standing: usize,
    /// Those whose turn it is.
    at_it: usize,
    /// Those who wait for theirs, the first one first.
    waiting: VecDeque<u64>,
    /// How many have waited so far.
    serial: u64,
}

/// There is no room in the line, or it did not move in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

impl<K: Hash + Eq + Clone> Lines<K> {
    /// No more than `most` stand in all lines together, and `longest` in one. Memory is bounded by that.
    pub fn new(most: usize, longest: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            longest,
            state: Mutex::new(State {
                standing: 0,
                lines: HashMap::new(),
            }),
            moved: Condvar::new(),
        })
    }

    /// Stands in the line of `key`, if there is room; this does not wait.
    pub fn join(self: &Arc<Self>, key: K) -> Result<Standing<K>, TooLong> {
        self.join_up_to(self.longest, key)
    }

    /// The same where no more than `longest` are to stand in this line.
    pub fn join_up_to(self: &Arc<Self>, longest: usize, key: K) -> Result<Standing<K>, TooLong> {
        let mut state = self.lock();
        let length = state.lines.get(&key).map_or(0, |line| line.standing);
        if state.standing >= self.most || length >= longest {
            return Err(TooLong);
        }
        state.standing += 1;
        state.lines.entry(key.clone()).or_default().standing += 1;
        Ok(Standing {
            of: self.clone(),
            key,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody in a line, until it is dropped.
#[derive(Debug)]
pub struct Standing<K: Hash + Eq + Clone> {
    of: Arc<Lines<K>>,
    key: K,
}

impl<K: Hash + Eq + Clone> Standing<K> {
    /// Waits for one of `at_once` places, which is asked anew whenever the line moves; not beyond `until`.
    pub fn turn(
        &mut self,
        at_once: impl Fn() -> usize,
        until: Instant,
    ) -> Result<Turn<'_, K>, TooLong> {
        let lines = &self.of;
        let mut state = lines.lock();
        let line = state.lines.entry(self.key.clone()).or_default();
        let ticket = line.serial;
        line.serial += 1;
        line.waiting.push_back(ticket);
        loop {
            let line = state.lines.entry(self.key.clone()).or_default();
            if line.waiting.front() == Some(&ticket) && line.at_it < at_once() {
                line.waiting.pop_front();
                line.at_it += 1;
                // there may be a place for the next one as well
                lines.moved.notify_all();
                return Ok(Turn(self));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                line.waiting.retain(|other| *other != ticket);
                lines.moved.notify_all();
                return Err(TooLong);
            }
            let woken = lines.moved.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl<K: Hash + Eq + Clone> Drop for Standing<K> {
    fn drop(&mut self) {
        let mut state = self.of.lock();
        state.standing -= 1;
        if let Some(line) = state.lines.get_mut(&self.key) {
            line.standing -= 1;
            if line.standing == 0 {
                state.lines.remove(&self.key);
            }
        }
    }
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a, K: Hash + Eq + Clone>(&'a Standing<K>);

impl<K: Hash + Eq + Clone> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        let Standing { of, key } = self.0;
        if let Some(line) = of.lock().lines.get_mut(key) {
            line.at_it -= 1;
        }
        of.moved.notify_all();
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

    fn waiting(lines: &Lines<&'static str>) -> usize {
        lines.lock().lines["slow"].waiting.len()
    }

    #[test]
    fn no_line_and_not_all_of_them_together_are_longer_than_they_may_be() {
        let lines = Lines::new(5, 3);
        let slow: Vec<_> = (0..3).map(|_| lines.join("slow").unwrap()).collect();
        assert_eq!(lines.join("slow").unwrap_err(), TooLong);
        let others = [lines.join("a").unwrap(), lines.join("b").unwrap()];
        assert_eq!(lines.join("c").unwrap_err(), TooLong);
        drop((slow, others));
        let state = lines.lock();
        assert!(state.lines.is_empty() && state.standing == 0);
    }

    #[test]
    fn whoever_finds_no_place_waits_for_one_but_not_for_ever() {
        let lines = Lines::new(9, 9);
        let mut first = lines.join("slow").unwrap();
        let turn = first.turn(|| 1, soon()).unwrap();
        let mut late = lines.join("slow").unwrap();
        assert_eq!(late.turn(|| 1, Instant::now()).unwrap_err(), TooLong);
        let mut other = lines.join("other").unwrap();
        drop(other.turn(|| 1, Instant::now()).unwrap());
        thread::scope(|scope| {
            let waits = scope.spawn(|| lines.join("slow").unwrap().turn(|| 1, soon()).is_ok());
            while waiting(&lines) < 1 {
                thread::yield_now();
            }
            drop(turn);
            assert!(waits.join().unwrap());
        });
        assert!(late.turn(|| 1, Instant::now()).is_ok());
    }

    #[test]
    fn more_places_are_there_for_those_who_wait_already() {
        let (lines, at_once) = (Lines::new(99, 99), AtomicUsize::new(1));
        let mut first = lines.join("slow").unwrap();
        let turn = first.turn(|| 1, soon()).unwrap();
        let all_in = std::sync::Barrier::new(9);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut standing = lines.join("slow").unwrap();
                    let may = || at_once.load(Ordering::SeqCst);
                    let _turn = standing.turn(may, soon()).unwrap();
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
