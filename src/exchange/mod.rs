//! From an authenticated Matrix user to a LiveKit access token (MSC4195).
//!
//! [`standalone`]: a user of any homeserver proves their identity by an OpenID token. [`appservice`]: our own homeserver passes
//! requests on and states who sends them.

pub(crate) mod access;
pub(crate) mod appservice;
pub(crate) mod standalone;

use std::sync::Arc;
use std::time::Duration;

use crate::delegation::leave::{DelegationRequest, LeaveId};
use crate::delegation::{self, DelegationService};
use crate::livekit::access_token::{AccessToken, Claims, SharedApiKeys};
use crate::livekit::id::ParticipantKey;
use crate::livekit::room_service::{self, RoomServiceClient};
use crate::matrix::id::UserId;
use crate::util::clock;

/// A delayed leave event that was taken over.
#[derive(Debug)]
pub(crate) struct DelegatedLeave {
    pub id: LeaveId,
    pub participant: ParticipantKey,
    /// The homeserver sends the event this long after its last restart.
    pub delay: Duration,
}

/// The steps that both exchanges end with, once user and room are known.
#[derive(Debug)]
pub(crate) struct TokenIssuer {
    pub room_service: Arc<RoomServiceClient>,
    pub delegation: DelegationService,
    pub api_keys: SharedApiKeys,
    pub token_lifetime: Duration,
}

impl TokenIssuer {
    /// Creates the room of `participant` on the SFU; a room that exists is no error.
    fn create_room(&self, participant: &ParticipantKey) -> Result<(), room_service::Error> {
        self.room_service.create_room(&participant.room)
    }

    fn delegate(
        &self,
        participant: ParticipantKey,
        user: &UserId,
        request: DelegationRequest,
    ) -> Result<DelegatedLeave, delegation::Error> {
        let delay = request.timeout;
        let delegated = self
            .delegation
            .delegate(participant.clone(), user.clone(), request);
        Ok(DelegatedLeave {
            id: delegated?,
            participant,
            delay,
        })
    }

    fn sign(&self, claims: &Claims) -> AccessToken {
        let now = clock::unix_seconds_now();
        claims.sign(self.api_keys.get().signing(), now, self.token_lifetime)
    }
}
