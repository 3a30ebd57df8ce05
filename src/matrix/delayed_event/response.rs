//! What a homeserver's answer about a delayed event means.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};
use serde_json::{Map, Value};

use super::DelayedEventOutcome;
use crate::net::http_client::FetchResponse;
use crate::util::json;

/// Longest time that a server may have us wait: it must not keep a leave by asking for a year.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DelayedEventCallResult {
    /// This came of it.
    Outcome(DelayedEventOutcome),
    /// The server does not know this path: another form may be known.
    UnknownPath,
}

pub(super) fn parse_response(answer: &FetchResponse) -> DelayedEventCallResult {
    let body = json::parse_object::<Map<String, Value>>(&answer.body).unwrap_or_default();
    let errcode = body.get("errcode").and_then(Value::as_str);
    DelayedEventCallResult::Outcome(match answer.status {
        200..=299 => DelayedEventOutcome::Done,
        404 | 405 if errcode == Some("M_UNRECOGNIZED") => {
            return DelayedEventCallResult::UnknownPath;
        }
        404 | 410 => DelayedEventOutcome::NotFound,
        409 => DelayedEventOutcome::Finalised,
        429 => {
            DelayedEventOutcome::RateLimited(retry_delay(&answer.headers, &body, SystemTime::now()))
        }
        status @ (408 | 425) => DelayedEventOutcome::Failed(format!("status {status}")),
        status @ 400..=499 => DelayedEventOutcome::Rejected(status),
        status => DelayedEventOutcome::Failed(format!("status {status}")),
    })
}

/// How long a 429 asks to wait: the longer of what header and body say.
fn retry_delay(
    headers: &HeaderMap,
    body: &Map<String, Value>,
    now: SystemTime,
) -> Option<Duration> {
    let header = headers.get(header::RETRY_AFTER);
    let header = header.and_then(|value| parse_retry_after(value.to_str().ok()?, now));
    let body = body.get("retry_after_ms").and_then(parse_milliseconds);
    header.max(body).map(|wait| wait.min(MAX_RETRY_AFTER))
}

/// `Retry-After` (RFC 9110, 10.2.3): seconds, or a date; one that has passed is no wait. Seconds beyond any number are many.
fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        let seconds = value.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// A number of milliseconds, whatever kind of number. A negative one is none.
fn parse_milliseconds(value: &Value) -> Option<Duration> {
    let whole = value.as_u64().map(Duration::from_millis);
    let broken = || Duration::try_from_secs_f64(value.as_f64()? / 1000.0).ok();
    let huge = || {
        value
            .as_f64()
            .is_some_and(|ms| ms > 0.0)
            .then_some(Duration::MAX)
    };
    whole.or_else(broken).or_else(huge)
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub(super) mod fuzzing {
    use super::*;

    /// How long an answer asks to wait by its header and its body.
    pub fn retry_after(header: &str, body: &[u8], now: SystemTime) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, header.parse().ok()?);
        let body = json::parse_object(body).unwrap_or_default();
        super::wait(&headers, &body, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn answer(status: u16, retry_after: Option<&str>, body: &str) -> DelayedEventCallResult {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(header::RETRY_AFTER, value.parse().unwrap());
        }
        parse_response(&FetchResponse {
            status,
            headers,
            body: body.as_bytes().to_vec(),
        })
    }

    #[test]
    fn every_status_has_its_meaning() {
        let failed = |status: u16| DelayedEventOutcome::Failed(format!("status {status}"));
        for (status, outcome) in [
            (200, DelayedEventOutcome::Done),
            (204, DelayedEventOutcome::Done),
            (404, DelayedEventOutcome::NotFound),
            (410, DelayedEventOutcome::NotFound),
            (409, DelayedEventOutcome::Finalised),
            (400, DelayedEventOutcome::Rejected(400)),
            (401, DelayedEventOutcome::Rejected(401)),
            (403, DelayedEventOutcome::Rejected(403)),
            (405, DelayedEventOutcome::Rejected(405)),
            (413, DelayedEventOutcome::Rejected(413)),
            (429, DelayedEventOutcome::RateLimited(None)),
            (301, failed(301)),
            (408, failed(408)),
            (425, failed(425)),
            (500, failed(500)),
            (502, failed(502)),
            (503, failed(503)),
            (599, failed(599)),
            (100, failed(100)),
        ] {
            for body in ["", "{}", "<html>", r#"{"errcode":"M_NOT_FOUND"}"#] {
                assert_eq!(
                    answer(status, None, body),
                    DelayedEventCallResult::Outcome(outcome.clone()),
                    "{status} {body}"
                );
            }
        }
    }

    #[test]
    fn a_path_that_the_server_does_not_know_is_no_event_that_it_does_not_know() {
        let unrecognized = r#"{"errcode":"M_UNRECOGNIZED","error":"Unrecognized request"}"#;
        for status in [404, 405] {
            assert_eq!(
                answer(status, None, unrecognized),
                DelayedEventCallResult::UnknownPath
            );
        }
        assert_eq!(
            answer(403, None, unrecognized),
            DelayedEventCallResult::Outcome(DelayedEventOutcome::Rejected(403))
        );
    }

    #[test]
    fn a_server_is_waited_for_as_it_asks_but_not_for_ever() {
        let year = (365 * 24 * 3600).to_string();
        for (header, body, seconds) in [
            (Some("7"), "", Some(7)),
            (Some(" 7 "), "", Some(7)),
            (Some("0"), "", Some(0)),
            (None, r#"{"retry_after_ms":1500}"#, Some(2)),
            (None, r#"{"retry_after_ms":1500.5}"#, Some(2)),
            (Some("1"), r#"{"retry_after_ms":4000}"#, Some(4)),
            (Some("9"), r#"{"retry_after_ms":4000}"#, Some(9)),
            (Some(&*year), "", Some(300)),
            (Some("99999999999999999999999999"), "", Some(300)),
            (None, r#"{"retry_after_ms":1e300}"#, Some(300)),
            (
                None,
                r#"{"retry_after_ms":18446744073709551615}"#,
                Some(300),
            ),
            (None, r#"{"retry_after_ms":-5}"#, None),
            (None, r#"{"retry_after_ms":"5000"}"#, None),
            (Some("-1"), "", None),
            (Some("soon"), "[]", None),
            (Some(""), "", None),
            (Some("Fri, 31 Dec 9999 23:59:59 GMT"), "", Some(300)),
            (Some("Thu, 01 Jan 1970 00:00:00 GMT"), "", Some(0)),
        ] {
            let DelayedEventCallResult::Outcome(DelayedEventOutcome::RateLimited(wait)) =
                answer(429, header, body)
            else {
                panic!("{header:?} {body}");
            };
            let rounded = wait.map(|wait| wait.as_secs_f64().ceil());
            assert_eq!(rounded, seconds.map(f64::from), "{header:?} {body}");
        }
    }

    #[test]
    fn a_date_counts_from_now() {
        let now = SystemTime::UNIX_EPOCH + 1_800_000_000 * SECOND;
        let date = httpdate::fmt_http_date(now + 42 * SECOND);
        assert_eq!(parse_retry_after(&date, now), Some(42 * SECOND));
        assert_eq!(
            parse_retry_after(&date, now + 50 * SECOND),
            Some(Duration::ZERO)
        );
    }
}
