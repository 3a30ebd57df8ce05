//! Every outcome as a reply: status, errcode, and how loud it is logged.

use std::time::Duration;

use log::Level;
use serde_json::{Value, json};

use super::cors::ResponseHeaders;
use super::readiness::ReadinessProblem;
use super::request_body;
use crate::delegation;
use crate::exchange::standalone::{self as exchange, IssuedToken};
use crate::matrix::client_api;
use crate::matrix::openid;
use crate::net::permits::LimitReached;

/// Without these on every reply, errors included, a browser shows its user nothing but a network error.
pub(crate) const CORS_HEADERS: [(&str, &str); 4] = [
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "POST, OPTIONS"),
    (
        "Access-Control-Allow-Headers",
        "Accept, Content-Type, Content-Length, Accept-Encoding, X-CSRF-Token, Authorization",
    ),
    // a day: browsers then ask once, not before every call
    ("Access-Control-Max-Age", "86400"),
];

/// What the client gets. Its body may hold a token: never logged.
pub(crate) struct Response {
    /// Status code.
    pub status: u16,
    /// JSON, or empty.
    pub body: Vec<u8>,
    /// Seconds after which to try again.
    pub retry_after: Option<u64>,
    /// Methods that the path knows.
    pub allow: Option<&'static str>,
    /// What else there is in the head. None stands for [`CORS`].
    pub headers: Option<ResponseHeaders>,
}

impl Response {
    /// 200 without a body.
    pub(crate) fn empty() -> Self {
        Self {
            status: 200,
            body: Vec::new(),
            retry_after: None,
            allow: None,
            headers: None,
        }
    }

    /// JSON of this status.
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            body: body.to_string().into_bytes(),
            ..Self::empty()
        }
    }

    /// An error in Matrix's form.
    pub(crate) fn matrix_error(status: u16, errcode: &str, error: &str) -> Self {
        let body = json!({ "errcode": errcode, "error": error })
            .to_string()
            .into_bytes();
        Self {
            status,
            body,
            ..Self::empty()
        }
    }

    /// 200 with the token.
    pub(crate) fn issued_token(url: &str, granted: &IssuedToken) -> Self {
        let body = json!({ "url": url, "jwt": granted.access_token.expose() })
            .to_string()
            .into_bytes();
        Self {
            body,
            ..Self::empty()
        }
    }

    /// 200, and nothing to say.
    pub(crate) fn empty_object() -> Self {
        Self {
            body: b"{}".to_vec(),
            ..Self::empty()
        }
    }

    /// 401 to the SFU, or to whoever claims to be it. It does not try again.
    pub(crate) fn webhook_unverified() -> Self {
        Self::matrix_error(401, "M_UNAUTHORIZED", "The webhook could not be verified")
    }

    /// 200 if nothing is amiss, else 503 with what is.
    pub(crate) fn readiness(ailments: &[ReadinessProblem]) -> Self {
        if ailments.is_empty() {
            return Self::json(200, &json!({ "status": "ready" }));
        }
        let reasons: Vec<_> = ailments.iter().map(ToString::to_string).collect();
        Self::json(503, &json!({ "status": "not ready", "reasons": reasons }))
    }

    /// 404: there is nothing here, or not yet.
    pub(crate) fn not_found() -> Self {
        Self::matrix_error(404, "M_UNRECOGNIZED", "Unrecognized request")
    }

    /// 405, with the methods that would do.
    pub(crate) fn method_not_allowed(allow: &'static str) -> Self {
        Self {
            allow: Some(allow),
            ..Self::matrix_error(405, "M_UNRECOGNIZED", "Unrecognized method")
        }
    }

    /// To come again after this time, rounded up: who comes back at the very time must not be too early.
    pub(super) fn with_retry_after(self, after: Duration) -> Self {
        let seconds = after.as_millis().div_ceil(1000).max(1);
        Self {
            retry_after: u64::try_from(seconds).ok(),
            ..self
        }
    }

    /// 429: the client itself, or the server that it names, is too much.
    pub(super) fn rate_limited(after: Duration) -> Self {
        let ms = after.as_micros().div_ceil(1000).max(1);
        let body = json!({ "errcode": "M_LIMIT_EXCEEDED", "error": "Too many requests", "retry_after_ms": ms as u64 });
        let reply = Self {
            status: 429,
            body: body.to_string().into_bytes(),
            ..Self::empty()
        };
        reply.with_retry_after(after)
    }

    /// 503: no fault of the client.
    pub(crate) fn busy(after: Duration) -> Self {
        Self::matrix_error(503, "M_UNKNOWN", "The service is busy").with_retry_after(after)
    }
}

impl From<&request_body::Error> for Response {
    fn from(error: &request_body::Error) -> Self {
        let errcode = match error {
            request_body::Error::NotJson => "M_NOT_JSON",
            request_body::Error::InvalidField(..) => "M_BAD_JSON",
        };
        Self::matrix_error(400, errcode, &error.to_string())
    }
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExchangeOperation {
    /// A token, perhaps with a leave: told that its delay fields are bad, the client asks again without them and keeps its own timer.
    IssueToken,
    /// A leave only.
    DelegateLeave,
}

/// What to tell a client whose leave was not taken on for now.
pub(super) const DELEGATION_RETRY_AFTER: Duration = Duration::from_secs(10);

impl Response {
    /// What came of a wish.
    pub(crate) fn from_exchange_error(error: &exchange::Error, wish: ExchangeOperation) -> Self {
        let no_leave = |error| Self::matrix_error(400, "M_BAD_JSON", error);
        match error {
            // one sentence for all reasons: the caller learns nothing of what we can reach
            exchange::Error::InvalidServerName(_)
            | exchange::Error::NotAuthenticated { .. }
            | exchange::Error::UserMismatch(..) => Self::matrix_error(
                401,
                "M_UNAUTHORIZED",
                "The OpenID token could not be verified",
            ),
            exchange::Error::InvalidIdentity(error) => {
                Self::matrix_error(400, "M_BAD_JSON", &format!("device_id: {error}"))
            }
            exchange::Error::Busy(
                LimitReached::Server | LimitReached::Subnet | LimitReached::Rate,
                after,
            ) => Self::rate_limited(*after),
            exchange::Error::Busy(LimitReached::Service | LimitReached::DnsLookups, after) => {
                Self::busy(*after)
            }
            exchange::Error::RoomNotCreated(..) => {
                Self::matrix_error(500, "M_UNKNOWN", "Unable to create room on SFU")
            }
            exchange::Error::DelegationForbidden(_) => {
                let error = "Delegated leaves are not for users of this homeserver";
                match wish {
                    ExchangeOperation::IssueToken => no_leave(error),
                    ExchangeOperation::DelegateLeave => {
                        Self::matrix_error(403, "M_FORBIDDEN", error)
                    }
                }
            }
            exchange::Error::DelegationFailed { error, .. } => {
                Self::from_delegation_error(error, wish)
            }
        }
    }

    /// Why a leave was not taken on.
    pub(crate) fn from_delegation_error(
        error: &delegation::Error,
        wish: ExchangeOperation,
    ) -> Self {
        let no_leave = |error| Self::matrix_error(400, "M_BAD_JSON", error);
        match (error, wish) {
            (delegation::Error::NotSupported, _)
            | (delegation::Error::NoClientApi(client_api::Error::NotFound(_)), _) => {
                no_leave("The homeserver is not known to support delayed events")
            }
            (delegation::Error::OwnedByOtherUser, _) => no_leave("No leave can be delegated now"),
            (
                delegation::Error::NoClientApi(client_api::Error::Busy(_))
                | delegation::Error::UserQuotaExceeded
                | delegation::Error::ServerQuotaExceeded
                | delegation::Error::CapacityExceeded
                | delegation::Error::NotStored(_)
                | delegation::Error::Stopping,
                ExchangeOperation::IssueToken,
            ) => no_leave("No leave can be delegated now"),
            (
                delegation::Error::NoClientApi(client_api::Error::Busy(after)),
                ExchangeOperation::DelegateLeave,
            ) => Self::busy(*after),
            (delegation::Error::UserQuotaExceeded, ExchangeOperation::DelegateLeave) => {
                Self::rate_limited(DELEGATION_RETRY_AFTER)
            }
            (
                delegation::Error::ServerQuotaExceeded
                | delegation::Error::CapacityExceeded
                | delegation::Error::NotStored(_)
                | delegation::Error::Stopping,
                ExchangeOperation::DelegateLeave,
            ) => Self::busy(DELEGATION_RETRY_AFTER),
        }
    }
}

/// How loud an error is: what is wrong with the SFU or a `listed` homeserver is the administrator's to mend, what is wrong with
/// strangers is theirs. Callers who find no place are counted elsewhere, for there may be many.
pub(crate) fn log_level(error: &exchange::Error) -> Level {
    match error {
        exchange::Error::RoomNotCreated(..) => Level::Error,
        exchange::Error::NotAuthenticated {
            error: openid::Error::Federation(_),
            listed: true,
        } => Level::Warn,
        exchange::Error::DelegationFailed { error, listed, .. } => match error {
            delegation::Error::NotStored(_) => Level::Error,
            delegation::Error::ServerQuotaExceeded | delegation::Error::CapacityExceeded => {
                Level::Warn
            }
            delegation::Error::NotSupported | delegation::Error::NoClientApi(_) if *listed => {
                Level::Warn
            }
            _ => Level::Info,
        },
        exchange::Error::Busy(..) => Level::Debug,
        _ => Level::Info,
    }
}
