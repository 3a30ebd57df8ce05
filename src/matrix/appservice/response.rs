//! Responses of the homeserver.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::Error;
use crate::matrix::parse_errcode;
use crate::net::http_client::FetchResponse;
use crate::util::json;
use crate::util::text::truncate_chars;

/// Longest errcode that is logged, in characters.
const MAX_ERRCODE_CHARS: usize = 64;
/// Longest relayed access token in bytes: an SFU takes it as part of a URL.
const MAX_RELAYED_TOKEN_BYTES: usize = 8 * 1024;

/// The response of another homeserver's service to a relayed request.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum RelayResponse {
    /// An access token for its SFU.
    Token(Box<str>),
    /// 403 `M_FORBIDDEN`.
    Forbidden,
    /// 400: `M_INVALID_PARAM`, or the errcode of a service that does not know the body's dialect.
    BadRequest,
    /// Another response, or an error of the local homeserver while relaying: status and errcode.
    Other(u16, String),
}

/// A delayed event that the homeserver holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScheduledDelayedEvent {
    pub room_id: String,
    /// Time after the last restart at which the event is sent.
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
    /// The field's name in an earlier MSC4140.
    #[serde(default)]
    delay: Option<u64>,
}

/// A response with the errcode parsed.
pub(super) struct HomeserverResponse {
    pub(super) status: u16,
    /// Empty if the response is no error or has no errcode.
    pub(super) errcode: String,
    body: Vec<u8>,
}

impl From<FetchResponse> for HomeserverResponse {
    fn from(response: FetchResponse) -> Self {
        let FetchResponse { status, body, .. } = response;
        let errcode = match status {
            200 => None,
            _ => parse_errcode(&body),
        };
        Self {
            status,
            errcode: truncate_errcode(&errcode.unwrap_or_default()),
            body,
        }
    }
}

impl HomeserverResponse {
    pub(super) fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Error> {
        json::parse_object(&self.body).ok_or(Error::UnexpectedResponse(self.status))
    }

    /// Whether the homeserver does not know the path. Other 404s are about the resource.
    pub(super) fn is_unknown_path(&self) -> bool {
        matches!(self.status, 404 | 405) && self.errcode == "M_UNRECOGNIZED"
    }

    /// Whether a user or server is in a room. An id that is not valid for the homeserver is in no room.
    pub(super) fn parse_is_joined(&self) -> Result<bool, Error> {
        match (self.status, &*self.errcode) {
            (200, _) => Ok(self.parse::<IsJoinedResponse>()?.joined),
            (400, "M_INVALID_PARAM") | (404, "M_NOT_FOUND") => Ok(false),
            _ => Err(self.error()),
        }
    }

    pub(super) fn parse_delayed_event(&self) -> Result<Option<ScheduledDelayedEvent>, Error> {
        match (self.status, &*self.errcode) {
            (200, _) => {}
            (404, "M_NOT_FOUND") => return Ok(None),
            _ => return Err(self.error()),
        }
        let event: DelayedEventLookupResponse = self.parse()?;
        let delay = event.delay_ms.or(event.delay).filter(|ms| *ms > 0);
        Ok(Some(ScheduledDelayedEvent {
            room_id: event.room_id,
            delay: Duration::from_millis(delay.ok_or(Error::UnexpectedResponse(200))?),
        }))
    }

    pub(super) fn parse_relay(&self) -> Result<RelayResponse, Error> {
        match self.status {
            200 => {}
            // errcodes of MSC4512 are about the relayed request, others about the as_token
            401 | 429 => return Err(self.error()),
            403 if !self.errcode.contains("FEDPROXY") => return Err(self.error()),
            status => return Ok(RelayResponse::Other(status, self.errcode.clone())),
        }
        let FedProxyResponse { status, content } = self.parse()?;
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
            (400, _) => RelayResponse::BadRequest,
            (status, errcode) => RelayResponse::Other(status, truncate_errcode(errcode)),
        })
    }

    /// The error of a response that is not a result.
    pub(super) fn error(&self) -> Error {
        match self.status {
            status @ (401 | 403) => Error::Refused(status, self.errcode.clone()),
            429 => Error::Busy,
            status => Error::UnexpectedResponse(status),
        }
    }
}

fn truncate_errcode(errcode: &str) -> String {
    truncate_chars(errcode, MAX_ERRCODE_CHARS).to_owned()
}

#[cfg(any(test, fuzzing))]
fn response(status: u16, body: &[u8]) -> HomeserverResponse {
    let response = FetchResponse {
        status,
        headers: http::HeaderMap::new(),
        body: body.to_vec(),
    };
    response.into()
}

#[cfg(fuzzing)]
pub(super) mod fuzzing {
    use super::{RelayResponse, response};

    /// Whether the response proves a membership.
    pub fn is_joined_response(status: u16, body: &[u8]) -> bool {
        response(status, body).parse_is_joined() == Ok(true)
    }

    /// The access token in the response to a relayed request.
    pub fn relayed_token(status: u16, body: &[u8]) -> Option<Box<str>> {
        match response(status, body).parse_relay() {
            Ok(RelayResponse::Token(token)) => Some(token),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_joined(status: u16, body: &str) -> Result<bool, Error> {
        response(status, body.as_bytes()).parse_is_joined()
    }

    fn relay(status: u16, body: &str) -> Result<RelayResponse, Error> {
        response(status, body.as_bytes()).parse_relay()
    }

    fn delayed_event(status: u16, body: &str) -> Result<Option<ScheduledDelayedEvent>, Error> {
        response(status, body.as_bytes()).parse_delayed_event()
    }

    #[test]
    fn only_an_explicit_true_is_a_membership() {
        assert_eq!(is_joined(200, r#"{"joined":true,"x":1}"#), Ok(true));
        for (status, body) in [
            (200, r#"{"joined":false}"#),
            (400, r#"{"errcode":"M_INVALID_PARAM"}"#),
            (404, r#"{"errcode":"M_NOT_FOUND"}"#),
        ] {
            assert_eq!(is_joined(status, body), Ok(false));
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
                is_joined(200, body),
                Err(Error::UnexpectedResponse(200)),
                "{body}"
            );
        }
        for status in [201, 301, 400, 404, 500, 502] {
            let error = is_joined(status, r#"{"joined":true}"#);
            assert_eq!(error, Err(Error::UnexpectedResponse(status)));
        }
        let error = is_joined(403, r#"{"errcode":"M_FORBIDDEN","joined":true}"#);
        assert_eq!(error, Err(Error::Refused(403, "M_FORBIDDEN".into())));
        assert_eq!(is_joined(429, "{}"), Err(Error::Busy));
    }

    #[test]
    fn a_relayed_response_is_a_token_or_one_of_two_refusals_or_other() {
        let relayed = |status: u16, content: &str| {
            let body = format!(r#"{{"status":{status},"content":{content}}}"#);
            relay(200, &body).unwrap()
        };
        assert!(
            relayed(200, r#"{"jwt":"a.b-_.C9","x":1}"#) == RelayResponse::Token("a.b-_.C9".into())
        );
        assert!(relayed(403, r#"{"errcode":"M_FORBIDDEN"}"#) == RelayResponse::Forbidden);
        for content in [
            r#"{"errcode":"M_INVALID_PARAM"}"#,
            r#"{"errcode":"M_BAD_JSON"}"#,
            "null",
        ] {
            assert!(relayed(400, content) == RelayResponse::BadRequest);
        }
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
            (404, r#"{"errcode":"M_UNRECOGNIZED"}"#),
            (500, r#"{"errcode":"M_FORBIDDEN"}"#),
            (500, r#""M_FORBIDDEN""#),
        ] {
            assert!(
                matches!(relayed(status, content), RelayResponse::Other(s, _) if s == status),
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
                relay(200, body) == Err(Error::UnexpectedResponse(200)),
                "{body}"
            );
        }
    }

    #[test]
    fn a_refusal_of_the_local_homeserver_is_an_error() {
        let denied = r#"{"errcode":"IO.ELEMENT.MSC4512.M_FEDPROXY_DESTINATION_DENIED"}"#;
        assert!(matches!(
            relay(403, denied),
            Ok(RelayResponse::Other(403, _))
        ));
        // a 400 of the local homeserver is none of the other one
        for status in [400, 502] {
            let failed = relay(status, "{}");
            assert!(matches!(failed, Ok(RelayResponse::Other(s, _)) if s == status));
        }
        for status in [401, 403] {
            let refused = relay(status, r#"{"errcode":"M_FORBIDDEN"}"#);
            assert!(matches!(refused, Err(Error::Refused(..))));
        }
    }

    #[test]
    fn a_delayed_event_is_parsed_with_current_and_earlier_field_names() {
        for body in [
            r#"{"room_id":"!r","delay_ms":5000,"content":{}}"#,
            r#"{"room_id":"!r","delay":5000}"#,
        ] {
            let event = delayed_event(200, body).unwrap().unwrap();
            assert_eq!((&*event.room_id, event.delay.as_secs()), ("!r", 5));
        }
        assert_eq!(delayed_event(404, r#"{"errcode":"M_NOT_FOUND"}"#), Ok(None));
        for body in [
            "{}",
            r#"{"room_id":"!r"}"#,
            r#"{"room_id":"!r","delay":0}"#,
            r#"{"room_id":1,"delay":1}"#,
        ] {
            assert!(delayed_event(200, body).is_err(), "{body}");
        }
    }
}
