//! What our homeserver's answers mean.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::Error;
use crate::json;
use crate::net::fetch::Answer;

/// Longest errcode that is repeated, in characters.
const MAX_ERRCODE: usize = 64;
/// Longest token that is passed on, in bytes: what an SFU puts into a URL.
const MAX_TOKEN: usize = 8 * 1024;

/// What another homeserver's service has answered.
#[derive(Clone, PartialEq, Eq)]
pub enum Relayed {
    /// A token of its SFU.
    Token(Box<str>),
    /// Its 403 `M_FORBIDDEN`.
    Forbidden,
    /// Its 400 `M_INVALID_PARAM`.
    Invalid,
    /// Something else, of this status; or our homeserver could not ask, and this is its status and errcode.
    Else(u16, String),
}

/// A delayed event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduled {
    /// The room that it is for.
    pub room: String,
    /// After how long without a restart it is sent.
    pub delay: Duration,
}

#[derive(Deserialize)]
struct Membership {
    joined: bool,
}

#[derive(Deserialize)]
struct Proxied {
    status: u16,
    #[serde(default)]
    content: Value,
}

#[derive(Deserialize)]
struct Event {
    room_id: String,
    #[serde(default)]
    delay_ms: Option<u64>,
    /// The name of an earlier MSC4140.
    #[serde(default)]
    delay: Option<u64>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    errcode: String,
}

/// Whether it does not know the path, rather than what is asked for by it.
pub(super) fn is_unknown_path(answer: &Answer) -> bool {
    matches!(answer.status, 404 | 405) && errcode(&answer.body) == "M_UNRECOGNIZED"
}

/// Whether somebody is in a room. What it does not take for a room, a user or a server is in none.
pub(super) fn joined(answer: &Answer) -> Result<bool, Error> {
    match answer.status {
        200 => {
            let membership = json::object::<Membership>(&answer.body);
            Ok(membership.ok_or(Error::NotUnderstood(200))?.joined)
        }
        400 if errcode(&answer.body) == "M_INVALID_PARAM" => Ok(false),
        404 if errcode(&answer.body) == "M_NOT_FOUND" => Ok(false),
        _ => Err(refusal(answer)),
    }
}

/// The delayed event, if there is one.
pub(super) fn scheduled(answer: &Answer) -> Result<Option<Scheduled>, Error> {
    match answer.status {
        200 => {
            let event = json::object::<Event>(&answer.body).ok_or(Error::NotUnderstood(200))?;
            let delay = event.delay_ms.or(event.delay).filter(|ms| *ms > 0);
            Ok(Some(Scheduled {
                room: event.room_id,
                delay: Duration::from_millis(delay.ok_or(Error::NotUnderstood(200))?),
            }))
        }
        404 if errcode(&answer.body) == "M_NOT_FOUND" => Ok(None),
        _ => Err(refusal(answer)),
    }
}

/// What the other side said.
pub(super) fn relayed(answer: &Answer) -> Result<Relayed, Error> {
    let own = |answer: &Answer| Relayed::Else(answer.status, errcode(&answer.body));
    match answer.status {
        200 => {}
        // it has asked, or would not: MSC4512's own errcodes tell that from a refusal of us
        403 if errcode(&answer.body).contains("FEDPROXY") => return Ok(own(answer)),
        401 | 403 | 429 => return Err(refusal(answer)),
        _ => return Ok(own(answer)),
    }
    let Proxied { status, content } =
        json::object(&answer.body).ok_or(Error::NotUnderstood(200))?;
    let text = |name| {
        content
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let token = text("jwt");
    let is_token = (1..=MAX_TOKEN).contains(&token.len())
        && token
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    Ok(match (status, text("errcode")) {
        (200, _) if is_token => Relayed::Token(token.into()),
        (403, "M_FORBIDDEN") => Relayed::Forbidden,
        (400, "M_INVALID_PARAM") => Relayed::Invalid,
        (status, errcode) => Relayed::Else(status, shown(errcode)),
    })
}

/// Why there is no answer to what was asked.
pub(super) fn refusal(answer: &Answer) -> Error {
    match answer.status {
        status @ (401 | 403) => Error::Refused(status, errcode(&answer.body)),
        429 => Error::Busy,
        status => Error::NotUnderstood(status),
    }
}

/// The errcode, if there is one.
pub(super) fn errcode(body: &[u8]) -> String {
    let refusal = json::object::<Refusal>(body);
    refusal
        .map(|refusal| shown(&refusal.errcode))
        .unwrap_or_default()
}

fn shown(errcode: &str) -> String {
    errcode.chars().take(MAX_ERRCODE).collect()
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub(super) mod fuzzing {
    use super::*;

    fn answer(status: u16, body: &[u8]) -> Answer {
        Answer {
            status,
            headers: http::HeaderMap::new(),
            body: body.to_vec(),
        }
    }

    /// Whether this answer says that somebody is in a room.
    pub fn joined(status: u16, body: &[u8]) -> bool {
        super::joined(&answer(status, body)) == Ok(true)
    }

    /// The token of the other SFU in this answer.
    pub fn relayed(status: u16, body: &[u8]) -> Option<Box<str>> {
        match super::relayed(&answer(status, body)) {
            Ok(Relayed::Token(token)) => Some(token),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status,
            headers: http::HeaderMap::new(),
            body: body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn only_a_clear_yes_is_a_membership() {
        assert_eq!(joined(&answer(200, r#"{"joined":true,"x":1}"#)), Ok(true));
        for (status, body) in [
            (200, r#"{"joined":false}"#),
            (400, r#"{"errcode":"M_INVALID_PARAM"}"#),
            (404, r#"{"errcode":"M_NOT_FOUND"}"#),
        ] {
            assert_eq!(joined(&answer(status, body)), Ok(false));
        }
        for body in [
            "",
            "true",
            "{}",
            r#"{"joined":"true"}"#,
            r#"{"joined":1}"#,
            "[true]",
        ] {
            assert_eq!(
                joined(&answer(200, body)),
                Err(Error::NotUnderstood(200)),
                "{body}"
            );
        }
        for status in [201, 301, 400, 404, 500, 502] {
            let error = joined(&answer(status, r#"{"joined":true}"#));
            assert_eq!(error, Err(Error::NotUnderstood(status)));
        }
        let error = joined(&answer(403, r#"{"errcode":"M_FORBIDDEN","joined":true}"#));
        assert_eq!(error, Err(Error::Refused(403, "M_FORBIDDEN".into())));
        assert_eq!(joined(&answer(429, "{}")), Err(Error::Busy));
    }

    #[test]
    fn of_another_server_s_words_only_two_refusals_and_a_token_pass() {
        let said = |status: u16, content: &str| {
            let body = format!(r#"{{"status":{status},"content":{content}}}"#);
            relayed(&answer(200, &body)).unwrap()
        };
        assert!(said(200, r#"{"jwt":"a.b-_.C9","x":1}"#) == Relayed::Token("a.b-_.C9".into()));
        assert!(said(403, r#"{"errcode":"M_FORBIDDEN"}"#) == Relayed::Forbidden);
        assert!(said(400, r#"{"errcode":"M_INVALID_PARAM"}"#) == Relayed::Invalid);
        let long = format!(r#"{{"jwt":"{}"}}"#, "a".repeat(MAX_TOKEN + 1));
        for (status, content) in [
            (200, "null"),
            (200, "{}"),
            (200, r#"{"jwt":""}"#),
            (200, r#"{"jwt":"a b"}"#),
            (200, r#"{"jwt":1}"#),
            (200, &*long),
            (201, r#"{"jwt":"a"}"#),
            (403, r#"{"errcode":"M_UNKNOWN"}"#),
            (400, r#"{"errcode":"M_BAD_JSON"}"#),
            (404, r#"{"errcode":"M_UNRECOGNIZED"}"#),
            (500, r#"{"errcode":"M_FORBIDDEN"}"#),
            (500, r#""M_FORBIDDEN""#),
        ] {
            assert!(
                matches!(said(status, content), Relayed::Else(s, _) if s == status),
                "{content}"
            );
        }
        for body in [
            "",
            "{}",
            r#"{"status":"200"}"#,
            r#"{"status":70000}"#,
            "[200]",
        ] {
            assert!(
                relayed(&answer(200, body)) == Err(Error::NotUnderstood(200)),
                "{body}"
            );
        }
    }

    #[test]
    fn our_homeserver_s_own_refusal_is_told_from_the_other_s() {
        let denied = r#"{"errcode":"IO.ELEMENT.MSC4512.M_FEDPROXY_DESTINATION_DENIED"}"#;
        assert!(matches!(
            relayed(&answer(403, denied)),
            Ok(Relayed::Else(403, _))
        ));
        assert!(matches!(
            relayed(&answer(502, "{}")),
            Ok(Relayed::Else(502, _))
        ));
        for status in [401, 403] {
            let refused = relayed(&answer(status, r#"{"errcode":"M_FORBIDDEN"}"#));
            assert!(matches!(refused, Err(Error::Refused(..))));
        }
    }

    #[test]
    fn a_delayed_event_is_read_by_its_newer_and_its_older_names() {
        for body in [
            r#"{"room_id":"!r","delay_ms":5000,"content":{}}"#,
            r#"{"room_id":"!r","delay":5000}"#,
        ] {
            let event = scheduled(&answer(200, body)).unwrap().unwrap();
            assert_eq!((&*event.room, event.delay.as_secs()), ("!r", 5));
        }
        assert_eq!(
            scheduled(&answer(404, r#"{"errcode":"M_NOT_FOUND"}"#)),
            Ok(None)
        );
        for body in [
            "{}",
            r#"{"room_id":"!r"}"#,
            r#"{"room_id":"!r","delay":0}"#,
            r#"{"room_id":1,"delay":1}"#,
        ] {
            assert!(scheduled(&answer(200, body)).is_err(), "{body}");
        }
    }
}
