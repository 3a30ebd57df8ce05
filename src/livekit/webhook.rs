//! What the SFU tells us: signed, repeated, and out of order.

use std::fmt;

use crate::livekit::token::{ApiKey, Identity, RoomName, Sid};

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `participant_joined`: they are connected.
    Joined,
    /// `participant_left`.
    Left,
    /// `participant_connection_aborted`: they never got in.
    Aborted,
    /// `room_finished`: nobody is left.
    RoomFinished,
}

/// An event that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// The SFU's id of the event; its repeats have the same.
    pub id: String,
    /// What has happened.
    pub kind: Kind,
    /// Where.
    pub room: RoomName,
    /// To whom, and on which connection of theirs; none when it is about a room.
    pub participant: Option<(Identity, Option<Sid>)>,
    /// `disconnectReason` as the SFU spells it, short and fit for the log.
    pub reason: Option<String>,
}

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// Something new.
    New(Webhook),
    /// The SFU did not hear that we have it already.
    Repeat,
    /// Signed well, and of no interest here.
    Ignored,
}

/// Why a webhook is not believed; all of them are one 401.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(&'static str);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Error {}

/// Checks and reads webhooks.
#[derive(Debug)]
pub struct Receiver {
    _keys: Vec<ApiKey>,
}

impl Receiver {
    /// Believes what is signed by any of `keys`.
    pub fn new(keys: Vec<ApiKey>) -> Self {
        Self { _keys: keys }
    }

    /// Reads a webhook that came at `now` (seconds since 1970): its Authorization header and its body, as they came.
    pub fn receive(
        &self,
        _authorization: Option<&str>,
        _body: &[u8],
        _now: u64,
    ) -> Result<Received, Error> {
        Ok(Received::Ignored)
    }

    /// Takes a webhook back that could not be worked on, so that its repeat is new again.
    pub fn forget(&self, _webhook: &Webhook) {}
}
