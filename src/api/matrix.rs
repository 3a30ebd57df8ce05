//! The door for Matrix: what is asked, what is answered, and what the log says of it.

use std::fmt;
use std::time::Instant;

use log::{info, log, warn};

use super::request_body;
use super::response;
use super::response::{ExchangeOperation, Response};
use super::router::ApiRequest;
use crate::delegation::leave::DelegationRequest;
use crate::exchange::standalone::{
    self as exchange, DelegationReceipt, Exchange, ExchangeRequest, IssuedToken,
};
use crate::server::ClientAddress;
use crate::util::log_throttle::LogThrottle;
use crate::util::metrics;
use crate::util::random;
use crate::util::sync::Swappable;

/// What is behind the door; a reload of the settings replaces it as a whole.
#[derive(Debug)]
pub(crate) struct MatrixApiState {
    /// Makes tokens.
    pub exchange: Exchange,
    /// Where clients find the SFU.
    pub livekit_url: String,
}

/// The exchange behind its door.
#[derive(Debug)]
pub(crate) struct MatrixApi {
    state: Swappable<MatrixApiState>,
    busy_throttle: LogThrottle,
}

impl MatrixApi {
    /// Opens it.
    pub(crate) fn new(inside: MatrixApiState) -> Self {
        Self {
            state: Swappable::new(inside),
            busy_throttle: LogThrottle::default(),
        }
    }

    /// Serves with this from now on; what is under way ends with what it began with.
    pub(crate) fn replace_state(&self, inside: MatrixApiState) {
        self.state.replace(inside);
    }

    /// Answers a request for a token.
    pub(super) fn handle_token(
        &self,
        endpoint: &'static str,
        call: &ApiRequest<'_>,
        request: Result<ExchangeRequest, request_body::Error>,
    ) -> Response {
        let asked = RequestContext::start(endpoint, call.client);
        let request = match request {
            Ok(request) => request,
            Err(error) => return asked.reject_body(&error),
        };
        let inside = self.state.get();
        match inside.exchange.issue_token(&request, call.client.0) {
            Ok(granted) => {
                let IssuedToken {
                    user,
                    access_level: access,
                    participant,
                    leave,
                    ..
                } = &granted;
                let (user, access) = (user.id().as_str(), access.as_str());
                let (identity, matrix_room) =
                    (participant.identity.as_str(), request.room.as_str());
                let room = &participant.room;
                let leave = leave.map_or(String::new(), |leave| format!(" leave={leave}"));
                info!(
                    "granted {asked} user={user:?} access={access} matrix_room={matrix_room:?} room={room} \
                     identity={identity:?}{leave} ms={}",
                    asked.elapsed_ms()
                );
                metrics::count_token_issued("matrix", access);
                Response::issued_token(&inside.livekit_url, &granted)
            }
            Err(error) => self.refuse(
                &asked,
                &request.server_name,
                &error,
                ExchangeOperation::IssueToken,
            ),
        }
    }

    /// Takes a leave, without a token for it.
    pub(super) fn handle_delegate(
        &self,
        call: &ApiRequest<'_>,
        request: Result<(ExchangeRequest, DelegationRequest), request_body::Error>,
    ) -> Response {
        let asked = RequestContext::start("delegate_delayed_leave", call.client);
        let (request, delay) = match request {
            Ok(request) => request,
            Err(error) => return asked.reject_body(&error),
        };
        let client = call.client.0;
        let delay_ms = delay.timeout.as_millis();
        match self
            .state
            .get()
            .exchange
            .delegate_leave(&request, delay, client)
        {
            Ok(DelegationReceipt {
                user,
                participant,
                leave,
            }) => {
                let (user, ms) = (user.id().as_str(), asked.elapsed_ms());
                let (room, identity) = (participant.room.as_str(), participant.identity.as_str());
                info!(
                    "delegated {asked} user={user:?} room={room:?} identity={identity:?} leave={leave} delay_ms={delay_ms} \
                     ms={ms}"
                );
                Response::empty_object()
            }
            Err(error) => self.refuse(
                &asked,
                &request.server_name,
                &error,
                ExchangeOperation::DelegateLeave,
            ),
        }
    }

    fn refuse(
        &self,
        asked: &RequestContext,
        server: &str,
        error: &exchange::Error,
        wish: ExchangeOperation,
    ) -> Response {
        let reply = Response::from_exchange_error(error, wish);
        metrics::count_refusal(denial_reason(error));
        let (status, cause, ms) = (reply.status, error.to_string(), asked.elapsed_ms());
        log!(
            response::log_level(error),
            "refused {asked} status={status} server={server:?} ms={ms} cause={cause:?}"
        );
        if let exchange::Error::Busy(..) = error
            && let Some(count) = self.busy_throttle.count(Instant::now())
        {
            warn!("busy refused={count} cause={cause:?}");
        }
        reply
    }
}

/// A request in the log.
pub(super) struct RequestContext {
    request_id: u32,
    client: ClientAddress,
    endpoint: &'static str,
    started: Instant,
}

impl RequestContext {
    pub(super) fn start(endpoint: &'static str, client: ClientAddress) -> Self {
        Self {
            request_id: u32::from_ne_bytes(random::bytes()),
            client,
            endpoint,
            started: Instant::now(),
        }
    }

    pub(super) fn elapsed_ms(&self) -> u128 {
        self.started.elapsed().as_millis()
    }

    pub(super) fn reject_body(&self, error: &request_body::Error) -> Response {
        let reply = Response::from(error);
        metrics::count_refusal("bad_request");
        let (status, cause) = (reply.status, error.to_string());
        info!("refused {self} status={status} cause={cause:?}");
        reply
    }
}

impl fmt::Display for RequestContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, client, endpoint) = (self.request_id, self.client, self.endpoint);
        write!(f, "request={id:08x} client={client} endpoint={endpoint}")
    }
}

/// What an operator counts refusals by.
fn denial_reason(error: &exchange::Error) -> &'static str {
    match error {
        exchange::Error::InvalidServerName(_) | exchange::Error::NotAuthenticated { .. } => {
            "unauthenticated"
        }
        exchange::Error::UserMismatch(..) => "identity_mismatch",
        exchange::Error::InvalidIdentity(_) => "bad_request",
        exchange::Error::Busy(..) => "busy",
        exchange::Error::RoomNotCreated(..) => "room_creation_failed",
        exchange::Error::DelegationForbidden(_) => "delegation_forbidden",
        exchange::Error::DelegationFailed { .. } => "delegation_failed",
    }
}
