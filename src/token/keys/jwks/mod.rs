//! The keys that a login server publishes: asked for at the start, once an hour, and when a token names a new one.
//!
//! One thread does the asking, so that there is never more than one request, and whoever shows a token of a known key waits for
//! nobody. A server that does not answer leaves the keys as they were, for a day at most.

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{info, warn};

use super::{Error, KeySet, MAX_JWKS_BYTES};
use crate::net::address::{AddressPolicy, Host, Trust};
use crate::net::base_url::BaseUrl;
use crate::net::http_client;
use crate::net::http_client::{FetchLimits, FetchRequest, Fetcher, HttpRoute};
use crate::net::permits::MAX_CALLS_PER_SUBNET;
use crate::util::sync::Swappable;

/// Between two rounds: for so long a key that was withdrawn is still believed.
const REFRESH_INTERVAL: Duration = Duration::from_secs(3600);
/// Between two requests because of tokens whose key is not known, and after a failure.
const MIN_FETCH_INTERVAL: Duration = Duration::from_secs(60);
/// How long keys are believed while their server does not answer.
const MAX_KEY_AGE: Duration = Duration::from_secs(24 * 3600);
/// For one request in all.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// What a caller is told to wait at least.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Callers that may wait for one request; there is nothing that more of them would learn.
const MAX_WAITERS: usize = 4;
const JWKS_FETCH_LIMITS: FetchLimits = FetchLimits {
    kind: "jwks",
    connect_timeout: Duration::from_secs(3),
    head_timeout: Duration::from_secs(3),
    body_timeout: Duration::from_secs(3),
    max_body: MAX_JWKS_BYTES,
    max_subnet_calls: MAX_CALLS_PER_SUBNET,
};

/// Where a login server publishes its keys.
#[derive(Clone, PartialEq, Eq)]
pub struct JwksUrl {
    base: BaseUrl,
    target: Box<str>,
}

/// A URL of which no keys are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidJwksUrl;

impl fmt::Display for InvalidJwksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "expected an https URL; http only to loopback, if LIVEKIT_ALLOWED_NETWORKS has it",
        )
    }
}

impl std::error::Error for InvalidJwksUrl {}

impl JwksUrl {
    /// Reads an https URL, with a query or without. Plain http would let anyone on the way put their own keys in, so it is for
    /// loopback only, and only where the policy allows that.
    pub fn parse(text: &str, policy: &AddressPolicy) -> Result<Self, InvalidJwksUrl> {
        let scheme = text.split("://").next().unwrap_or_default();
        let known = ["http", "https"]
            .iter()
            .any(|s| scheme.eq_ignore_ascii_case(s));
        let without_query = text.split('?').next().unwrap_or_default();
        let base = BaseUrl::parse(without_query).ok().filter(|_| known);
        let base = base.ok_or(InvalidJwksUrl)?;
        let uri: http::Uri = text.parse().map_err(|_| InvalidJwksUrl)?;
        let target = uri.path_and_query().ok_or(InvalidJwksUrl)?.as_str().into();
        if text.contains('#') || !(base.tls() || is_allowed_loopback(base.host(), policy)) {
            return Err(InvalidJwksUrl);
        }
        Ok(Self { base, target })
    }
}

fn is_allowed_loopback(host: &Host, policy: &AddressPolicy) -> bool {
    let allows = |ip: IpAddr| ip.is_loopback() && policy.allows(ip, Trust::Unlisted);
    match host {
        Host::Ip(ip) => allows(*ip),
        // what it resolves to is vetted before it is dialled
        Host::Dns(name) => {
            **name == *"localhost"
                && (allows(Ipv4Addr::LOCALHOST.into()) || allows(Ipv6Addr::LOCALHOST.into()))
        }
    }
}

impl fmt::Display for JwksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.base.tls() { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.base.authority(), self.target)
    }
}

impl fmt::Debug for JwksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The published keys. Clones are the same ones; the thread ends with the last.
#[derive(Debug, Clone)]
pub struct RemoteJwks {
    refresher: Arc<JwksRefresher>,
    refresh_requests: SyncSender<()>,
}

#[derive(Debug)]
struct JwksRefresher {
    url: JwksUrl,
    fetcher: Swappable<Fetcher>,
    state: Mutex<JwksState>,
    fetch_finished: Condvar,
}

impl RemoteJwks {
    /// Starts asking.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(crate) fn start(url: JwksUrl, fetcher: Fetcher) -> std::io::Result<Self> {
        let (ask, asked) = sync_channel(1);
        let shared = Arc::new(JwksRefresher {
            url,
            fetcher: Swappable::new(fetcher),
            state: Mutex::new(JwksState::new()),
            fetch_finished: Condvar::new(),
        });
        let jwks = Self {
            refresher: shared.clone(),
            refresh_requests: ask,
        };
        let thread = std::thread::Builder::new().name("jwks".into());
        thread.spawn(move || shared.run(&asked))?;
        Ok(jwks)
    }

    /// Where they are from.
    pub fn url(&self) -> &JwksUrl {
        &self.refresher.url
    }

    /// Replaces the fetcher, from the next request on: the keys that are cached stay.
    #[expect(dead_code, reason = "the reload of authorities calls it next")]
    pub(crate) fn replace_fetcher(&self, fetcher: Fetcher) {
        self.refresher.fetcher.replace(fetcher);
    }

    /// The keys as they are known at `now`.
    pub fn cached(&self, now: Instant) -> Option<Arc<KeySet>> {
        self.refresher.lock().fresh_keys(now)
    }

    /// Whether [`Jwks::newer`] would wait at `now`.
    pub fn would_wait(&self, now: Instant) -> bool {
        let state = self.refresher.lock();
        state.fetching || state.may_fetch(now)
    }

    /// The keys once more, after asking for them if that may be done by now; or how soon it may, if nobody can tell whether
    /// there are newer ones. Waits for a request that is under way, 5 seconds at most.
    pub fn refresh(&self) -> Result<Arc<KeySet>, Duration> {
        let started = Instant::now();
        let mut state = self.refresher.lock();
        if !state.fetching && state.may_fetch(started) {
            state.begin_fetch(started);
            state.last_requested_at = Some(started);
            // full means that it will set out anyway
            let _ = self.refresh_requests.try_send(());
        }
        if state.fetching {
            if state.waiters >= MAX_WAITERS {
                return Err(FETCH_TIMEOUT);
            }
            state.waiters += 1;
            let wait =
                self.refresher
                    .fetch_finished
                    .wait_timeout_while(state, FETCH_TIMEOUT, |s| s.fetching);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
            state.waiters -= 1;
        }
        let now = Instant::now();
        let keys = state
            .fresh_keys(now)
            .filter(|_| !state.fetching && !state.last_fetch_failed);
        keys.ok_or(state.retry_after(now).max(MIN_RETRY_AFTER))
    }
}

impl JwksRefresher {
    fn lock(&self) -> MutexGuard<'_, JwksState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks whenever it is time, until nobody is left who could want to know.
    fn run(&self, asked: &Receiver<()>) {
        loop {
            let outcome = self.fetch_key_set();
            match &outcome {
                Ok(keys) => info!("login keys={} url={}", keys.count(), self.url),
                Err(cause) => warn!("login keys not fetched url={} cause={cause:?}", self.url),
            }
            let due = self.lock().finish_fetch(outcome.ok(), Instant::now());
            self.fetch_finished.notify_all();
            match asked.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.lock().begin_fetch(Instant::now());
                    // a caller who asked in this very moment is served by this round
                    let _ = asked.try_recv();
                }
            }
        }
    }

    fn fetch_key_set(&self) -> Result<KeySet, String> {
        let route = HttpRoute {
            // a name that the administrator wrote may lead anywhere by the time that it is looked up
            trust: Trust::Unlisted,
            ..HttpRoute::administrator_url(&self.url.base)
        };
        let deadline = Instant::now() + FETCH_TIMEOUT;
        let request = FetchRequest::get(&self.url.target);
        let told = |error: http_client::Error| error.to_string();
        let answer = self
            .fetcher
            .get()
            .fetch(&route, request, JWKS_FETCH_LIMITS, deadline);
        let answer = answer.map_err(told)?;
        match answer.status {
            200 => KeySet::parse_jwks(&answer.body).map_err(|error: Error| error.to_string()),
            status => Err(format!("status {status}")),
        }
    }
}

/// What is known, and what is being done about it.
#[derive(Debug)]
struct JwksState {
    keys: Option<(Arc<KeySet>, Instant)>,
    /// Whether the last request gave nothing.
    last_fetch_failed: bool,
    fetching: bool,
    fetch_started_at: Instant,
    /// When a caller last had them asked for.
    last_requested_at: Option<Instant>,
    waiters: usize,
}

impl JwksState {
    /// The first request is under way.
    fn new() -> Self {
        Self {
            keys: None,
            last_fetch_failed: false,
            fetching: true,
            fetch_started_at: Instant::now(),
            last_requested_at: None,
            waiters: 0,
        }
    }

    fn fresh_keys(&self, now: Instant) -> Option<Arc<KeySet>> {
        let (keys, since) = self.keys.as_ref()?;
        (now.saturating_duration_since(*since) < MAX_KEY_AGE).then(|| keys.clone())
    }

    fn may_fetch(&self, now: Instant) -> bool {
        self.retry_after(now).is_zero()
    }

    /// How long callers have to wait until they may have the server asked.
    fn retry_after(&self, now: Instant) -> Duration {
        self.last_requested_at.map_or(Duration::ZERO, |asked| {
            (asked + MIN_FETCH_INTERVAL).saturating_duration_since(now)
        })
    }

    fn begin_fetch(&mut self, now: Instant) {
        (self.fetching, self.fetch_started_at) = (true, now);
    }

    /// Takes what a request gave at `now`; when the next one is due.
    fn finish_fetch(&mut self, keys: Option<KeySet>, now: Instant) -> Instant {
        (self.fetching, self.last_fetch_failed) = (false, keys.is_none());
        if let Some(keys) = keys {
            self.keys = Some((Arc::new(keys), now));
        }
        self.fetch_started_at
            + if self.last_fetch_failed {
                MIN_FETCH_INTERVAL
            } else {
                REFRESH_INTERVAL
            }
    }
}
