//! What the SFU tells us: signed, repeated, and out of order.

use std::fmt;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::livekit::sealed::Sealed;
use crate::livekit::token::{self, ApiKey, Identity, RoomName, Sid, VerifyError};

mod body;
mod seen;

use body::Content;
use seen::{Seen, Sight};

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `participant_joined`: they are connected.
    Joined,
    /// `participant_left`.
    Left,
    /// `participant_connection_aborted`: they never got in.
    Aborted,
    /// `room_finished`: nobody is left. It may come minutes late, when a new room of the same name is in use.
    RoomFinished,
}

/// An event that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// The SFU's id of the event, which its repeats have too; at most 255 bytes. Empty if it gives none.
    pub id: String,
    /// What has happened.
    pub kind: Kind,
    /// Where.
    pub room: RoomName,
    /// To whom, and on which connection of theirs; none when it is about a room.
    pub participant: Option<(Identity, Option<Sid>)>,
    /// What their token carries for us, or what somebody has put there in its place.
    pub sealed: Option<Sealed>,
    /// `disconnectReason` as the SFU spells it, short and fit for the log.
    pub reason: Option<String>,
}

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// Something new: to be worked on, and then either [`Receiver::done`] or [`Receiver::forget`].
    New(Webhook),
    /// The SFU was too impatient: somebody is at it already, and may fail. It is to come again.
    UnderWay,
    /// The SFU did not hear that we have it already.
    Repeat,
    /// Signed well, and of no interest here.
    Ignored,
}

/// Why a webhook is not believed; to the one who sent it all of them are one 401.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// It has no Authorization.
    NotSigned,
    /// Its token is not believed.
    Token(VerifyError),
    /// Its token vouches for no body: one to join with, perhaps.
    NoHash,
    /// Its token vouches for another body.
    OtherBody,
    /// Its body is not what the SFU would write.
    NotAnEvent,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSigned => f.write_str("the webhook has no Authorization"),
            Self::Token(VerifyError::UnknownKey) => f.write_str(
                "the webhook's token names an unknown API key (the key in the SFU's webhook settings has to be among LIVEKIT_KEYS)",
            ),
            Self::Token(error @ (VerifyError::Expired | VerifyError::NotYetValid)) => write!(
                f,
                "the webhook's {error} (the clocks of the SFU and of this host have to agree)"
            ),
            Self::Token(error) => write!(f, "the webhook's {error}"),
            Self::NoHash => f.write_str("the webhook's token vouches for no body"),
            Self::OtherBody => f.write_str("the webhook's token vouches for another body"),
            Self::NotAnEvent => f.write_str("the webhook's body is no event"),
        }
    }
}

impl std::error::Error for Error {}

/// Checks and reads webhooks.
#[derive(Debug)]
pub struct Receiver {
    keys: Vec<ApiKey>,
    seen: Seen,
}

impl Receiver {
    /// Believes what is signed by any of `keys`.
    pub fn new(keys: Vec<ApiKey>) -> Self {
        Self {
            keys,
            seen: Seen::default(),
        }
    }

    /// Reads a webhook that came at `now` (seconds since 1970): its Authorization header, with or without `Bearer`, and its body, as
    /// they came. When it is done, the next one of the same id is a repeat for at least 10 min.
    pub fn receive(
        &self,
        authorization: Option<&str>,
        body: &[u8],
        now: u64,
    ) -> Result<Received, Error> {
        self.check(authorization, body, now)?;
        Ok(match body::read(body).ok_or(Error::NotAnEvent)? {
            Content::Other => Received::Ignored,
            Content::Matters(webhook) => match self.seen.look(&webhook.id, Instant::now()) {
                Sight::New => Received::New(webhook),
                Sight::UnderWay => Received::UnderWay,
                Sight::Done => Received::Repeat,
            },
        })
    }

    /// A webhook was worked on, and needs no repeat.
    pub fn done(&self, webhook: &Webhook) {
        self.seen.done(&webhook.id);
    }

    /// Takes a webhook back that could not be worked on, so that its repeat is new again.
    pub fn forget(&self, webhook: &Webhook) {
        self.seen.forget(&webhook.id);
    }

    /// Whether the SFU has signed this body.
    fn check(&self, authorization: Option<&str>, body: &[u8], now: u64) -> Result<(), Error> {
        let token = authorization.map(bearer).filter(|token| !token.is_empty());
        let token = token.ok_or(Error::NotSigned)?;
        let verified = token::verify(token, &self.keys, now).map_err(Error::Token)?;
        let claimed = verified.sha256.filter(|hash| !hash.is_empty());
        let claimed = claimed.ok_or(Error::NoHash)?;
        let claimed = STANDARD.decode(claimed).map_err(|_| Error::OtherBody)?;
        if same(&claimed, &Sha256::digest(body)) {
            Ok(())
        } else {
            Err(Error::OtherBody)
        }
    }
}

/// The token alone; LiveKit sends it bare.
fn bearer(authorization: &str) -> &str {
    let authorization = authorization.trim();
    match authorization.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim_start(),
        _ => authorization,
    }
}

/// Compares in a time that depends on the lengths only.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |bits, (a, b)| bits | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differences) == 0
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    use super::body::{self, Content};

    /// The event in a body that was signed, if it matters; an error if it is no event.
    pub fn event(body: &[u8]) -> Result<Option<super::Webhook>, ()> {
        match body::read(body).ok_or(())? {
            Content::Matters(webhook) => Ok(Some(webhook)),
            Content::Other => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests;
