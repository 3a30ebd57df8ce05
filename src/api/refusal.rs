//! How each error is answered, logged and counted.

use std::fmt;
use std::time::Duration;

use log::Level;
use serde_json::{Value, json};

use super::request_body;
use super::response::BUSY_RETRY_AFTER;
use super::token_body::{self, ValidationError};
use crate::delegation;
use crate::exchange::appservice::{self, HsTokenError, RelayFailure};
use crate::exchange::standalone;
use crate::livekit::webhook;
use crate::matrix::{appservice as homeserver, client_api, openid};
use crate::net::permits::LimitReached;
use crate::server::HttpResponse;
use crate::token::policy::PolicyError;
use crate::token::{self, AuthenticatedCaller};
use crate::util::log_throttle::LogThrottle;

/// Suggested to clients whose delayed leave cannot be taken over at present.
const DELEGATION_RETRY_AFTER: Duration = Duration::from_secs(10);
/// Response if `POST /token` is opened by a setting that is not followed by one for callers.
const NO_CALLER_CONFIGURED: &str = "No caller is configured: set TOKEN_SERVER_API_KEYS, TOKEN_SERVER_JWT_ISSUER or TOKEN_SERVER_POLICY_FILE; TOKEN_SERVER_AUTH=none opens /token to everyone";

/// A refused request: its response, and what log and metrics say about it.
pub(super) struct Refusal {
    pub response: HttpResponse,
    /// Label of the metric.
    pub reason: &'static str,
    pub cause: String,
    /// Level of the log line. An error of the SFU or of a listed homeserver concerns the administrator, other homeservers' errors do
    /// not. `None`: no line.
    pub level: Option<Level>,
    /// For refusals that a flood can cause: a warning per second has their number and the last one.
    pub throttle: Option<RefusalThrottle>,
    pub details: Box<RefusalDetails>,
}

/// More fields of the log line.
#[derive(Default)]
pub(super) struct RefusalDetails {
    /// The homeserver that the client names.
    pub server: Option<String>,
    /// The caller of `POST /token`.
    pub caller: Option<String>,
    pub api_key_id: Option<String>,
    /// The refused field of the request.
    pub field: Option<String>,
}

/// Refusals that share a warning.
#[derive(Debug, Clone, Copy)]
pub(super) enum RefusalThrottle {
    Busy,
    AddressRate,
    CallerRate,
    ParticipantRate,
    HsToken,
    Webhook,
}

/// The warnings per second.
#[derive(Debug, Default)]
pub(super) struct RefusalThrottles([LogThrottle; 6]);

impl RefusalThrottles {
    pub(super) fn get(&self, throttle: RefusalThrottle) -> &LogThrottle {
        &self.0[throttle as usize]
    }
}

/// What an exchange is for, which decides how errors about the delayed leave are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExchangeOperation {
    /// An access token, perhaps with a delayed leave. After a 400 about the delay fields clients repeat the request without them and
    /// keep their own timer.
    IssueToken,
    /// A delayed leave only.
    DelegateLeave,
}

impl Refusal {
    /// A refusal that is logged at level info.
    fn new(reason: &'static str, response: HttpResponse, cause: impl fmt::Display) -> Self {
        Self {
            response,
            reason,
            cause: cause.to_string(),
            level: Some(Level::Info),
            throttle: None,
            details: Box::default(),
        }
    }

    fn with_level(mut self, level: Level) -> Self {
        self.level = Some(level);
        self
    }

    fn throttled(mut self, throttle: RefusalThrottle) -> Self {
        self.level = match throttle {
            RefusalThrottle::Busy | RefusalThrottle::AddressRate | RefusalThrottle::CallerRate => {
                Some(Level::Debug)
            }
            _ => None,
        };
        self.throttle = Some(throttle);
        self
    }

    pub(super) fn with_server(mut self, server: &str) -> Self {
        self.details.server = Some(server.to_owned());
        self
    }

    pub(super) fn with_caller(mut self, caller: &AuthenticatedCaller) -> Self {
        self.details.caller = Some(caller.name().to_string());
        self.details.api_key_id = caller.api_key_id().map(str::to_owned);
        self
    }

    /// The client's address exceeded its rate limit; `response` is a 429.
    pub(super) fn address_rate_limited(response: HttpResponse) -> Self {
        Self::new(
            "rate_limited",
            response,
            "too many requests of this address",
        )
        .throttled(RefusalThrottle::AddressRate)
    }

    /// A client tests if leaves can be delegated. It happens at every join, so that its line is for debugging.
    pub(super) fn capability_probe(error: request_body::Error) -> Self {
        let mut refusal = Self::from(error).with_level(Level::Debug);
        refusal.cause = "capability probe: no body".to_owned();
        refusal
    }

    /// An error of standalone mode.
    pub(super) fn from_exchange(error: &standalone::Error, operation: ExchangeOperation) -> Self {
        use standalone::Error;
        // one text for all reasons, so that clients learn nothing about other servers
        let unauthorized = |reason| {
            let text = "The OpenID token could not be verified";
            Self::new(reason, matrix(401, "M_UNAUTHORIZED", text), error)
        };
        match error {
            Error::NotAuthenticated {
                error: openid::Error::Federation(_),
                listed: true,
            } => unauthorized("unauthenticated").with_level(Level::Warn),
            Error::InvalidServerName(_) | Error::NotAuthenticated { .. } => {
                unauthorized("unauthenticated")
            }
            Error::UserMismatch(..) => unauthorized("identity_mismatch"),
            Error::InvalidIdentity(invalid) => {
                let response = matrix(400, "M_BAD_JSON", &format!("device_id: {invalid}"));
                Self::new("bad_request", response, error)
            }
            Error::Busy(limit, after) => {
                let response = match limit {
                    LimitReached::Server | LimitReached::Subnet | LimitReached::Rate => {
                        HttpResponse::matrix_rate_limited(*after)
                    }
                    LimitReached::Service | LimitReached::DnsLookups => {
                        HttpResponse::matrix_busy(*after)
                    }
                };
                Self::new("busy", response, error).throttled(RefusalThrottle::Busy)
            }
            Error::RoomNotCreated(..) => Self::room_not_created(error),
            Error::DelegationForbidden(_) => {
                let text = "Users of this homeserver may not delegate leaves";
                let response = match operation {
                    ExchangeOperation::IssueToken => matrix(400, "M_BAD_JSON", text),
                    ExchangeOperation::DelegateLeave => matrix(403, "M_FORBIDDEN", text),
                };
                Self::new("delegation_forbidden", response, error)
            }
            Error::DelegationFailed {
                error: failure,
                listed,
                ..
            } => Self::delegation_failed(failure, operation, *listed, error),
        }
    }

    fn room_not_created(cause: &dyn fmt::Display) -> Self {
        let response = matrix(500, "M_UNKNOWN", "Unable to create room on SFU");
        Self::new("room_creation_failed", response, cause).with_level(Level::Error)
    }

    fn delegation_failed(
        error: &delegation::Error,
        operation: ExchangeOperation,
        listed: bool,
        cause: &dyn fmt::Display,
    ) -> Self {
        use ExchangeOperation::DelegateLeave;
        use delegation::Error;
        let response = match (error, operation) {
            (Error::NotSupported | Error::NoClientApi(client_api::Error::NotFound(_)), _) => {
                let text = "The homeserver is not known to support delayed events";
                matrix(400, "M_BAD_JSON", text)
            }
            (Error::OwnedByOtherUser, _) | (_, ExchangeOperation::IssueToken) => {
                matrix(400, "M_BAD_JSON", "The leave cannot be delegated now")
            }
            (Error::NoClientApi(client_api::Error::Busy(after)), DelegateLeave) => {
                HttpResponse::matrix_busy(*after)
            }
            (Error::UserQuotaExceeded, DelegateLeave) => {
                HttpResponse::matrix_rate_limited(DELEGATION_RETRY_AFTER)
            }
            (
                Error::ServerQuotaExceeded
                | Error::CapacityExceeded
                | Error::NotStored(_)
                | Error::Stopping,
                DelegateLeave,
            ) => HttpResponse::matrix_busy(DELEGATION_RETRY_AFTER),
        };
        let level = match error {
            Error::NotStored(_) => Level::Error,
            Error::ServerQuotaExceeded | Error::CapacityExceeded => Level::Warn,
            Error::NotSupported | Error::NoClientApi(_) if listed => Level::Warn,
            _ => Level::Info,
        };
        Self::new("delegation_failed", response, cause).with_level(level)
    }
}

fn matrix(status: u16, errcode: &str, error: &str) -> HttpResponse {
    HttpResponse::matrix_error(status, errcode, error)
}

/// An error in the form of the example server.
pub(super) fn detail(status: u16, detail: impl Into<Value>) -> HttpResponse {
    HttpResponse::json(status, &json!({ "detail": detail.into() }))
}

/// 429 in the form of the example server.
pub(super) fn detail_rate_limited(after: Duration) -> HttpResponse {
    detail(429, "Too many requests").with_retry_after(after)
}

impl From<request_body::Error> for Refusal {
    fn from(error: request_body::Error) -> Self {
        let errcode = match error {
            request_body::Error::NotJson => "M_NOT_JSON",
            request_body::Error::InvalidField(..) => "M_BAD_JSON",
            request_body::Error::MemberMismatch => "M_INVALID_PARAM",
        };
        Self::new(
            "bad_request",
            matrix(400, errcode, &error.to_string()),
            error,
        )
    }
}

/// Errors of application-service mode. The client learns nothing about what passes between homeserver and service.
impl From<appservice::Error> for Refusal {
    fn from(error: appservice::Error) -> Self {
        use appservice::Error;
        let refuse = |reason, response| Self::new(reason, response, &error);
        let forbidden = |reason, text| refuse(reason, matrix(403, "M_FORBIDDEN", text));
        let invalid = |reason, text| refuse(reason, matrix(400, "M_INVALID_PARAM", text));
        let failed = |reason, text| refuse(reason, matrix(502, "M_UNKNOWN", text));
        let homeserver_only = "Only the homeserver may use this endpoint";
        match &error {
            Error::NotAuthenticated(HsTokenError::Missing) => {
                let response = matrix(401, "M_UNAUTHORIZED", homeserver_only);
                refuse("unauthenticated", response).throttled(RefusalThrottle::HsToken)
            }
            Error::NotAuthenticated(HsTokenError::Wrong) => {
                forbidden("unauthenticated", homeserver_only).throttled(RefusalThrottle::HsToken)
            }
            Error::InvalidProxyHeaders(_) => forbidden(
                "identity_mismatch",
                "The homeserver does not identify the requesting user or server",
            )
            .with_level(Level::Warn),
            Error::UserNotJoined(_) | Error::ServerNotJoined(_) => {
                forbidden("not_joined", "Not joined to the Matrix room")
            }
            Error::OriginMismatch(..) => forbidden(
                "identity_mismatch",
                "The user belongs to another homeserver",
            ),
            Error::UnknownLiveKitUrl(_) => {
                invalid("unknown_sfu", "The url is not of an SFU of this service")
            }
            Error::Busy(_) | Error::Homeserver(homeserver::Error::Busy) => {
                refuse("busy", HttpResponse::matrix_busy(BUSY_RETRY_AFTER))
                    .throttled(RefusalThrottle::Busy)
            }
            Error::Homeserver(_) => {
                failed("homeserver_error", "The homeserver is unavailable").with_level(Level::Error)
            }
            Error::RelayFailed(relay) => match relay.failure {
                RelayFailure::Forbidden => forbidden(
                    "relay_refused",
                    "The other homeserver's service forbids the token",
                ),
                RelayFailure::BadRequest => invalid(
                    "relay_refused",
                    "The other homeserver's service rejects the request as invalid",
                ),
                // every other failure counts as one of the other server (MSC4195)
                RelayFailure::Failed(..) | RelayFailure::NoResponse(_) => failed(
                    "relay_failed",
                    "The other homeserver's service issued no token",
                ),
            },
            Error::RateLimited(_, after) => {
                refuse("rate_limited", HttpResponse::matrix_rate_limited(*after))
                    .throttled(RefusalThrottle::ParticipantRate)
            }
            Error::ParticipantLimit(quota) => {
                refuse("busy", HttpResponse::matrix_rate_limited(quota.retry_after))
                    .throttled(RefusalThrottle::ParticipantRate)
            }
            Error::RoomNotCreated(_) => Self::room_not_created(&error),
            Error::DelayedEventNotFound(_) => {
                invalid("delegation_failed", "No such delayed event in this room")
            }
            Error::DelegationFailed(failure) => {
                let operation = ExchangeOperation::DelegateLeave;
                Self::delegation_failed(failure, operation, true, &error)
            }
        }
    }
}

impl From<webhook::Error> for Refusal {
    fn from(error: webhook::Error) -> Self {
        let response = matrix(401, "M_UNAUTHORIZED", "The webhook could not be verified");
        Self::new("unauthenticated", response, error).throttled(RefusalThrottle::Webhook)
    }
}

/// Errors in the authentication of a caller of `POST /token`.
impl From<token::Error> for Refusal {
    fn from(error: token::Error) -> Self {
        use token::Error;
        let unauthorized = |text| {
            let response = detail(401, text).with_header("WWW-Authenticate", "Bearer");
            Self::new("unauthenticated", response, &error)
        };
        match &error {
            Error::NoCallerConfigured => unauthorized(NO_CALLER_CONFIGURED),
            Error::MissingCredentials => unauthorized("Send an API key or a JWT as a bearer token"),
            // one text for all reasons, so that guesses reveal nothing
            Error::UnsupportedCredentials | Error::UnknownApiKey | Error::JwtRejected(_) => {
                unauthorized("The credentials are not accepted")
            }
            Error::KeysUnavailable(after) => {
                let response = detail(503, "The keys of the JWT issuer are unavailable");
                let response = response.with_retry_after(*after);
                Self::new("keys_unavailable", response, &error)
            }
            Error::RateLimited(name, after) => {
                let response = detail_rate_limited(*after);
                let mut refusal = Self::new("rate_limited", response, &error);
                refusal.details.caller = Some(name.to_string());
                refusal.throttled(RefusalThrottle::CallerRate)
            }
        }
    }
}

impl From<token_body::Error> for Refusal {
    fn from(error: token_body::Error) -> Self {
        match error {
            token_body::Error::Invalid(ref errors) => {
                Self::new("bad_request", unprocessable(errors), error)
            }
            token_body::Error::Refused(error) => error.into(),
        }
    }
}

impl From<PolicyError> for Refusal {
    fn from(error: PolicyError) -> Self {
        let (reason, response) = match &error {
            PolicyError::Missing(fields) => {
                let errors: Vec<_> = fields.iter().map(|f| ValidationError::missing(f)).collect();
                ("bad_request", unprocessable(&errors))
            }
            PolicyError::Invalid { .. } => ("bad_request", detail(400, error.to_string())),
            PolicyError::Forbidden { .. } => ("forbidden", detail(403, error.to_string())),
        };
        let mut refusal = Self::new(reason, response, &error);
        refusal.details.field = Some(error.field().to_owned());
        refusal
    }
}

fn unprocessable(errors: &[ValidationError]) -> HttpResponse {
    let errors: Vec<Value> = errors.iter().map(ValidationError::to_json).collect();
    detail(422, errors)
}
