//! What the SFU tells us: signed, repeated, and out of order.

mod body;
mod deduplicator;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::access_token;
use super::access_token::{AccessTokenError, ApiKey};
use super::sealed_attribute::SealedAttribute;
use crate::livekit::id::{ParticipantIdentity, ParticipantSid, RoomName};

use self::deduplicator::{EventIdState, WebhookDeduplicator};
use body::WebhookBody;

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebhookEventKind {
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
pub struct WebhookEvent {
    /// The SFU's id of the event, which its repeats have too; at most 255 bytes. Empty if it gives none.
    pub id: String,
    /// What has happened.
    pub kind: WebhookEventKind,
    /// Where.
    pub room: RoomName,
    /// To whom, and on which connection of theirs; none when it is about a room.
    pub participant: Option<(ParticipantIdentity, Option<ParticipantSid>)>,
    /// What their token carries for us, or what somebody has put there in its place.
    pub sealed_attribute: Option<SealedAttribute>,
    /// `disconnectReason` as the SFU spells it, short and fit for the log.
    pub disconnect_reason: Option<String>,
}

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebhookDelivery {
    /// Something new: to be worked on, and then either [`Receiver::done`] or [`Receiver::forget`].
    New(WebhookEvent),
    /// The SFU was too impatient: somebody is at it already, and may fail. It is to come again.
    InProgress,
    /// The SFU did not hear that we have it already.
    Duplicate,
    /// Signed well, and of no interest here.
    Ignored,
}

/// Why a webhook is not believed; to the one who sent it all of them are one 401.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// It has no Authorization.
    MissingAuthorization,
    /// Its token is not believed.
    InvalidToken(AccessTokenError),
    /// Its token vouches for no body: one to join with, perhaps.
    MissingBodyHash,
    /// Its token vouches for another body.
    BodyHashMismatch,
    /// Its body is not what the SFU would write.
    MalformedBody,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingAuthorization => f.write_str("the webhook has no Authorization"),
            Self::InvalidToken(AccessTokenError::UnknownKey) => f.write_str(
                "the webhook's token names an unknown API key (the key in the SFU's webhook settings has to be among LIVEKIT_KEYS)",
            ),
            Self::InvalidToken(error @ (AccessTokenError::Expired | AccessTokenError::NotYetValid)) => write!(
                f,
                "the webhook's {error} (the clocks of the SFU and of this host have to agree)"
            ),
            Self::InvalidToken(error) => write!(f, "the webhook's {error}"),
            Self::MissingBodyHash => f.write_str("the webhook's token vouches for no body"),
            Self::BodyHashMismatch => f.write_str("the webhook's token vouches for another body"),
            Self::MalformedBody => f.write_str("the webhook's body is no event"),
        }
    }
}

impl std::error::Error for Error {}

/// Checks and reads webhooks.
#[derive(Debug)]
pub struct WebhookReceiver {
    api_keys: Vec<ApiKey>,
    deduplicator: WebhookDeduplicator,
}

impl WebhookReceiver {
    /// Believes what is signed by any of `keys`.
    pub fn new(keys: Vec<ApiKey>) -> Self {
        Self {
            api_keys: keys,
            deduplicator: WebhookDeduplicator::default(),
        }
    }

    /// Reads a webhook that came at `now` (seconds since 1970): its Authorization header, with or without `Bearer`, and its body, as
    /// they came. When it is done, the next one of the same id is a repeat for at least 10 min.
    pub fn receive(
        &self,
        authorization: Option<&str>,
        body: &[u8],
        now: u64,
    ) -> Result<WebhookDelivery, Error> {
        self.verify_signature(authorization, body, now)?;
        Ok(
            match body::parse_webhook_body(body).ok_or(Error::MalformedBody)? {
                WebhookBody::Irrelevant => WebhookDelivery::Ignored,
                WebhookBody::Relevant(webhook) => {
                    match self.deduplicator.begin(&webhook.id, Instant::now()) {
                        EventIdState::New => WebhookDelivery::New(webhook),
                        EventIdState::InProgress => WebhookDelivery::InProgress,
                        EventIdState::Processed => WebhookDelivery::Duplicate,
                    }
                }
            },
        )
    }

    /// A webhook was worked on, and needs no repeat.
    pub fn mark_processed(&self, webhook: &WebhookEvent) {
        self.deduplicator.mark_processed(&webhook.id);
    }

    /// Takes a webhook back that could not be worked on, so that its repeat is new again.
    pub fn mark_failed(&self, webhook: &WebhookEvent) {
        self.deduplicator.mark_failed(&webhook.id);
    }

    /// Whether the SFU has signed this body.
    fn verify_signature(
        &self,
        authorization: Option<&str>,
        body: &[u8],
        now: u64,
    ) -> Result<(), Error> {
        let token = authorization
            .map(parse_bearer)
            .filter(|token| !token.is_empty());
        let token = token.ok_or(Error::MissingAuthorization)?;
        let verified =
            access_token::verify(token, &self.api_keys, now).map_err(Error::InvalidToken)?;
        let claimed = verified.sha256.filter(|hash| !hash.is_empty());
        let claimed = claimed.ok_or(Error::MissingBodyHash)?;
        let claimed = STANDARD
            .decode(claimed)
            .map_err(|_| Error::BodyHashMismatch)?;
        if constant_time_eq(&claimed, &Sha256::digest(body)) {
            Ok(())
        } else {
            Err(Error::BodyHashMismatch)
        }
    }
}

/// The token alone; LiveKit sends it bare.
fn parse_bearer(authorization: &str) -> &str {
    let authorization = authorization.trim();
    match authorization.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim_start(),
        _ => authorization,
    }
}

/// Compares in a time that depends on the lengths only.
fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |bits, (a, b)| bits | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differences) == 0
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    use super::body::Content;
    use crate::livekit::webhook::body;

    /// The event in a body that was signed, if it matters; an error if it is no event.
    pub fn event(body: &[u8]) -> Result<Option<super::Webhook>, ()> {
        match body::parse_webhook_body(body).ok_or(())? {
            WebhookBody::Relevant(webhook) => Ok(Some(webhook)),
            WebhookBody::Irrelevant => Ok(None),
        }
    }
}
