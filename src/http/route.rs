//! Method and path to work.

mod webhook;

use std::fmt;
use std::time::Instant;

use log::{debug, info, log, warn};

use crate::exchange::{self, Delay, Delegated, Exchange, Granted, TokenRequest};
use crate::http::reply::{self, Reply, Wish};
use crate::http::request;
use crate::http::tally::Tally;
use crate::livekit::webhook::Receiver;
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
    /// What is to prove who asks: a secret.
    pub authorization: Option<&'a str>,
    /// All of it.
    pub body: &'a [u8],
}

/// What a path means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    GetToken,
    SfuGet,
    Delegate,
    Webhook,
    Health,
    Ready,
    Unknown,
}

/// Reads the end of a path: proxies strip their prefix, or do not, or leave a slash too many.
fn endpoint(target: &str) -> Endpoint {
    let mut parts = path(target).rsplit('/').filter(|part| !part.is_empty());
    match (parts.next(), parts.next()) {
        (Some("get_token"), _) => Endpoint::GetToken,
        (Some("get"), Some("sfu")) => Endpoint::SfuGet,
        (Some("delegate_delayed_leave"), _) => Endpoint::Delegate,
        (Some("sfu_webhook"), _) => Endpoint::Webhook,
        (Some("healthz"), _) => Endpoint::Health,
        (Some("readyz"), _) => Endpoint::Ready,
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
    receiver: Receiver,
    url: String,
    busy: Tally,
    forged: Tally,
}

impl Routes {
    /// `url` is where clients find the SFU, and `receiver` knows its webhooks.
    pub fn new(exchange: Exchange, receiver: Receiver, url: String) -> Self {
        Self {
            exchange,
            receiver,
            url,
            busy: Tally::default(),
            forged: Tally::default(),
        }
    }

    /// Whether the answer will wait for other servers.
    pub fn goes_outbound(method: &str, target: &str) -> bool {
        let endpoint = endpoint(target);
        // a webhook waits for the journal, which may be a Redis far away
        let outbound = [
            Endpoint::GetToken,
            Endpoint::SfuGet,
            Endpoint::Delegate,
            Endpoint::Webhook,
        ];
        method == "POST" && outbound.contains(&endpoint)
    }

    /// Answers a request, however long that takes.
    pub fn answer(&self, call: &Call<'_>) -> Reply {
        match (endpoint(call.target), call.method) {
            // a preflight is no promise that the path exists, and one that fails would hide the 404
            (_, "OPTIONS") => Reply::empty(),
            (Endpoint::GetToken, "POST") => {
                self.token("get_token", call, request::get_token(call.body))
            }
            (Endpoint::SfuGet, "POST") => self.token("sfu/get", call, request::sfu_get(call.body)),
            (Endpoint::Delegate, "POST") => self.delegate(call, request::delegate(call.body)),
            (Endpoint::Webhook, "POST") => self.webhook(call),
            (Endpoint::Health, "GET" | "HEAD") => {
                debug!("healthz");
                Reply::empty()
            }
            (Endpoint::Ready, "GET" | "HEAD") => self.ready(),
            (Endpoint::GetToken | Endpoint::SfuGet | Endpoint::Delegate | Endpoint::Webhook, _) => {
                Reply::not_allowed("POST, OPTIONS")
            }
            (Endpoint::Health | Endpoint::Ready, _) => Reply::not_allowed("GET, HEAD, OPTIONS"),
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
        let asked = Asked::now(endpoint, call.client);
        let request = match request {
            Ok(request) => request,
            Err(error) => return asked.unreadable(&error),
        };
        match self.exchange.token(&request, call.client.parse().ok()) {
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
                Reply::granted(&self.url, &granted)
            }
            Err(error) => self.refused(&asked, &request.server, &error, Wish::Token),
        }
    }

    fn delegate(
        &self,
        call: &Call<'_>,
        request: Result<(TokenRequest, Delay), request::Error>,
    ) -> Reply {
        let asked = Asked::now("delegate_delayed_leave", call.client);
        let (request, delay) = match request {
            Ok(request) => request,
            Err(error) => return asked.unreadable(&error),
        };
        let outcome = self
            .exchange
            .delegate(&request, &delay, call.client.parse().ok());
        match outcome {
            Ok(Delegated { user, leave }) => {
                let (user, ms) = (user.id().as_str(), asked.ms());
                info!("delegated {asked} user={user:?} leave={leave:08x} ms={ms}");
                Reply::delegated()
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
        let (status, cause, ms) = (reply.status, error.to_string(), asked.ms());
        log!(
            reply::level(error, self.exchange.vouches_for(server)),
            "refused {asked} status={status} server={server:?} ms={ms} cause={cause:?}"
        );
        if let exchange::Error::Busy(..) = error
            && let Some(count) = self.busy.count(Instant::now())
        {
            warn!("busy refused={count} cause={cause:?}");
        }
        reply
    }

    /// Whether what clients are promised will be kept; the log has what is amiss.
    fn ready(&self) -> Reply {
        match self.exchange.delegation().trouble() {
            None => Reply::empty(),
            Some(cause) => {
                debug!("not ready cause={cause:?}");
                Reply::not_ready()
            }
        }
    }
}

/// A request in the log.
struct Asked<'a> {
    id: u32,
    client: &'a str,
    endpoint: &'static str,
    at: Instant,
}

impl<'a> Asked<'a> {
    fn now(endpoint: &'static str, client: &'a str) -> Self {
        Self {
            id: u32::from_ne_bytes(random::bytes()),
            client,
            endpoint,
            at: Instant::now(),
        }
    }

    fn ms(&self) -> u128 {
        self.at.elapsed().as_millis()
    }

    fn unreadable(&self, error: &request::Error) -> Reply {
        let reply = Reply::from(error);
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
            ("/x/delegate_delayed_leave/", Endpoint::Delegate),
            ("/livekit/sfu_webhook", Endpoint::Webhook),
            ("/readyz", Endpoint::Ready),
        ] {
            assert_eq!(endpoint(target), expected, "{target}");
        }
    }
}
