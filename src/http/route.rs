//! Method and path to work.

mod path;

use std::sync::Arc;
use std::time::Instant;

use log::{debug, info};
use serde_json::json;

use self::path::{Endpoint, endpoint, path, proxied};
use crate::http::appservice::AppServiceDoor;
use crate::http::cors::Fields;
use crate::http::head::{BODY_BYTES, LARGE_BODY_BYTES};
use crate::http::limit::Turnstile;
use crate::http::matrix::MatrixDoor;
use crate::http::reply::Reply;
use crate::http::request;
use crate::http::sfu::SfuDoor;
use crate::http::token::TokenDoor;
use crate::metrics::{self, Now};
use crate::token_source::Shown;

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
    /// What it shows of who sent it.
    pub shown: Shown<'a>,
    /// The type of the body.
    pub content_type: Option<&'a str>,
    /// The web page that asks, if one does.
    pub origin: Option<&'a str>,
    /// The user for whom a homeserver asks.
    pub matrix_user: Option<&'a str>,
    /// The other homeserver for which it asks.
    pub matrix_origin: Option<&'a str>,
    /// Method and fields that a browser announces.
    pub preflight: Option<(&'a str, Option<&'a str>)>,
}

/// What of a stranger's text is worth a place in the log.
fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}

/// The work behind the door.
#[derive(Debug)]
pub struct Routes {
    matrix: Option<Arc<MatrixDoor>>,
    appservice: Option<Arc<AppServiceDoor>>,
    sfu: Option<Arc<SfuDoor>>,
    token: Option<TokenDoor>,
    turnstile: Turnstile,
}

impl Routes {
    /// Counts requests by `turnstile`. All doors are closed, and what is behind a closed one is not found.
    pub fn new(turnstile: Turnstile) -> Self {
        Self {
            matrix: None,
            appservice: None,
            sfu: None,
            token: None,
            turnstile,
        }
    }

    /// Opens the door for users of any homeserver.
    pub fn matrix(self, matrix: Option<Arc<MatrixDoor>>) -> Self {
        Self { matrix, ..self }
    }

    /// Opens the door for our homeserver.
    pub fn appservice(self, appservice: Option<Arc<AppServiceDoor>>) -> Self {
        Self { appservice, ..self }
    }

    /// Opens the door for the SFU.
    pub fn sfu(self, sfu: Arc<SfuDoor>) -> Self {
        let sfu = Some(sfu);
        Self { sfu, ..self }
    }

    /// Opens the door for other applications.
    pub fn token(self, token: TokenDoor) -> Self {
        let token = Some(token);
        Self { token, ..self }
    }

    /// What a path means: for our homeserver, if we have one, or for everybody.
    fn endpoint(&self, target: &str) -> Endpoint {
        let proxied = self.appservice.as_ref().and_then(|_| proxied(target));
        proxied.unwrap_or_else(|| endpoint(target))
    }

    /// How many leaves and guests are kept.
    pub fn kept(&self) -> Now {
        let sfu = self.sfu.as_ref();
        sfu.map(|sfu| sfu.kept()).unwrap_or_default()
    }

    /// Whether the answer will wait for other servers.
    pub fn goes_outbound(&self, method: &str, target: &str, shown: Shown<'_>) -> bool {
        let endpoint = self.endpoint(target);
        // the first to ask waits for the SFU
        endpoint == Endpoint::Ready
            || method == "POST"
                && match (endpoint, &self.token) {
                    (Endpoint::GetToken | Endpoint::SfuGet | Endpoint::Delegate, _) => {
                        self.matrix.is_some()
                    }
                    // it waits for the journal, which may be a Redis far away
                    (Endpoint::Webhook, _) => self.sfu.is_some(),
                    (Endpoint::UserToken | Endpoint::UserLeave | Endpoint::ServerToken, _) => true,
                    (Endpoint::Token, Some(token)) => token.would_wait(shown),
                    _ => false,
                }
    }

    /// How many bytes a body may have: more where our homeserver pushes events, and proves that it is the one.
    pub fn body_bytes(&self, target: &str, authorization: Option<&str>) -> usize {
        let pushed = self.endpoint(target) == Endpoint::Events;
        if pushed && self.is_of_our_homeserver(target, authorization) {
            LARGE_BODY_BYTES
        } else {
            BODY_BYTES
        }
    }

    /// Whether our homeserver asks, and proves it.
    pub fn is_of_our_homeserver(&self, target: &str, authorization: Option<&str>) -> bool {
        let door = self.appservice.as_ref();
        door.is_some_and(|door| self.endpoint(target).is_proxied() && door.knows(authorization))
    }

    /// Answers a request, however long that takes.
    pub fn answer(&self, call: &Call<'_>) -> Reply {
        let (started, endpoint) = (Instant::now(), self.endpoint(call.target));
        let reply = self.answer_at(endpoint, call);
        metrics::request(endpoint.as_str(), reply.status, started.elapsed());
        if reply.status == 429 {
            metrics::rate_limited(endpoint.as_str());
        }
        reply
    }

    fn answer_at(&self, endpoint: Endpoint, call: &Call<'_>) -> Reply {
        if endpoint == Endpoint::Alive {
            return alive(call, Reply::empty);
        }
        match (endpoint, &self.sfu, &self.appservice) {
            (Endpoint::Ready, sfu, _) => {
                return alive(call, || {
                    sfu.as_ref()
                        .map_or_else(|| Reply::ready(&[]), |sfu| sfu.ready())
                });
            }
            (Endpoint::Webhook, Some(sfu), _) => {
                return match call.method {
                    "POST" => sfu.webhook(call),
                    "OPTIONS" => Reply::empty(),
                    _ => Reply::not_allowed("POST, OPTIONS"),
                };
            }
            (Endpoint::UserToken, _, Some(door)) => {
                return door.user_token(call, path(call.target));
            }
            (Endpoint::UserLeave, _, Some(door)) => return door.user_leave(call),
            (Endpoint::ServerToken, _, Some(door)) => return door.server_token(call),
            (Endpoint::Ping, _, Some(door)) => return door.ping(call),
            (Endpoint::Events, _, Some(door)) => return door.events(call),
            _ => {}
        }
        match (endpoint, &self.matrix, &self.token) {
            (Endpoint::GetToken | Endpoint::SfuGet | Endpoint::Delegate, Some(matrix), _) => {
                self.answer_matrix(endpoint, matrix, call)
            }
            (Endpoint::Token, _, Some(token)) => token.answer(call, &self.turnstile),
            (Endpoint::Health, _, Some(token)) => token.health(call),
            (Endpoint::Root, _, Some(token)) => token.root(call),
            // a preflight is no promise that the path exists, and one that fails would hide the 404
            _ if call.method == "OPTIONS" => Reply {
                fields: self.page(call),
                ..Reply::empty()
            },
            _ => self.not_found(call),
        }
    }

    fn answer_matrix(&self, endpoint: Endpoint, matrix: &MatrixDoor, call: &Call<'_>) -> Reply {
        match call.method {
            "OPTIONS" => Reply::empty(),
            "POST" => match self.turnstile.pass(call.client) {
                Err(after) => Reply::limited(after),
                Ok(()) if endpoint == Endpoint::SfuGet => {
                    matrix.token("sfu/get", call, request::sfu_get(call.body))
                }
                Ok(()) if endpoint == Endpoint::Delegate => {
                    matrix.delegate(call, request::delegate(call.body))
                }
                Ok(()) => matrix.token("get_token", call, request::get_token(call.body)),
            },
            _ => Reply::not_allowed("POST, OPTIONS"),
        }
    }

    /// What pages learn where the Matrix door is closed; none stands for what they do otherwise.
    fn page(&self, call: &Call<'_>) -> Option<Fields> {
        match (&self.matrix, &self.token) {
            (None, Some(token)) => Some(token.page(call)),
            _ => None,
        }
    }

    fn not_found(&self, call: &Call<'_>) -> Reply {
        let (method, path) = (shown(call.method), shown(path(call.target)));
        info!(
            "refused status=404 client={} method={method:?} path={path:?}",
            call.client
        );
        match (&self.matrix, &self.token) {
            (Some(_), _) | (None, None) => Reply::not_found(),
            (None, Some(_)) => Reply {
                fields: self.page(call),
                ..Reply::json(404, &json!({ "detail": "Not Found" }))
            },
        }
    }
}

fn alive(call: &Call<'_>, well: impl Fn() -> Reply) -> Reply {
    match call.method {
        "GET" | "HEAD" => {
            debug!("asked how it is");
            well()
        }
        "OPTIONS" => Reply::empty(),
        _ => Reply::not_allowed("GET, HEAD, OPTIONS"),
    }
}
