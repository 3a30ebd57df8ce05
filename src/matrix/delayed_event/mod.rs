//! Client of homeservers' delayed events (MSC4140): restart and send.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, header};
use log::debug;
use serde::Deserialize;

use crate::matrix::client_api::{
    self, ClientApiDiscovery, DelayedEventPath, DelayedEventSupport, ResolvedClientApi,
};
use crate::matrix::id::{DelayId, ServerName, UserId};
use crate::matrix::parse_errcode;
use crate::matrix::registration::AppServiceSecret;
use crate::net::circuit_breaker::CircuitBreaker;
use crate::net::http_client::{self, FetchLimits, FetchRequest, FetchResponse, Fetcher};
use crate::net::permits::KeyedPermitPool;
use crate::util::json;
use crate::util::text::percent_encode;

/// Time for one call, discovery included. The caller retries.
const CALL_BUDGET: Duration = Duration::from_secs(10);
const LIMITS: FetchLimits = FetchLimits::new("delayed_event");
/// Concurrent calls to one server: half of the 24 of the scheduler.
const MAX_CALLS_PER_SERVER: usize = 12;
/// Shortest time that the circuit breaker is open. Short, as leaves with a short delay need a restart soon after the server is back.
const BREAKER_OPEN: Duration = Duration::from_secs(2);
/// Longest time that the circuit breaker of an unlisted server is open.
const MAX_BREAKER_OPEN: Duration = Duration::from_secs(30);
/// Delay before a retry of a call that a limit of this service refused.
const BUSY_RETRY: Duration = Duration::from_secs(1);
/// Longest delay that a server can ask for by 429.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Result of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DelayedEventOutcome {
    /// 2xx.
    Done,
    /// 404, 410: sent or cancelled earlier.
    NotFound,
    /// 409: finalised by the opposite action.
    Finalised,
    /// Another 4xx, such as 401 or 403 of a server that requires authentication. Final.
    Rejected(u16),
    /// 429, with the delay that the server asks for, at most 5 minutes.
    RateLimited(Option<Duration>),
    /// The server was not called: its circuit breaker is open, or a limit of this service is reached. The value is the time to wait
    /// before a retry.
    NotAttempted(Duration),
    /// A failure that a retry may mend: 5xx, 408, 425, no response. A short text for the log.
    Failed(String),
}

/// Action on a delayed event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DelayedEventAction {
    /// Restarts the delay.
    Restart,
    /// Sends the event now.
    Send,
}

impl DelayedEventAction {
    /// The action in a path or a body.
    fn as_str(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Send => "send",
        }
    }
}

/// Credentials of this application service at its homeserver.
#[derive(Debug)]
pub(crate) struct AppServiceAccess {
    pub(crate) server: ServerName,
    pub(crate) as_token: AppServiceSecret,
    /// Verifies certificates in any case, as the token gives access to more than one user.
    pub(crate) fetcher: Fetcher,
}

/// Client of the delayed events of all homeservers.
#[derive(Debug)]
pub(crate) struct DelayedEventClient {
    fetcher: Fetcher,
    client_api: ClientApiDiscovery,
    breakers: CircuitBreaker<ServerName>,
    in_flight: Arc<KeyedPermitPool<ServerName>>,
    appservice: Option<AppServiceAccess>,
}

impl DelayedEventClient {
    /// Calls users' events at the homeserver of `appservice` in the user's name: it may require authentication, and limits rates by
    /// user then.
    pub(crate) fn new(
        fetcher: Fetcher,
        client_api: ClientApiDiscovery,
        appservice: Option<AppServiceAccess>,
    ) -> Self {
        Self {
            fetcher,
            client_api,
            breakers: CircuitBreaker::new(BREAKER_OPEN, MAX_BREAKER_OPEN),
            in_flight: KeyedPermitPool::new(),
            appservice,
        }
    }

    pub(crate) fn client_api(&self) -> &ClientApiDiscovery {
        &self.client_api
    }

    /// Makes one call, which ends by `deadline` and within 10 s.
    pub(crate) fn perform(
        &self,
        action: DelayedEventAction,
        user: &UserId,
        id: &DelayId,
        deadline: Instant,
    ) -> DelayedEventOutcome {
        let server = user.server();
        let now = Instant::now();
        let deadline = deadline.min(now + CALL_BUDGET);
        let Some(_permit) = self
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
        match self.call(action, user, id, &api, deadline) {
            Ok(outcome) => {
                attempt.record_success();
                outcome
            }
            Err(error) if error.is_local_overload() => {
                DelayedEventOutcome::NotAttempted(BUSY_RETRY)
            }
            Err(error) => {
                // a call without enough time is no failure of the server
                let had_time = deadline.saturating_duration_since(now) >= LIMITS.connect_timeout;
                if error.is_server_failure() && had_time {
                    let trust = api.route.trust;
                    attempt.record_failure(trust, Instant::now());
                    self.client_api.invalidate(server, trust, now);
                }
                DelayedEventOutcome::Failed(format!("{}: {error}", api.base_url))
            }
        }
    }

    /// Calls in the user's name where this is possible, and without authentication if the server denies that.
    fn call(
        &self,
        action: DelayedEventAction,
        user: &UserId,
        id: &DelayId,
        api: &ResolvedClientApi,
        deadline: Instant,
    ) -> Result<DelayedEventOutcome, http_client::Error> {
        let appservice = self.appservice.as_ref();
        if let Some(access) = appservice.filter(|access| access.server == *user.server()) {
            let outcome = self.try_paths(action, user, id, api, Some(access), deadline)?;
            if !matches!(outcome, DelayedEventOutcome::Rejected(401 | 403)) {
                return Ok(outcome);
            }
        }
        self.try_paths(action, user, id, api, None, deadline)
    }

    /// Calls the path that the server is known to implement, then the others if it does not.
    fn try_paths(
        &self,
        action: DelayedEventAction,
        user: &UserId,
        id: &DelayId,
        api: &ResolvedClientApi,
        access: Option<&AppServiceAccess>,
        deadline: Instant,
    ) -> Result<DelayedEventOutcome, http_client::Error> {
        let server = user.server();
        let preferred_path = match api.support {
            DelayedEventSupport::Supported(path) => path,
            DelayedEventSupport::Unsupported => DelayedEventPath::Unstable,
        };
        let fallback_paths = [
            DelayedEventPath::Unstable,
            DelayedEventPath::UnstableActionInBody,
            DelayedEventPath::Stable,
        ];
        let fallback_paths = fallback_paths
            .into_iter()
            .filter(|path| *path != preferred_path);
        let authorization = access.map(|access| access.as_token.authorization_header());
        let fetcher = access.map_or(&self.fetcher, |access| &access.fetcher);
        for path in [preferred_path].into_iter().chain(fallback_paths) {
            let (mut target, body) = build_request(path, api.base_url.path(), action, id);
            if access.is_some() {
                target += &format!("?user_id={}", percent_encode(user.as_str()));
            }
            let request = FetchRequest {
                target: &target,
                authorization,
                post: Some(("application/json", body.as_bytes())),
            };
            let response = fetcher.fetch(&api.route, request, LIMITS, deadline)?;
            if let Some(outcome) = parse_response(&response) {
                if path != preferred_path {
                    debug!(server:% = server, path:? = path; "path of delayed events found");
                    self.client_api.record_path(server, api.route.trust, path);
                }
                return Ok(outcome);
            }
        }
        // without the endpoint (any more) there are no events either
        Ok(DelayedEventOutcome::NotFound)
    }
}

/// Target and body of a request.
fn build_request(
    path: DelayedEventPath,
    prefix: &str,
    action: DelayedEventAction,
    id: &DelayId,
) -> (String, String) {
    const UNSTABLE: &str = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events";
    const STABLE: &str = "/_matrix/client/v1/delayed_events";
    let id = percent_encode(id.as_str());
    let action = action.as_str();
    match path {
        DelayedEventPath::Unstable => (format!("{prefix}{UNSTABLE}/{id}/{action}"), "{}".into()),
        DelayedEventPath::Stable => (format!("{prefix}{STABLE}/{id}/{action}"), "{}".into()),
        DelayedEventPath::UnstableActionInBody => (
            format!("{prefix}{UNSTABLE}/{id}"),
            format!(r#"{{"action":"{action}"}}"#),
        ),
    }
}

/// The outcome that a response stands for. None if the server does not implement the path.
fn parse_response(response: &FetchResponse) -> Option<DelayedEventOutcome> {
    Some(match response.status {
        200..=299 => DelayedEventOutcome::Done,
        404 | 405 if parse_errcode(&response.body).as_deref() == Some("M_UNRECOGNIZED") => {
            return None;
        }
        404 | 410 => DelayedEventOutcome::NotFound,
        409 => DelayedEventOutcome::Finalised,
        429 => DelayedEventOutcome::RateLimited(retry_delay(
            &response.headers,
            &response.body,
            SystemTime::now(),
        )),
        status @ (408 | 425) => DelayedEventOutcome::Failed(format!("status {status}")),
        status @ 400..=499 => DelayedEventOutcome::Rejected(status),
        status => DelayedEventOutcome::Failed(format!("status {status}")),
    })
}

/// The delay that a 429 asks for: the longer one of header and body, at most 5 minutes.
fn retry_delay(headers: &HeaderMap, body: &[u8], now: SystemTime) -> Option<Duration> {
    #[derive(Deserialize)]
    struct RateLimitBody {
        retry_after_ms: f64,
    }
    let header = headers
        .get(header::RETRY_AFTER)
        .and_then(|value| parse_retry_after(value.to_str().ok()?, now));
    let body = json::parse_object::<RateLimitBody>(body)
        .filter(|limit| limit.retry_after_ms >= 0.0)
        .map(|limit| {
            let seconds = limit.retry_after_ms / 1000.0;
            Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
        });
    header.max(body).map(|delay| delay.min(MAX_RETRY_AFTER))
}

/// Parses `Retry-After` (RFC 9110, 10.2.3): seconds or a date. A date in the past is no delay; numbers beyond `u64` are long ones.
fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    use super::*;

    /// The target of a restart at the unstable path.
    pub fn restart_target(id: &DelayId) -> String {
        let action = DelayedEventAction::Restart;
        build_request(DelayedEventPath::Unstable, "", action, id).0
    }

    /// The delay that a 429 with this header and body asks for.
    pub fn retry_after(header: &str, body: &[u8], now: SystemTime) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, header.parse().ok()?);
        retry_delay(&headers, body, now)
    }
}
