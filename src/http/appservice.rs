//! The door for the homeserver whose application service we are.

use std::time::Instant;

use log::{Level, debug, info, log, warn};
use serde_json::json;

use crate::access::Access;
use crate::appservice::{AppService, Error, Granted, Shown, Why};
use crate::current::Current;
use crate::delegation;
use crate::http::matrix::Asked;
use crate::http::reply::{Reply, Wish};
use crate::http::request::{proxied, pushed};
use crate::http::route::Call;
use crate::matrix::appservice;
use crate::metrics;
use crate::tally::Tally;

/// Where the service of another homeserver is asked (MSC4195), by the name under which a client has asked us.
const STABLE: &str = "/_matrix/federation/v1/rtc/livekit/get_token";
const UNSTABLE: &str = "/_matrix/federation/unstable/io.element.msc4195/rtc/livekit/get_token";

/// Application-service mode behind its door.
#[derive(Debug)]
pub struct AppServiceDoor {
    inside: Current<AppService>,
    unproven: Tally,
    crowded: Tally,
    busy: Tally,
}

impl AppServiceDoor {
    /// Opens it.
    pub fn new(inside: AppService) -> Self {
        Self {
            inside: Current::new(inside),
            unproven: Tally::default(),
            crowded: Tally::default(),
            busy: Tally::default(),
        }
    }

    /// Serves with this from now on; what is under way ends with what it began with.
    pub fn refurnish(&self, inside: AppService) {
        self.inside.replace(inside);
    }

    /// Answers a user who wants a token; `path` is the one they have asked by.
    pub(super) fn user_token(&self, call: &Call<'_>, path: &str) -> Reply {
        self.answer(call, "POST", "client/get_token", |asked| {
            let inside = self.inside.get();
            let user = inside.doorkeeper().user(shown(call))?;
            let request = proxied::user_token(call.body).map_err(Refused::Unreadable)?;
            let path = if path.contains("/unstable/io.element.msc4195/") {
                UNSTABLE
            } else {
                STABLE
            };
            let place = &request.place;
            let server = request.server.as_ref();
            let granted = inside.token(&user, server, place, path)?;
            let (name, room) = (user.id().as_str(), place.room.as_str());
            Ok(granted_to(asked, name, Access::Full, room, granted))
        })
    }

    /// Answers another homeserver that wants a token for its user.
    pub(super) fn server_token(&self, call: &Call<'_>) -> Reply {
        self.answer(call, "POST", "federation/get_token", |asked| {
            let inside = self.inside.get();
            let origin = inside.doorkeeper().origin(shown(call))?;
            let request = proxied::server_token(call.body).map_err(Refused::Unreadable)?;
            let granted = inside.token_for(&origin, &request.user, &request.place)?;
            let (name, room) = (request.user.as_str(), request.place.room.as_str());
            Ok(granted_to(asked, name, Access::Restricted, room, granted))
        })
    }

    /// Takes the leave of a user.
    pub(super) fn user_leave(&self, call: &Call<'_>) -> Reply {
        self.answer(call, "POST", "client/delegate_delayed_leave", |asked| {
            let inside = self.inside.get();
            let user = inside.doorkeeper().user(shown(call))?;
            let request = proxied::user_leave(call.body).map_err(Refused::Unreadable)?;
            let leave = inside.delegate(&user, &request.place, &request.delay)?;
            let (user, ms) = (user.id().as_str(), asked.ms());
            info!("delegated {asked} user={user:?} leave={leave:08x} ms={ms}");
            Ok(Reply::done())
        })
    }

    /// Tells the homeserver that we are there (Matrix spec v1.16, application service API, "Pinging").
    pub(super) fn ping(&self, call: &Call<'_>) -> Reply {
        self.answer(call, "POST", "ping", |_| {
            let inside = self.inside.get();
            inside.doorkeeper().authenticate(call.authorization)?;
            Ok(Reply::done())
        })
    }

    /// Whether it is the homeserver that asks.
    pub(super) fn knows(&self, authorization: Option<&str>) -> bool {
        let inside = self.inside.get();
        inside.doorkeeper().authenticate(authorization).is_ok()
    }

    /// Takes events that the homeserver pushes (the same, "Pushing events"). They are not believed: whoever has left, going by them,
    /// is looked at. To take the same ones twice does no harm.
    pub(super) fn events(&self, call: &Call<'_>) -> Reply {
        self.answer(call, "PUT", "transactions", |asked| {
            let inside = self.inside.get();
            inside.doorkeeper().authenticate(call.authorization)?;
            let departures = pushed::departures(call.body).map_err(Refused::Unreadable)?;
            let guests: usize = departures.iter().map(|who| inside.doubt(who)).sum();
            let departures = departures.len();
            debug!("events {asked} departures={departures} guests={guests}");
            Ok(Reply::done())
        })
    }

    /// The homeserver speaks to browsers, so there is nothing for them in these replies.
    fn answer(
        &self,
        call: &Call<'_>,
        method: &'static str,
        endpoint: &'static str,
        answer: impl FnOnce(&Asked<'_>) -> Result<Reply, Refused>,
    ) -> Reply {
        let asked = Asked::now(endpoint, call.client);
        let reply = if call.method == method {
            answer(&asked).unwrap_or_else(|refused| match refused {
                Refused::Unreadable(error) => asked.unreadable(&error),
                Refused::Because(error) => self.refused(&asked, &error),
            })
        } else {
            Reply::not_allowed(method)
        };
        Reply {
            fields: Some(Vec::new()),
            ..reply
        }
    }

    fn refused(&self, asked: &Asked<'_>, error: &Error) -> Reply {
        let (reply, level, reason) = verdict(error);
        metrics::denied(reason);
        let (status, cause, ms) = (reply.status, error.to_string(), asked.ms());
        let tally = match error {
            Error::NotAuthenticated | Error::NotTheHomeserver => Some(&self.unproven),
            Error::TooMany(_) | Error::TooOften(..) => Some(&self.crowded),
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
            && let Some(count) = self.busy.count(Instant::now())
        {
            warn!("busy refused={count} cause={cause:?}");
        }
        reply
    }
}

/// Why there is no answer.
enum Refused {
    Unreadable(super::request::Error),
    Because(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Because(error)
    }
}

fn shown<'a>(call: &Call<'a>) -> Shown<'a> {
    Shown {
        authorization: call.authorization,
        user: call.matrix_user,
        origin: call.matrix_origin,
    }
}

/// Writes a token into the log and the reply; of the one that is another's only the reply.
fn granted_to(
    asked: &Asked<'_>,
    user: &str,
    access: Access,
    matrix_room: &str,
    granted: Granted,
) -> Reply {
    let (ms, access) = (asked.ms(), access.as_str());
    match granted {
        Granted::Ours(token, key) => {
            let (room, identity) = (&key.room, key.identity.as_str());
            info!(
                "granted {asked} user={user:?} access={access} matrix_room={matrix_room:?} room={room} identity={identity:?} ms={ms}"
            );
            metrics::token("appservice", access);
            Reply::json(200, &json!({ "jwt": token.expose() }))
        }
        Granted::Theirs(token) => {
            info!(
                "relayed {asked} user={user:?} access={access} matrix_room={matrix_room:?} ms={ms}"
            );
            metrics::token("appservice", "relayed");
            Reply::json(200, &json!({ "jwt": &*token }))
        }
    }
}

/// What the homeserver is answered, how loud the log is, and what an operator counts it by. The caller learns nothing of what is
/// between the homeserver and us.
fn verdict(error: &Error) -> (Reply, Level, &'static str) {
    let forbidden = |error| Reply::error(403, "M_FORBIDDEN", error);
    let invalid = |error| Reply::error(400, "M_INVALID_PARAM", error);
    let failed = |error| Reply::error(502, "M_UNKNOWN", error);
    match error {
        Error::NotAuthenticated => (
            Reply::error(401, "M_UNAUTHORIZED", "This is for the homeserver only"),
            Level::Warn,
            "not_authenticated",
        ),
        Error::NotTheHomeserver => (
            forbidden("This is for the homeserver only"),
            Level::Warn,
            "not_authenticated",
        ),
        Error::NoCaller(_) => (
            forbidden("The homeserver does not say who asks"),
            Level::Warn,
            "not_who_they_claim",
        ),
        Error::NotJoined(_) | Error::ServerNotJoined(_) => {
            (forbidden("Not in the room"), Level::Info, "not_joined")
        }
        Error::NotOfOrigin(..) => (
            forbidden("The user is of another server"),
            Level::Info,
            "not_who_they_claim",
        ),
        Error::NotOurs(_) => (
            invalid("The url is not of an SFU of this service"),
            Level::Info,
            "not_our_sfu",
        ),
        // there may be many, and a tally speaks for them
        Error::Homeserver(appservice::Error::Busy) => (Reply::busy(AGAIN), Level::Debug, "busy"),
        Error::Homeserver(_) => (
            failed("The homeserver cannot be asked"),
            Level::Error,
            "homeserver",
        ),
        Error::NotRelayed(error) => {
            let (reply, reason) = match error.why {
                Why::Forbidden => (forbidden("The other server forbids it"), "relay_refused"),
                Why::Invalid => (
                    invalid("The other server finds it invalid"),
                    "relay_refused",
                ),
                // whatever it was, it is a failure of the other server (MSC4195)
                Why::Failed(..) | Why::Nothing(_) => {
                    (failed("The other server gives no token"), "relay_failed")
                }
            };
            (reply, Level::Info, reason)
        }
        Error::Busy(_) => (Reply::busy(AGAIN), Level::Debug, "busy"),
        Error::TooOften(_, after) => (Reply::limited(*after), Level::Warn, "rate_limited"),
        Error::TooMany(error) => (Reply::limited(error.after), Level::Warn, "busy"),
        Error::RoomNotCreated(_) => (
            Reply::error(500, "M_UNKNOWN", "Unable to create room on SFU"),
            Level::Error,
            "room_not_created",
        ),
        Error::NoSuchEvent(_) => (
            invalid("No such delayed event in this room"),
            Level::Info,
            "leave_not_taken",
        ),
        Error::LeaveNotTaken(error) => (
            Reply::leave_not_taken(error, Wish::Leave),
            match error {
                delegation::Error::NotStored(_) => Level::Error,
                delegation::Error::NotSupported | delegation::Error::NoClientApi(_) => Level::Warn,
                _ => Level::Info,
            },
            "leave_not_taken",
        ),
    }
}

/// When to come again where no place was free.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(1);
