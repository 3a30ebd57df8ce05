//! JWK sets (RFC 7517, 5) that JWT issuers publish, fetched and cached.
//!
//! One thread fetches every set at the start and then hourly. A JWT with an unknown key triggers a fetch on the thread of its
//! request, for which a few other requests can wait; requests with known keys never wait. While the issuer's server fails, the
//! last keys stay valid for a day.

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use log::{info, warn};

use super::keys::{KeySet, MAX_JWKS_BYTES};
use crate::net::address::{AddressPolicy, Host, Trust};
use crate::net::base_url::BaseUrl;
use crate::net::http_client::{FetchLimits, FetchRequest, Fetcher, HttpRoute};
use crate::net::permits::{KeyedPermitPool, MAX_CALLS_PER_SUBNET};
use crate::util::single_flight::SingleFlight;
use crate::util::sync::{Swappable, lock, spawn};

/// Time between two fetches in the background; a withdrawn key stays valid for as long.
const REFRESH_INTERVAL: Duration = Duration::from_secs(3600);
/// Time between two fetches because of unknown keys, and after a failure in the background.
const MIN_FETCH_INTERVAL: Duration = Duration::from_secs(60);
/// How long keys stay valid while their server fails.
const MAX_KEY_AGE: Duration = Duration::from_secs(24 * 3600);
/// Deadline of one fetch, and of a request that waits for one.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Shortest `Retry-After`.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Most requests that wait for one fetch; each occupies a worker.
const MAX_WAITERS: usize = 4;
const JWKS_FETCH_LIMITS: FetchLimits = FetchLimits {
    kind: "jwks",
    connect_timeout: Duration::from_secs(3),
    head_timeout: Duration::from_secs(3),
    body_timeout: Duration::from_secs(3),
    max_body: MAX_JWKS_BYTES,
    max_subnet_calls: MAX_CALLS_PER_SUBNET,
};

/// The URL of a JWKS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwksUrl {
    base: BaseUrl,
    /// Path and query.
    target: Box<str>,
}

/// Error for a URL from which no keys are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidJwksUrl;

impl fmt::Display for InvalidJwksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "expected an https URL; http is for loopback only, if LIVEKIT_ALLOWED_NETWORKS contains it",
        )
    }
}

impl std::error::Error for InvalidJwksUrl {}

impl JwksUrl {
    /// Parses an https URL, with or without a query. Over plain http, anyone between the two servers could replace the keys, so
    /// it is for loopback only, and only if the address policy allows loopback.
    ///
    /// # Errors
    /// The text is another kind of URL, or none.
    pub fn parse(text: &str, policy: &AddressPolicy) -> Result<Self, InvalidJwksUrl> {
        let scheme = text.split("://").next().unwrap_or_default();
        let without_query = text.split('?').next().unwrap_or_default();
        let base = BaseUrl::parse(without_query).map_err(|_| InvalidJwksUrl)?;
        let uri: http::Uri = text.parse().map_err(|_| InvalidJwksUrl)?;
        let target = uri.path_and_query().ok_or(InvalidJwksUrl)?.as_str().into();
        // BaseUrl also accepts ws and wss
        let is_http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
        let is_allowed = base.tls() || is_allowed_loopback(base.host(), policy);
        if !is_http || !is_allowed || text.contains('#') {
            return Err(InvalidJwksUrl);
        }
        Ok(Self { base, target })
    }
}

fn is_allowed_loopback(host: &Host, policy: &AddressPolicy) -> bool {
    let allows = |ip: IpAddr| ip.is_loopback() && policy.allows(ip, Trust::Unlisted);
    match host {
        Host::Ip(ip) => allows(*ip),
        // the policy checks the resolved address again before a connection
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

/// The cached key sets in use, one for each URL, and the thread that refreshes them. The thread ends when this is dropped.
pub(crate) struct JwksRefresher {
    new_fetcher: Box<dyn Fn() -> Fetcher + Send>,
    key_sets: Vec<Weak<RemoteJwks>>,
    to_thread: Option<Sender<Weak<RemoteJwks>>>,
}

impl JwksRefresher {
    pub(crate) fn new(new_fetcher: impl Fn() -> Fetcher + Send + 'static) -> Self {
        Self {
            new_fetcher: Box::new(new_fetcher),
            key_sets: Vec::new(),
            to_thread: None,
        }
    }

    /// Replaces the source of fetchers, also of key sets in use.
    pub(crate) fn replace_fetchers(&mut self, new_fetcher: impl Fn() -> Fetcher + Send + 'static) {
        for key_set in self.key_sets.iter().filter_map(Weak::upgrade) {
            key_set.fetcher.replace(new_fetcher());
        }
        self.new_fetcher = Box::new(new_fetcher);
    }

    /// The key set at `url`: the one in use, so that a reload keeps its keys, or a new one. The first URL starts the thread.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn key_set(&mut self, url: JwksUrl) -> io::Result<Arc<RemoteJwks>> {
        self.key_sets.retain(|set| set.strong_count() > 0);
        let mut in_use = self.key_sets.iter().filter_map(Weak::upgrade);
        if let Some(key_set) = in_use.find(|set| set.url == url) {
            return Ok(key_set);
        }
        drop(in_use);
        let key_set = Arc::new(RemoteJwks::new(url, (self.new_fetcher)()));
        let to_thread = match self.to_thread.take() {
            Some(sender) => sender,
            None => {
                let (sender, new_key_sets) = channel();
                spawn("jwks", move || refresh_key_sets(&new_key_sets))?;
                sender
            }
        };
        // the thread does not end as long as the sender exists
        let _ = to_thread.send(Arc::downgrade(&key_set));
        self.to_thread = Some(to_thread);
        self.key_sets.push(Arc::downgrade(&key_set));
        Ok(key_set)
    }
}

/// Refreshes key sets when they are due, one after the other, until the sender is dropped.
fn refresh_key_sets(new_key_sets: &Receiver<Weak<RemoteJwks>>) {
    let mut key_sets: Vec<(Instant, Weak<RemoteJwks>)> = Vec::new();
    loop {
        let next_due = key_sets.iter().map(|(due, _)| *due).min();
        let timeout = next_due.map_or(REFRESH_INTERVAL, |due| {
            due.saturating_duration_since(Instant::now())
        });
        match new_key_sets.recv_timeout(timeout) {
            Ok(key_set) => key_sets.push((Instant::now(), key_set)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        key_sets.retain_mut(|(due, key_set)| {
            let Some(key_set) = key_set.upgrade() else {
                return false;
            };
            if *due <= Instant::now() {
                *due = key_set.refresh_if_due();
            }
            true
        });
    }
}

/// The cached key set of one URL.
#[derive(Debug)]
pub struct RemoteJwks {
    url: JwksUrl,
    fetcher: Swappable<Fetcher>,
    state: Mutex<JwksState>,
    fetches: SingleFlight<(), ()>,
    waiters: Arc<KeyedPermitPool<()>>,
}

/// Cause of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FetchTrigger {
    /// The refresh interval has passed.
    Schedule,
    /// A JWT has an unknown key.
    UnknownKey,
}

impl RemoteJwks {
    fn new(url: JwksUrl, fetcher: Fetcher) -> Self {
        Self {
            url,
            fetcher: Swappable::new(fetcher),
            state: Mutex::default(),
            fetches: SingleFlight::new(),
            waiters: KeyedPermitPool::new(),
        }
    }

    /// The keys that are valid at `now`.
    pub(crate) fn cached(&self, now: Instant) -> Option<Arc<KeySet>> {
        lock(&self.state).valid_keys(now)
    }

    /// Whether [`Self::fetch`] would wait for the issuer's server at `now`.
    pub(crate) fn can_fetch(&self, now: Instant) -> bool {
        let state = lock(&self.state);
        state.is_fetching(now) || state.retry_after(now).is_zero()
    }

    /// Fetches the keys because of an unknown key, or joins the fetch in progress; waits for [`FETCH_TIMEOUT`] at most.
    ///
    /// # Errors
    /// It is unknown whether the issuer has newer keys; the caller can try again after this time.
    pub(crate) fn fetch(&self) -> Result<Arc<KeySet>, Duration> {
        if self.can_fetch(Instant::now()) {
            let permit = self.waiters.try_acquire((), MAX_WAITERS);
            let _permit = permit.ok_or(FETCH_TIMEOUT)?;
            self.run_or_join_fetch(FetchTrigger::UnknownKey);
        }
        let (state, now) = (lock(&self.state), Instant::now());
        state
            .valid_keys(now)
            .filter(|_| state.fetch_deadline.is_none() && !state.last_fetch_failed)
            .ok_or(state.retry_after(now).max(MIN_RETRY_AFTER))
    }

    /// Fetches the keys if their refresh is due. Returns when the next refresh is due.
    fn refresh_if_due(&self) -> Instant {
        let now = Instant::now();
        if lock(&self.state).refresh_due(now) <= now {
            self.run_or_join_fetch(FetchTrigger::Schedule);
        }
        lock(&self.state).refresh_due(now)
    }

    fn run_or_join_fetch(&self, trigger: FetchTrigger) {
        let deadline = Instant::now() + FETCH_TIMEOUT;
        self.fetches.run_or_join(&(), deadline, || {
            // false if another fetch has just ended
            if lock(&self.state).try_start_fetch(trigger, Instant::now()) {
                let fetched = self.fetch_key_set(deadline);
                match &fetched {
                    Ok(keys) => info!(url:% = self.url, keys = keys.count(); "jwks fetched"),
                    Err(cause) => {
                        warn!(url:% = self.url, cause = cause.as_str(); "jwks fetch failed")
                    }
                }
                lock(&self.state).finish_fetch(fetched.ok(), Instant::now());
            }
        });
    }

    fn fetch_key_set(&self, deadline: Instant) -> Result<KeySet, String> {
        let route = HttpRoute {
            // the name in the administrator's URL can resolve to any address at any time
            trust: Trust::Unlisted,
            ..HttpRoute::administrator_url(&self.url.base)
        };
        let request = FetchRequest::get(&self.url.target);
        let response = self
            .fetcher
            .get()
            .fetch(&route, request, JWKS_FETCH_LIMITS, deadline)
            .map_err(|error| error.to_string())?;
        match response.status {
            200 => KeySet::parse_jwks(&response.body).map_err(|error| error.to_string()),
            status => Err(format!("status {status}")),
        }
    }
}

#[derive(Debug, Default)]
struct JwksState {
    /// The last keys, and when they were fetched.
    keys: Option<(Arc<KeySet>, Instant)>,
    last_fetch_failed: bool,
    /// Deadline of the fetch in progress.
    fetch_deadline: Option<Instant>,
    fetch_started_at: Option<Instant>,
    /// Start of the last fetch because of an unknown key.
    last_requested_at: Option<Instant>,
}

impl JwksState {
    fn valid_keys(&self, now: Instant) -> Option<Arc<KeySet>> {
        let (keys, fetched_at) = self.keys.as_ref()?;
        (now.saturating_duration_since(*fetched_at) < MAX_KEY_AGE).then(|| keys.clone())
    }

    fn is_fetching(&self, now: Instant) -> bool {
        self.fetch_deadline.is_some_and(|deadline| now < deadline)
    }

    /// Time until an unknown key may trigger the next fetch.
    fn retry_after(&self, now: Instant) -> Duration {
        self.last_requested_at
            .map_or(Duration::ZERO, |requested_at| {
                (requested_at + MIN_FETCH_INTERVAL).saturating_duration_since(now)
            })
    }

    /// When the next fetch in the background is due: `now`, if there was none.
    fn refresh_due(&self, now: Instant) -> Instant {
        let interval = match self.last_fetch_failed {
            true => MIN_FETCH_INTERVAL,
            false => REFRESH_INTERVAL,
        };
        self.fetch_started_at
            .map_or(now, |started_at| started_at + interval)
    }

    /// Starts a fetch, if one is due at `now`.
    fn try_start_fetch(&mut self, trigger: FetchTrigger, now: Instant) -> bool {
        let is_due = match trigger {
            FetchTrigger::Schedule => self.refresh_due(now) <= now,
            FetchTrigger::UnknownKey => self.retry_after(now).is_zero(),
        };
        if is_due {
            // the first fetch does not count: it is for all callers
            if trigger == FetchTrigger::UnknownKey && self.fetch_started_at.is_some() {
                self.last_requested_at = Some(now);
            }
            self.fetch_started_at = Some(now);
            self.fetch_deadline = Some(now + FETCH_TIMEOUT);
        }
        is_due
    }

    fn finish_fetch(&mut self, keys: Option<KeySet>, now: Instant) {
        self.fetch_deadline = None;
        self.last_fetch_failed = keys.is_none();
        if let Some(keys) = keys {
            self.keys = Some((Arc::new(keys), now));
        }
    }
}
