//! The main loop of it all: a Matrix user's OpenID token becomes a LiveKit token.
//!
//! Authenticate, authorise, create the room for those who may have it created, sign; every step needs what the one before it gave.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::access::{Access, FullAccess};
use crate::alias;
use crate::livekit::room_service::{self, RoomService};
use crate::livekit::token::{
    AccessToken, ApiKey, Claims, Identity, InvalidName, Participation, RoomName,
};
use crate::matrix::federation;
use crate::matrix::id::{DeviceId, MemberId, RoomId, ServerName, SlotId};
use crate::matrix::openid::{self, OpenIdToken, VerifiedUser, Verifier};
use crate::net::bulkhead::Full;

/// What a client asks for: parsed, not believed.
#[derive(Debug)]
pub struct TokenRequest {
    /// The homeserver that is to vouch for the user.
    pub server: String,
    /// What it knows the user by.
    pub token: OpenIdToken,
    /// The Matrix room.
    pub room: RoomId,
    /// The slot within it.
    pub slot: SlotId,
    /// Who wants to take part.
    pub participant: Participant,
}

/// The two ways of naming a participant.
#[derive(Debug)]
pub enum Participant {
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
pub struct Granted {
    /// The token.
    pub token: AccessToken,
    /// Whose it is.
    pub user: VerifiedUser,
    /// Their access.
    pub access: Access,
    /// The LiveKit room that it opens.
    pub room: RoomName,
    /// Who they are in it.
    pub identity: Identity,
}

/// Why there is no token.
#[derive(Debug)]
pub enum Error {
    /// The caller's OpenID token is not accepted.
    NotAuthenticated(openid::Error),
    /// The OpenID token is another user's than the caller claims to be.
    NotWhoTheyClaim(VerifiedUser, String),
    /// The caller's names make no LiveKit identity.
    BadIdentity(InvalidName),
    /// No place is free to ask on the caller's behalf.
    Busy(Full, Duration),
    /// The SFU did not create the room.
    RoomNotCreated(VerifiedUser, room_service::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAuthenticated(error) => error.fmt(f),
            Self::NotWhoTheyClaim(user, claimed) => write!(
                f,
                "the token is of {user}, not of {claimed:?}",
                user = user.id()
            ),
            Self::BadIdentity(error) => write!(f, "identity: {error}"),
            Self::Busy(full, _) => full.fmt(f),
            Self::RoomNotCreated(user, error) => {
                write!(f, "no room for {user}: {error}", user = user.id())
            }
        }
    }
}

impl std::error::Error for Error {}

/// How tokens are made out.
#[derive(Debug)]
pub struct Terms {
    /// Signs the tokens.
    pub key: ApiKey,
    /// How long they are valid.
    pub lifetime: Duration,
    /// Whether participants may change their own name and metadata.
    pub can_update_own_metadata: bool,
    /// Whether users of restricted homeservers may publish; clients that know one SFU only need it.
    pub remote_users_may_publish: bool,
}

/// Everything that is needed to make tokens out of tokens.
#[derive(Debug)]
pub struct Exchange {
    verifier: Verifier,
    full_access: FullAccess,
    rooms: RoomService,
    terms: Terms,
}

impl Exchange {
    /// Puts it together.
    pub fn new(
        verifier: Verifier,
        full_access: FullAccess,
        rooms: RoomService,
        terms: Terms,
    ) -> Self {
        Self {
            verifier,
            full_access,
            rooms,
            terms,
        }
    }

    /// Whether the administrator has named this server, and so answers for it.
    pub fn vouches_for(&self, server: &str) -> bool {
        ServerName::parse(server).is_ok_and(|server| self.verifier.federation().knows(&server))
    }

    /// Carries out one exchange for a client at `client`. Waits for the user's homeserver and, with full access, for the SFU.
    pub fn token(&self, request: &TokenRequest, client: Option<IpAddr>) -> Result<Granted, Error> {
        let user = self
            .verifier
            .verify(&request.server, &request.token, client)
            .map_err(|error| match error {
                openid::Error::Federation(federation::Error::Busy(full, after)) => {
                    Error::Busy(full, after)
                }
                error => Error::NotAuthenticated(error),
            })?;
        let identity = identity(&user, &request.participant)?;
        let access = self.full_access.of(user.id().server());
        let room = alias::room_name(&request.room, &request.slot);
        if access == Access::Full {
            self.create_room(&user, &room)?;
        }
        let may = Participation {
            can_publish: access == Access::Full || self.terms.remote_users_may_publish,
            can_subscribe: true,
            can_update_own_metadata: self.terms.can_update_own_metadata,
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let token = Claims::join(identity.clone(), &room, may).sign(
            &self.terms.key,
            now,
            self.terms.lifetime,
        );
        Ok(Granted {
            token,
            user,
            access,
            room,
            identity,
        })
    }

    /// The SFU, too, may keep its callers waiting, so that takes a place as well.
    fn create_room(&self, user: &VerifiedUser, room: &RoomName) -> Result<(), Error> {
        let place = self.verifier.federation().place(user.id().server());
        let _place = place.map_err(|(full, after)| Error::Busy(full, after))?;
        self.rooms
            .create(room)
            .map_err(|error| Error::RoomNotCreated(user.clone(), error))
    }
}

fn identity(user: &VerifiedUser, participant: &Participant) -> Result<Identity, Error> {
    match participant {
        Participant::Member {
            claimed_user,
            device,
            member,
        } => {
            if user.id().as_str() != claimed_user {
                return Err(Error::NotWhoTheyClaim(user.clone(), claimed_user.clone()));
            }
            Ok(alias::identity(user, device, member))
        }
        Participant::Device(device) => {
            alias::plain_identity(user, device).map_err(Error::BadIdentity)
        }
    }
}
