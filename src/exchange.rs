//! The main loop of it all: a Matrix user's OpenID token becomes a LiveKit token.
//!
//! Authenticate, authorise, create the room for those who may have it created, take on their leave if they hand it to us, sign; every
//! step needs what the one before it gave.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::access::{Access, FullAccess};
use crate::alias;
use crate::delegation::{self, Delegation};
use crate::leave::{Key, Order};
use crate::livekit::room_service::{self, RoomService};
use crate::livekit::token::{
    AccessToken, ApiKey, Claims, Identity, InvalidName, Participation, RoomName,
};
use crate::matrix::federation;
use crate::matrix::id::{DelayId, DeviceId, MemberId, RoomId, ServerName, SlotId};
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
    /// Their leave, if they hand it to us.
    pub delay: Option<Delay>,
}

/// A delayed event that says that a participant has left (MSC4140).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delay {
    /// What their homeserver calls it.
    pub id: DelayId,
    /// When it is sent if nobody restarts it.
    pub timeout: Duration,
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
    /// The leave that was taken on, by its name in the log.
    pub leave: Option<u32>,
}

/// A leave that was taken on, and whose it is.
#[derive(Debug)]
pub struct Delegated {
    /// The user.
    pub user: VerifiedUser,
    /// Its name in the log.
    pub leave: u32,
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
    /// A user with restricted access wants to hand us a leave.
    LeaveNotAllowed(VerifiedUser),
    /// Their leave was not taken on.
    LeaveNotTaken(VerifiedUser, delegation::Error),
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
            Self::LeaveNotAllowed(user) => {
                let user = user.id();
                write!(f, "{user} has restricted access and keeps their own leave")
            }
            Self::LeaveNotTaken(user, error) => {
                write!(f, "no leave for {user}: {error}", user = user.id())
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
    rooms: Arc<RoomService>,
    delegation: Delegation,
    terms: Terms,
}

impl Exchange {
    /// Puts it together.
    pub fn new(
        verifier: Verifier,
        full_access: FullAccess,
        rooms: Arc<RoomService>,
        delegation: Delegation,
        terms: Terms,
    ) -> Self {
        Self {
            verifier,
            full_access,
            rooms,
            delegation,
            terms,
        }
    }

    /// Whether the administrator has named this server, and so answers for it.
    pub fn vouches_for(&self, server: &str) -> bool {
        ServerName::parse(server).is_ok_and(|server| self.verifier.federation().knows(&server))
    }

    /// Carries out one exchange for a client at `client`. Waits for the user's homeserver and, with full access, for the SFU.
    pub fn token(&self, request: &TokenRequest, client: Option<IpAddr>) -> Result<Granted, Error> {
        let (user, identity) = self.authenticate(request, client)?;
        let access = self.full_access.of(user.id().server());
        let room = alias::room_name(&request.room, &request.slot);
        if request.delay.is_some() {
            self.may_delegate(&user, access)?;
        }
        if access == Access::Full {
            self.create_room(&user, &room)?;
        }
        let leave = match &request.delay {
            Some(delay) => Some(self.take_on(&user, &room, &identity, delay)?),
            None => None,
        };
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
            leave,
        })
    }

    /// Takes on the leave of a participant who has their token, or gets none.
    pub fn delegate(
        &self,
        request: &TokenRequest,
        delay: &Delay,
        client: Option<IpAddr>,
    ) -> Result<Delegated, Error> {
        let (user, identity) = self.authenticate(request, client)?;
        self.may_delegate(&user, self.full_access.of(user.id().server()))?;
        let room = alias::room_name(&request.room, &request.slot);
        let leave = self.take_on(&user, &room, &identity, delay)?;
        Ok(Delegated { user, leave })
    }

    fn authenticate(
        &self,
        request: &TokenRequest,
        client: Option<IpAddr>,
    ) -> Result<(VerifiedUser, Identity), Error> {
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
        Ok((user, identity))
    }

    /// Asks before a room is created that nobody may enter for it.
    fn may_delegate(&self, user: &VerifiedUser, access: Access) -> Result<(), Error> {
        if access == Access::Restricted {
            return Err(Error::LeaveNotAllowed(user.clone()));
        }
        let server = user.id().server();
        let place = self.verifier.federation().place_at(server);
        let _place = place.map_err(|(full, after)| Error::Busy(full, after))?;
        self.delegation
            .check(server)
            .map_err(|error| Error::LeaveNotTaken(user.clone(), error))
    }

    fn take_on(
        &self,
        user: &VerifiedUser,
        room: &RoomName,
        identity: &Identity,
        delay: &Delay,
    ) -> Result<u32, Error> {
        let key = Key {
            room: room.clone(),
            identity: identity.clone(),
        };
        let order = Order {
            user: user.id().clone(),
            delay: delay.id.clone(),
            timeout: delay.timeout,
        };
        self.delegation
            .delegate(key, order)
            .map_err(|error| Error::LeaveNotTaken(user.clone(), error))
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
