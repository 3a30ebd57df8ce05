//! What a replica keeps, as its callers and its thread see it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use log::{error, info};

use super::connection::{Connection, Failure};
use crate::journal::ledger::Ledger;
use crate::journal::{Error, Fence, Hold, Key};
use crate::random;

/// What the thread and the callers share.
pub(super) struct Shared {
    /// The address, as it may be shown.
    pub(super) name: String,
    state: Mutex<State>,
    pub(super) wake: Condvar,
    /// None while there is no connection that may be used. Whoever locks both locks this one first.
    link: Mutex<Option<Connection>>,
}

pub(super) struct State {
    /// Our id as a keeper; a new one whenever our lease has lapsed.
    pub(super) me: Arc<str>,
    pub(super) ledger: Ledger,
    /// When all leaves are to be looked through; at once if none.
    pub(super) sweep: Option<Instant>,
    pub(super) trouble: Option<String>,
    /// Who we were, and what we kept, until Redis is known to have what it needs of that.
    pub(super) former: Option<(Arc<str>, Ledger)>,
    /// Until when nobody else takes what is ours.
    pub(super) leased: Option<Instant>,
    pub(super) renew_now: bool,
    pub(super) closing: bool,
    /// Leaves that are on their way into Redis, or back: not yet in the ledger, but not forgotten either.
    pub(super) moving: Vec<Key>,
}

impl State {
    pub(super) fn has_arrived(&mut self, key: &Key) {
        if let Some(at) = self.moving.iter().position(|moving| moving == key) {
            self.moving.swap_remove(at);
        }
    }

    /// Begins anew under another id if our lease has lapsed, and says whether it has.
    pub(super) fn lapse(&mut self, now: Instant) -> bool {
        let lapsed = self.leased.is_some_and(|until| now >= until);
        if lapsed {
            self.leased = None;
            let me = std::mem::replace(&mut self.me, new_id());
            let ledger = std::mem::take(&mut self.ledger);
            // it may lapse again before what it was about is settled; then nothing has been added
            if self.former.is_none() || !ledger.is_empty() {
                self.former = Some((me, ledger));
            }
            self.sweep = None;
        }
        lapsed
    }

    pub(super) fn is_leased(&self, now: Instant) -> bool {
        self.leased.is_some_and(|until| now < until)
    }
}

fn new_id() -> Arc<str> {
    format!("{:016x}", u64::from_ne_bytes(random::bytes())).into()
}

impl Shared {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            state: Mutex::new(State {
                me: new_id(),
                ledger: Ledger::default(),
                sweep: None,
                trouble: None,
                former: None,
                leased: None,
                renew_now: false,
                closing: false,
                moving: Vec::new(),
            }),
            wake: Condvar::new(),
            link: Mutex::new(None),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn link(&self) -> MutexGuard<'_, Option<Connection>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that Redis can't be used, and says so when it is news.
    pub(super) fn broken(&self, why: &str) {
        let trouble = format!("Redis at {}: {why}", self.name);
        let mut state = self.lock();
        if state.trouble.as_ref() != Some(&trouble) {
            error!(
                "the journal of delegated leaves can't be used, no new ones are taken: {trouble}"
            );
        }
        state.trouble = Some(trouble);
        self.wake.notify_all();
    }

    pub(super) fn mended(&self) {
        if self.lock().trouble.take().is_some() {
            info!(
                "the journal of delegated leaves can be used again: Redis at {}",
                self.name
            );
        }
    }

    /// Keeps what Redis has stored for `me`, if that is still us: else it has no living keeper, and is adopted.
    pub(super) fn keep(&self, me: &Arc<str>, key: &Key, fence: Fence, record: &str) {
        let mut state = self.lock();
        // a later one may have been stored meanwhile
        if state.me == *me && state.ledger.fence(key).is_none_or(|kept| kept < fence) {
            state.ledger.keep(key.clone(), fence, record.into());
        }
    }

    pub(super) fn change(&self, key: &Key, fence: Fence, record: Option<&str>) -> Hold {
        let mut state = self.lock();
        match state.ledger.change(key, fence, record) {
            Hold::Ours => Hold::Ours,
            Hold::Lost => match &mut state.former {
                // written if nobody has taken it meanwhile
                Some((_, former)) => former.change(key, fence, record),
                None => Hold::Lost,
            },
        }
    }

    /// Who we are, if the leave is ours by all that we know here; none if it is lost.
    pub(super) fn holds(&self, key: &Key, fence: Fence) -> Result<Option<Arc<str>>, Error> {
        let state = self.lock();
        let former = state.former.as_ref().map(|(_, former)| former);
        let lapsed = || Error("the lease in Redis has lapsed".into());
        match state.ledger.hold(key, fence) {
            Hold::Ours if state.is_leased(Instant::now()) => Ok(Some(state.me.clone())),
            Hold::Ours => Err(lapsed()),
            Hold::Lost if former.is_some_and(|former| former.hold(key, fence) == Hold::Ours) => {
                Err(lapsed())
            }
            Hold::Lost => Ok(None),
        }
    }

    /// A call to Redis, if there is a connection. One that breaks is given up, and the thread connects anew.
    pub(super) fn ask<T>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let mut link = self.link();
        let Some(connection) = link.as_mut() else {
            let trouble = self.lock().trouble.clone();
            return Err(Error(trouble.unwrap_or_else(|| "not connected".into())));
        };
        let answer = work(connection);
        if let Err(Failure::Broken(why)) = &answer {
            *link = None;
            drop(link);
            self.broken(why);
        }
        Ok(answer?)
    }

    pub(super) fn renew_now(&self) {
        self.lock().renew_now = true;
        self.wake.notify_all();
    }

    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_all();
    }
}
