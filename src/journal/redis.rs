//! Leaves in a Redis that several of us share: each leave has one keeper at a time, and another one soon after its keeper has died.
//!
//! Who keeps what is a matter between each of us and Redis; we do not talk to each other. A replica gives a sign of life every
//! second; without one for 5 s the others may take what it kept, and by its own clock it has stopped a second earlier. A leave that an
//! event reaches another replica for changes hands at once. So nobody acts on a leave without having asked Redis; what is then found
//! under a later fence is no longer theirs.

mod address;
mod adopting;
mod connection;
mod keeper;
mod script;
mod shared;
mod writing;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::warn;
use redis::{Cmd, Value};
use rustls::ClientConfig;

use self::connection::{Answer, Failure, text};
use self::keeper::Keeper;
use self::script::{Found, Kept, Touch};
use self::shared::Shared;
use super::{Error, Fence, Hold, Journal, Key, fits};
use crate::net::tls::{Roots, Verification, client_config};

pub use self::address::Address;

/// How often the whole hash is looked through though no replica is known to have died: for what a Redis that lost its latest
/// writes has left without a keeper.
const SWEEP: Duration = Duration::from_secs(60);
/// As [`SWEEP`], after a call that may have been carried out though it failed.
const SWEEP_SOON: Duration = Duration::from_secs(1);

/// A journal in Redis. Calls wait for a second at the longest if Redis is silent, and not at all once it is known to be gone.
pub struct Redis {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Redis {
    /// Connects, which may take some seconds. This does not fail: what is amiss is logged, told by [`Journal::trouble`], and tried
    /// again every other second.
    pub fn open(address: Address, roots: &Roots) -> Self {
        let tls: Arc<ClientConfig> = client_config(roots, Verification::On);
        let shared = Arc::new(Shared::new(address.to_string()));
        let mut keeper = Keeper::new(address, tls, Arc::clone(&shared));
        keeper.turn(Instant::now());
        let thread = thread::Builder::new().name("journal".into());
        let thread = match thread.spawn(move || keeper.run()) {
            Ok(thread) => Some(thread),
            Err(reason) => {
                shared.broken(&format!("no thread for it: {reason}"));
                None
            }
        };
        Self {
            shared,
            thread: Mutex::new(thread),
        }
    }

    fn ask(&self, command: &Cmd) -> Result<Value, Error> {
        self.shared.ask(|connection| connection.ask(command))
    }

    fn ask_all(&self, commands: &[Cmd]) -> Result<Vec<Answer>, Error> {
        self.shared.ask(|connection| connection.ask_all(commands))
    }

    /// A call that gives us a leave: it may be carried out even if it fails, and then the leave is found again soon.
    fn fetch<T>(
        &self,
        key: &Key,
        call: impl FnOnce(&Arc<str>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let me = {
            let mut state = self.shared.lock();
            state.moving.push(key.clone());
            state.me.clone()
        };
        let outcome = call(&me);
        let mut state = self.shared.lock();
        state.has_arrived(key);
        if outcome.is_err() {
            state.sweep = Some(Instant::now() + SWEEP_SOON);
        }
        outcome
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis({})", self.shared.name)
    }
}

impl Journal for Redis {
    fn put(&self, key: &Key, record: &str) -> Result<Fence, Error> {
        fits(record)?;
        self.fetch(key, |me| {
            let answer = self.ask(&script::put(key, me, record))?;
            let fence = text(&answer).and_then(|fence| fence.parse().ok());
            let fence = Fence(fence.ok_or_else(|| Error("Redis gave no fence".into()))?);
            self.shared.keep(me, key, fence, record);
            Ok(fence)
        })
    }

    fn update(&self, key: &Key, fence: Fence, record: &str) -> Result<Hold, Error> {
        fits(record)?;
        Ok(self.shared.change(key, fence, Some(record)))
    }

    fn remove(&self, key: &Key, fence: Fence) -> Result<Hold, Error> {
        Ok(self.shared.change(key, fence, None))
    }

    fn sync(&self) -> Result<(), Error> {
        match self
            .shared
            .ask(|connection| self.shared.write(connection))?
        {
            true => Ok(()),
            false => {
                self.shared.renew_now();
                Err(Error("Redis has lost what it had".into()))
            }
        }
    }

    fn hold(&self, key: &Key, fence: Fence) -> Result<Hold, Error> {
        let Some(me) = self.shared.holds(key, fence)? else {
            return Ok(Hold::Lost);
        };
        // if Redis is gone nobody knows: another of us may have taken it for a webhook, though our lease has not lapsed
        let answer = self.ask(&script::touch(key, &me, fence, Touch::Look))?;
        match Found::of(&answer) {
            Some(Found::Lost | Found::Absent) => {
                self.shared.lock().ledger.lose(key, fence);
                Ok(Hold::Lost)
            }
            Some(Found::Forgotten) => {
                self.shared.renew_now();
                Err(Error("Redis has lost what it had".into()))
            }
            // our clock may have stood still meanwhile
            Some(Found::Ours) => {
                let held = self.shared.holds(key, fence)?.is_some();
                Ok(if held { Hold::Ours } else { Hold::Lost })
            }
            None => Err(Error(
                "Redis answered a question with something else".into(),
            )),
        }
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn take(&self, key: &Key) -> Result<Option<(Fence, String)>, Error> {
        {
            let state = self.shared.lock();
            if state.ledger.has(key) || state.moving.contains(key) {
                return Ok(None);
            }
        }
        self.fetch(key, |me| {
            let value = self.ask(&script::take(key, me))?;
            let Some(kept) = text(&value).and_then(|value| Kept::parse(&value)) else {
                return Ok(None);
            };
            self.shared.keep(me, key, Fence(kept.fence), &kept.record);
            Ok(Some((Fence(kept.fence), kept.record)))
        })
    }

    fn adopt(&self, most: usize) -> Result<Vec<(Key, Fence, String)>, Error> {
        let now = Instant::now();
        let swept = {
            let mut state = self.shared.lock();
            let due = state.sweep.is_none_or(|sweep| now >= sweep);
            due.then(|| state.sweep.replace(now + SWEEP))
        };
        let adopted = self.adopt_all(most, swept.is_some());
        if !matches!(adopted, Ok((_, true))) {
            self.shared.lock().sweep = None;
        }
        adopted.map(|(adopted, _)| adopted)
    }

    fn set_aside(&self, key: &Key, fence: Fence, why: &str) -> Result<Hold, Error> {
        let (me, record) = {
            let state = self.shared.lock();
            (state.me.clone(), state.ledger.record(key, fence))
        };
        let Some(record) = record else {
            return Ok(Hold::Lost);
        };
        warn!("a record of the journal is set aside: {why}");
        let value = script::value(&me, fence, &record);
        self.ask(&script::set_aside(
            key.to_json().as_bytes(),
            value.as_bytes(),
        ))?;
        self.shared.lock().ledger.lose(key, fence);
        Ok(Hold::Ours)
    }

    fn renew(&self) -> Result<(), Error> {
        let state = self.shared.lock();
        match state.is_leased(Instant::now()) {
            true => Ok(()),
            false => Err(Error("the lease in Redis has lapsed".into())),
        }
    }

    fn trouble(&self) -> Option<String> {
        self.shared.lock().trouble.clone()
    }

    fn close(&self) {
        self.shared.close();
        let thread = self.thread.lock().map(|mut thread| thread.take());
        if let Ok(Some(thread)) = thread {
            // it has nothing to say
            let _ = thread.join();
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.close();
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self(format!("Redis: {failure}"))
    }
}
