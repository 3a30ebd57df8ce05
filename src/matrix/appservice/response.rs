//! What our homeserver's answers mean.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::Error;
use crate::net::http_client::FetchResponse;
use crate::util::json;

/// Longest errcode that is repeated, in characters.
const MAX_ERRCODE_CHARS: usize = 64;
/// Longest token that is passed on, in bytes: what an SFU puts into a URL.
const MAX_RELAYED_TOKEN_BYTES: usize = 8 * 1024;

/// What another homeserver's service has answered.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum RelayResponse {
    /// A token of its SFU.
    Token(Box<str>),
    /// Its 403 `M_FORBIDDEN`.
    Forbidden,
    /// Its 400 `M_INVALID_PARAM`.
    InvalidParam,
    /// Something else, of this status; or our homeserver could not ask, and this is its status and errcode.
    Other(u16, String),
}

/// A delayed event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScheduledDelayedEvent {
    /// The room that it is for.
    pub room_id: String,
    /// After how long without a restart it is sent.
    pub delay: Duration,
}

#[derive(Deserialize)]
struct IsJoinedResponse {
    joined: bool,
}

#[derive(Deserialize)]
struct FedProxyResponse {
    status: u16,
    #[serde(default)]
    content: Value,
}

#[derive(Deserialize)]
struct DelayedEventLookupResponse {
    room_id: String,
    #[serde(default)]
    delay_ms: Option<u64>,
    /// The name of an earlier MSC4140.
    #[serde(default)]
    delay: Option<u64>,
}

#[derive(Deserialize)]
struct MatrixErrorBody {
    #[serde(default)]
    errcode: String,
}

/// Whether it does not know the path, rather than what is asked for by it.
pub(super) fn is_unknown_path(answer: &FetchResponse) -> bool {
    matches!(answer.status, 404 | 405) && parse_errcode(&answer.body) == "M_UNRECOGNIZED"
}

/// Whether somebody is in a room. What it does not take for a room, a user or a server is in none.
pub(super) fn parse_is_joined(answer: &FetchResponse) -> Result<bool, Error> {
    match answer.status {
        200 => {
            let membership = json::parse_object::<IsJoinedResponse>(&answer.body);
            Ok(membership.ok_or(Error::UnexpectedResponse(200))?.joined)
        }
        400 if parse_errcode(&answer.body) == "M_INVALID_PARAM" => Ok(false),
        404 if parse_errcode(&answer.body) == "M_NOT_FOUND" => Ok(false),
        _ => Err(error_from_response(answer)),
    }
}

/// The delayed event, if there is one.
pub(super) fn parse_delayed_event(
    answer: &FetchResponse,
) -> Result<Option<ScheduledDelayedEvent>, Error> {
    match answer.status {
        200 => {
            let event = json::parse_object::<DelayedEventLookupResponse>(&answer.body)
                .ok_or(Error::UnexpectedResponse(200))?;
            let delay = event.delay_ms.or(event.delay).filter(|ms| *ms > 0);
            Ok(Some(ScheduledDelayedEvent {
                room_id: event.room_id,
                delay: Duration::from_millis(delay.ok_or(Error::UnexpectedResponse(200))?),
            }))
        }
        404 if parse_errcode(&answer.body) == "M_NOT_FOUND" => Ok(None),
        _ => Err(error_from_response(answer)),
    }
}

/// What the other side said.
pub(super) fn parse_relay_response(answer: &FetchResponse) -> Result<RelayResponse, Error> {
    let own =
        |answer: &FetchResponse| RelayResponse::Other(answer.status, parse_errcode(&answer.body));
    match answer.status {
        200 => {}
        // it has asked, or would not: MSC4512's own errcodes tell that from a refusal of us
        403 if parse_errcode(&answer.body).contains("FEDPROXY") => return Ok(own(answer)),
        401 | 403 | 429 => return Err(error_from_response(answer)),
        _ => return Ok(own(answer)),
    }
    let FedProxyResponse { status, content } =
        json::parse_object(&answer.body).ok_or(Error::UnexpectedResponse(200))?;
    let text = |name| {
        content
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let token = text("jwt");
    let is_token = (1..=MAX_RELAYED_TOKEN_BYTES).contains(&token.len())
        && token
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    Ok(match (status, text("errcode")) {
        (200, _) if is_token => RelayResponse::Token(token.into()),
        (403, "M_FORBIDDEN") => RelayResponse::Forbidden,
        (400, "M_INVALID_PARAM") => RelayResponse::InvalidParam,
        (status, errcode) => RelayResponse::Other(status, truncate_errcode(errcode)),
    })
}

/// Why there is no answer to what was asked.
pub(super) fn error_from_response(answer: &FetchResponse) -> Error {
    match answer.status {
        status @ (401 | 403) => Error::Refused(status, parse_errcode(&answer.body)),
        429 => Error::Busy,
        status => Error::UnexpectedResponse(status),
    }
}

/// The errcode, if there is one.
pub(super) fn parse_errcode(body: &[u8]) -> String {
    let refusal = json::parse_object::<MatrixErrorBody>(body);
    refusal
        .map(|refusal| truncate_errcode(&refusal.errcode))
        .unwrap_or_default()
}

fn truncate_errcode(errcode: &str) -> String {
    errcode.chars().take(MAX_ERRCODE_CHARS).collect()
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub(super) mod fuzzing {
    use super::*;

    fn answer(status: u16, body: &[u8]) -> FetchResponse {
        FetchResponse {
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
            Ok(RelayResponse::Token(token)) => Some(token),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> FetchResponse {
        FetchResponse {
            status,
            headers: http::HeaderMap::new(),
            body: body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn only_a_clear_yes_is_a_membership() {
        assert_eq!(
            parse_is_joined(&answer(200, r#"{"joined":true,"x":1}"#)),
            Ok(true)
        );
        for (status, body) in [
            (200, r#"{"joined":false}"#),
            (400, r#"{"errcode":"M_INVALID_PARAM"}"#),
            (404, r#"{"errcode":"M_NOT_FOUND"}"#),
        ] {
            assert_eq!(parse_is_joined(&answer(status, body)), Ok(false));
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
                parse_is_joined(&answer(200, body)),
                Err(Error::UnexpectedResponse(200)),
                "{body}"
            );
        }
        for status in [201, 301, 400, 404, 500, 502] {
            let error = parse_is_joined(&answer(status, r#"{"joined":true}"#));
            assert_eq!(error, Err(Error::UnexpectedResponse(status)));
        }
        let error = parse_is_joined(&answer(403, r#"{"errcode":"M_FORBIDDEN","joined":true}"#));
        assert_eq!(error, Err(Error::Refused(403, "M_FORBIDDEN".into())));
        assert_eq!(parse_is_joined(&answer(429, "{}")), Err(Error::Busy));
    }

    #[test]
    fn of_another_server_s_words_only_two_refusals_and_a_token_pass() {
        let said = |status: u16, content: &str| {
            let body = format!(r#"{{"status":{status},"content":{content}}}"#);
            parse_relay_response(&answer(200, &body)).unwrap()
        };
        assert!(
            said(200, r#"{"jwt":"a.b-_.C9","x":1}"#) == RelayResponse::Token("a.b-_.C9".into())
        );
        assert!(said(403, r#"{"errcode":"M_FORBIDDEN"}"#) == RelayResponse::Forbidden);
        assert!(said(400, r#"{"errcode":"M_INVALID_PARAM"}"#) == RelayResponse::InvalidParam);
        let long = format!(r#"{{"jwt":"{}"}}"#, "a".repeat(MAX_RELAYED_TOKEN_BYTES + 1));
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
                matches!(said(status, content), RelayResponse::Other(s, _) if s == status),
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
                parse_relay_response(&answer(200, body)) == Err(Error::UnexpectedResponse(200)),
                "{body}"
            );
        }
    }

    #[test]
    fn our_homeserver_s_own_refusal_is_told_from_the_other_s() {
        let denied = r#"{"errcode":"IO.ELEMENT.MSC4512.M_FEDPROXY_DESTINATION_DENIED"}"#;
        assert!(matches!(
            parse_relay_response(&answer(403, denied)),
            Ok(RelayResponse::Other(403, _))
        ));
        assert!(matches!(
            parse_relay_response(&answer(502, "{}")),
            Ok(RelayResponse::Other(502, _))
        ));
        for status in [401, 403] {
            let refused = parse_relay_response(&answer(status, r#"{"errcode":"M_FORBIDDEN"}"#));
            assert!(matches!(refused, Err(Error::Refused(..))));
        }
    }

    #[test]
    fn a_delayed_event_is_read_by_its_newer_and_its_older_names() {
        for body in [
            r#"{"room_id":"!r","delay_ms":5000,"content":{}}"#,
            r#"{"room_id":"!r","delay":5000}"#,
        ] {
            let event = parse_delayed_event(&answer(200, body)).unwrap().unwrap();
            assert_eq!((&*event.room_id, event.delay.as_secs()), ("!r", 5));
        }
        assert_eq!(
            parse_delayed_event(&answer(404, r#"{"errcode":"M_NOT_FOUND"}"#)),
            Ok(None)
        );
        for body in [
            "{}",
            r#"{"room_id":"!r"}"#,
            r#"{"room_id":"!r","delay":0}"#,
            r#"{"room_id":1,"delay":1}"#,
        ] {
            assert!(parse_delayed_event(&answer(200, body)).is_err(), "{body}");
        }
    }
}
