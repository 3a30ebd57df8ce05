//! `/.well-known/matrix/server`: asking for it, believing it, remembering it.

use std::time::{Duration, Instant};

use http::{HeaderMap, Uri, header};
use serde::Deserialize;

use super::Error;
use crate::json;
use crate::matrix::id::ServerName;
use crate::net::address::{Host, Trust};
use crate::net::bulkhead::PER_NEIGHBOURHOOD;
use crate::net::fetch::{Fetcher, Limits, Request, Route};
use crate::random;

const PATH: &str = "/.well-known/matrix/server";
/// Redirects that are followed, each vetted anew.
const MAX_REDIRECTS: usize = 5;
/// Longest `Location` that is followed, in bytes.
const MAX_LOCATION: usize = 2048;
const LIMITS: Limits = Limits {
    kind: "well_known",
    connect: Duration::from_secs(5),
    head: Duration::from_secs(5),
    body: Duration::from_secs(3),
    max_body: 50 * 1024,
    neighbours: PER_NEIGHBOURHOOD,
};

/// For all of it, redirects included, so that a slow one leaves time for the server itself.
const BUDGET: Duration = Duration::from_secs(8);

/// How long a delegation is believed: as its headers say, by default a day (spec), at least 5 minutes, at most 48 hours.
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
const MIN_TTL: Duration = Duration::from_secs(300);
const MAX_TTL: Duration = Duration::from_secs(48 * 3600);
/// After a clear no: 10 minutes, doubling to an hour.
const ABSENT: Duration = Duration::from_secs(600);
/// After no answer: a minute, doubling to an hour.
const UNREACHABLE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// What asking gave.
#[derive(Debug)]
pub(super) enum Asked {
    /// The server is elsewhere, and how long to believe it.
    Delegated(ServerName, Duration),
    /// There is no usable delegation.
    Absent(String),
    /// There was no answer.
    Unreachable(String),
}

/// What is remembered of the last answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    delegated: Option<ServerName>,
    /// When to ask again; never asked at all without it.
    fresh_until: Option<Instant>,
    /// Until when the delegation holds, should asking again fail.
    valid_until: Option<Instant>,
    /// Failures in a row, and whether they were clear ones.
    failures: u32,
    absent: bool,
}

impl Memory {
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.fresh_until.is_none_or(|until| until <= now)
    }

    pub(super) fn delegated(&self) -> Option<&ServerName> {
        self.delegated.as_ref()
    }

    /// Has it asked for again; what it said stays until then.
    pub(super) fn expire(&mut self) {
        self.fresh_until = None;
    }

    pub(super) fn learn(&mut self, asked: Asked, now: Instant) {
        let pause = |first: Duration, failures: u32| {
            (first * 2_u32.pow(failures.min(6))).min(LONGEST_PAUSE)
        };
        // a 404 after a time-out is the first of its kind, and the reverse
        let absent = matches!(asked, Asked::Absent(_));
        if self.absent != absent {
            (self.absent, self.failures) = (absent, 0);
        }
        match asked {
            Asked::Delegated(to, ttl) => {
                // asked again a little early, so that a failure then finds the delegation still valid
                let early = ttl.mul_f64(f64::from(random::up_to(10)) / 100.0 + 0.05);
                *self = Self {
                    delegated: Some(to),
                    fresh_until: Some(now + (ttl - early)),
                    valid_until: Some(now + ttl),
                    failures: 0,
                    absent: false,
                };
            }
            Asked::Absent(_) => {
                *self = Self {
                    delegated: None,
                    fresh_until: Some(now + pause(ABSENT, self.failures)),
                    valid_until: None,
                    failures: self.failures + 1,
                    absent,
                };
            }
            Asked::Unreachable(_) => {
                self.fresh_until = Some(now + pause(UNREACHABLE, self.failures));
                self.failures += 1;
                match self.valid_until {
                    Some(until) if until > now => {
                        self.fresh_until = self.fresh_until.min(Some(until))
                    }
                    _ => self.delegated = None,
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "m.server")]
    server: String,
}

/// Asks `original` where its homeserver is. An error is our own, and nothing to remember.
pub(super) fn ask(
    fetcher: &Fetcher,
    original: &str,
    trust: Trust,
    deadline: Instant,
) -> Result<Asked, Error> {
    let deadline = deadline.min(Instant::now() + BUDGET);
    let (mut authority, mut target) = (original.to_owned(), PATH.to_owned());
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
            Err(error) if error.is_ours() => return Err(Error::NoPlace(error)),
            Err(error) => return Ok(Asked::Unreachable(error.to_string())),
        };
        match answer.status {
            200 => return Ok(read(&answer.body, &answer.headers)),
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

fn read(body: &[u8], headers: &HeaderMap) -> Asked {
    let Some(document) = json::object::<Document>(body) else {
        return Asked::Absent("not JSON with m.server".into());
    };
    match ServerName::parse(&document.server) {
        Ok(name) => Asked::Delegated(name, lifetime(headers)),
        Err(expected) => Asked::Absent(format!("m.server: expected {expected}")),
    }
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
    use super::{Asked, HeaderMap, ServerName};

    /// Where a well-known document says that the server is.
    pub fn delegation(body: &[u8]) -> Option<ServerName> {
        match super::read(body, &HeaderMap::new()) {
            Asked::Delegated(name, _) => Some(name),
            Asked::Absent(_) | Asked::Unreachable(_) => None,
        }
    }

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

    #[test]
    fn only_a_server_name_is_a_delegation() {
        let read = |body: &str| read(body.as_bytes(), &HeaderMap::new());
        assert!(
            matches!(read(r#"{"m.server":"b.org:443","x":1}"#), Asked::Delegated(name, _) if name.as_str() == "b.org:443")
        );
        for body in [
            "",
            "{}",
            "[]",
            r#"{"m.server":1}"#,
            r#"["b.org"]"#,
            r#"{"m.server":""}"#,
            r#"{"m.server":"https://b.org"}"#,
            r#"{"m.server":"127.1"}"#,
        ] {
            assert!(matches!(read(body), Asked::Absent(_)), "{body}");
        }
    }

    #[test]
    fn failures_are_remembered_for_longer_and_longer() {
        let now = Instant::now();
        for (asked, first) in [
            (
                &(|| Asked::Absent(String::new())) as &dyn Fn() -> Asked,
                ABSENT,
            ),
            (&|| Asked::Unreachable(String::new()), UNREACHABLE),
        ] {
            let mut memory = Memory::default();
            assert!(memory.is_stale(now));
            memory.learn(asked(), now);
            assert!(!memory.is_stale(now) && memory.is_stale(now + first));
            memory.learn(asked(), now);
            assert!(!memory.is_stale(now + first) && memory.is_stale(now + 2 * first));
            for _ in 0..100 {
                memory.learn(asked(), now);
            }
            assert!(memory.is_stale(now + LONGEST_PAUSE));
        }
    }

    #[test]
    fn a_delegation_outlives_a_short_failure_but_not_its_time() {
        let now = Instant::now();
        let ttl = Duration::from_secs(1000);
        let mut memory = Memory::default();
        memory.learn(
            Asked::Delegated(ServerName::parse("b.org").unwrap(), ttl),
            now,
        );
        assert!(!memory.is_stale(now + ttl * 8 / 10) && memory.is_stale(now + ttl * 95 / 100));
        memory.learn(Asked::Unreachable(String::new()), now + ttl * 95 / 100);
        assert!(memory.delegated().is_some());
        assert!(
            memory.is_stale(now + ttl),
            "asks again when the delegation ends at the latest"
        );
        memory.learn(Asked::Unreachable(String::new()), now + ttl);
        assert!(memory.delegated().is_none());
    }
}
