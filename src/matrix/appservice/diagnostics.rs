//! What only `doctor` asks: whether our homeserver and this service are wired as both need it.

use std::time::Instant;

use serde::Deserialize;
use serde_json::json;

use super::response;
use super::{
    CALL_TIMEOUT, Error, FED_PROXY, HomeserverClient, LIMITS, RELAY_LIMITS, RELAY_TIMEOUT,
};
use crate::matrix::id::UserId;
use crate::matrix::registration::PROXY_PREFIX;
use crate::net::http_client::FetchResponse;
use crate::util::json;
use crate::util::text::percent_encode;

/// An SFU, and a place in it, that nobody has; and a room, which has to look like one to be read at all.
const PROBE_NAME: &str = "livekit-token-service-doctor";
const PROBE_ROOM_ID: &str = "!livekit-token-service-doctor";

/// What becomes of a wish of its users that is for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ForwardingCheck {
    /// We get it, and know by the `hs_token` from whom.
    Forwarded,
    /// It does not know the path.
    UnknownPath,
    /// We get it, and do not know the `hs_token`.
    HsTokenRejected,
    /// Somebody gets it who does not know what it is.
    WrongService,
    /// Something else: status and errcode of what it answers.
    Other(u16, String),
}

/// What became of its attempt to reach us for a push (Matrix spec v1.16, application service API, "Pinging").
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PingResult {
    /// We have answered, after so many milliseconds.
    Answered(u64),
    /// Its registration has no `url`.
    NoUrl,
    /// Whoever is there answers with this status.
    BadStatus(u16),
    /// Nobody is there.
    ConnectionFailed,
    /// Whoever is there does not answer.
    TimedOut,
    /// Something else: status and errcode of what it answers.
    Other(u16, String),
}

#[derive(Deserialize)]
struct WhoamiResponse {
    user_id: String,
}

#[derive(Deserialize)]
struct PingResponse {
    #[serde(default)]
    duration_ms: u64,
    #[serde(default)]
    status: u16,
}

impl HomeserverClient {
    /// Our own user there, as it is named after the homeserver.
    pub(crate) fn whoami(&self) -> Result<UserId, Error> {
        let deadline = Instant::now() + CALL_TIMEOUT;
        let path = "v3/account/whoami";
        let answer = self.fetch(path, Some(&self.as_token), None, LIMITS, deadline)?;
        match answer.status {
            200 => json::parse_object::<WhoamiResponse>(&answer.body)
                .and_then(|known| UserId::parse(&known.user_id).ok())
                .ok_or(Error::UnexpectedResponse(200)),
            _ => Err(response::error_from_response(&answer)),
        }
    }

    /// Whether it can be told to ask other homeservers, which none is for this.
    pub(crate) fn check_relay(&self) -> Result<(), Error> {
        let answer = self.call(
            &FED_PROXY,
            "appservice/fed_proxy",
            Some(b"{}"),
            LIMITS,
            Instant::now() + CALL_TIMEOUT,
        )?;
        match answer.status {
            // it misses the destination
            400 => Ok(()),
            _ => Err(response::error_from_response(&answer)),
        }
    }

    /// What becomes of the wishes of its users: asks, as our own user, for a token for an SFU that is nobody's.
    pub(crate) fn check_forwarding(&self) -> Result<ForwardingCheck, Error> {
        let deadline = Instant::now() + RELAY_TIMEOUT;
        let path = format!("v1/{PROXY_PREFIX}/get_token");
        let (nowhere, room) = (PROBE_NAME, PROBE_ROOM_ID);
        let body =
            json!({ "url": nowhere, "room_id": room, "slot_id": nowhere, "member_id": nowhere });
        let body = body.to_string();
        let ask = |token| self.fetch(&path, token, Some(body.as_bytes()), RELAY_LIMITS, deadline);
        let unproven = ask(None)?;
        if response::is_unknown_path(&unproven) {
            return Ok(ForwardingCheck::UnknownPath);
        }
        let proven = ask(Some(&self.as_token))?;
        Ok(
            match (proven.status, &*response::parse_errcode(&proven.body)) {
                (400, "M_INVALID_PARAM") => ForwardingCheck::Forwarded,
                (401 | 403, _) => ForwardingCheck::HsTokenRejected,
                // our door for users of any homeserver would miss their OpenID token
                (404 | 405, _) | (400, "M_BAD_JSON") => ForwardingCheck::WrongService,
                (status, errcode) => ForwardingCheck::Other(status, errcode.to_owned()),
            },
        )
    }

    /// Has it ping us; `id` is that of its registration.
    pub(crate) fn ping(&self, id: &str) -> Result<PingResult, Error> {
        let deadline = Instant::now() + RELAY_TIMEOUT;
        let path = format!("v1/appservice/{}/ping", percent_encode(id));
        let body = json!({ "transaction_id": "doctor" }).to_string();
        let (token, body) = (Some(&self.as_token), Some(body.as_bytes()));
        let answer = self.fetch(&path, token, body, RELAY_LIMITS, deadline)?;
        Ok(parse_ping_response(&answer))
    }
}

fn parse_ping_response(answer: &FetchResponse) -> PingResult {
    let told = json::parse_object::<PingResponse>(&answer.body);
    match (answer.status, told, &*response::parse_errcode(&answer.body)) {
        (200, Some(told), _) => PingResult::Answered(told.duration_ms),
        (_, _, "M_URL_NOT_SET") => PingResult::NoUrl,
        (_, Some(told), "M_BAD_STATUS") => PingResult::BadStatus(told.status),
        (_, _, "M_CONNECTION_FAILED") => PingResult::ConnectionFailed,
        (_, _, "M_CONNECTION_TIMEOUT") => PingResult::TimedOut,
        (status, _, errcode) => PingResult::Other(status, errcode.to_owned()),
    }
}
