//! Where leaves survive a crash of ours: nowhere, in a file, or in a Redis that several of us share.
//!
//! What clients rely on waits until it is stored ([`Journal::put`]). What a leave goes through afterwards is written behind, some
//! 100 ms later at most and many together: a crash that loses the last of it costs a question to the SFU and a call that the
//! homeserver answers with "long done", for it sends a delayed event only once.

mod file;
mod memory;
mod redis;
mod write_buffer;

use std::fmt;

use crate::livekit::id::ParticipantKey;

pub use self::file::FileStore;
pub use self::memory::MemoryStore;
pub use self::redis::{RedisAddress, RedisStore};

/// How often a leave has changed hands: whoever has an older number has lost it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(u64);

/// Whether a leave is still ours to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// It is.
    Owned,
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

/// Largest record that is kept, in bytes: a leave's own are below 2 KiB.
pub const MAX_RECORD_BYTES: usize = 16 * 1024;
/// Broken records that are kept aside for whoever wants to know what happened; the newest are.
pub(crate) const MAX_QUARANTINED: usize = 100;

/// Keeps the records of leaves.
pub trait LeaveStore: Send + Sync + fmt::Debug {
    /// A new leave, or one in place of another with the same key, whoever keeps that: stored when this returns, and the earlier
    /// keeper has lost it. Waits for the disk or for Redis, 5 s at most; many at once are stored together.
    ///
    /// After an error the earlier leave stands, if there was one. A leave that was stored although the error said otherwise (it
    /// took too long) comes back through [`Self::adopt`].
    fn put(&self, key: &ParticipantKey, record: &str) -> Result<FencingToken, Error>;

    /// What has become of a leave of ours. Never waits: it is written behind.
    fn update(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
        record: &str,
    ) -> Result<Ownership, Error>;

    /// A leave of ours that has ended. Never waits: it is written behind.
    fn remove(&self, key: &ParticipantKey, fence: FencingToken) -> Result<Ownership, Error>;

    /// Waits until all that was changed before is stored, 5 s at most: for what somebody else forgets once we have said that we know.
    fn sync(&self) -> Result<(), Error>;

    /// Asked right before each call to a homeserver. Quick: no local store has to look, and Redis is given a second.
    ///
    /// An error means that nobody knows, and the leave may not be worked now, but perhaps in a second; it is not lost yet.
    fn check_ownership(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
    ) -> Result<Ownership, Error>;

    /// Whether others like us have this journal as well, and may take what is ours at any time.
    fn is_shared(&self) -> bool {
        false
    }

    /// Takes over a leave that another replica keeps, or that was not adopted yet, as an event for it has reached us. None if there
    /// is none.
    fn claim(&self, key: &ParticipantKey) -> Result<Option<(FencingToken, String)>, Error>;

    /// Takes leaves without a living keeper: all of them at the start, later those of replicas that died. At most `most` at once:
    /// fewer means that there are no more for now. Asked once a second by then.
    fn adopt(&self, most: usize) -> Result<Vec<(ParticipantKey, FencingToken, String)>, Error>;

    /// A leave of ours whose record means nothing: it goes, but its record is kept aside for people to look at.
    fn quarantine(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
        why: &str,
    ) -> Result<Ownership, Error>;

    /// Whether what is ours is still held; an error means that we may have lost it. The stores see to it themselves.
    fn check_lease(&self) -> Result<(), Error>;

    /// What is amiss, for readiness; none if well.
    fn problem(&self) -> Option<String>;

    /// Writes what is pending and lets go of what is ours, so that others need not wait. Nothing is to be asked afterwards.
    fn close(&self);
}

/// Refuses a record that is too large for any store.
fn check_record_size(record: &str) -> Result<(), Error> {
    match record.len() {
        ..=MAX_RECORD_BYTES => Ok(()),
        size => Err(Error(format!("a record of {size} bytes"))),
    }
}
