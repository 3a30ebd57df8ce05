//! Where leaves survive a crash of ours.

mod memory;

use std::fmt;

use crate::livekit::token::{Identity, RoomName};

pub use self::memory::Memory;

/// What a leave is kept under: there is one for each participant of a room.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The LiveKit room.
    pub room: RoomName,
    /// Who they are in it.
    pub identity: Identity,
}

impl Key {
    /// The compact JSON array of both names.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&[self.room.as_str(), self.identity.as_str()])
            .unwrap_or_else(|_| unreachable!())
    }

    /// Reads what [`Self::to_json`] wrote.
    pub fn from_json(text: &str) -> Option<Self> {
        let [room, identity] = serde_json::from_str::<[String; 2]>(text).ok()?;
        Some(Self {
            room: RoomName::new(room).ok()?,
            identity: Identity::new(identity).ok()?,
        })
    }
}

/// How often a leave has changed hands: whoever has an older number has lost it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(u64);

/// Whether a leave is still ours to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// It is.
    Ours,
    /// Somebody else has taken or replaced it: nothing may be done with it.
    Lost,
}

/// A journal that could not be read or written.
#[derive(Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Keeps the records of leaves.
pub trait Journal: Send + Sync + fmt::Debug {
    /// A new leave, or one in place of another with the same key, whoever keeps that: on disk when this returns; the earlier
    /// keeper has lost it.
    fn put(&self, key: &Key, record: &str) -> Result<Fence, Error>;

    /// What has become of a leave of ours.
    fn update(&self, key: &Key, fence: Fence, record: &str) -> Result<Hold, Error>;

    /// A leave of ours that has ended.
    fn remove(&self, key: &Key, fence: Fence) -> Result<Hold, Error>;

    /// Asked right before each call to a homeserver. Quick: no local store has to look.
    fn hold(&self, key: &Key, fence: Fence) -> Result<Hold, Error>;

    /// Takes over a leave that another replica keeps, as an event for it has reached us. None if there is none.
    fn take(&self, key: &Key) -> Result<Option<(Fence, String)>, Error>;

    /// Takes leaves without a living keeper: all of them at the start, later those of replicas that died. At most `most` at once:
    /// fewer means that there are no more for now.
    fn adopt(&self, most: usize) -> Result<Vec<(Key, Fence, String)>, Error>;

    /// Called once a second: keeps our hold on what is ours. An error means that we may have lost it.
    fn renew(&self) -> Result<(), Error>;

    /// What is amiss, for readiness; none if well.
    fn trouble(&self) -> Option<String>;
}
