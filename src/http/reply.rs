//! Every outcome as a reply: status, errcode, and how loud it is logged.

use std::time::Duration;

use log::Level;
use serde_json::{Value, json};

use crate::delegation;
use crate::exchange::{self, Granted};
use crate::http::cors::Fields;
use crate::http::request;
use crate::matrix::client_api;
use crate::matrix::openid;
use crate::net::bulkhead::Full;
use crate::readiness::Ailment;

/// Without these on every reply, errors included, a browser shows its user nothing but a network error.
pub const CORS: [(&str, &str); 4] = [
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
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// JSON, or empty.
    pub body: Vec<u8>,
    /// Seconds after which to try again.
    pub retry_after: Option<u64>,
    /// Methods that the path knows.
    pub allow: Option<&'static str>,
    /// What else there is in the head. None stands for [`CORS`].
    pub fields: Option<Fields>,
}

impl Reply {
    /// 200 without a body.
    pub fn empty() -> Self {
        Self {
            status: 200,
            body: Vec::new(),
            retry_after: None,
            allow: None,
            fields: None,
        }
    }

    /// JSON of this status.
    pub fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            body: body.to_string().into_bytes(),
            ..Self::empty()
        }
    }

    /// An error in Matrix's form.
    pub fn error(status: u16, errcode: &str, error: &str) -> Self {
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
    pub fn granted(url: &str, granted: &Granted) -> Self {
        let body = json!({ "url": url, "jwt": granted.token.expose() })
            .to_string()
            .into_bytes();
        Self {
            body,
            ..Self::empty()
        }
    }

    /// 200, and nothing to say.
    pub fn done() -> Self {
        Self {
            body: b"{}".to_vec(),
            ..Self::empty()
        }
    }

    /// 401 to the SFU, or to whoever claims to be it. It does not try again.
    pub fn not_the_sfu() -> Self {
        Self::error(401, "M_UNAUTHORIZED", "The webhook could not be verified")
    }

    /// 200 if nothing is amiss, else 503 with what is.
    pub fn ready(ailments: &[Ailment]) -> Self {
        if ailments.is_empty() {
            return Self::json(200, &json!({ "status": "ready" }));
        }
        let reasons: Vec<_> = ailments.iter().map(ToString::to_string).collect();
        Self::json(503, &json!({ "status": "not ready", "reasons": reasons }))
    }

    /// 404: there is nothing here, or not yet.
    pub fn not_found() -> Self {
        Self::error(404, "M_UNRECOGNIZED", "Unrecognized request")
    }

    /// 405, with the methods that would do.
    pub fn not_allowed(allow: &'static str) -> Self {
        Self {
            allow: Some(allow),
            ..Self::error(405, "M_UNRECOGNIZED", "Unrecognized method")
        }
    }

    /// 500: a fault of ours.
    pub fn broken() -> Self {
        Self::error(500, "M_UNKNOWN", "Internal error")
    }

    /// To come again after this time, rounded up: who comes back at the very time must not be too early.
    pub(super) fn retry(self, after: Duration) -> Self {
        let seconds = after.as_millis().div_ceil(1000).max(1);
        Self {
            retry_after: u64::try_from(seconds).ok(),
            ..self
        }
    }

    /// 429: the client itself, or the server that it names, is too much.
    pub(super) fn limited(after: Duration) -> Self {
        let ms = after.as_micros().div_ceil(1000).max(1);
        let body = json!({ "errcode": "M_LIMIT_EXCEEDED", "error": "Too many requests", "retry_after_ms": ms as u64 });
        let reply = Self {
            status: 429,
            body: body.to_string().into_bytes(),
            ..Self::empty()
        };
        reply.retry(after)
    }

    /// 503: no fault of the client.
    pub fn busy(after: Duration) -> Self {
        Self::error(503, "M_UNKNOWN", "The service is busy").retry(after)
    }
}

impl From<&request::Error> for Reply {
    fn from(error: &request::Error) -> Self {
        let errcode = match error {
            request::Error::NotJson => "M_NOT_JSON",
            request::Error::Field(..) => "M_BAD_JSON",
        };
        Self::error(400, errcode, &error.to_string())
    }
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// A token, perhaps with a leave: told that its delay fields are bad, the client asks again without them and keeps its own timer.
    Token,
    /// A leave only.
    Leave,
}

/// What to tell a client whose leave was not taken on for now.
pub(super) const LEAVE_RETRY: Duration = Duration::from_secs(10);

impl Reply {
    /// What came of a wish.
    pub fn refused(error: &exchange::Error, wish: Wish) -> Self {
        let no_leave = |error| Self::error(400, "M_BAD_JSON", error);
        match error {
            // one sentence for all reasons: the caller learns nothing of what we can reach
            exchange::Error::NotAuthenticated(_) | exchange::Error::NotWhoTheyClaim(..) => {
                Self::error(
                    401,
                    "M_UNAUTHORIZED",
                    "The OpenID token could not be verified",
                )
            }
            exchange::Error::BadIdentity(error) => {
                Self::error(400, "M_BAD_JSON", &format!("device_id: {error}"))
            }
            exchange::Error::Busy(Full::Name | Full::Neighbourhood | Full::Rate, after) => {
                Self::limited(*after)
            }
            exchange::Error::Busy(Full::Service | Full::LookUps, after) => Self::busy(*after),
            exchange::Error::RoomNotCreated(..) => {
                Self::error(500, "M_UNKNOWN", "Unable to create room on SFU")
            }
            exchange::Error::LeaveNotAllowed(_) => {
                let error = "Delegated leaves are not for users of this homeserver";
                match wish {
                    Wish::Token => no_leave(error),
                    Wish::Leave => Self::error(403, "M_FORBIDDEN", error),
                }
            }
            exchange::Error::LeaveNotTaken(_, error) => Self::leave_not_taken(error, wish),
        }
    }

    /// Why a leave was not taken on.
    pub fn leave_not_taken(error: &delegation::Error, wish: Wish) -> Self {
        let no_leave = |error| Self::error(400, "M_BAD_JSON", error);
        match (error, wish) {
            (delegation::Error::NotSupported, _)
            | (
                delegation::Error::NoClientApi(
                    client_api::Error::Absent(_) | client_api::Error::Unreachable(_),
                ),
                _,
            ) => no_leave("The homeserver is not known to support delayed events"),
            (delegation::Error::NotTheirs, _) => no_leave("No leave can be delegated now"),
            (
                delegation::Error::NoClientApi(client_api::Error::Busy(_))
                | delegation::Error::TooMany
                | delegation::Error::Full
                | delegation::Error::NotStored(_)
                | delegation::Error::Stopping,
                Wish::Token,
            ) => no_leave("No leave can be delegated now"),
            (delegation::Error::NoClientApi(client_api::Error::Busy(after)), Wish::Leave) => {
                Self::busy(*after)
            }
            (delegation::Error::TooMany, Wish::Leave) => Self::limited(LEAVE_RETRY),
            (
                delegation::Error::Full
                | delegation::Error::NotStored(_)
                | delegation::Error::Stopping,
                Wish::Leave,
            ) => Self::busy(LEAVE_RETRY),
        }
    }
}

/// How loud an error is: what is wrong with the SFU or a `listed` homeserver is the administrator's to mend, what is wrong with
/// strangers is theirs. Callers who find no place are counted elsewhere, for there may be many.
pub fn level(error: &exchange::Error, listed: bool) -> Level {
    match error {
        exchange::Error::RoomNotCreated(..) => Level::Error,
        exchange::Error::NotAuthenticated(openid::Error::Federation(_)) if listed => Level::Warn,
        exchange::Error::LeaveNotTaken(_, error) => match error {
            delegation::Error::NotStored(_) => Level::Error,
            delegation::Error::Full => Level::Warn,
            delegation::Error::NotSupported | delegation::Error::NoClientApi(_) if listed => {
                Level::Warn
            }
            delegation::Error::NotSupported
            | delegation::Error::NoClientApi(_)
            | delegation::Error::TooMany
            | delegation::Error::NotTheirs
            | delegation::Error::Stopping => Level::Info,
        },
        exchange::Error::Busy(..) => Level::Debug,
        exchange::Error::NotAuthenticated(_)
        | exchange::Error::NotWhoTheyClaim(..)
        | exchange::Error::BadIdentity(_)
        | exchange::Error::LeaveNotAllowed(_) => Level::Info,
    }
}
