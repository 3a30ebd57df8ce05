//! Method and path to work.

use std::time::Instant;

use log::{debug, info, log, warn};

use crate::exchange::{self, Exchange, Granted, TokenRequest};
use crate::http::reply::{self, Reply};
use crate::http::request;
use crate::http::tally::Tally;
use crate::metrics;
use crate::random;

/// Characters of an unknown path that reach the log.
const MAX_SHOWN: usize = 100;

/// A request, complete. Its body may hold a token: never logged.
pub struct Call<'a> {
    /// As it came.
    pub method: &'a str,
    /// Path and query, as they came.
    pub target: &'a str,
    /// The address of whoever asks, or `unix`.
    pub client: &'a str,
    /// All of it.
    pub body: &'a [u8],
}

/// What a path means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    GetToken,
    SfuGet,
    Health,
    Unknown,
}

impl Endpoint {
    fn as_str(self) -> &'static str {
        match self {
            Self::GetToken => "get_token",
            Self::SfuGet => "sfu/get",
            Self::Health => "healthz",
            Self::Unknown => "unknown",
        }
    }
}

/// Reads the end of a path: proxies strip their prefix, or do not, or leave a slash too many.
fn endpoint(target: &str) -> Endpoint {
    let mut parts = path(target).rsplit('/').filter(|part| !part.is_empty());
    match (parts.next(), parts.next()) {
        (Some("get_token"), _) => Endpoint::GetToken,
        (Some("get"), Some("sfu")) => Endpoint::SfuGet,
        (Some("healthz"), _) => Endpoint::Health,
        _ => Endpoint::Unknown,
    }
}

fn path(target: &str) -> &str {
    target.split(['?', '#']).next().unwrap_or_default()
}

/// What of a stranger's text is worth a place in the log.
fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}

/// The work behind the door.
#[derive(Debug)]
pub struct Routes {
    exchange: Exchange,
    url: String,
    busy: Tally,
}

impl Routes {
    /// `url` is where clients find the SFU.
    pub fn new(exchange: Exchange, url: String) -> Self {
        Self {
            exchange,
            url,
            busy: Tally::default(),
        }
    }

    /// Whether the answer will wait for other servers.
    pub fn goes_outbound(method: &str, target: &str) -> bool {
        method == "POST" && matches!(endpoint(target), Endpoint::GetToken | Endpoint::SfuGet)
    }

    /// Answers a request, however long that takes.
    pub fn answer(&self, call: &Call<'_>) -> Reply {
        let (started, endpoint) = (Instant::now(), endpoint(call.target));
        let reply = self.answer_at(endpoint, call);
        metrics::request(endpoint.as_str(), reply.status, started.elapsed());
        if reply.status == 429 {
            metrics::rate_limited(endpoint.as_str());
        }
        reply
    }

    fn answer_at(&self, endpoint: Endpoint, call: &Call<'_>) -> Reply {
        match (endpoint, call.method) {
            // a preflight is no promise that the path exists, and one that fails would hide the 404
            (_, "OPTIONS") => Reply::empty(),
            (Endpoint::GetToken, "POST") => {
                self.token("get_token", call, request::get_token(call.body))
            }
            (Endpoint::SfuGet, "POST") => self.token("sfu/get", call, request::sfu_get(call.body)),
            (Endpoint::Health, "GET" | "HEAD") => {
                debug!("healthz");
                Reply::empty()
            }
            (Endpoint::GetToken | Endpoint::SfuGet, _) => Reply::not_allowed("POST, OPTIONS"),
            (Endpoint::Health, _) => Reply::not_allowed("GET, HEAD, OPTIONS"),
            (Endpoint::Unknown, method) => {
                let (method, path) = (shown(method), shown(path(call.target)));
                info!(
                    "refused status=404 client={} method={method:?} path={path:?}",
                    call.client
                );
                Reply::not_found()
            }
        }
    }

    fn token(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_path_decides() {
        for (target, expected) in [
            ("/get_token", Endpoint::GetToken),
            ("//get_token", Endpoint::GetToken),
            ("/get_token/", Endpoint::GetToken),
            ("/livekit/jwt/get_token?x=/healthz", Endpoint::GetToken),
            ("/livekit/jwt//sfu//get//", Endpoint::SfuGet),
            ("/sfu/get", Endpoint::SfuGet),
            ("/healthz", Endpoint::Health),
            ("http://host/healthz", Endpoint::Health),
            ("/get", Endpoint::Unknown),
            ("/xsfu/get", Endpoint::Unknown),
            ("/sfu/get/x", Endpoint::Unknown),
            ("/?/get_token", Endpoint::Unknown),
            ("/", Endpoint::Unknown),
            ("", Endpoint::Unknown),
            ("/delegate_delayed_leave", Endpoint::Unknown),
        ] {
            assert_eq!(endpoint(target), expected, "{target}");
        }
    }
}
