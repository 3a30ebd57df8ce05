//! Names in LiveKit: rooms, participants and their connections.

use std::fmt;

use serde::Serialize;

/// Longest room name or identity in bytes: the SFU's own limit.
pub(crate) const MAX_NAME_BYTES: usize = 256;

/// Error for a name that LiveKit does not accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidLiveKitName;

impl fmt::Display for InvalidLiveKitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "expected 1 to {MAX_NAME_BYTES} bytes without control characters"
        )
    }
}

impl std::error::Error for InvalidLiveKitName {}

/// Whether LiveKit accepts a name: 1 to 256 bytes without control characters.
pub(crate) fn is_valid_name(text: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

macro_rules! livekit_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub struct $name(String);

        impl $name {
            /// Accepts 1 to 256 bytes without control characters.
            ///
            /// # Errors
            /// `text` is empty, too long, or contains control characters.
            pub fn new(text: String) -> Result<Self, InvalidLiveKitName> {
                if is_valid_name(&text) { Ok(Self(text)) } else { Err(InvalidLiveKitName) }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

livekit_name! {
    /// The name of a LiveKit room.
    RoomName
}
livekit_name! {
    /// The identity of a participant, unique within a room: a new connection with the same identity replaces the earlier one.
    ParticipantIdentity
}
livekit_name! {
    /// The SFU's id (`sid`) of one connection of a participant.
    ParticipantSid
}

/// A participant of a LiveKit room.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParticipantKey {
    /// The LiveKit room.
    pub room: RoomName,
    /// The participant's identity in that room.
    pub identity: ParticipantIdentity,
}

impl ParticipantKey {
    /// A compact JSON array of room and identity. The leave stores and the sealed attribute depend on this format.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&[self.room.as_str(), self.identity.as_str()])
            .unwrap_or_else(|_| unreachable!())
    }

    /// Parses the output of [`Self::to_json`].
    pub fn from_json(text: &str) -> Option<Self> {
        let [room, identity] = serde_json::from_str::<[String; 2]>(text).ok()?;
        Some(Self {
            room: RoomName::new(room).ok()?,
            identity: ParticipantIdentity::new(identity).ok()?,
        })
    }
}
