//! Restarts or sends a delayed event (MSC4140), and says what the answer means.

mod response;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::matrix::client_api::{
    self, ClientApiDiscovery, DelayedEventPath, DelayedEventSupport, ResolvedClientApi,
};
use crate::matrix::id::{ServerName, UserId};
use crate::matrix::percent_encoded;
use crate::matrix::registration::AppServiceSecret;
use crate::net::circuit_breaker::CircuitBreaker;
use crate::net::http_client;
use crate::net::http_client::{FetchLimits, FetchRequest, Fetcher};
use crate::net::permits::{KeyedPermitPool, MAX_CALLS_PER_SUBNET};

pub(crate) use crate::matrix::id::DelayId;

use self::response::DelayedEventCallResult;

/// For one call in all. It is tried again anyway.
const CALL_BUDGET: Duration = Duration::from_secs(10);
const LIMITS: FetchLimits = FetchLimits {
    kind: "delayed_event",
    connect_timeout: Duration::from_secs(5),
    head_timeout: Duration::from_secs(8),
    body_timeout: Duration::from_secs(3),
    // `{}`, or an error of some 100 bytes; a proxy's error page may be longer
    max_body: 64 * 1024,
    max_subnet_calls: MAX_CALLS_PER_SUBNET,
};
/// Calls that may be under way to one server, whatever those who call think of it: half of the 24 that there are at most.
const MAX_CALLS_PER_SERVER: usize = 12;
/// How long a server that does not answer is left alone: short, for a leave with a short delay has to be restarted as soon as it is
/// back.
const BREAKER_OPEN: Duration = Duration::from_secs(2);
/// The same for a stranger that has not answered for long.
const MAX_BREAKER_OPEN: Duration = Duration::from_secs(30);
/// When to try again where there was no place.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DelayedEventOutcome {
    /// 2xx.
    Done,
    /// 404, 410: sent or cancelled already.
    NotFound,
    /// 409: finalised the other way.
    Finalised,
    /// Another 4xx, 401 and 403 above all: the server wants to know who asks. Final.
    Rejected(u16),
    /// 429, with the time to wait, if it says; at most 5 minutes.
    RateLimited(Option<Duration>),
    /// The server was not called at all, as it did not answer lately or has enough calls under way; when to try again.
    NotAttempted(Duration),
    /// Anything that may be better next time: 5xx, 408, 425, no answer. Short, and fit for the log.
    Failed(String),
}

/// What is done to a delayed event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DelayedEventAction {
    /// Its delay begins anew.
    Restart,
    /// It is sent now.
    Send,
}

impl DelayedEventAction {
    /// As it is spelled in a path.
    fn as_str(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Send => "send",
        }
    }
}

/// The delayed events of all homeservers.
#[derive(Debug)]
pub(crate) struct DelayedEventClient {
    fetcher: Fetcher,
    client_api: ClientApiDiscovery,
    breakers: CircuitBreaker<ServerName>,
    in_flight: Arc<KeyedPermitPool<ServerName>>,
    /// The server whose application service we are, what it knows us by, and the way to it.
    appservice: Option<(ServerName, AppServiceSecret, Fetcher)>,
}

impl DelayedEventClient {
    /// Calls homeservers where `client_api` finds them.
    pub(crate) fn new(fetcher: Fetcher, client_api: ClientApiDiscovery) -> Self {
        Self {
            fetcher,
            client_api,
            breakers: CircuitBreaker::new(BREAKER_OPEN, MAX_BREAKER_OPEN),
            in_flight: KeyedPermitPool::new(),
            appservice: None,
        }
    }

    /// Acts for the users of this homeserver with the as_token that it knows us by: it may want to know who asks, and if not, each
    /// user has a rate of their own, or none. The token, which opens more than a user's, goes by this way only.
    pub(crate) fn with_appservice(
        self,
        own: Option<(ServerName, AppServiceSecret, Fetcher)>,
    ) -> Self {
        Self {
            appservice: own,
            ..self
        }
    }

    /// Where homeservers are found, and what they support.
    pub(crate) fn client_api(&self) -> &ClientApiDiscovery {
        &self.client_api
    }

    /// Makes one call, which ends by `deadline`, and after 10 s at the latest.
    pub(crate) fn perform(
        &self,
        deed: DelayedEventAction,
        user: &UserId,
        id: &DelayId,
        deadline: Instant,
    ) -> DelayedEventOutcome {
        let server = user.server();
        let now = Instant::now();
        let deadline = deadline.min(now + CALL_BUDGET);
        let Some(_place) = self
            .in_flight
            .try_acquire(server.clone(), MAX_CALLS_PER_SERVER)
        else {
            return DelayedEventOutcome::NotAttempted(BUSY_RETRY);
        };
        let attempt = match self.breakers.attempt(server, now) {
            Ok(attempt) => attempt,
            Err(left) => return DelayedEventOutcome::NotAttempted(left),
        };
        let api = match self.client_api.resolve(server, deadline) {
            Ok(api) => api,
            Err(client_api::Error::Busy(after)) => return DelayedEventOutcome::NotAttempted(after),
            Err(error) => return DelayedEventOutcome::Failed(error.to_string()),
        };
        match self.call_with_fallback(deed, user, id, &api, deadline) {
            Ok(outcome) => {
                attempt.record_success();
                outcome
            }
            Err(error) if error.is_local_overload() => {
                DelayedEventOutcome::NotAttempted(BUSY_RETRY)
            }
            Err(error) => {
                // what had no time to answer has not failed to
                let had_time = deadline.saturating_duration_since(now) >= LIMITS.connect_timeout;
                if error.is_server_failure() && had_time {
                    attempt.record_failure(self.client_api.is_listed(server), Instant::now());
                    self.client_api.invalidate(server, now);
                }
                DelayedEventOutcome::Failed(format!("{}: {error}", api.base_url))
            }
        }
    }

    /// Calls in the user's name where we can, and as anybody can where we may not.
    fn call_with_fallback(
        &self,
        deed: DelayedEventAction,
        user: &UserId,
        id: &DelayId,
        api: &ResolvedClientApi,
        deadline: Instant,
    ) -> Result<DelayedEventOutcome, http_client::Error> {
        let own = self.appservice.as_ref();
        if let Some((_, as_token, way)) = own.filter(|(own, ..)| own == user.server()) {
            let acting = Some((user, as_token.authorization_header(), way));
            let outcome = self.try_paths(deed, user.server(), id, api, acting, deadline)?;
            if !matches!(outcome, DelayedEventOutcome::Rejected(401 | 403)) {
                return Ok(outcome);
            }
        }
        self.try_paths(deed, user.server(), id, api, None, deadline)
    }

    /// Calls in the form that the server is known to understand, and in the others if it turns out not to.
    fn try_paths(
        &self,
        deed: DelayedEventAction,
        server: &ServerName,
        id: &DelayId,
        api: &ResolvedClientApi,
        acting: Option<(&UserId, String, &Fetcher)>,
        deadline: Instant,
    ) -> Result<DelayedEventOutcome, http_client::Error> {
        let known = match api.support {
            DelayedEventSupport::Supported(form) => form,
            DelayedEventSupport::Unsupported => DelayedEventPath::Unstable,
        };
        let others = [
            DelayedEventPath::Unstable,
            DelayedEventPath::UnstableActionInBody,
            DelayedEventPath::Stable,
        ];
        let others = others.into_iter().filter(|form| *form != known);
        for form in [known].into_iter().chain(others) {
            let (mut target, body) = build_request(form, api.base_url.path(), deed, id);
            if let Some((user, ..)) = &acting {
                target += &format!("?user_id={}", percent_encoded(user.as_str()));
            }
            let request = FetchRequest {
                target: &target,
                authorization: acting.as_ref().map(|(_, bearer, _)| bearer.as_str()),
                post: Some(("application/json", body.as_bytes())),
            };
            let way = acting.as_ref().map_or(&self.fetcher, |(.., way)| *way);
            let answer = way.fetch(&api.route, request, LIMITS, deadline)?;
            if let DelayedEventCallResult::Outcome(outcome) = response::parse_response(&answer) {
                if form != known {
                    log::debug!("delayed_events server={server} form={form:?}");
                    self.client_api.record_path(server, form);
                }
                return Ok(outcome);
            }
        }
        // no form of it is known there (any more), so the event is not either
        Ok(DelayedEventOutcome::NotFound)
    }
}

/// The target and the body of a call.
fn build_request(
    form: DelayedEventPath,
    prefix: &str,
    deed: DelayedEventAction,
    id: &DelayId,
) -> (String, String) {
    const UNSTABLE: &str = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events";
    const STABLE: &str = "/_matrix/client/v1/delayed_events";
    let id = percent_encoded(id.as_str());
    let action = deed.as_str();
    match form {
        DelayedEventPath::Unstable => (format!("{prefix}{UNSTABLE}/{id}/{action}"), "{}".into()),
        DelayedEventPath::Stable => (format!("{prefix}{STABLE}/{id}/{action}"), "{}".into()),
        DelayedEventPath::UnstableActionInBody => (
            format!("{prefix}{UNSTABLE}/{id}"),
            format!(r#"{{"action":"{action}"}}"#),
        ),
    }
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::matrix::delayed_event::response::fuzzing::retry_after;

    use super::{Deed, DelayId, PathForm, request};

    /// The target of a restart in the form that most servers speak.
    pub fn restart_target(id: &DelayId) -> String {
        build_request(
            DelayedEventPath::Unstable,
            "",
            DelayedEventAction::Restart,
            id,
        )
        .0
    }
}
