//! Context of a request in the endpoints; its log lines and metrics.

use std::fmt;
use std::time::Instant;

use log::{info, log, warn};

use super::refusal::{Refusal, RefusalThrottles};
use super::router::RequestRoute;
use crate::exchange::DelegatedLeave;
use crate::exchange::access::AccessLevel;
use crate::livekit::id::ParticipantKey;
use crate::matrix::id::{RoomId, UserId};
use crate::server::{ClientAddress, HttpRequest, HttpResponse};
use crate::util::metrics;
use crate::util::random;

/// A request with its route; without one it is a request of the metrics listener.
pub(super) type ApiRequest<'a> = HttpRequest<'a, Option<RequestRoute>>;

/// Identifies a request in the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestId(u32);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A request with its route, its id and the time when its processing started.
pub(super) struct RequestContext<'a> {
    pub request: &'a ApiRequest<'a>,
    pub route: RequestRoute,
    pub id: RequestId,
    pub started: Instant,
    throttles: &'a RefusalThrottles,
}

impl<'a> RequestContext<'a> {
    pub(super) fn start(
        request: &'a ApiRequest<'a>,
        route: RequestRoute,
        throttles: &'a RefusalThrottles,
    ) -> Self {
        Self {
            request,
            route,
            id: RequestId(u32::from_ne_bytes(random::bytes())),
            started: Instant::now(),
            throttles,
        }
    }

    pub(super) fn client(&self) -> ClientAddress {
        self.request.origin.client
    }

    /// Whether a client tests if leaves can be delegated here, which Element Call does before it joins: a POST without a body, for
    /// which any status but 404 means yes.
    pub(super) fn is_capability_probe(&self) -> bool {
        self.route.delegates_leave() && self.request.body.is_empty()
    }

    /// The only value of a header field; see [`single`].
    pub(super) fn single_header(&self, name: &'static str) -> Option<&'a str> {
        single(self.request.header_values(name))
    }

    pub(super) fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Logs and counts a token for a Matrix user. A token without a participant was relayed.
    pub(super) fn record_token(
        &self,
        source: &'static str,
        user: &UserId,
        access: AccessLevel,
        matrix_room: &RoomId,
        participant: Option<&ParticipantKey>,
        leave: Option<&DelegatedLeave>,
    ) {
        let access = access.as_str();
        metrics::count_token_issued(source, access);
        info!(
            request:% = self.id,
            client:% = self.client(),
            endpoint = self.route.name(),
            user:%,
            access,
            matrix_room = matrix_room.as_str(),
            room = participant.map(|participant| participant.room.as_str()),
            identity = participant.map(|participant| participant.identity.as_str()),
            leave = leave.map(|leave| leave.id.to_string()).as_deref(),
            delay_ms = leave.map(|leave| leave.delay.as_millis() as u64),
            ms = self.elapsed_ms();
            "{}", if participant.is_some() { "token issued" } else { "token relayed" }
        );
    }

    /// Logs a delayed leave that was taken over without a token.
    pub(super) fn record_leave(&self, user: &UserId, leave: &DelegatedLeave) {
        info!(
            request:% = self.id,
            client:% = self.client(),
            endpoint = self.route.name(),
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
        let (id, client, endpoint) = (self.id, self.client(), self.route.name());
        let (status, reason, cause) = (refusal.response.status, refusal.reason, &*refusal.cause);
        let details = &refusal.details;
        let caller = details.caller.as_deref();
        metrics::count_refusal(reason);
        if let Some(level) = refusal.level {
            log!(
                level,
                request:% = id,
                client:%,
                endpoint,
                status,
                reason,
                server = details.server.as_deref(),
                caller,
                key = details.api_key_id.as_deref(),
                field = details.field.as_deref(),
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

/// The only value of a header field; an empty text, which proves nothing, if there are several.
pub(super) fn single<'a>(mut values: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let first = values.next();
    match values.next() {
        None => first,
        Some(_) => Some(""),
    }
}
