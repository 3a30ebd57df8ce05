//! Restarts or sends a delayed event (MSC4140), and says what the answer means.

use std::time::{Duration, Instant};

use crate::matrix::client_api::ClientApi;
use crate::matrix::id::ServerName;
use crate::net::fetch::Fetcher;

pub use crate::matrix::id::DelayId;

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx.
    Done,
    /// 404: sent or cancelled already.
    Gone,
    /// 409: finalised the other way.
    Finalised,
    /// Another 4xx, 401 and 403 above all: the server wants to know who asks. Final.
    Denied(u16),
    /// 429, with the time to wait, if it says.
    SlowDown(Option<Duration>),
    /// The server was not called at all, as it did not answer lately or has enough calls under way; when to try again.
    NotNow(Duration),
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
    _fetcher: Fetcher,
    client_api: ClientApi,
}

impl DelayedEvents {
    /// Calls homeservers where `client_api` finds them.
    pub fn new(fetcher: Fetcher, client_api: ClientApi) -> Self {
        Self {
            _fetcher: fetcher,
            client_api,
        }
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
