//! Restarts or sends a delayed event (MSC4140), and says what the answer means.

use std::fmt;
use std::time::{Duration, Instant};

use crate::matrix::client_api::ClientApi;
use crate::matrix::id::ServerName;

/// Longest `delay_id` in bytes; Synapse's have 18.
pub const MAX_DELAY_ID: usize = 255;

/// The id of a delayed event, in any characters: it is escaped wherever it is used.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DelayId(Box<str>);

/// A `delay_id` that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid;

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a string of 1 to {MAX_DELAY_ID} bytes")
    }
}

impl std::error::Error for Invalid {}

impl DelayId {
    /// Accepts 1 to 255 bytes.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if (1..=MAX_DELAY_ID).contains(&text.len()) {
            Ok(Self(text.into()))
        } else {
            Err(Invalid)
        }
    }

    /// The id as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx.
    Done,
    /// 404: sent or cancelled already.
    Gone,
    /// 409: finalised the other way.
    Finalised,
    /// 401, 403: the server wants to know who asks.
    Denied(u16),
    /// 429, with the time to wait, if it says.
    SlowDown(Option<Duration>),
    /// Anything that may be better next time: 5xx, 408, 425, no answer. Short, and fit for the log.
    Failed(String),
}

/// What is done to a delayed event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Deed {
    /// Its delay begins anew.
    Restart,
    /// It is sent now.
    Send,
}

/// The delayed events of all homeservers.
#[derive(Debug)]
pub struct DelayedEvents {
    client_api: ClientApi,
}

impl DelayedEvents {
    /// Calls homeservers where `client_api` finds them.
    pub fn new(client_api: ClientApi) -> Self {
        Self { client_api }
    }

    /// Where homeservers are found, and what they support.
    pub fn client_api(&self) -> &ClientApi {
        &self.client_api
    }

    /// Makes one call, which ends by `deadline`.
    pub fn call(
        &self,
        _deed: Deed,
        _server: &ServerName,
        _id: &DelayId,
        _deadline: Instant,
    ) -> Outcome {
        Outcome::Failed("not there yet".into())
    }
}
