//! The keys that a login server publishes: asked for at the start, once an hour, and when a token names a new one.
//!
//! One thread does the asking, so that there is never more than one request, and whoever shows a token of a known key waits for
//! nobody. A server that does not answer leaves the keys as they were, for a day at most.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{info, warn};

use super::{Error, Keys, MAX_DOCUMENT};
use crate::net::address::{AddressPolicy, Host, Trust};
use crate::net::base_url::BaseUrl;
use crate::net::bulkhead::PER_NEIGHBOURHOOD;
use crate::net::fetch::{self, Fetcher, Limits, Request, Route};

/// Between two rounds: for so long a key that was withdrawn is still believed.
const REFRESH: Duration = Duration::from_secs(3600);
/// Between two requests because of tokens whose key is not known, and after a failure.
const LEAST: Duration = Duration::from_secs(60);
/// How long keys are believed while their server does not answer.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// For one request in all.
const BUDGET: Duration = Duration::from_secs(5);
/// What a caller is told to wait at least.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// Callers that may wait for one request; there is nothing that more of them would learn.
const MAX_WAITING: usize = 4;
const LIMITS: Limits = Limits {
    kind: "jwks",
    connect: Duration::from_secs(3),
    head: Duration::from_secs(3),
    body: Duration::from_secs(3),
    max_body: MAX_DOCUMENT,
    neighbours: PER_NEIGHBOURHOOD,
};

/// Where a login server publishes its keys.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    base: BaseUrl,
    target: Box<str>,
}

/// A URL of which no keys are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidUrl;

impl fmt::Display for InvalidUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "expected an https URL; http only to loopback, if LIVEKIT_ALLOWED_NETWORKS has it",
        )
    }
}

impl std::error::Error for InvalidUrl {}

impl Url {
    /// Reads an https URL, with a query or without. Plain http would let anyone on the way put their own keys in, so it is for
    /// loopback only, and only where the policy allows that.
    pub fn parse(text: &str, policy: &AddressPolicy) -> Result<Self, InvalidUrl> {
        let scheme = text.split("://").next().unwrap_or_default();
        let known = ["http", "https"]
            .iter()
            .any(|s| scheme.eq_ignore_ascii_case(s));
        let without_query = text.split('?').next().unwrap_or_default();
        let base = BaseUrl::parse(without_query).ok().filter(|_| known);
        let base = base.ok_or(InvalidUrl)?;
        let uri: http::Uri = text.parse().map_err(|_| InvalidUrl)?;
        let target = uri.path_and_query().ok_or(InvalidUrl)?.as_str().into();
        if text.contains('#') || !(base.tls() || is_allowed_loopback(base.host(), policy)) {
            return Err(InvalidUrl);
        }
        Ok(Self { base, target })
    }
}

fn is_allowed_loopback(host: &Host, policy: &AddressPolicy) -> bool {
    let allows = |ip: IpAddr| ip.is_loopback() && policy.allows(ip, Trust::Stranger);
    match host {
        Host::Ip(ip) => allows(*ip),
        // what it resolves to is vetted before it is dialled
        Host::Dns(name) => {
            **name == *"localhost"
                && (allows(Ipv4Addr::LOCALHOST.into()) || allows(Ipv6Addr::LOCALHOST.into()))
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.base.tls() { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.base.authority(), self.target)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The published keys. Clones are the same ones; the thread ends with the last.
#[derive(Debug, Clone)]
pub struct Jwks {
    shared: Arc<Shared>,
    ask: SyncSender<()>,
}

#[derive(Debug)]
struct Shared {
    url: Url,
    fetcher: Fetcher,
    state: Mutex<State>,
    landed: Condvar,
}

impl Jwks {
    /// Starts asking.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start(url: Url, fetcher: Fetcher) -> std::io::Result<Self> {
        let (ask, asked) = sync_channel(1);
        let shared = Arc::new(Shared {
            url,
            fetcher,
            state: Mutex::new(State::new()),
            landed: Condvar::new(),
        });
        let jwks = Self {
            shared: shared.clone(),
            ask,
        };
        let thread = std::thread::Builder::new().name("jwks".into());
        thread.spawn(move || shared.keep(&asked))?;
        Ok(jwks)
    }

    /// Where they are from.
    pub fn url(&self) -> &Url {
        &self.shared.url
    }

    /// The keys as they are known at `now`.
    pub fn keys(&self, now: Instant) -> Option<Arc<Keys>> {
        self.shared.lock().keys(now)
    }

    /// Whether [`Jwks::newer`] would wait at `now`.
    pub fn would_wait(&self, now: Instant) -> bool {
        let state = self.shared.lock();
        state.under_way || state.may_ask(now)
    }

    /// The keys once more, after asking for them if that may be done by now; or how soon it may, if nobody can tell whether
    /// there are newer ones. Waits for a request that is under way, 5 seconds at most.
    pub fn newer(&self) -> Result<Arc<Keys>, Duration> {
        let started = Instant::now();
        let mut state = self.shared.lock();
        if !state.under_way && state.may_ask(started) {
            state.set_out(started);
            state.asked = Some(started);
            // full means that it will set out anyway
            let _ = self.ask.try_send(());
        }
        if state.under_way {
            if state.waiting >= MAX_WAITING {
                return Err(BUDGET);
            }
            state.waiting += 1;
            let wait = self
                .shared
                .landed
                .wait_timeout_while(state, BUDGET, |s| s.under_way);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
        }
        let now = Instant::now();
        let keys = state
            .keys(now)
            .filter(|_| !state.under_way && !state.failed);
        keys.ok_or(state.pause(now).max(SHORTEST_PAUSE))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks whenever it is time, until nobody is left who could want to know.
    fn keep(&self, asked: &Receiver<()>) {
        loop {
            let outcome = self.fetch();
            match &outcome {
                Ok(keys) => info!("login keys={} url={}", keys.count(), self.url),
                Err(cause) => warn!("login keys not fetched url={} cause={cause:?}", self.url),
            }
            let due = self.lock().land(outcome.ok(), Instant::now());
            self.landed.notify_all();
            match asked.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.lock().set_out(Instant::now());
                    // a caller who asked in this very moment is served by this round
                    let _ = asked.try_recv();
                }
            }
        }
    }

    fn fetch(&self) -> Result<Keys, String> {
        let route = Route {
            // a name that the administrator wrote may lead anywhere by the time that it is looked up
            trust: Trust::Stranger,
            ..Route::to(&self.url.base)
        };
        let deadline = Instant::now() + BUDGET;
        let request = Request::get(&self.url.target);
        let told = |error: fetch::Error| error.to_string();
        let answer = self.fetcher.fetch(&route, request, LIMITS, deadline);
        let answer = answer.map_err(told)?;
        match answer.status {
            200 => Keys::read(&answer.body).map_err(|error: Error| error.to_string()),
            status => Err(format!("status {status}")),
        }
    }
}

/// What is known, and what is being done about it.
#[derive(Debug)]
struct State {
    keys: Option<(Arc<Keys>, Instant)>,
    /// Whether the last request gave nothing.
    failed: bool,
    under_way: bool,
    set_out: Instant,
    /// When a caller last had them asked for.
    asked: Option<Instant>,
    waiting: usize,
}

impl State {
    /// The first request is under way.
    fn new() -> Self {
        Self {
            keys: None,
            failed: false,
            under_way: true,
            set_out: Instant::now(),
            asked: None,
            waiting: 0,
        }
    }

    fn keys(&self, now: Instant) -> Option<Arc<Keys>> {
        let (keys, since) = self.keys.as_ref()?;
        (now.saturating_duration_since(*since) < STALE).then(|| keys.clone())
    }

    fn may_ask(&self, now: Instant) -> bool {
        self.pause(now).is_zero()
    }

    /// How long callers have to wait until they may have the server asked.
    fn pause(&self, now: Instant) -> Duration {
        self.asked.map_or(Duration::ZERO, |asked| {
            (asked + LEAST).saturating_duration_since(now)
        })
    }

    fn set_out(&mut self, now: Instant) {
        (self.under_way, self.set_out) = (true, now);
    }

    /// Takes what a request gave at `now`; when the next one is due.
    fn land(&mut self, keys: Option<Keys>, now: Instant) -> Instant {
        (self.under_way, self.failed) = (false, keys.is_none());
        if let Some(keys) = keys {
            self.keys = Some((Arc::new(keys), now));
        }
        self.set_out + if self.failed { LEAST } else { REFRESH }
    }
}

#[cfg(test)]
mod tests;
