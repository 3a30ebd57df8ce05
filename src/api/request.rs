//! A request on its way through the API.

use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

use log::{info, log, warn};

use super::refusal::{Refusal, RefusalThrottles};
use crate::exchange::DelegatedLeave;
use crate::exchange::appservice::{HomeserverProof, HsTokenError};
use crate::matrix::id::UserId;
use crate::server::{ClientAddress, HttpResponse};
use crate::token::Credentials;
use crate::util::metrics;
use crate::util::random;

/// A complete request. Header fields and body may hold secrets: never logged.
pub(crate) struct ApiRequest<'a> {
    pub method: &'a str,
    /// Path and query as sent.
    pub target: &'a str,
    /// Address of the client.
    pub client: ClientAddress,
    /// The address that rate limits apply to; `None` for a client without limits.
    pub rate_key: Option<IpAddr>,
    /// `Authorization`; empty if there are several.
    pub authorization: Option<&'a str>,
    pub body: &'a [u8],
    /// Credentials for `POST /token`.
    pub credentials: Credentials<'a>,
    pub content_type: Option<&'a str>,
    /// `Origin`: the web page that sends the request.
    pub origin: Option<&'a str>,
    /// `X-Matrix-User-Identifier`; empty if there are several.
    pub matrix_user: Option<&'a str>,
    /// `X-Matrix-Origin`; empty if there are several.
    pub matrix_origin: Option<&'a str>,
    /// `Access-Control-Request-Method` and `Access-Control-Request-Headers` of a preflight.
    pub preflight: Option<(&'a str, Option<&'a str>)>,
}

/// Identifies a request in the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestId(u32);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A request with its id, its endpoint's name and the time when its processing started.
pub(super) struct RequestContext<'a> {
    pub request: &'a ApiRequest<'a>,
    pub id: RequestId,
    pub endpoint: &'static str,
    pub started: Instant,
    /// Whether our homeserver sends the request.
    pub homeserver: Result<HomeserverProof, HsTokenError>,
    throttles: &'a RefusalThrottles,
}

impl<'a> RequestContext<'a> {
    pub(super) fn start(
        request: &'a ApiRequest<'a>,
        endpoint: &'static str,
        homeserver: Result<HomeserverProof, HsTokenError>,
        throttles: &'a RefusalThrottles,
    ) -> Self {
        Self {
            request,
            id: RequestId(u32::from_ne_bytes(random::bytes())),
            endpoint,
            started: Instant::now(),
            homeserver,
            throttles,
        }
    }

    pub(super) fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Logs a delayed leave that was taken over without a token.
    pub(super) fn log_delegated(&self, user: &UserId, leave: &DelegatedLeave) {
        info!(
            request:% = self.id,
            client:% = self.request.client,
            endpoint = self.endpoint,
            user:%,
            room:% = leave.participant.room,
            identity:% = leave.participant.identity,
            leave:% = leave.id,
            delay_ms = leave.delay.as_millis() as u64,
            ms = self.elapsed_ms();
            "leave delegated"
        );
    }

    /// Logs and counts a refusal. Returns the response.
    pub(super) fn refuse(&self, refusal: Refusal) -> HttpResponse {
        let (id, client, endpoint) = (self.id, self.request.client, self.endpoint);
        let (status, reason, cause) = (refusal.response.status, refusal.reason, &*refusal.cause);
        let caller = refusal.caller.as_deref();
        metrics::count_refusal(reason);
        let level = match refusal.throttle {
            None => Some(refusal.level),
            Some(throttle) => throttle.level_of_each(),
        };
        if let Some(level) = level {
            log!(
                level,
                request:% = id,
                client:%,
                endpoint,
                status,
                reason,
                server = refusal.server.as_deref(),
                caller,
                key = refusal.api_key_id.as_deref(),
                field = refusal.field.as_deref(),
                ms = self.elapsed_ms(),
                cause;
                "request refused"
            );
        }
        if let Some(throttle) = refusal.throttle {
            self.throttles.get(throttle).log(|count| {
                warn!(
                    count,
                    request:% = id,
                    client:%,
                    endpoint,
                    status,
                    reason,
                    caller,
                    cause;
                    "requests refused"
                );
            });
        }
        refusal.response
    }
}
