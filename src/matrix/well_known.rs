//! `/.well-known/matrix/…` documents: fetching, redirects, lifetime.

use std::fmt;
use std::mem::discriminant;
use std::time::{Duration, Instant};

use http::{HeaderMap, Uri, header};
use log::debug;

use self::WellKnownFailure::{Absent, Unreachable};
use super::https_route;
use super::server_cache::CachedValue;
use crate::matrix::id::ServerName;
use crate::net::address::Trust;
use crate::net::http_client::{self, FetchLimits, FetchRequest, Fetcher};
use crate::util::backoff::Backoff;
use crate::util::random;

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;
/// Longest `Location` that is followed, in bytes.
const MAX_LOCATION: usize = 2048;
const LIMITS: FetchLimits = FetchLimits {
    head_timeout: Duration::from_secs(5),
    max_body: 50 * 1024,
    ..FetchLimits::new("well_known")
};
/// Time for a document, redirects included. Less than the callers' budgets, which also pay for the homeserver itself.
const FETCH_BUDGET: Duration = Duration::from_secs(8);
/// Lifetime of a document without `Cache-Control` (Matrix spec: 24 h), and the bounds of any lifetime.
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
const MIN_TTL: Duration = Duration::from_secs(300);
const MAX_TTL: Duration = Duration::from_secs(48 * 3600);

/// A kind of well-known document.
#[derive(Debug)]
pub(super) struct WellKnownDocument<T> {
    pub(super) path: &'static str,
    /// Returns the value of a document, or why it has none.
    pub(super) parse: fn(&[u8]) -> Result<T, String>,
    pub(super) retry: WellKnownBackoff,
}

/// Delays before the next fetch after failures of the same kind in a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct WellKnownBackoff {
    pub(super) absent: Backoff,
    pub(super) unreachable: Backoff,
}

/// A value with its lifetime, or why there is none.
pub(super) type WellKnownResult<T> = Result<(T, Duration), WellKnownFailure>;

/// Why a fetch gave no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WellKnownFailure {
    /// The server responded, without a usable document.
    Absent(String),
    /// The server did not respond, or asked to try again later.
    Unreachable(String),
}

impl fmt::Display for WellKnownFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Absent(cause) | Unreachable(cause)) = self;
        f.write_str(cause)
    }
}

/// The value of a server's document. A server that becomes unreachable keeps its value for the rest of its lifetime.
#[derive(Debug, Clone)]
pub(super) struct CachedWellKnown<T> {
    pub(super) cached: CachedValue<T>,
    pub(super) last_failure: Option<WellKnownFailure>,
    /// Failures like the last one in a row.
    failures: u32,
}

impl<T> Default for CachedWellKnown<T> {
    fn default() -> Self {
        Self {
            cached: CachedValue::default(),
            last_failure: None,
            failures: 0,
        }
    }
}

impl<T: fmt::Display> CachedWellKnown<T> {
    /// Fetches the document of `server` if a fetch is due.
    ///
    /// # Errors
    ///
    /// A limit of this service, not a failure of the server; nothing is recorded then.
    pub(super) fn refresh(
        &mut self,
        document: &WellKnownDocument<T>,
        fetcher: &Fetcher,
        server: &ServerName,
        trust: Trust,
        deadline: Instant,
    ) -> Result<(), http_client::Error> {
        if !self.cached.is_stale(Instant::now()) {
            return Ok(());
        }
        let result = fetch(document, fetcher, server, trust, deadline)?;
        let path = document.path;
        match &result {
            Ok((value, ttl)) => {
                debug!(server:% = server, path, value:% = value, ttl_s = ttl.as_secs(); "well-known found")
            }
            Err(failure) => {
                debug!(server:% = server, path, cause:% = failure; "well-known failed")
            }
        }
        self.record(result, document.retry, Instant::now());
        Ok(())
    }
}

impl<T> CachedWellKnown<T> {
    /// Stores a value from another source for the longest lifetime.
    pub(super) fn set(&mut self, value: T, now: Instant) {
        self.last_failure = None;
        self.cached.store(value, MAX_TTL, Duration::ZERO, now);
    }

    pub(super) fn record(
        &mut self,
        result: WellKnownResult<T>,
        retry: WellKnownBackoff,
        now: Instant,
    ) {
        match result {
            Ok((value, ttl)) => {
                // 5 to 15 % early: a failure then finds the value still valid
                let early = ttl.mul_f64(f64::from(random::up_to(10)) / 100.0 + 0.05);
                self.cached.store(value, ttl, early, now);
                self.last_failure = None;
            }
            Err(failure) => {
                let last = self.last_failure.as_ref().map(discriminant);
                let is_repeated = last == Some(discriminant(&failure));
                self.failures = if is_repeated {
                    self.failures.saturating_add(1)
                } else {
                    1
                };
                match failure {
                    Absent(_) => self
                        .cached
                        .store_none(retry.absent.delay(self.failures), now),
                    Unreachable(_) => self
                        .cached
                        .store_failure(retry.unreachable.delay(self.failures), now),
                }
                self.last_failure = Some(failure);
            }
        }
    }
}

fn fetch<T>(
    document: &WellKnownDocument<T>,
    fetcher: &Fetcher,
    server: &ServerName,
    trust: Trust,
    deadline: Instant,
) -> Result<WellKnownResult<T>, http_client::Error> {
    let deadline = deadline.min(Instant::now() + FETCH_BUDGET);
    // the server name's own port is not the one of its website
    let mut route = https_route(server.network_host(), 443, server.host(), trust);
    let mut target = document.path.to_owned();
    for _ in 0..=MAX_REDIRECTS {
        let response = match fetcher.fetch(&route, FetchRequest::get(&target), LIMITS, deadline) {
            Ok(response) => response,
            Err(error) if error.is_local_overload() => return Err(error),
            Err(error) => return Ok(Err(Unreachable(error.to_string()))),
        };
        match response.status {
            200 => {
                let value = (document.parse)(&response.body).map_err(Absent);
                return Ok(value.map(|value| (value, cache_lifetime(&response.headers))));
            }
            301 | 302 | 303 | 307 | 308 => {
                let location = response.headers.get(header::LOCATION);
                let next = location
                    .and_then(|location| location.to_str().ok())
                    .and_then(|location| resolve_location(&route.authority, &target, location));
                let Some((authority, next_target)) = next else {
                    let cause = "redirect to something other than https";
                    return Ok(Err(Absent(cause.into())));
                };
                if *authority != *route.authority {
                    let Ok(name) = ServerName::parse(&authority) else {
                        return Ok(Err(Absent("redirect to an invalid host".into())));
                    };
                    let (host, port) = (name.network_host(), name.port().unwrap_or(443));
                    // the administrator listed the server, not the targets of its redirects
                    let trust = if authority == server.host() {
                        trust
                    } else {
                        Trust::Unlisted
                    };
                    route = https_route(host, port, &authority, trust);
                }
                target = next_target;
            }
            status @ (408 | 425 | 429 | 500..) => {
                return Ok(Err(Unreachable(format!("status {status}"))));
            }
            status => return Ok(Err(Absent(format!("status {status}")))),
        }
    }
    let cause = format!("more than {MAX_REDIRECTS} redirects");
    Ok(Err(Absent(cause)))
}

/// Lifetime of a response by `Cache-Control` (RFC 9111). `Expires` is ignored, as it depends on correct clocks.
fn cache_lifetime(headers: &HeaderMap) -> Duration {
    let directives = headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut max_age = None;
    for directive in directives.flat_map(|value| value.split(',')) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "no-store" | "no-cache" => return MIN_TTL,
            "max-age" => {
                let seconds = value.trim().trim_matches('"').parse().ok();
                max_age = max_age.or(seconds.map(Duration::from_secs));
            }
            _ => {}
        }
    }
    max_age.unwrap_or(DEFAULT_TTL).clamp(MIN_TTL, MAX_TTL)
}

/// Resolves `location` against the URL `https://{authority}{target}` (RFC 3986, 5.2) to authority and target. None unless the
/// result is an https URL.
fn resolve_location(authority: &str, target: &str, location: &str) -> Option<(String, String)> {
    let location = location.split('#').next()?;
    if location.is_empty()
        || location.len() > MAX_LOCATION
        || !location.bytes().all(|b| b.is_ascii_graphic())
    {
        return None;
    }
    let is_network_path = location.starts_with("//");
    if location.starts_with('/') && !is_network_path {
        return Some((authority.to_owned(), location.to_owned()));
    }
    let path_start = location.find(['/', '?']).unwrap_or(location.len());
    if is_network_path || location[..path_start].contains(':') {
        let scheme = if is_network_path { "https:" } else { "" };
        let uri: Uri = format!("{scheme}{location}").parse().ok()?;
        if uri.scheme_str() != Some("https") {
            return None;
        }
        let target = uri.path_and_query().map_or("", |p| p.as_str());
        // the path of `https://host?query` is empty
        let slash = if target.starts_with('/') { "" } else { "/" };
        // an authority with a user name is no server name, which the caller requires
        let authority = uri.authority()?.as_str().to_owned();
        return Some((authority, format!("{slash}{target}")));
    }
    let path = target.split('?').next()?;
    let target = if location.starts_with('?') {
        format!("{path}{location}")
    } else {
        format!("{}/{location}", path.rsplit_once('/')?.0)
    };
    Some((authority.to_owned(), target))
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub(super) mod fuzzing {
    /// Authority and target of a redirect to `location`.
    pub fn redirect(authority: &str, target: &str, location: &str) -> Option<(String, String)> {
        super::resolve_location(authority, target, location)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_DELAY: Duration = Duration::from_secs(3600);
    const BACKOFF: WellKnownBackoff = WellKnownBackoff {
        absent: Backoff::doubling(Duration::from_secs(600), MAX_DELAY),
        unreachable: Backoff::doubling(Duration::from_secs(60), MAX_DELAY),
    };

    fn absent<T>() -> WellKnownResult<T> {
        Err(Absent("for the test".into()))
    }

    fn unreachable<T>() -> WellKnownResult<T> {
        Err(Unreachable("for the test".into()))
    }

    #[test]
    fn retry_delays_double_up_to_the_maximum() {
        let now = Instant::now();
        for (failure, first) in [
            (absent as fn() -> _, BACKOFF.absent.delay(1)),
            (unreachable, BACKOFF.unreachable.delay(1)),
        ] {
            let mut well_known = CachedWellKnown::<()>::default();
            let is_stale_after =
                |well_known: &CachedWellKnown<()>, delay| well_known.cached.is_stale(now + delay);
            well_known.record(failure(), BACKOFF, now);
            assert!(!is_stale_after(&well_known, Duration::ZERO));
            assert!(is_stale_after(&well_known, first));
            well_known.record(failure(), BACKOFF, now);
            assert!(!is_stale_after(&well_known, first));
            assert!(is_stale_after(&well_known, 2 * first));
            for _ in 0..100 {
                well_known.record(failure(), BACKOFF, now);
            }
            assert!(is_stale_after(&well_known, MAX_DELAY));
        }
    }

    #[test]
    fn a_failure_of_another_kind_restarts_the_backoff() {
        let now = Instant::now();
        let mut well_known = CachedWellKnown::<()>::default();
        for _ in 0..5 {
            well_known.record(unreachable(), BACKOFF, now);
        }
        assert_eq!(well_known.failures, 5);
        well_known.record(absent(), BACKOFF, now);
        assert_eq!(well_known.failures, 1);
        assert!(well_known.cached.is_stale(now + BACKOFF.absent.delay(1)));
    }

    #[test]
    fn a_value_outlives_an_unreachable_server_until_its_ttl_but_not_an_absent_document() {
        let now = Instant::now();
        let ttl = Duration::from_secs(1000);
        let found = || Ok(("b.org", ttl));
        let mut well_known = CachedWellKnown::default();
        well_known.record(found(), BACKOFF, now);
        assert!(!well_known.cached.is_stale(now + ttl * 8 / 10));
        assert!(well_known.cached.is_stale(now + ttl * 95 / 100));
        well_known.record(unreachable(), BACKOFF, now + ttl * 95 / 100);
        assert!(well_known.cached.value().is_some());
        assert!(well_known.cached.is_stale(now + ttl));
        well_known.record(unreachable(), BACKOFF, now + ttl);
        assert!(well_known.cached.value().is_none());
        well_known.record(found(), BACKOFF, now);
        well_known.record(absent(), BACKOFF, now);
        assert!(well_known.cached.value().is_none());
    }

    fn headers(cache_control: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CACHE_CONTROL, cache_control.parse().unwrap());
        headers
    }

    #[test]
    fn cache_control_sets_the_lifetime_within_bounds() {
        for (value, seconds) in [
            ("max-age=7200", 7200),
            ("public, Max-Age=\"7200\"", 7200),
            ("max-age=1", 300),
            ("max-age=99999999999", 48 * 3600),
            ("no-store", 300),
            ("max-age=7200, no-cache", 300),
            ("max-age=soon", 24 * 3600),
            ("private", 24 * 3600),
        ] {
            assert_eq!(
                cache_lifetime(&headers(value)).as_secs(),
                seconds,
                "{value}"
            );
        }
        assert_eq!(cache_lifetime(&HeaderMap::new()), DEFAULT_TTL);
    }

    #[test]
    fn locations_are_resolved_against_the_current_url() {
        let resolve = |location| resolve_location("a.org", "/.well-known/matrix/server", location);
        let url = |authority: &str, target: &str| Some((authority.to_owned(), target.to_owned()));
        assert_eq!(resolve("https://b.org/x?y#z"), url("b.org", "/x?y"));
        assert_eq!(resolve("https://b.org:8443"), url("b.org:8443", "/"));
        assert_eq!(resolve("https://b.org?q"), url("b.org", "/?q"));
        assert_eq!(resolve("HTTPS://b.org/"), url("b.org", "/"));
        assert_eq!(resolve("//b.org/x"), url("b.org", "/x"));
        assert_eq!(resolve("/x"), url("a.org", "/x"));
        assert_eq!(resolve("other"), url("a.org", "/.well-known/matrix/other"));
        assert_eq!(resolve("?q"), url("a.org", "/.well-known/matrix/server?q"));
        assert_eq!(resolve("https://u@b.org/"), url("u@b.org", "/"));
        for refused in [
            "",
            "#",
            "http://b.org/",
            "ftp://b.org",
            "javascript:x",
            "b.org:80",
            "/a b",
            "/a\r\nb",
            "/ü",
            "https://",
        ] {
            assert_eq!(resolve(refused), None, "{refused:?}");
        }
        assert_eq!(resolve(&format!("/{}", "a".repeat(MAX_LOCATION))), None);
    }
}
