//! What only `doctor` asks: whether our homeserver and this service are wired as both need it.

use std::time::Instant;

use serde::Deserialize;
use serde_json::json;

use super::{BUDGET, Error, FED_PROXY, Homeserver, LIMITS, RELAY_BUDGET, RELAY_LIMITS};
use super::{answer, escaped};
use crate::json;
use crate::matrix::id::UserId;
use crate::matrix::registration::PREFIX;
use crate::net::fetch::Answer;

/// An SFU, and a place in it, that nobody has; and a room, which has to look like one to be read at all.
const NOBODYS: &str = "livekit-token-service-doctor";
const NOBODYS_ROOM: &str = "!livekit-token-service-doctor";

/// What becomes of a wish of its users that is for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passing {
    /// We get it, and know by the `hs_token` from whom.
    ToUs,
    /// It does not know the path.
    NotKnown,
    /// We get it, and do not know the `hs_token`.
    NotBelieved,
    /// Somebody gets it who does not know what it is.
    ToOthers,
    /// Something else: status and errcode of what it answers.
    Else(u16, String),
}

/// What became of its attempt to reach us for a push (Matrix spec v1.16, application service API, "Pinging").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ping {
    /// We have answered, after so many milliseconds.
    Well(u64),
    /// Its registration has no `url`.
    NoUrl,
    /// Whoever is there answers with this status.
    BadStatus(u16),
    /// Nobody is there.
    Failed,
    /// Whoever is there does not answer.
    TimedOut,
    /// Something else: status and errcode of what it answers.
    Else(u16, String),
}

#[derive(Deserialize)]
struct Whoami {
    user_id: String,
}

#[derive(Deserialize)]
struct Pinged {
    #[serde(default)]
    duration_ms: u64,
    #[serde(default)]
    status: u16,
}

impl Homeserver {
    /// Our own user there, as it is named after the homeserver.
    pub fn whoami(&self) -> Result<UserId, Error> {
        let deadline = Instant::now() + BUDGET;
        let path = "v3/account/whoami";
        let answer = self.fetch(path, Some(&self.as_token), None, LIMITS, deadline)?;
        match answer.status {
            200 => json::object::<Whoami>(&answer.body)
                .and_then(|known| UserId::parse(&known.user_id).ok())
                .ok_or(Error::NotUnderstood(200)),
            _ => Err(answer::refusal(&answer)),
        }
    }

    /// Whether it can be told to ask other homeservers, which none is for this.
    pub fn can_relay(&self) -> Result<(), Error> {
        let answer = self.call(
            &FED_PROXY,
            "appservice/fed_proxy",
            Some(b"{}"),
            LIMITS,
            Instant::now() + BUDGET,
        )?;
        match answer.status {
            // it misses the destination
            400 => Ok(()),
            _ => Err(answer::refusal(&answer)),
        }
    }

    /// What becomes of the wishes of its users: asks, as our own user, for a token for an SFU that is nobody's.
    pub fn passes_on(&self) -> Result<Passing, Error> {
        let deadline = Instant::now() + RELAY_BUDGET;
        let path = format!("v1/{PREFIX}/get_token");
        let (nowhere, room) = (NOBODYS, NOBODYS_ROOM);
        let body =
            json!({ "url": nowhere, "room_id": room, "slot_id": nowhere, "member_id": nowhere });
        let body = body.to_string();
        let ask = |token| self.fetch(&path, token, Some(body.as_bytes()), RELAY_LIMITS, deadline);
        let unproven = ask(None)?;
        if answer::is_unknown_path(&unproven) {
            return Ok(Passing::NotKnown);
        }
        let proven = ask(Some(&self.as_token))?;
        Ok(match (proven.status, &*answer::errcode(&proven.body)) {
            (400, "M_INVALID_PARAM") => Passing::ToUs,
            (401 | 403, _) => Passing::NotBelieved,
            // our door for users of any homeserver would miss their OpenID token
            (404 | 405, _) | (400, "M_BAD_JSON") => Passing::ToOthers,
            (status, errcode) => Passing::Else(status, errcode.to_owned()),
        })
    }

    /// Has it ping us; `id` is that of its registration.
    pub fn ping(&self, id: &str) -> Result<Ping, Error> {
        let deadline = Instant::now() + RELAY_BUDGET;
        let path = format!("v1/appservice/{}/ping", escaped(id));
        let body = json!({ "transaction_id": "doctor" }).to_string();
        let (token, body) = (Some(&self.as_token), Some(body.as_bytes()));
        let answer = self.fetch(&path, token, body, RELAY_LIMITS, deadline)?;
        Ok(pinged(&answer))
    }
}

fn pinged(answer: &Answer) -> Ping {
    let told = json::object::<Pinged>(&answer.body);
    match (answer.status, told, &*answer::errcode(&answer.body)) {
        (200, Some(told), _) => Ping::Well(told.duration_ms),
        (_, _, "M_URL_NOT_SET") => Ping::NoUrl,
        (_, Some(told), "M_BAD_STATUS") => Ping::BadStatus(told.status),
        (_, _, "M_CONNECTION_FAILED") => Ping::Failed,
        (_, _, "M_CONNECTION_TIMEOUT") => Ping::TimedOut,
        (status, _, errcode) => Ping::Else(status, errcode.to_owned()),
    }
}
