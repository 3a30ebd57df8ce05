//! The door for the homeserver whose application service we are.

use std::time::Instant;

use log::{Level, debug, info, log, warn};
use serde_json::json;

use super::matrix::RequestContext;
use super::request_body;
use super::response::{ExchangeOperation, Response};
use super::router::ApiRequest;
use super::transaction;
use crate::delegation;
use crate::exchange::access::AccessLevel;
use crate::exchange::appservice::{
    AppServiceExchange, AppServiceToken, Error, MscVersion, ProxiedCredentials, RelayFailure,
};
use crate::matrix::appservice;
use crate::membership::Membership;
use crate::util::log_throttle::LogThrottle;
use crate::util::metrics;
use crate::util::sync::Swappable;

/// Application-service mode behind its door.
#[derive(Debug)]
pub(crate) struct AppServiceApi {
    state: Swappable<AppServiceExchange>,
    membership: Membership,
    unauthenticated_throttle: LogThrottle,
    rate_limit_throttle: LogThrottle,
    busy_throttle: LogThrottle,
}

impl AppServiceApi {
    /// Opens it.
    pub(crate) fn new(inside: AppServiceExchange, membership: Membership) -> Self {
        Self {
            state: Swappable::new(inside),
            membership,
            unauthenticated_throttle: LogThrottle::default(),
            rate_limit_throttle: LogThrottle::default(),
            busy_throttle: LogThrottle::default(),
        }
    }

    /// Serves with this from now on; what is under way ends with what it began with.
    pub(crate) fn replace_state(&self, inside: AppServiceExchange) {
        self.state.replace(inside);
    }

    /// Answers a user who wants a token; `path` is the one they have asked by.
    pub(super) fn handle_client_token(&self, call: &ApiRequest<'_>, path: &str) -> Response {
        self.handle(call, "POST", "client/get_token", |asked| {
            let inside = self.state.get();
            let user = inside
                .authenticator
                .authenticate_user(proxied_credentials(call))?;
            let request = request_body::parse_client_token(call.body)
                .map_err(AppServiceRequestError::InvalidBody)?;
            let path = if path.contains("/unstable/io.element.msc4195/") {
                MscVersion::Unstable
            } else {
                MscVersion::Stable
            };
            let place = &request.membership;
            let server = request.server.as_ref();
            let granted = inside.issue_client_token(&user, server, place, path)?;
            let (name, room) = (user.id().as_str(), place.room.as_str());
            Ok(token_response(
                asked,
                name,
                AccessLevel::Full,
                room,
                granted,
            ))
        })
    }

    /// Answers another homeserver that wants a token for its user.
    pub(super) fn handle_federation_token(&self, call: &ApiRequest<'_>) -> Response {
        self.handle(call, "POST", "federation/get_token", |asked| {
            let inside = self.state.get();
            let origin = inside
                .authenticator
                .authenticate_origin(proxied_credentials(call))?;
            let request = request_body::parse_federation_token(call.body)
                .map_err(AppServiceRequestError::InvalidBody)?;
            let granted =
                inside.issue_federation_token(&origin, &request.user, &request.membership)?;
            let (name, room) = (request.user.as_str(), request.membership.room.as_str());
            Ok(token_response(
                asked,
                name,
                AccessLevel::Restricted,
                room,
                granted,
            ))
        })
    }

    /// Takes the leave of a user.
    pub(super) fn handle_client_delegate(&self, call: &ApiRequest<'_>) -> Response {
        self.handle(call, "POST", "client/delegate_delayed_leave", |asked| {
            let inside = self.state.get();
            let user = inside
                .authenticator
                .authenticate_user(proxied_credentials(call))?;
            let request = request_body::parse_client_delegate(call.body)
                .map_err(AppServiceRequestError::InvalidBody)?;
            let (participant, leave) =
                inside.delegate_leave(&user, &request.membership, &request.delay_id)?;
            let (user, ms) = (user.id().as_str(), asked.elapsed_ms());
            let (room, identity) = (participant.room.as_str(), participant.identity.as_str());
            info!("delegated {asked} user={user:?} room={room:?} identity={identity:?} leave={leave} ms={ms}");
            Ok(Response::empty_object())
        })
    }

    /// Tells the homeserver that we are there (Matrix spec v1.16, application service API, "Pinging").
    pub(super) fn handle_ping(&self, call: &ApiRequest<'_>) -> Response {
        self.handle(call, "POST", "ping", |_| {
            let inside = self.state.get();
            inside.authenticator.authenticate(call.authorization)?;
            Ok(Response::empty_object())
        })
    }

    /// Whether it is the homeserver that asks.
    pub(super) fn is_authenticated(&self, authorization: Option<&str>) -> bool {
        let inside = self.state.get();
        inside.authenticator.authenticate(authorization).is_ok()
    }

    /// Takes events that the homeserver pushes (the same, "Pushing events"). They are not believed: whoever has left, going by them,
    /// is looked at. To take the same ones twice does no harm.
    pub(super) fn handle_transaction(&self, call: &ApiRequest<'_>) -> Response {
        self.handle(call, "PUT", "transactions", |asked| {
            let inside = self.state.get();
            inside.authenticator.authenticate(call.authorization)?;
            let departures = transaction::parse_departures(call.body)
                .map_err(AppServiceRequestError::InvalidBody)?;
            let guests: usize = departures
                .iter()
                .map(|who| self.membership.recheck(who))
                .sum();
            let departures = departures.len();
            debug!("events {asked} departures={departures} guests={guests}");
            Ok(Response::empty_object())
        })
    }

    /// The homeserver speaks to browsers, so there is nothing for them in these replies.
    fn handle(
        &self,
        call: &ApiRequest<'_>,
        method: &'static str,
        endpoint: &'static str,
        answer: impl FnOnce(&RequestContext) -> Result<Response, AppServiceRequestError>,
    ) -> Response {
        let asked = RequestContext::start(endpoint, call.client);
        let reply = if call.method == method {
            answer(&asked).unwrap_or_else(|refused| match refused {
                AppServiceRequestError::InvalidBody(error) => asked.reject_body(&error),
                AppServiceRequestError::Exchange(error) => self.refuse(&asked, &error),
            })
        } else {
            Response::method_not_allowed(method)
        };
        Response {
            headers: Some(Vec::new()),
            ..reply
        }
    }

    fn refuse(&self, asked: &RequestContext, error: &Error) -> Response {
        let (reply, level, reason) = classify_error(error);
        metrics::count_refusal(reason);
        let (status, cause, ms) = (reply.status, error.to_string(), asked.elapsed_ms());
        let tally = match error {
            Error::NotAuthenticated | Error::WrongHsToken => Some(&self.unauthenticated_throttle),
            Error::ParticipantLimit(_) | Error::RateLimited(..) => Some(&self.rate_limit_throttle),
            _ => None,
        };
        if let Some(tally) = tally {
            if let Some(count) = tally.count(Instant::now()) {
                warn!("refused {asked} status={status} count={count} cause={cause:?}");
            }
        } else {
            log!(
                level,
                "refused {asked} status={status} ms={ms} cause={cause:?}"
            );
        }
        if let Error::Busy(_) | Error::Homeserver(appservice::Error::Busy) = error
            && let Some(count) = self.busy_throttle.count(Instant::now())
        {
            warn!("busy refused={count} cause={cause:?}");
        }
        reply
    }
}

/// Why there is no answer.
enum AppServiceRequestError {
    InvalidBody(request_body::Error),
    Exchange(Error),
}

impl From<Error> for AppServiceRequestError {
    fn from(error: Error) -> Self {
        Self::Exchange(error)
    }
}

fn proxied_credentials<'a>(call: &ApiRequest<'a>) -> ProxiedCredentials<'a> {
    ProxiedCredentials {
        authorization: call.authorization,
        user: call.matrix_user,
        origin: call.matrix_origin,
    }
}

/// Writes a token into the log and the reply; of the one that is another's only the reply.
fn token_response(
    asked: &RequestContext,
    user: &str,
    access: AccessLevel,
    matrix_room: &str,
    granted: AppServiceToken,
) -> Response {
    let (ms, access) = (asked.elapsed_ms(), access.as_str());
    match granted {
        AppServiceToken::Issued(token, key) => {
            let (room, identity) = (&key.room, key.identity.as_str());
            info!(
                "granted {asked} user={user:?} access={access} matrix_room={matrix_room:?} room={room} identity={identity:?} ms={ms}"
            );
            metrics::count_token_issued("appservice", access);
            Response::json(200, &json!({ "jwt": token.expose() }))
        }
        AppServiceToken::Relayed(token) => {
            info!(
                "relayed {asked} user={user:?} access={access} matrix_room={matrix_room:?} ms={ms}"
            );
            metrics::count_token_issued("appservice_relay", access);
            Response::json(200, &json!({ "jwt": &*token }))
        }
    }
}

/// What the homeserver is answered, how loud the log is, and what an operator counts it by. The caller learns nothing of what is
/// between the homeserver and us.
fn classify_error(error: &Error) -> (Response, Level, &'static str) {
    let forbidden = |error| Response::matrix_error(403, "M_FORBIDDEN", error);
    let invalid = |error| Response::matrix_error(400, "M_INVALID_PARAM", error);
    let failed = |error| Response::matrix_error(502, "M_UNKNOWN", error);
    match error {
        Error::NotAuthenticated => (
            Response::matrix_error(401, "M_UNAUTHORIZED", "This is for the homeserver only"),
            Level::Warn,
            "unauthenticated",
        ),
        Error::WrongHsToken => (
            forbidden("This is for the homeserver only"),
            Level::Warn,
            "unauthenticated",
        ),
        Error::InvalidProxyHeaders(_) => (
            forbidden("The homeserver does not say who asks"),
            Level::Warn,
            "identity_mismatch",
        ),
        Error::UserNotJoined(_) | Error::ServerNotJoined(_) => {
            (forbidden("Not in the room"), Level::Info, "not_joined")
        }
        Error::OriginMismatch(..) => (
            forbidden("The user is of another server"),
            Level::Info,
            "identity_mismatch",
        ),
        Error::UnknownLiveKitUrl(_) => (
            invalid("The url is not of an SFU of this service"),
            Level::Info,
            "unknown_sfu",
        ),
        // there may be many, and a tally speaks for them
        Error::Homeserver(appservice::Error::Busy) => {
            (Response::busy(BUSY_RETRY_AFTER), Level::Debug, "busy")
        }
        Error::Homeserver(_) => (
            failed("The homeserver cannot be asked"),
            Level::Error,
            "homeserver_error",
        ),
        Error::RelayFailed(error) => {
            let (reply, reason) = match error.failure {
                RelayFailure::Forbidden => {
                    (forbidden("The other server forbids it"), "relay_refused")
                }
                RelayFailure::BadRequest => (
                    invalid("The other server finds it invalid"),
                    "relay_refused",
                ),
                // whatever it was, it is a failure of the other server (MSC4195)
                RelayFailure::Failed(..) | RelayFailure::NoResponse(_) => {
                    (failed("The other server gives no token"), "relay_failed")
                }
            };
            (reply, Level::Info, reason)
        }
        Error::Busy(_) => (Response::busy(BUSY_RETRY_AFTER), Level::Debug, "busy"),
        Error::RateLimited(_, after) => {
            (Response::rate_limited(*after), Level::Warn, "rate_limited")
        }
        Error::ParticipantLimit(error) => (
            Response::rate_limited(error.retry_after),
            Level::Warn,
            "busy",
        ),
        Error::RoomNotCreated(_) => (
            Response::matrix_error(500, "M_UNKNOWN", "Unable to create room on SFU"),
            Level::Error,
            "room_creation_failed",
        ),
        Error::DelayedEventNotFound(_) => (
            invalid("No such delayed event in this room"),
            Level::Info,
            "delegation_failed",
        ),
        Error::DelegationFailed(error) => (
            Response::from_delegation_error(error, ExchangeOperation::DelegateLeave),
            match error {
                delegation::Error::NotStored(_) => Level::Error,
                delegation::Error::NotSupported | delegation::Error::NoClientApi(_) => Level::Warn,
                _ => Level::Info,
            },
            "delegation_failed",
        ),
    }
}

/// When to come again where no place was free.
const BUSY_RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(1);
