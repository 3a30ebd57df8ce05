//! Standalone mode: a Matrix OpenID token is exchanged for a LiveKit access token.
//!
//! Authenticate the user, determine their access, create the room for full access, take over the delayed leave if there is one,
//! sign. Each step needs the result of the one before it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::access::{AccessLevel, FullAccessHomeservers};
use super::{DelegatedLeave, TokenIssuer};
use crate::delegation;
use crate::delegation::leave::DelegationRequest;
use crate::livekit::access_token::{AccessToken, Claims, JoinPermissions};
use crate::livekit::id::{InvalidLiveKitName, ParticipantIdentity, ParticipantKey};
use crate::livekit::room_service;
use crate::matrix::federation;
use crate::matrix::id::{DeviceId, InvalidIdentifier, MemberId, RoomId, ServerName, SlotId};
use crate::matrix::livekit_names;
use crate::matrix::openid::{self, OpenIdToken, OpenIdVerifier, VerifiedUser};
use crate::net::permits::LimitReached;

/// The parsed body of a request; nothing in it is verified.
#[derive(Debug)]
pub struct ExchangeRequest {
    /// The homeserver that issued the OpenID token, as the client names it: 1 to 255 bytes, not yet parsed.
    pub server_name: String,
    /// The OpenID token.
    pub openid_token: OpenIdToken,
    /// The Matrix room.
    pub room: RoomId,
    /// The slot within the room.
    pub slot: SlotId,
    /// The participant that the access token is for.
    pub participant: RequestedParticipant,
    /// The delayed leave event to take over, if the client hands one over.
    pub delayed_leave: Option<DelegationRequest>,
}

/// A participant as the two request forms name it.
#[derive(Debug)]
pub enum RequestedParticipant {
    /// `/get_token`: a member of the slot (MSC4195).
    Member {
        /// The user id that the client claims.
        claimed_user: String,
        /// The device id that the client claims.
        device: DeviceId,
        /// The member's id.
        member: MemberId,
    },
    /// `/sfu/get`: a device of the OpenID token's user.
    Device(DeviceId),
}

/// An access token with its user and participant.
#[derive(Debug)]
pub(crate) struct IssuedToken {
    pub access_token: AccessToken,
    pub user: VerifiedUser,
    pub access_level: AccessLevel,
    pub participant: ParticipantKey,
    pub leave: Option<DelegatedLeave>,
}

/// Why an exchange fails. `listed` says whether the administrator listed the homeserver concerned.
#[derive(Debug)]
pub(crate) enum Error {
    /// The name of the homeserver is invalid.
    InvalidServerName(InvalidIdentifier),
    /// The OpenID token is not accepted.
    NotAuthenticated { error: openid::Error, listed: bool },
    /// The OpenID token belongs to another user than the client claims.
    UserMismatch(VerifiedUser, String),
    /// User id and device id make no LiveKit identity.
    InvalidIdentity(InvalidLiveKitName),
    /// No permit for a call to the homeserver or the SFU; retry after the duration.
    Busy(LimitReached, Duration),
    /// The SFU did not create the room.
    RoomNotCreated(VerifiedUser, room_service::Error),
    /// The user has restricted access, which excludes delegated leaves.
    DelegationForbidden(VerifiedUser),
    /// The delayed leave was not taken over.
    DelegationFailed {
        user: VerifiedUser,
        error: delegation::Error,
        listed: bool,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidServerName(error) => write!(f, "matrix_server_name: expected {error}"),
            Self::NotAuthenticated { error, .. } => error.fmt(f),
            Self::UserMismatch(user, claimed) => write!(
                f,
                "the OpenID token belongs to {}, not to the claimed user {claimed:?}",
                user.id()
            ),
            Self::InvalidIdentity(error) => write!(f, "identity: {error}"),
            Self::Busy(limit, _) => limit.fmt(f),
            Self::RoomNotCreated(user, error) => {
                write!(f, "room for {} not created: {error}", user.id())
            }
            Self::DelegationForbidden(user) => write!(
                f,
                "{} has restricted access, which excludes delegated leaves",
                user.id()
            ),
            Self::DelegationFailed { user, error, .. } => {
                write!(f, "leave of {} not delegated: {error}", user.id())
            }
        }
    }
}

impl std::error::Error for Error {}

/// Permissions in the access tokens.
#[derive(Debug)]
pub(crate) struct ExchangeSettings {
    /// Participants may change their own name and metadata.
    pub can_update_own_metadata: bool,
    /// Users with restricted access may publish, for clients that use a single SFU.
    pub remote_users_may_publish: bool,
}

/// Exchanges OpenID tokens for access tokens.
#[derive(Debug)]
pub(crate) struct Exchange {
    verifier: Arc<OpenIdVerifier>,
    full_access: FullAccessHomeservers,
    issuer: TokenIssuer,
    settings: ExchangeSettings,
}

impl Exchange {
    pub(crate) fn new(
        verifier: Arc<OpenIdVerifier>,
        full_access: FullAccessHomeservers,
        issuer: TokenIssuer,
        settings: ExchangeSettings,
    ) -> Self {
        Self {
            verifier,
            full_access,
            issuer,
            settings,
        }
    }

    /// Issues an access token to a client at address `client`. Waits for the user's homeserver and, with full access, for the SFU.
    pub(crate) fn issue_token(
        &self,
        request: &ExchangeRequest,
        client: Option<IpAddr>,
    ) -> Result<IssuedToken, Error> {
        let (user, participant) = self.authenticate(request, client)?;
        let access_level = self.full_access.level_of(user.id().server());
        if request.delayed_leave.is_some() {
            // before create_room: without a token the room would stay empty
            self.check_delegation(&user, access_level)?;
        }
        if access_level == AccessLevel::Full {
            self.create_room(&user, &participant)?;
        }
        let delayed_leave = request.delayed_leave.clone();
        let leave = delayed_leave
            .map(|request| self.start_delegation(&user, &participant, request))
            .transpose()?;
        let permissions = JoinPermissions {
            can_publish: access_level == AccessLevel::Full
                || self.settings.remote_users_may_publish,
            can_subscribe: true,
            can_update_own_metadata: self.settings.can_update_own_metadata,
        };
        let claims = Claims::join(participant.identity.clone(), &participant.room, permissions);
        Ok(IssuedToken {
            access_token: self.issuer.sign(&claims),
            user,
            access_level,
            participant,
            leave,
        })
    }

    /// Takes over the delayed leave of a participant, without issuing a token.
    pub(crate) fn delegate_leave(
        &self,
        request: &ExchangeRequest,
        leave: DelegationRequest,
        client: Option<IpAddr>,
    ) -> Result<(VerifiedUser, DelegatedLeave), Error> {
        let (user, participant) = self.authenticate(request, client)?;
        self.check_delegation(&user, self.full_access.level_of(user.id().server()))?;
        let leave = self.start_delegation(&user, &participant, leave)?;
        Ok((user, leave))
    }

    fn authenticate(
        &self,
        request: &ExchangeRequest,
        client: Option<IpAddr>,
    ) -> Result<(VerifiedUser, ParticipantKey), Error> {
        let server = ServerName::parse(&request.server_name).map_err(Error::InvalidServerName)?;
        let verified = self.verifier.verify(&server, &request.openid_token, client);
        let user = verified.map_err(|error| match error {
            openid::Error::Federation(federation::Error::Busy(limit, after)) => {
                Error::Busy(limit, after)
            }
            error => {
                let listed = self.is_listed(&server);
                Error::NotAuthenticated { error, listed }
            }
        })?;
        let participant = ParticipantKey {
            identity: participant_identity(&user, &request.participant)?,
            room: livekit_names::derive_room_name(&request.room, &request.slot),
        };
        Ok((user, participant))
    }

    fn check_delegation(&self, user: &VerifiedUser, access: AccessLevel) -> Result<(), Error> {
        if access == AccessLevel::Restricted {
            return Err(Error::DelegationForbidden(user.clone()));
        }
        let server = user.id().server();
        let permit = self.verifier.federation().acquire_server_permit(server);
        let _permit = permit.map_err(|(limit, after)| Error::Busy(limit, after))?;
        let supported = self.issuer.delegation.check_support(server);
        supported.map_err(|error| self.delegation_failed(user, error))
    }

    fn start_delegation(
        &self,
        user: &VerifiedUser,
        participant: &ParticipantKey,
        leave: DelegationRequest,
    ) -> Result<DelegatedLeave, Error> {
        let started = self.issuer.delegate(participant.clone(), user.id(), leave);
        started.map_err(|error| self.delegation_failed(user, error))
    }

    fn delegation_failed(&self, user: &VerifiedUser, error: delegation::Error) -> Error {
        Error::DelegationFailed {
            listed: self.is_listed(user.id().server()),
            user: user.clone(),
            error,
        }
    }

    fn is_listed(&self, server: &ServerName) -> bool {
        self.verifier.federation().is_listed(server)
    }

    fn create_room(&self, user: &VerifiedUser, participant: &ParticipantKey) -> Result<(), Error> {
        // a slow SFU occupies a worker as a slow homeserver does
        let server = user.id().server();
        let permit = self.verifier.federation().acquire_permit(server);
        let _permit = permit.map_err(|(limit, after)| Error::Busy(limit, after))?;
        let created = self.issuer.create_room(participant);
        created.map_err(|error| Error::RoomNotCreated(user.clone(), error))
    }
}

fn participant_identity(
    user: &VerifiedUser,
    participant: &RequestedParticipant,
) -> Result<ParticipantIdentity, Error> {
    match participant {
        RequestedParticipant::Member { claimed_user, .. } if user.id().as_str() != claimed_user => {
            Err(Error::UserMismatch(user.clone(), claimed_user.clone()))
        }
        RequestedParticipant::Member { device, member, .. } => {
            Ok(livekit_names::derive_device_identity(user, device, member))
        }
        RequestedParticipant::Device(device) => {
            livekit_names::legacy_identity(user, device).map_err(Error::InvalidIdentity)
        }
    }
}
