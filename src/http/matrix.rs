//! The door for Matrix: what is asked, what is answered, and what the log says of it.

use std::time::Instant;

use log::{info, log, warn};

use crate::exchange::{self, Exchange, Granted, TokenRequest};
use crate::http::reply::{self, Reply};
use crate::http::request;
use crate::http::route::Call;
use crate::http::tally::Tally;
use crate::metrics;
use crate::random;

/// The exchange behind its door.
#[derive(Debug)]
pub struct MatrixDoor {
    exchange: Exchange,
    url: String,
    busy: Tally,
}

impl MatrixDoor {
    /// `url` is where clients find the SFU.
    pub fn new(exchange: Exchange, url: String) -> Self {
        Self {
            exchange,
            url,
            busy: Tally::default(),
        }
    }

    /// Answers a request for a token.
    pub(super) fn token(
        &self,
        endpoint: &'static str,
        call: &Call<'_>,
        request: Result<TokenRequest, request::Error>,
    ) -> Reply {
        let id = u32::from_ne_bytes(random::bytes());
        let client = call.client;
        let started = Instant::now();
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                let reply = Reply::from(&error);
                metrics::denied("bad_request");
                let (status, cause) = (reply.status, error.to_string());
                info!(
                    "refused request={id:08x} client={client} endpoint={endpoint} status={status} cause={cause:?}"
                );
                return reply;
            }
        };
        let outcome = self.exchange.token(&request, client.parse().ok());
        let ms = started.elapsed().as_millis();
        match outcome {
            Ok(granted) => {
                let Granted {
                    user,
                    access,
                    room,
                    identity,
                    ..
                } = &granted;
                let (user, access) = (user.id().as_str(), access.as_str());
                let (identity, matrix_room) = (identity.as_str(), request.room.as_str());
                info!(
                    "granted request={id:08x} client={client} endpoint={endpoint} user={user:?} access={access} \
                     matrix_room={matrix_room:?} room={room} identity={identity:?} ms={ms}"
                );
                metrics::token("matrix", access);
                Reply::granted(&self.url, &granted)
            }
            Err(error) => {
                let reply = Reply::from(&error);
                metrics::denied(reason(&error));
                let (status, server, cause) = (reply.status, &request.server, error.to_string());
                log!(
                    reply::level(&error, self.exchange.vouches_for(server)),
                    "refused request={id:08x} client={client} endpoint={endpoint} status={status} server={server:?} \
                     ms={ms} cause={cause:?}"
                );
                if let exchange::Error::Busy(..) = error
                    && let Some(count) = self.busy.count(Instant::now())
                {
                    warn!("busy refused={count} cause={cause:?}");
                }
                reply
            }
        }
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
    }
}
