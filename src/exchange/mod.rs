//! The main loop of it all: a Matrix user's OpenID token becomes a LiveKit token.
//!
//! Authenticate, authorise, create the room for those who may have it created, take on their leave if they hand it to us, sign; every
//! step needs what the one before it gave.

pub(crate) mod access;
pub(crate) mod appservice;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use self::access::{AccessLevel, FullAccessHomeservers};

use crate::delegation::leave::DelegationRequest;
use crate::delegation::{self, DelegationService};
use crate::livekit::access_token::{AccessToken, ApiKey, Claims, JoinPermissions};
use crate::livekit::id::{InvalidLiveKitName, ParticipantIdentity, ParticipantKey, RoomName};
use crate::livekit::room_service::{self, RoomServiceClient};
use crate::matrix::federation;
use crate::matrix::id::{DelayId, DeviceId, MemberId, RoomId, ServerName, SlotId};
use crate::matrix::livekit_names;
use crate::matrix::openid::{self, OpenIdToken, OpenIdVerifier, VerifiedUser};
use crate::net::permits::LimitReached;

/// What a client asks for: parsed, not believed.
#[derive(Debug)]
pub struct ExchangeRequest {
    /// The homeserver that is to vouch for the user.
    pub server_name: String,
    /// What it knows the user by.
    pub openid_token: OpenIdToken,
    /// The Matrix room.
    pub room: RoomId,
    /// The slot within it.
    pub slot: SlotId,
    /// Who wants to take part.
    pub participant: RequestedParticipant,
    /// Their leave, if they hand it to us.
    pub delayed_leave: Option<DelayedLeaveRequest>,
}

/// A delayed event that says that a participant has left (MSC4140).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelayedLeaveRequest {
    /// What their homeserver calls it.
    pub delay_id: DelayId,
    /// When it is sent if nobody restarts it.
    pub timeout: Duration,
}

/// The two ways of naming a participant.
#[derive(Debug)]
pub enum RequestedParticipant {
    /// `/get_token`: a member of the slot (MSC4195).
    Member {
        /// The user that it claims to be.
        claimed_user: String,
        /// The device that it claims to use.
        device: DeviceId,
        /// The member's id.
        member: MemberId,
    },
    /// `/sfu/get`: a device of whoever the token belongs to.
    Device(DeviceId),
}

/// A token, and for whom it is.
#[derive(Debug)]
pub(crate) struct IssuedToken {
    /// The token.
    pub access_token: AccessToken,
    /// Whose it is.
    pub user: VerifiedUser,
    /// Their access.
    pub access_level: AccessLevel,
    /// The LiveKit room that it opens.
    pub room: RoomName,
    /// Who they are in it.
    pub identity: ParticipantIdentity,
    /// The leave that was taken on, by its name in the log.
    pub leave_log_id: Option<u32>,
}

/// A leave that was taken on, and whose it is.
#[derive(Debug)]
pub(crate) struct DelegationReceipt {
    /// The user.
    pub user: VerifiedUser,
    /// Its name in the log.
    pub leave_log_id: u32,
}

/// Why there is no token.
#[derive(Debug)]
pub(crate) enum Error {
    /// The caller's OpenID token is not accepted.
    NotAuthenticated(openid::Error),
    /// The OpenID token is another user's than the caller claims to be.
    UserMismatch(VerifiedUser, String),
    /// The caller's names make no LiveKit identity.
    InvalidIdentity(InvalidLiveKitName),
    /// No place is free to ask on the caller's behalf.
    Busy(LimitReached, Duration),
    /// The SFU did not create the room.
    RoomNotCreated(VerifiedUser, room_service::Error),
    /// A user with restricted access wants to hand us a leave.
    DelegationForbidden(VerifiedUser),
    /// Their leave was not taken on.
    DelegationFailed(VerifiedUser, delegation::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAuthenticated(error) => error.fmt(f),
            Self::UserMismatch(user, claimed) => write!(
                f,
                "the token is of {user}, not of {claimed:?}",
                user = user.id()
            ),
            Self::InvalidIdentity(error) => write!(f, "identity: {error}"),
            Self::Busy(full, _) => full.fmt(f),
            Self::RoomNotCreated(user, error) => {
                write!(f, "no room for {user}: {error}", user = user.id())
            }
            Self::DelegationForbidden(user) => {
                let user = user.id();
                write!(f, "{user} has restricted access and keeps their own leave")
            }
            Self::DelegationFailed(user, error) => {
                write!(f, "no leave for {user}: {error}", user = user.id())
            }
        }
    }
}

impl std::error::Error for Error {}

/// How tokens are made out.
#[derive(Debug)]
pub(crate) struct ExchangeSettings {
    /// Signs the tokens.
    pub api_key: ApiKey,
    /// How long they are valid.
    pub token_lifetime: Duration,
    /// Whether participants may change their own name and metadata.
    pub can_update_own_metadata: bool,
    /// Whether users of restricted homeservers may publish; clients that know one SFU only need it.
    pub remote_users_may_publish: bool,
}

/// Everything that is needed to make tokens out of tokens.
#[derive(Debug)]
pub(crate) struct Exchange {
    verifier: OpenIdVerifier,
    full_access: FullAccessHomeservers,
    room_service: Arc<RoomServiceClient>,
    delegation: DelegationService,
    settings: ExchangeSettings,
}

impl Exchange {
    /// Puts it together.
    pub(crate) fn new(
        verifier: OpenIdVerifier,
        full_access: FullAccessHomeservers,
        rooms: Arc<RoomServiceClient>,
        delegation: DelegationService,
        terms: ExchangeSettings,
    ) -> Self {
        Self {
            verifier,
            full_access,
            room_service: rooms,
            delegation,
            settings: terms,
        }
    }

    /// Whether the administrator has named this server, and so answers for it.
    pub(crate) fn is_listed_server(&self, server: &str) -> bool {
        ServerName::parse(server).is_ok_and(|server| self.verifier.federation().is_listed(&server))
    }

    /// Carries out one exchange for a client at `client`. Waits for the user's homeserver and, with full access, for the SFU.
    pub(crate) fn issue_token(
        &self,
        request: &ExchangeRequest,
        client: Option<IpAddr>,
    ) -> Result<IssuedToken, Error> {
        let (user, identity) = self.authenticate(request, client)?;
        let access = self.full_access.level_of(user.id().server());
        let room = livekit_names::derive_room_name(&request.room, &request.slot);
        if request.delayed_leave.is_some() {
            self.check_delegation(&user, access)?;
        }
        if access == AccessLevel::Full {
            self.create_room(&user, &room)?;
        }
        let leave = match &request.delayed_leave {
            Some(delay) => Some(self.start_delegation(&user, &room, &identity, delay)?),
            None => None,
        };
        let may = JoinPermissions {
            can_publish: access == AccessLevel::Full || self.settings.remote_users_may_publish,
            can_subscribe: true,
            can_update_own_metadata: self.settings.can_update_own_metadata,
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let token = Claims::join(identity.clone(), &room, may).sign(
            &self.settings.api_key,
            now,
            self.settings.token_lifetime,
        );
        Ok(IssuedToken {
            access_token: token,
            user,
            access_level: access,
            room,
            identity,
            leave_log_id: leave,
        })
    }

    /// Takes on the leave of a participant who has their token, or gets none.
    pub(crate) fn delegate_leave(
        &self,
        request: &ExchangeRequest,
        delay: &DelayedLeaveRequest,
        client: Option<IpAddr>,
    ) -> Result<DelegationReceipt, Error> {
        let (user, identity) = self.authenticate(request, client)?;
        self.check_delegation(&user, self.full_access.level_of(user.id().server()))?;
        let room = livekit_names::derive_room_name(&request.room, &request.slot);
        let leave = self.start_delegation(&user, &room, &identity, delay)?;
        Ok(DelegationReceipt {
            user,
            leave_log_id: leave,
        })
    }

    fn authenticate(
        &self,
        request: &ExchangeRequest,
        client: Option<IpAddr>,
    ) -> Result<(VerifiedUser, ParticipantIdentity), Error> {
        let user = self
            .verifier
            .verify(&request.server_name, &request.openid_token, client)
            .map_err(|error| match error {
                openid::Error::Federation(federation::Error::Busy(full, after)) => {
                    Error::Busy(full, after)
                }
                error => Error::NotAuthenticated(error),
            })?;
        let identity = participant_identity(&user, &request.participant)?;
        Ok((user, identity))
    }

    /// Asks before a room is created that nobody may enter for it.
    fn check_delegation(&self, user: &VerifiedUser, access: AccessLevel) -> Result<(), Error> {
        if access == AccessLevel::Restricted {
            return Err(Error::DelegationForbidden(user.clone()));
        }
        let server = user.id().server();
        let place = self.verifier.federation().acquire_server_permit(server);
        let _place = place.map_err(|(full, after)| Error::Busy(full, after))?;
        self.delegation
            .check_support(server)
            .map_err(|error| Error::DelegationFailed(user.clone(), error))
    }

    fn start_delegation(
        &self,
        user: &VerifiedUser,
        room: &RoomName,
        identity: &ParticipantIdentity,
        delay: &DelayedLeaveRequest,
    ) -> Result<u32, Error> {
        let key = ParticipantKey {
            room: room.clone(),
            identity: identity.clone(),
        };
        let order = DelegationRequest {
            user: user.id().clone(),
            delay_id: delay.delay_id.clone(),
            timeout: delay.timeout,
        };
        self.delegation
            .delegate(key, order)
            .map_err(|error| Error::DelegationFailed(user.clone(), error))
    }

    /// The SFU, too, may keep its callers waiting, so that takes a place as well.
    fn create_room(&self, user: &VerifiedUser, room: &RoomName) -> Result<(), Error> {
        let place = self
            .verifier
            .federation()
            .acquire_permit(user.id().server());
        let _place = place.map_err(|(full, after)| Error::Busy(full, after))?;
        self.room_service
            .create_room(room)
            .map_err(|error| Error::RoomNotCreated(user.clone(), error))
    }
}

fn participant_identity(
    user: &VerifiedUser,
    participant: &RequestedParticipant,
) -> Result<ParticipantIdentity, Error> {
    match participant {
        RequestedParticipant::Member {
            claimed_user,
            device,
            member,
        } => {
            if user.id().as_str() != claimed_user {
                return Err(Error::UserMismatch(user.clone(), claimed_user.clone()));
            }
            Ok(livekit_names::derive_device_identity(user, device, member))
        }
        RequestedParticipant::Device(device) => {
            livekit_names::legacy_identity(user, device).map_err(Error::InvalidIdentity)
        }
    }
}
