//! `/.well-known/matrix/…` of a server: asking for it, believing it, remembering it.

mod cached;

use std::time::{Duration, Instant};

use http::{HeaderMap, Uri, header};

use crate::matrix::id::ServerName;
use crate::net::address::{Host, Trust};
use crate::net::http_client;
use crate::net::http_client::{FetchLimits, FetchRequest, Fetcher, HttpRoute};
use crate::net::permits::MAX_CALLS_PER_SUBNET;

pub(super) use self::cached::{CachedWellKnown, WellKnownBackoff};

/// Redirects that are followed, each vetted anew.
const MAX_REDIRECTS: usize = 5;
/// Longest `Location` that is followed, in bytes.
const MAX_LOCATION: usize = 2048;
const LIMITS: FetchLimits = FetchLimits {
    kind: "well_known",
    connect_timeout: Duration::from_secs(5),
    head_timeout: Duration::from_secs(5),
    body_timeout: Duration::from_secs(3),
    max_body: 50 * 1024,
    max_subnet_calls: MAX_CALLS_PER_SUBNET,
};

/// For all of it, redirects included, so that a slow one leaves time for the server itself.
const FETCH_BUDGET: Duration = Duration::from_secs(8);

/// How long what it says is believed: as its headers say, by default a day (spec), at least 5 minutes, at most 48 hours.
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
const MIN_TTL: Duration = Duration::from_secs(300);
pub(super) const MAX_TTL: Duration = Duration::from_secs(48 * 3600);
/// What asking gave.
#[derive(Debug)]
pub(super) enum WellKnownResult<T> {
    /// What it says, and how long to believe it.
    Found(T, Duration),
    /// It says nothing usable.
    Absent(String),
    /// There was no answer.
    Unreachable(String),
}

/// Asks `original` for the document at `path`, which `read` understands or says what is wrong with it. An error is our own, and
/// nothing to remember.
pub(super) fn fetch_well_known<T>(
    fetcher: &Fetcher,
    original: &str,
    path: &str,
    trust: Trust,
    deadline: Instant,
    read: impl Fn(&[u8]) -> Result<T, String>,
) -> Result<WellKnownResult<T>, http_client::Error> {
    let deadline = deadline.min(Instant::now() + FETCH_BUDGET);
    let (mut authority, mut target) = (original.to_owned(), path.to_owned());
    for _ in 0..=MAX_REDIRECTS {
        let Ok(name) = ServerName::parse(&authority) else {
            return Ok(WellKnownResult::Absent(
                "redirected to something that is no host".into(),
            ));
        };
        let host = Host::parse(name.host());
        let port = name.port().unwrap_or(443);
        // what a listed server's web site redirects to is nothing that the administrator has named
        let trust = if authority == original {
            trust
        } else {
            Trust::Unlisted
        };
        let route = HttpRoute {
            tls: Some(host.clone()),
            host,
            port,
            authority: authority.as_str().into(),
            trust,
        };
        let answer = match fetcher.fetch(&route, FetchRequest::get(&target), LIMITS, deadline) {
            Ok(answer) => answer,
            Err(error) if error.is_local_overload() => return Err(error),
            Err(error) => return Ok(WellKnownResult::Unreachable(error.to_string())),
        };
        match answer.status {
            200 => {
                let lifetime = cache_lifetime(&answer.headers);
                return Ok(match read(&answer.body) {
                    Ok(found) => WellKnownResult::Found(found, lifetime),
                    Err(why) => WellKnownResult::Absent(why),
                });
            }
            301 | 302 | 303 | 307 | 308 => {
                let location = answer
                    .headers
                    .get(header::LOCATION)
                    .and_then(|value| value.to_str().ok());
                match location.and_then(|location| resolve_location(&authority, &target, location))
                {
                    Some(next) => (authority, target) = next,
                    None => {
                        return Ok(WellKnownResult::Absent(
                            "redirected to something other than https".into(),
                        ));
                    }
                }
            }
            status @ (408 | 425 | 429 | 500..) => {
                return Ok(WellKnownResult::Unreachable(format!("status {status}")));
            }
            status => return Ok(WellKnownResult::Absent(format!("status {status}"))),
        }
    }
    Ok(WellKnownResult::Absent(format!(
        "more than {MAX_REDIRECTS} redirects"
    )))
}

/// How long an answer may be kept: `Cache-Control` (RFC 9111), else the spec's default. `Expires` is not read: it needs a clock that is right.
fn cache_lifetime(headers: &HeaderMap) -> Duration {
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
fn resolve_location(authority: &str, target: &str, location: &str) -> Option<(String, String)> {
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
            assert_eq!(
                cache_lifetime(&headers(value)).as_secs(),
                seconds,
                "{value}"
            );
        }
        assert_eq!(cache_lifetime(&HeaderMap::new()), DEFAULT_TTL);
    }

    #[test]
    fn redirects_are_joined_as_a_browser_would() {
        let join = |location| resolve_location("a.org", "/.well-known/matrix/server", location);
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
}
