//! Calls for `doctor`: whether the homeserver and this service reach and authenticate each other.

use std::time::Instant;

use serde::Deserialize;
use serde_json::json;

use super::response::HomeserverResponse;
use super::{CALL_TIMEOUT, Error, HomeserverClient, LIMITS, RELAY_LIMITS, RELAY_TIMEOUT};
use crate::matrix::id::UserId;
use crate::matrix::registration::PROXY_PREFIX;
use crate::util::text::percent_encode;

/// SFU, slot and member that do not exist.
const PROBE_NAME: &str = "livekit-token-service-doctor";
/// A valid id of a room that does not exist.
const PROBE_ROOM_ID: &str = "!livekit-token-service-doctor";

/// What happens to a client's request that the homeserver has to forward to this service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ForwardingCheck {
    /// This service receives the request with the `hs_token`.
    Forwarded,
    /// The homeserver does not know the path.
    UnknownPath,
    /// This service receives the request with another `hs_token`.
    HsTokenRejected,
    /// Another service receives the request.
    WrongService,
    /// Another response: status and errcode.
    Other(u16, String),
}

/// The result of a ping of this service by the homeserver (Matrix spec v1.16, application service API, "Pinging").
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PingResult {
    /// This service has answered, after this number of milliseconds.
    Answered(u64),
    /// The registration has no `url`.
    NoUrl,
    /// The server at `url` answers with this status.
    BadStatus(u16),
    /// No server at `url`.
    ConnectionFailed,
    /// No response of the server at `url`.
    TimedOut,
    /// Another response of the homeserver: status and errcode.
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
    /// This service's user. Its server name is that of the homeserver.
    pub(crate) fn whoami(&self) -> Result<UserId, Error> {
        let deadline = Instant::now() + CALL_TIMEOUT;
        let path = "v3/account/whoami";
        let response = self.fetch(path, Some(&self.as_token), None, LIMITS, deadline)?;
        match response.status {
            200 => UserId::parse(&response.parse::<WhoamiResponse>()?.user_id)
                .map_err(|_| Error::UnexpectedResponse(200)),
            _ => Err(response.error()),
        }
    }

    /// Checks that the homeserver would relay requests, by one without destination.
    pub(crate) fn check_relay(&self) -> Result<(), Error> {
        let response = self.call(
            &self.fed_proxy,
            "appservice/fed_proxy",
            Some(b"{}"),
            LIMITS,
            Instant::now() + CALL_TIMEOUT,
        )?;
        match response.status {
            // the destination is missing
            400 => Ok(()),
            _ => Err(response.error()),
        }
    }

    /// Requests, as this service's own user, a token for an SFU that does not exist.
    pub(crate) fn check_forwarding(&self) -> Result<ForwardingCheck, Error> {
        let deadline = Instant::now() + RELAY_TIMEOUT;
        let path = format!("v1/{PROXY_PREFIX}/get_token");
        let body = json!({
            "url": PROBE_NAME, "room_id": PROBE_ROOM_ID, "slot_id": PROBE_NAME, "member_id": PROBE_NAME,
        })
        .to_string();
        let request =
            |token| self.fetch(&path, token, Some(body.as_bytes()), RELAY_LIMITS, deadline);
        if request(None)?.is_unknown_path() {
            return Ok(ForwardingCheck::UnknownPath);
        }
        let response = request(Some(&self.as_token))?;
        Ok(match (response.status, &*response.errcode) {
            (400, "M_INVALID_PARAM") => ForwardingCheck::Forwarded,
            (401 | 403, _) => ForwardingCheck::HsTokenRejected,
            // M_BAD_JSON: the standalone endpoint, which misses an OpenID token
            (404 | 405, _) | (400, "M_BAD_JSON") => ForwardingCheck::WrongService,
            (status, errcode) => ForwardingCheck::Other(status, errcode.to_owned()),
        })
    }

    /// Has the homeserver ping this service, whose registration has this `id`.
    pub(crate) fn ping(&self, id: &str) -> Result<PingResult, Error> {
        let deadline = Instant::now() + RELAY_TIMEOUT;
        let path = format!("v1/appservice/{}/ping", percent_encode(id));
        let body = json!({ "transaction_id": "doctor" }).to_string();
        let (token, body) = (Some(&self.as_token), Some(body.as_bytes()));
        let response = self.fetch(&path, token, body, RELAY_LIMITS, deadline)?;
        Ok(parse_ping(&response))
    }
}

fn parse_ping(response: &HomeserverResponse) -> PingResult {
    let ping = response.parse::<PingResponse>();
    match (response.status, ping, &*response.errcode) {
        (200, Ok(ping), _) => PingResult::Answered(ping.duration_ms),
        (_, _, "M_URL_NOT_SET") => PingResult::NoUrl,
        (_, Ok(ping), "M_BAD_STATUS") => PingResult::BadStatus(ping.status),
        (_, _, "M_CONNECTION_FAILED") => PingResult::ConnectionFailed,
        (_, _, "M_CONNECTION_TIMEOUT") => PingResult::TimedOut,
        (status, _, errcode) => PingResult::Other(status, errcode.to_owned()),
    }
}
