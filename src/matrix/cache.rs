//! What is known of server names: bounded, and asked for once however many wait for it.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::matrix::id::ServerName;
use crate::net::address::Trust;

/// Names on each shelf. An entry has some 300 bytes, with long names and four SRV targets 2 KiB.
const MOST: usize = 1024;
/// How often a server may be discovered afresh because it does not answer where it was found.
const DOUBT_INTERVAL: Duration = Duration::from_secs(60);

/// Two shelves, so that made-up names never push out those that the administrator listed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shelf {
    Listed,
    Strangers,
}

impl Shelf {
    /// Where a server of this standing is kept.
    pub(super) fn of(trust: Trust) -> Self {
        match trust {
            Trust::Stranger => Self::Strangers,
            Trust::FullAccess | Trust::Administrator => Self::Listed,
        }
    }
}

/// Somebody else's look-up of the same name took longer than the caller could wait.
#[derive(Debug)]
pub(super) struct Waited;

/// What is kept of one name.
pub(super) trait Known: Clone + Default {
    /// Whether it is to be asked for.
    fn is_stale(&self, now: Instant) -> bool;

    /// Has everything asked for again.
    fn expire(&mut self);
}

#[derive(Debug, Default)]
pub(super) struct Cache<K> {
    listed: Mutex<HashMap<ServerName, Slot<K>>>,
    strangers: Mutex<HashMap<ServerName, Slot<K>>>,
}

#[derive(Debug)]
struct Slot<K> {
    entry: Arc<Entry<K>>,
    used: Instant,
}

#[derive(Debug, Default)]
struct Entry<K> {
    state: Mutex<State<K>>,
    landed: Condvar,
}

#[derive(Debug, Default)]
struct State<K> {
    known: K,
    flying: bool,
    /// When it was last asked for.
    learned: Option<Instant>,
    doubted: Option<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Known> Cache<K> {
    fn entry(&self, shelf: Shelf, name: &ServerName) -> Arc<Entry<K>> {
        let mut names = lock(match shelf {
            Shelf::Listed => &self.listed,
            Shelf::Strangers => &self.strangers,
        });
        let now = Instant::now();
        if let Some(slot) = names.get_mut(name) {
            slot.used = now;
            return slot.entry.clone();
        }
        if names.len() >= MOST {
            let oldest = names
                .iter()
                .min_by_key(|(_, slot)| slot.used)
                .map(|(name, _)| name.clone());
            oldest.and_then(|name| names.remove(&name));
        }
        let entry = Arc::<Entry<K>>::default();
        names.insert(
            name.clone(),
            Slot {
                entry: entry.clone(),
                used: now,
            },
        );
        entry
    }

    /// What is known of `name` after `update`, which one caller at a time carries out.
    pub(super) fn refresh<E: From<Waited>>(
        &self,
        shelf: Shelf,
        name: &ServerName,
        deadline: Instant,
        update: impl FnOnce(&mut K) -> Result<(), E>,
    ) -> Result<K, E> {
        let entry = self.entry(shelf, name);
        let mut state = lock(&entry.state);
        if !state.known.is_stale(Instant::now()) {
            return Ok(state.known.clone());
        }
        while state.flying {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Waited.into());
            }
            state = entry
                .landed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if !state.flying && !state.known.is_stale(Instant::now()) {
                return Ok(state.known.clone());
            }
        }
        state.flying = true;
        let mut known = state.known.clone();
        drop(state);
        let flight = Flight(&entry);
        // what was found out before it went wrong is worth keeping
        let outcome = update(&mut known);
        let mut state = lock(&entry.state);
        state.known = known.clone();
        state.learned = Some(Instant::now());
        drop(state);
        drop(flight);
        outcome.map(|()| known)
    }

    /// Adds to what is known what was found out by other means; a look-up under way does not know it.
    pub(super) fn amend(&self, shelf: Shelf, name: &ServerName, change: impl FnOnce(&mut K)) {
        change(&mut lock(&self.entry(shelf, name).state).known);
    }

    /// Has an entry asked for again, unless it was learned after `since`, or that was done within the last minute.
    pub(super) fn doubt(&self, shelf: Shelf, name: &ServerName, since: Instant) -> bool {
        let entry = self.entry(shelf, name);
        let mut state = lock(&entry.state);
        let now = Instant::now();
        if state.flying
            || state.learned.is_none_or(|at| at >= since)
            || state
                .doubted
                .is_some_and(|at| now.duration_since(at) < DOUBT_INTERVAL)
        {
            return false;
        }
        state.doubted = Some(now);
        state.known.expire();
        true
    }
}

/// Ends a look-up for those who wait, also when it panicked.
struct Flight<'a, K>(&'a Entry<K>);

impl<K> Drop for Flight<'_, K> {
    fn drop(&mut self) {
        lock(&self.0.state).flying = false;
        self.0.landed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Fact(bool);

    impl Known for Fact {
        fn is_stale(&self, _now: Instant) -> bool {
            !self.0
        }

        fn expire(&mut self) {
            self.0 = false;
        }
    }

    fn name(text: &str) -> ServerName {
        ServerName::parse(text).unwrap()
    }

    fn learn(fact: &mut Fact) -> Result<(), Waited> {
        fact.0 = true;
        Ok(())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn many_callers_cause_one_look_up() {
        let cache = Cache::<Fact>::default();
        let asked = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..50 {
                scope.spawn(|| {
                    let update = |known: &mut Fact| {
                        asked.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(50));
                        learn(known)
                    };
                    cache
                        .refresh(Shelf::Listed, &name("a"), soon(), update)
                        .unwrap();
                });
            }
        });
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn who_waits_gives_up_at_the_deadline_and_a_panic_frees_the_name() {
        let cache = Cache::<Fact>::default();
        std::thread::scope(|scope| {
            let (started, has_started) = std::sync::mpsc::channel();
            let (finish, may_finish) = std::sync::mpsc::channel::<()>();
            let cache = &cache;
            let flying = scope.spawn(move || {
                let _ = cache.refresh(
                    Shelf::Listed,
                    &name("a"),
                    soon(),
                    |_| -> Result<(), Waited> {
                        started.send(()).unwrap();
                        may_finish.recv().unwrap();
                        panic!("on purpose");
                    },
                );
            });
            has_started.recv().unwrap();
            let late = cache.refresh(Shelf::Listed, &name("a"), Instant::now(), learn);
            assert!(matches!(late, Err(Waited)));
            assert!(!cache.doubt(Shelf::Listed, &name("a"), soon()));
            finish.send(()).unwrap();
            assert!(flying.join().is_err());
        });
        cache
            .refresh(Shelf::Listed, &name("a"), soon(), learn)
            .unwrap();
    }

    #[test]
    fn made_up_names_stay_on_their_shelf() {
        let cache = Cache::<Fact>::default();
        cache
            .refresh(Shelf::Listed, &name("own.example"), soon(), learn)
            .unwrap();
        for n in 0..3000 {
            cache
                .refresh(
                    Shelf::Strangers,
                    &name(&format!("{n}.example")),
                    soon(),
                    learn,
                )
                .unwrap();
        }
        assert_eq!(
            (lock(&cache.listed).len(), lock(&cache.strangers).len()),
            (1, MOST)
        );
        cache
            .refresh(
                Shelf::Listed,
                &name("own.example"),
                soon(),
                |_| -> Result<(), Waited> { panic!("was forgotten") },
            )
            .unwrap();
    }

    #[test]
    fn a_server_is_doubted_once_a_minute() {
        let cache = Cache::<Fact>::default();
        let refresh = || {
            let mut asked = false;
            let update = |known: &mut Fact| {
                asked = true;
                learn(known)
            };
            cache
                .refresh(Shelf::Strangers, &name("a"), soon(), update)
                .unwrap();
            asked
        };
        let before = Instant::now();
        assert!(refresh());
        assert!(
            !cache.doubt(Shelf::Strangers, &name("a"), before),
            "was learned just now"
        );
        assert!(cache.doubt(Shelf::Strangers, &name("a"), soon()));
        assert!(refresh());
        assert!(
            !cache.doubt(Shelf::Strangers, &name("a"), soon()),
            "twice a minute"
        );
        assert!(!refresh());
    }
}
