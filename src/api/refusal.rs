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
/// Response if `POST /token` is enabled by a setting that is not followed by one for callers.
const NO_CALLER_CONFIGURED: &str = "No caller is configured: set TOKEN_SERVER_API_KEYS, TOKEN_SERVER_JWT_ISSUER or TOKEN_SERVER_POLICY_FILE; TOKEN_SERVER_AUTH=none opens it to everyone";

/// A refused request: its response, and what log and metrics say about it.
pub(super) struct Refusal {
    pub response: HttpResponse,
    /// Level of the log line. An error of the SFU or of a listed homeserver concerns the administrator, other homeservers' errors do
    /// not.
    pub level: Level,
    /// Label of the metric.
    pub reason: &'static str,
    pub cause: String,
    /// Set for refusals that a flood can cause: a warning per second has their number and the last one.
    pub throttle: Option<RefusalThrottle>,
    /// The homeserver that the client names.
    pub server: Option<String>,
    /// The caller of `POST /token`.
    pub caller: Option<String>,
    pub api_key_id: Option<String>,
    /// The field of the request that is refused.
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

impl RefusalThrottle {
    /// The level of the log line of each refusal, beside the warning; `None`: no line.
    pub(super) fn level_of_each(self) -> Option<Level> {
        match self {
            Self::Busy | Self::AddressRate | Self::CallerRate => Some(Level::Debug),
            Self::ParticipantRate | Self::HsToken | Self::Webhook => None,
        }
    }
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
    /// An access token, perhaps with a delayed leave. Told that the delay fields are invalid, clients repeat the request without them
    /// and keep their own timer.
    IssueToken,
    /// A delayed leave only.
    DelegateLeave,
}

impl Refusal {
    fn new(
        level: Level,
        reason: &'static str,
        response: HttpResponse,
        cause: impl fmt::Display,
    ) -> Self {
        Self {
            response,
            level,
            reason,
            cause: cause.to_string(),
            throttle: None,
            server: None,
            caller: None,
            api_key_id: None,
            field: None,
        }
    }

    fn throttled(
        throttle: RefusalThrottle,
        reason: &'static str,
        response: HttpResponse,
        cause: impl fmt::Display,
    ) -> Self {
        Self {
            throttle: Some(throttle),
            ..Self::new(Level::Debug, reason, response, cause)
        }
    }

    pub(super) fn with_server(self, server: &str) -> Self {
        Self {
            server: Some(server.to_owned()),
            ..self
        }
    }

    pub(super) fn with_caller(self, caller: &AuthenticatedCaller) -> Self {
        Self {
            caller: Some(caller.name().to_string()),
            api_key_id: caller.api_key_id().map(str::to_owned),
            ..self
        }
    }

    /// The client's address exceeded its rate limit; `response` is a 429.
    pub(super) fn address_rate_limited(response: HttpResponse) -> Self {
        let cause = "too many requests of this address";
        Self::throttled(
            RefusalThrottle::AddressRate,
            "rate_limited",
            response,
            cause,
        )
    }

    /// An error of standalone mode.
    pub(super) fn from_exchange(error: &standalone::Error, operation: ExchangeOperation) -> Self {
        use standalone::Error;
        // one text for all reasons, so that clients learn nothing about other servers
        let unauthorized = || {
            matrix(
                401,
                "M_UNAUTHORIZED",
                "The OpenID token could not be verified",
            )
        };
        let (level, reason, response) = match error {
            Error::NotAuthenticated {
                error: openid::Error::Federation(_),
                listed: true,
            } => (Level::Warn, "unauthenticated", unauthorized()),
            Error::InvalidServerName(_) | Error::NotAuthenticated { .. } => {
                (Level::Info, "unauthenticated", unauthorized())
            }
            Error::UserMismatch(..) => (Level::Info, "identity_mismatch", unauthorized()),
            Error::InvalidIdentity(invalid) => {
                let response = matrix(400, "M_BAD_JSON", &format!("device_id: {invalid}"));
                (Level::Info, "bad_request", response)
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
                return Self::throttled(RefusalThrottle::Busy, "busy", response, error);
            }
            Error::RoomNotCreated(..) => room_not_created(),
            Error::DelegationForbidden(_) => {
                let text = "Delegated leaves are not for users of this homeserver";
                let response = match operation {
                    ExchangeOperation::IssueToken => matrix(400, "M_BAD_JSON", text),
                    ExchangeOperation::DelegateLeave => matrix(403, "M_FORBIDDEN", text),
                };
                (Level::Info, "delegation_forbidden", response)
            }
            Error::DelegationFailed {
                error: failure,
                listed,
                ..
            } => delegation_failed(failure, operation, *listed),
        };
        Self::new(level, reason, response, error)
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

type Outcome = (Level, &'static str, HttpResponse);

fn room_not_created() -> Outcome {
    let response = matrix(500, "M_UNKNOWN", "Unable to create room on SFU");
    (Level::Error, "room_creation_failed", response)
}

fn delegation_failed(
    error: &delegation::Error,
    operation: ExchangeOperation,
    listed: bool,
) -> Outcome {
    use delegation::Error;
    let level = match error {
        Error::NotStored(_) => Level::Error,
        Error::ServerQuotaExceeded | Error::CapacityExceeded => Level::Warn,
        Error::NotSupported | Error::NoClientApi(_) if listed => Level::Warn,
        _ => Level::Info,
    };
    let not_now = || matrix(400, "M_BAD_JSON", "No leave can be delegated now");
    let response = match (error, operation) {
        (Error::NotSupported | Error::NoClientApi(client_api::Error::NotFound(_)), _) => {
            let text = "The homeserver is not known to support delayed events";
            matrix(400, "M_BAD_JSON", text)
        }
        (Error::OwnedByOtherUser, _) | (_, ExchangeOperation::IssueToken) => not_now(),
        (Error::NoClientApi(client_api::Error::Busy(after)), ExchangeOperation::DelegateLeave) => {
            HttpResponse::matrix_busy(*after)
        }
        (Error::UserQuotaExceeded, ExchangeOperation::DelegateLeave) => {
            HttpResponse::matrix_rate_limited(DELEGATION_RETRY_AFTER)
        }
        (
            Error::ServerQuotaExceeded
            | Error::CapacityExceeded
            | Error::NotStored(_)
            | Error::Stopping,
            ExchangeOperation::DelegateLeave,
        ) => HttpResponse::matrix_busy(DELEGATION_RETRY_AFTER),
    };
    (level, "delegation_failed", response)
}

impl From<request_body::Error> for Refusal {
    fn from(error: request_body::Error) -> Self {
        let errcode = match error {
            request_body::Error::NotJson => "M_NOT_JSON",
            request_body::Error::InvalidField(..) => "M_BAD_JSON",
        };
        let response = matrix(400, errcode, &error.to_string());
        Self::new(Level::Info, "bad_request", response, error)
    }
}

/// Errors of application-service mode. The client learns nothing about what passes between homeserver and service.
impl From<appservice::Error> for Refusal {
    fn from(error: appservice::Error) -> Self {
        use appservice::Error;
        let forbidden = |text| matrix(403, "M_FORBIDDEN", text);
        let invalid = |text| matrix(400, "M_INVALID_PARAM", text);
        let failed = |text| matrix(502, "M_UNKNOWN", text);
        let throttled =
            |throttle, reason, response| Self::throttled(throttle, reason, response, &error);
        let homeserver_only = "This is for the homeserver only";
        let (level, reason, response) = match &error {
            Error::NotAuthenticated(cause) => {
                let response = match cause {
                    HsTokenError::Missing => matrix(401, "M_UNAUTHORIZED", homeserver_only),
                    HsTokenError::Wrong => forbidden(homeserver_only),
                };
                return throttled(RefusalThrottle::HsToken, "unauthenticated", response);
            }
            Error::InvalidProxyHeaders(_) => {
                let response = forbidden("The homeserver does not say who asks");
                (Level::Warn, "identity_mismatch", response)
            }
            Error::UserNotJoined(_) | Error::ServerNotJoined(_) => {
                (Level::Info, "not_joined", forbidden("Not in the room"))
            }
            Error::OriginMismatch(..) => {
                let response = forbidden("The user is of another server");
                (Level::Info, "identity_mismatch", response)
            }
            Error::UnknownLiveKitUrl(_) => {
                let response = invalid("The url is not of an SFU of this service");
                (Level::Info, "unknown_sfu", response)
            }
            Error::Busy(_) | Error::Homeserver(homeserver::Error::Busy) => {
                let response = HttpResponse::matrix_busy(BUSY_RETRY_AFTER);
                return throttled(RefusalThrottle::Busy, "busy", response);
            }
            Error::Homeserver(_) => {
                let response = failed("The homeserver cannot be asked");
                (Level::Error, "homeserver_error", response)
            }
            Error::RelayFailed(relay) => match relay.failure {
                RelayFailure::Forbidden => {
                    let response = forbidden("The other server forbids it");
                    (Level::Info, "relay_refused", response)
                }
                RelayFailure::BadRequest => {
                    let response = invalid("The other server finds it invalid");
                    (Level::Info, "relay_refused", response)
                }
                // every other failure counts as one of the other server (MSC4195)
                RelayFailure::Failed(..) | RelayFailure::NoResponse(_) => {
                    let response = failed("The other server gives no token");
                    (Level::Info, "relay_failed", response)
                }
            },
            Error::RateLimited(_, after) => {
                let response = HttpResponse::matrix_rate_limited(*after);
                return throttled(RefusalThrottle::ParticipantRate, "rate_limited", response);
            }
            Error::ParticipantLimit(quota) => {
                let response = HttpResponse::matrix_rate_limited(quota.retry_after);
                return throttled(RefusalThrottle::ParticipantRate, "busy", response);
            }
            Error::RoomNotCreated(_) => room_not_created(),
            Error::DelayedEventNotFound(_) => {
                let response = invalid("No such delayed event in this room");
                (Level::Info, "delegation_failed", response)
            }
            Error::DelegationFailed(failure) => {
                delegation_failed(failure, ExchangeOperation::DelegateLeave, true)
            }
        };
        Self::new(level, reason, response, error)
    }
}

impl From<HsTokenError> for Refusal {
    fn from(error: HsTokenError) -> Self {
        appservice::Error::from(error).into()
    }
}

impl From<webhook::Error> for Refusal {
    fn from(error: webhook::Error) -> Self {
        let response = matrix(401, "M_UNAUTHORIZED", "The webhook could not be verified");
        Self::throttled(RefusalThrottle::Webhook, "unauthenticated", response, error)
    }
}

/// Errors in the authentication of a caller of `POST /token`.
impl From<token::Error> for Refusal {
    fn from(error: token::Error) -> Self {
        use token::Error;
        let text = match &error {
            Error::NoCallerConfigured => NO_CALLER_CONFIGURED,
            Error::MissingCredentials => "Show an API key or a token of your login as a Bearer",
            // one text for all reasons, so that guesses reveal nothing
            Error::UnsupportedCredentials | Error::UnknownApiKey | Error::JwtRejected(_) => {
                "The credentials are not accepted"
            }
            Error::KeysUnavailable(after) => {
                let response = detail(503, "The keys of the login cannot be had at present");
                let response = response.with_retry_after(*after);
                return Self::new(Level::Info, "keys_unavailable", response, error);
            }
            Error::RateLimited(name, after) => {
                let response = detail_rate_limited(*after);
                let throttle = RefusalThrottle::CallerRate;
                return Self {
                    caller: Some(name.to_string()),
                    ..Self::throttled(throttle, "rate_limited", response, &error)
                };
            }
        };
        let response = detail(401, text).with_header("WWW-Authenticate", "Bearer");
        Self::new(Level::Info, "unauthenticated", response, error)
    }
}

impl From<token_body::Error> for Refusal {
    fn from(error: token_body::Error) -> Self {
        match error {
            token_body::Error::Invalid(ref errors) => {
                let response = unprocessable(errors);
                Self::new(Level::Info, "bad_request", response, error)
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
        Self {
            field: Some(error.field().to_owned()),
            ..Self::new(Level::Info, reason, response, error)
        }
    }
}

fn unprocessable(errors: &[ValidationError]) -> HttpResponse {
    let errors: Vec<Value> = errors.iter().map(ValidationError::to_json).collect();
    detail(422, errors)
}
