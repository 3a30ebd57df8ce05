//! The door for Matrix: what is asked, what is answered, and what the log says of it.

use std::fmt;
use std::time::Instant;

use log::{info, log, warn};

use crate::current::Current;
use crate::exchange::{self, Delay, Delegated, Exchange, Granted, TokenRequest};
use crate::http::reply::{self, Reply, Wish};
use crate::http::request;
use crate::http::route::Call;
use crate::metrics;
use crate::random;
use crate::tally::Tally;

/// What is behind the door; a reload of the settings replaces it as a whole.
#[derive(Debug)]
pub struct Furniture {
    /// Makes tokens.
    pub exchange: Exchange,
    /// Where clients find the SFU.
    pub url: String,
}

/// The exchange behind its door.
#[derive(Debug)]
pub struct MatrixDoor {
    inside: Current<Furniture>,
    busy: Tally,
}

impl MatrixDoor {
    /// Opens it.
    pub fn new(inside: Furniture) -> Self {
        Self {
            inside: Current::new(inside),
            busy: Tally::default(),
        }
    }

    /// Serves with this from now on; what is under way ends with what it began with.
    pub fn refurnish(&self, inside: Furniture) {
        self.inside.replace(inside);
    }

    /// Answers a request for a token.
    pub(super) fn token(
        &self,
        endpoint: &'static str,
        call: &Call<'_>,
        request: Result<TokenRequest, request::Error>,
    ) -> Reply {
        let asked = Asked::now(endpoint, call.client);
        let request = match request {
            Ok(request) => request,
            Err(error) => return asked.unreadable(&error),
        };
        let inside = self.inside.get();
        match inside.exchange.token(&request, call.client.parse().ok()) {
            Ok(granted) => {
                let Granted {
                    user,
                    access,
                    room,
                    identity,
                    leave,
                    ..
                } = &granted;
                let (user, access) = (user.id().as_str(), access.as_str());
                let (identity, matrix_room) = (identity.as_str(), request.room.as_str());
                let leave = leave.map_or(String::new(), |leave| format!(" leave={leave:08x}"));
                info!(
                    "granted {asked} user={user:?} access={access} matrix_room={matrix_room:?} room={room} \
                     identity={identity:?}{leave} ms={}",
                    asked.ms()
                );
                metrics::token("matrix", access);
                Reply::granted(&inside.url, &granted)
            }
            Err(error) => self.refused(&asked, &request.server, &error, Wish::Token),
        }
    }

    /// Takes a leave, without a token for it.
    pub(super) fn delegate(
        &self,
        call: &Call<'_>,
        request: Result<(TokenRequest, Delay), request::Error>,
    ) -> Reply {
        let asked = Asked::now("delegate_delayed_leave", call.client);
        let (request, delay) = match request {
            Ok(request) => request,
            Err(error) => return asked.unreadable(&error),
        };
        let client = call.client.parse().ok();
        match self
            .inside
            .get()
            .exchange
            .delegate(&request, &delay, client)
        {
            Ok(Delegated { user, leave }) => {
                let (user, ms) = (user.id().as_str(), asked.ms());
                info!("delegated {asked} user={user:?} leave={leave:08x} ms={ms}");
                Reply::done()
            }
            Err(error) => self.refused(&asked, &request.server, &error, Wish::Leave),
        }
    }

    fn refused(
        &self,
        asked: &Asked<'_>,
        server: &str,
        error: &exchange::Error,
        wish: Wish,
    ) -> Reply {
        let reply = Reply::refused(error, wish);
        metrics::denied(reason(error));
        let (status, cause, ms) = (reply.status, error.to_string(), asked.ms());
        log!(
            reply::level(error, self.inside.get().exchange.vouches_for(server)),
            "refused {asked} status={status} server={server:?} ms={ms} cause={cause:?}"
        );
        if let exchange::Error::Busy(..) = error
            && let Some(count) = self.busy.count(Instant::now())
        {
            warn!("busy refused={count} cause={cause:?}");
        }
        reply
    }
}

/// A request in the log.
pub(super) struct Asked<'a> {
    id: u32,
    client: &'a str,
    endpoint: &'static str,
    at: Instant,
}

impl<'a> Asked<'a> {
    pub(super) fn now(endpoint: &'static str, client: &'a str) -> Self {
        Self {
            id: u32::from_ne_bytes(random::bytes()),
            client,
            endpoint,
            at: Instant::now(),
        }
    }

    pub(super) fn ms(&self) -> u128 {
        self.at.elapsed().as_millis()
    }

    pub(super) fn unreadable(&self, error: &request::Error) -> Reply {
        let reply = Reply::from(error);
        metrics::denied("bad_request");
        let (status, cause) = (reply.status, error.to_string());
        info!("refused {self} status={status} cause={cause:?}");
        reply
    }
}

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, client, endpoint) = (self.id, self.client, self.endpoint);
        write!(f, "request={id:08x} client={client} endpoint={endpoint}")
    }
}

/// What an operator counts refusals by.
fn reason(error: &exchange::Error) -> &'static str {
    match error {
        exchange::Error::NotAuthenticated(_) => "not_authenticated",
        exchange::Error::NotWhoTheyClaim(..) => "not_who_they_claim",
        exchange::Error::BadIdentity(_) => "bad_request",
        exchange::Error::Busy(..) => "busy",
        exchange::Error::RoomNotCreated(..) => "room_not_created",
        exchange::Error::LeaveNotAllowed(_) => "leave_not_allowed",
        exchange::Error::LeaveNotTaken(..) => "leave_not_taken",
    }
}
