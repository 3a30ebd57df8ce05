//! The thread that keeps up what a replica keeps: connects, gives signs of life, writes what has changed.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use log::warn;
use redis::Value;
use rustls::ClientConfig;

use super::Address;
use super::connection::{Connection, Failure};
use super::script::{self, LEASE_MS};
use super::shared::{Shared, State};

/// How long we believe in our lease after we asked for it: less than Redis does, for clocks differ and calls take their time.
const LEASE: Duration = Duration::from_millis(LEASE_MS - 1000);
/// How often we ask for it.
const RENEW: Duration = Duration::from_secs(1);
/// How often the thread looks round; so long do changes wait for others.
const TICK: Duration = Duration::from_millis(100);
/// How long a Redis that can't be reached is left alone: at first, and twice as long each time up to the second figure.
const RETRY: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(2)];
/// The thread's own.
pub(super) struct Keeper {
    address: Address,
    tls: Arc<ClientConfig>,
    shared: Arc<Shared>,
    /// Which run of Redis we spoke with last.
    run: Option<String>,
    next_renewal: Instant,
    retry: Option<(Instant, Duration)>,
}

impl Keeper {
    pub(super) fn new(address: Address, tls: Arc<ClientConfig>, shared: Arc<Shared>) -> Self {
        Self {
            address,
            tls,
            shared,
            run: None,
            next_renewal: Instant::now(),
            retry: None,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            let state = self.shared.lock();
            let quiet = |state: &mut State| !state.closing && !state.renew_now;
            let waited = self.shared.wake.wait_timeout_while(state, TICK, quiet);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.closing {
                drop(state);
                return self.release();
            }
            if std::mem::take(&mut state.renew_now) {
                self.next_renewal = Instant::now();
            }
            drop(state);
            self.turn(Instant::now());
        }
    }

    /// Does what is due.
    pub(super) fn turn(&mut self, now: Instant) {
        self.lapse(now);
        let shared = Arc::clone(&self.shared);
        let mut link = shared.link();
        let outcome = match link.as_mut() {
            Some(connection) => self.upkeep(connection, now),
            None if self.retry.is_some_and(|(at, _)| now < at) => return,
            None => {
                drop(link);
                let opened = Connection::open(&self.address, &self.tls);
                link = shared.link();
                opened.and_then(|mut connection| {
                    self.welcome(&mut connection)?;
                    *link = Some(connection);
                    Ok(())
                })
            }
        };
        match outcome {
            Ok(()) => {
                self.retry = None;
                drop(link);
                shared.mended();
            }
            Err(failure) => {
                *link = None;
                drop(link);
                let wait = self
                    .retry
                    .map_or(RETRY[0], |(_, wait)| (wait * 2).min(RETRY[1]));
                self.retry = Some((Instant::now() + wait, wait));
                shared.broken(&failure.to_string());
            }
        }
    }

    /// When our lease has lapsed others may have taken what was ours: we begin anew, under another name.
    fn lapse(&mut self, now: Instant) {
        if self.shared.lock().lapse(now) {
            warn!(
                "the lease in Redis has lapsed: other replicas may take over the leaves that were ours"
            );
            *self.shared.link() = None;
            self.retry = None;
        }
    }

    /// A new connection, before anybody else may use it.
    fn welcome(&mut self, connection: &mut Connection) -> Result<(), Failure> {
        let restarted = self.run.is_some() && self.run != connection.run;
        let unknown = connection.run.is_none();
        self.renew(connection, restarted || unknown)?;
        self.run.clone_from(&connection.run);
        self.shared.write(connection).map(drop)
    }

    fn upkeep(&mut self, connection: &mut Connection, now: Instant) -> Result<(), Failure> {
        if now >= self.next_renewal {
            self.renew(connection, false)?;
        }
        self.shared.write(connection).map(drop)
    }

    /// Gives a sign of life. If Redis has forgotten the last one too early, or was restarted, it is given back what we know.
    fn renew(&mut self, connection: &mut Connection, restarted: bool) -> Result<(), Failure> {
        let asked = Instant::now();
        let (me, was_leased) = {
            let state = self.shared.lock();
            (state.me.clone(), state.is_leased(asked))
        };
        let known = connection.ask(&script::renew(&me))?;
        self.next_renewal = asked + RENEW;
        let forgotten = was_leased && known == Value::Int(0);
        if forgotten || restarted {
            self.shared.restore(connection)?;
        }
        self.shared.lock().leased = Some(asked + LEASE);
        Ok(())
    }

    /// The last turn: nothing of ours is worked any more.
    fn release(&mut self) {
        // twice, if Redis was restarted a moment ago
        for _ in 0..2 {
            self.retry = None;
            self.turn(Instant::now());
            if self.shared.link().is_some() {
                break;
            }
        }
        let mut link = self.shared.link();
        if let Some(connection) = link.as_mut() {
            let me = self.shared.lock().me.clone();
            if let Err(failure) = connection.ask(&script::release(&me)) {
                warn!(
                    "Redis at {} was not told that we end: {failure}",
                    self.shared.name
                );
            }
        }
        *link = None;
    }
}
