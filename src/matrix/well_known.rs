//! `/.well-known/matrix/…` of a server: asking for it, believing it, remembering it.

use std::time::{Duration, Instant};

use http::{HeaderMap, Uri, header};

use crate::matrix::id::ServerName;
use crate::net::address::{Host, Trust};
use crate::net::bulkhead::PER_NEIGHBOURHOOD;
use crate::net::fetch::{self, Fetcher, Limits, Request, Route};
use crate::random;

/// Redirects that are followed, each vetted anew.
const MAX_REDIRECTS: usize = 5;
/// Longest `Location` that is followed, in bytes.
const MAX_LOCATION: usize = 2048;
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    head: Duration::from_secs(5),
    body: Duration::from_secs(3),
    max_body: 50 * 1024,
    neighbours: PER_NEIGHBOURHOOD,
};

/// For all of it, redirects included, so that a slow one leaves time for the server itself.
const BUDGET: Duration = Duration::from_secs(8);

/// How long what it says is believed: as its headers say, by default a day (spec), at least 5 minutes, at most 48 hours.
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
const MIN_TTL: Duration = Duration::from_secs(300);
pub(super) const MAX_TTL: Duration = Duration::from_secs(48 * 3600);
/// When to ask again after it was of no use; each failure of the same kind doubles the time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pauses {
    /// After the first clear no.
    pub(super) absent: Duration,
    /// After the first time without an answer.
    pub(super) unreachable: Duration,
    /// At most.
    pub(super) longest: Duration,
}

/// What asking gave.
#[derive(Debug)]
pub(super) enum Asked<T> {
    /// What it says, and how long to believe it.
    Found(T, Duration),
    /// It says nothing usable.
    Absent(String),
    /// There was no answer.
    Unreachable(String),
}

/// What is remembered of the last answers.
#[derive(Debug, Clone)]
pub(super) struct Memory<T> {
    found: Option<T>,
    /// When to ask again; never asked at all without it.
    fresh_until: Option<Instant>,
    /// Until when what was found holds, should asking again fail.
    valid_until: Option<Instant>,
    failed: Option<Failed>,
}

/// The last failure, and how many of its kind came in a row.
#[derive(Debug, Clone)]
struct Failed {
    absent: bool,
    why: Box<str>,
    times: u32,
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self {
            found: None,
            fresh_until: None,
            valid_until: None,
            failed: None,
        }
    }
}

impl<T> Memory<T> {
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.fresh_until.is_none_or(|until| until <= now)
    }

    pub(super) fn found(&self) -> Option<&T> {
        self.found.as_ref()
    }

    /// Why nothing new was found, and whether that is a clear no.
    pub(super) fn failure(&self) -> Option<(&str, bool)> {
        let failed = self.failed.as_ref()?;
        Some((&failed.why, failed.absent))
    }

    /// Has it asked for again; what it said stays until then.
    pub(super) fn expire(&mut self) {
        self.fresh_until = None;
    }

    pub(super) fn learn(&mut self, asked: Asked<T>, pauses: Pauses, now: Instant) {
        match asked {
            Asked::Found(found, ttl) => {
                // asked again a little early, so that a failure then finds the last answer still valid
                let early = ttl.mul_f64(f64::from(random::up_to(10)) / 100.0 + 0.05);
                *self = Self {
                    found: Some(found),
                    fresh_until: Some(now + (ttl - early)),
                    valid_until: Some(now + ttl),
                    failed: None,
                };
            }
            Asked::Absent(why) => {
                let failed = self.failed_again(true, why);
                *self = Self {
                    found: None,
                    fresh_until: Some(now + pauses.after(&failed)),
                    valid_until: None,
                    failed: Some(failed),
                };
            }
            Asked::Unreachable(why) => {
                let failed = self.failed_again(false, why);
                self.fresh_until = Some(now + pauses.after(&failed));
                self.failed = Some(failed);
                match self.valid_until {
                    Some(until) if until > now => {
                        self.fresh_until = self.fresh_until.min(Some(until))
                    }
                    _ => self.found = None,
                }
            }
        }
    }

    fn failed_again(&self, absent: bool, why: String) -> Failed {
        // a 404 after a time-out is the first of its kind, and the reverse
        let before = self.failed.as_ref().filter(|last| last.absent == absent);
        Failed {
            absent,
            why: why.into(),
            times: before.map_or(1, |last| last.times.saturating_add(1)),
        }
    }
}

impl Pauses {
    fn after(self, failed: &Failed) -> Duration {
        let first = if failed.absent {
            self.absent
        } else {
            self.unreachable
        };
        (first * 2_u32.pow((failed.times - 1).min(6))).min(self.longest)
    }
}

/// Asks `original` for the document at `path`, which `read` understands or says what is wrong with it. An error is our own, and
/// nothing to remember.
pub(super) fn ask<T>(
    fetcher: &Fetcher,
    original: &str,
    path: &str,
    trust: Trust,
    deadline: Instant,
    read: impl Fn(&[u8]) -> Result<T, String>,
) -> Result<Asked<T>, fetch::Error> {
    let deadline = deadline.min(Instant::now() + BUDGET);
    let (mut authority, mut target) = (original.to_owned(), path.to_owned());
    for _ in 0..=MAX_REDIRECTS {
        let Ok(name) = ServerName::parse(&authority) else {
            return Ok(Asked::Absent(
                "redirected to something that is no host".into(),
            ));
        };
        let host = Host::parse(name.host());
        let port = name.port().unwrap_or(443);
        // what a listed server's web site redirects to is nothing that the administrator has named
        let trust = if authority == original {
            trust
        } else {
            Trust::Stranger
        };
        let route = Route {
            tls: Some(host.clone()),
            host,
            port,
            authority: authority.as_str().into(),
            trust,
        };
        let answer = match fetcher.fetch(&route, Request::get(&target), LIMITS, deadline) {
            Ok(answer) => answer,
            Err(error) if error.is_ours() => return Err(error),
            Err(error) => return Ok(Asked::Unreachable(error.to_string())),
        };
        match answer.status {
            200 => {
                let lifetime = lifetime(&answer.headers);
                return Ok(match read(&answer.body) {
                    Ok(found) => Asked::Found(found, lifetime),
                    Err(why) => Asked::Absent(why),
                });
            }
            301 | 302 | 303 | 307 | 308 => {
                let location = answer
                    .headers
                    .get(header::LOCATION)
                    .and_then(|value| value.to_str().ok());
                match location.and_then(|location| join(&authority, &target, location)) {
                    Some(next) => (authority, target) = next,
                    None => {
                        return Ok(Asked::Absent(
                            "redirected to something other than https".into(),
                        ));
                    }
                }
            }
            status @ (408 | 425 | 429 | 500..) => {
                return Ok(Asked::Unreachable(format!("status {status}")));
            }
            status => return Ok(Asked::Absent(format!("status {status}"))),
        }
    }
    Ok(Asked::Absent(format!(
        "more than {MAX_REDIRECTS} redirects"
    )))
}

/// How long an answer may be kept: `Cache-Control` (RFC 9111), else the spec's default. `Expires` is not read: it needs a clock that is right.
fn lifetime(headers: &HeaderMap) -> Duration {
    let directives = headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut age = None;
    for directive in directives.flat_map(|value| value.split(',')) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "no-store" | "no-cache" => return MIN_TTL,
            "max-age" => {
                age = age.or(value
                    .trim()
                    .trim_matches('"')
                    .parse()
                    .ok()
                    .map(Duration::from_secs))
            }
            _ => {}
        }
    }
    age.unwrap_or(DEFAULT_TTL).clamp(MIN_TTL, MAX_TTL)
}

/// The authority and target that `location` means, seen from where it came (RFC 3986, 5.2). Nothing but https.
fn join(authority: &str, target: &str, location: &str) -> Option<(String, String)> {
    let location = location.split('#').next()?;
    if location.is_empty()
        || location.len() > MAX_LOCATION
        || !location.bytes().all(|b| b.is_ascii_graphic())
    {
        return None;
    }
    let absolute = match location.strip_prefix("//") {
        Some(rest) => format!("https://{rest}"),
        None => location.to_owned(),
    };
    if location.starts_with('/') && !location.starts_with("//") {
        return Some((authority.to_owned(), location.to_owned()));
    }
    let path_ends = location.find(['/', '?']).unwrap_or(location.len());
    if location.starts_with("//") || location[..path_ends].contains(':') {
        let uri: Uri = absolute.parse().ok()?;
        if uri.scheme_str() != Some("https") {
            return None;
        }
        // a user before the host is no part of a server name, so it is refused there
        let target = uri.path_and_query().map_or("", |p| p.as_str());
        // `https://host?query` has an empty path
        let slash = if target.starts_with('/') { "" } else { "/" };
        let authority = uri.authority()?.as_str().to_owned();
        return Some((authority, format!("{slash}{target}")));
    }
    let path = target.split('?').next()?;
    let next = if location.starts_with('?') {
        format!("{path}{location}")
    } else {
        format!("{}/{location}", path.rsplit_once('/')?.0)
    };
    Some((authority.to_owned(), next))
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub(super) mod fuzzing {
    /// Where a redirect from there leads.
    pub fn redirect(authority: &str, target: &str, location: &str) -> Option<(String, String)> {
        super::join(authority, target, location)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(cache_control: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CACHE_CONTROL, cache_control.parse().unwrap());
        headers
    }

    #[test]
    fn answers_are_kept_as_long_as_they_say_within_bounds() {
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
            assert_eq!(lifetime(&headers(value)).as_secs(), seconds, "{value}");
        }
        assert_eq!(lifetime(&HeaderMap::new()), DEFAULT_TTL);
    }

    #[test]
    fn redirects_are_joined_as_a_browser_would() {
        let join = |location| join("a.org", "/.well-known/matrix/server", location);
        let to = |authority: &str, target: &str| Some((authority.to_owned(), target.to_owned()));
        assert_eq!(join("https://b.org/x?y#z"), to("b.org", "/x?y"));
        assert_eq!(join("https://b.org:8443"), to("b.org:8443", "/"));
        assert_eq!(join("https://b.org?q"), to("b.org", "/?q"));
        assert_eq!(join("HTTPS://b.org/"), to("b.org", "/"));
        assert_eq!(join("//b.org/x"), to("b.org", "/x"));
        assert_eq!(join("/x"), to("a.org", "/x"));
        assert_eq!(join("other"), to("a.org", "/.well-known/matrix/other"));
        assert_eq!(join("?q"), to("a.org", "/.well-known/matrix/server?q"));
        assert_eq!(join("https://u@b.org/"), to("u@b.org", "/"));
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
            assert_eq!(join(refused), None, "{refused:?}");
        }
        assert_eq!(join(&format!("/{}", "a".repeat(MAX_LOCATION))), None);
    }

    const PAUSES: Pauses = Pauses {
        absent: Duration::from_secs(600),
        unreachable: Duration::from_secs(60),
        longest: Duration::from_secs(3600),
    };

    #[test]
    fn failures_are_remembered_for_longer_and_longer() {
        let now = Instant::now();
        for (asked, first) in [
            (
                &(|| Asked::Absent(String::new())) as &dyn Fn() -> Asked<()>,
                PAUSES.absent,
            ),
            (&|| Asked::Unreachable(String::new()), PAUSES.unreachable),
        ] {
            let mut memory = Memory::default();
            assert!(memory.is_stale(now));
            memory.learn(asked(), PAUSES, now);
            assert!(!memory.is_stale(now) && memory.is_stale(now + first));
            memory.learn(asked(), PAUSES, now);
            assert!(!memory.is_stale(now + first) && memory.is_stale(now + 2 * first));
            for _ in 0..100 {
                memory.learn(asked(), PAUSES, now);
            }
            assert!(memory.is_stale(now + PAUSES.longest));
        }
    }

    #[test]
    fn a_failure_of_another_kind_is_the_first_of_it() {
        let now = Instant::now();
        let mut memory = Memory::<()>::default();
        for _ in 0..5 {
            memory.learn(Asked::Unreachable("silence".into()), PAUSES, now);
        }
        assert_eq!(memory.failure(), Some(("silence", false)));
        memory.learn(Asked::Absent("status 404".into()), PAUSES, now);
        assert_eq!(memory.failure(), Some(("status 404", true)));
        assert!(memory.is_stale(now + PAUSES.absent));
    }

    #[test]
    fn what_was_found_outlives_a_short_failure_but_not_its_time() {
        let now = Instant::now();
        let ttl = Duration::from_secs(1000);
        let mut memory = Memory::default();
        memory.learn(Asked::Found("b.org", ttl), PAUSES, now);
        assert!(!memory.is_stale(now + ttl * 8 / 10) && memory.is_stale(now + ttl * 95 / 100));
        let silence = || Asked::Unreachable(String::new());
        memory.learn(silence(), PAUSES, now + ttl * 95 / 100);
        assert!(memory.found().is_some());
        assert!(
            memory.is_stale(now + ttl),
            "asks again when its time ends at the latest"
        );
        memory.learn(silence(), PAUSES, now + ttl);
        assert!(memory.found().is_none());
    }
}
