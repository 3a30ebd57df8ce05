//! Method and path to work.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use log::{debug, info};
use serde_json::json;

use super::appservice::AppServiceApi;
use super::cors::ResponseHeaders;
use super::matrix::MatrixApi;
use super::path::{Endpoint, parse_endpoint, parse_proxied_endpoint, strip_query};
use super::rate_limit::AddressRateLimiter;
use super::request_body;
use super::response::Response;
use super::token::TokenApi;
use super::webhook::WebhookApi;
use crate::server::ClientAddress;
use crate::token::Credentials;
use crate::util::metrics;
use crate::util::metrics::MetricsSnapshot;

/// Characters of an unknown path that reach the log.
const MAX_LOGGED_PATH_CHARS: usize = 100;

/// A request, complete. Its body may hold a token: never logged.
pub(crate) struct ApiRequest<'a> {
    /// As it came.
    pub method: &'a str,
    /// Path and query, as they came.
    pub target: &'a str,
    /// Address of the client.
    pub client: ClientAddress,
    /// The address that rate limits apply to; `None` for a client without limits.
    pub rate_key: Option<IpAddr>,
    /// What is to prove who asks: a secret.
    pub authorization: Option<&'a str>,
    /// All of it.
    pub body: &'a [u8],
    /// What it shows of who sent it.
    pub credentials: Credentials<'a>,
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

/// The endpoint of a request, resolved once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestRoute {
    endpoint: Endpoint,
    /// Whether our homeserver sent the request, to an endpoint of its own, and has proven it.
    pub(super) from_homeserver: bool,
}

impl RequestRoute {
    /// Whether our homeserver pushes events.
    pub(super) fn is_transaction(self) -> bool {
        self.endpoint == Endpoint::Transactions && self.from_homeserver
    }
}

/// What of a stranger's text is worth a place in the log.
fn truncate_for_log(text: &str) -> String {
    text.chars().take(MAX_LOGGED_PATH_CHARS).collect()
}

/// The work behind the door.
#[derive(Debug)]
pub(crate) struct Router {
    matrix: Option<Arc<MatrixApi>>,
    appservice: Option<Arc<AppServiceApi>>,
    webhook: Option<Arc<WebhookApi>>,
    token: Option<TokenApi>,
    rate_limiter: AddressRateLimiter,
}

impl Router {
    /// Counts requests by `turnstile`. All doors are closed, and what is behind a closed one is not found.
    pub(crate) fn new(turnstile: AddressRateLimiter) -> Self {
        Self {
            matrix: None,
            appservice: None,
            webhook: None,
            token: None,
            rate_limiter: turnstile,
        }
    }

    /// Opens the door for users of any homeserver.
    pub(crate) fn with_matrix(self, matrix: Option<Arc<MatrixApi>>) -> Self {
        Self { matrix, ..self }
    }

    /// Opens the door for our homeserver.
    pub(crate) fn with_appservice(self, appservice: Option<Arc<AppServiceApi>>) -> Self {
        Self { appservice, ..self }
    }

    /// Opens the door for the SFU.
    pub(crate) fn with_webhook(self, sfu: Arc<WebhookApi>) -> Self {
        let sfu = Some(sfu);
        Self {
            webhook: sfu,
            ..self
        }
    }

    /// Opens the door for other applications.
    pub(crate) fn with_token(self, token: TokenApi) -> Self {
        let token = Some(token);
        Self { token, ..self }
    }

    /// Finds the endpoint of a request, and checks whether our homeserver sent it.
    pub(super) fn resolve(&self, target: &str, authorization: Option<&str>) -> RequestRoute {
        let appservice = self.appservice.as_ref();
        let proxied = appservice.and_then(|_| parse_proxied_endpoint(target));
        let endpoint = proxied.unwrap_or_else(|| parse_endpoint(target));
        let from_homeserver = appservice.is_some_and(|appservice| {
            endpoint.is_proxied() && appservice.is_authenticated(authorization)
        });
        RequestRoute {
            endpoint,
            from_homeserver,
        }
    }

    /// How many leaves and guests are kept.
    pub(crate) fn gauge_values(&self) -> MetricsSnapshot {
        let sfu = self.webhook.as_ref();
        sfu.map(|sfu| sfu.gauge_values()).unwrap_or_default()
    }

    /// Whether the answer will wait for other servers.
    pub(super) fn needs_upstream(
        &self,
        method: &str,
        route: RequestRoute,
        shown: Credentials<'_>,
    ) -> bool {
        let endpoint = route.endpoint;
        // the first to ask waits for the SFU
        endpoint == Endpoint::Readiness
            || method == "POST"
                && match (endpoint, &self.token) {
                    (Endpoint::GetToken | Endpoint::SfuGet | Endpoint::DelegateDelayedLeave, _) => {
                        self.matrix.is_some()
                    }
                    // it waits for the journal, which may be a Redis far away
                    (Endpoint::SfuWebhook, _) => self.webhook.is_some(),
                    (
                        Endpoint::ClientGetToken
                        | Endpoint::ClientDelegateDelayedLeave
                        | Endpoint::FederationGetToken,
                        _,
                    ) => true,
                    (Endpoint::Token, Some(token)) => token.needs_upstream(shown),
                    _ => false,
                }
    }

    /// Answers a request, however long that takes.
    pub(super) fn respond(&self, route: RequestRoute, call: &ApiRequest<'_>) -> Response {
        let (started, endpoint) = (Instant::now(), route.endpoint);
        let reply = self.dispatch(endpoint, call);
        metrics::count_request(endpoint.as_str(), reply.status, started.elapsed());
        reply
    }

    fn dispatch(&self, endpoint: Endpoint, call: &ApiRequest<'_>) -> Response {
        if endpoint == Endpoint::Liveness {
            return respond_to_probe(call, Response::empty);
        }
        match (endpoint, &self.webhook, &self.appservice) {
            (Endpoint::Readiness, sfu, _) => {
                return respond_to_probe(call, || {
                    sfu.as_ref()
                        .map_or_else(|| Response::readiness(&[]), |sfu| sfu.handle_readiness())
                });
            }
            (Endpoint::SfuWebhook, Some(sfu), _) => {
                return match call.method {
                    "POST" => sfu.handle_webhook(call),
                    "OPTIONS" => Response::empty(),
                    _ => Response::method_not_allowed("POST, OPTIONS"),
                };
            }
            (Endpoint::ClientGetToken, _, Some(door)) => {
                return door.handle_client_token(call, strip_query(call.target));
            }
            (Endpoint::ClientDelegateDelayedLeave, _, Some(door)) => {
                return door.handle_client_delegate(call);
            }
            (Endpoint::FederationGetToken, _, Some(door)) => {
                return door.handle_federation_token(call);
            }
            (Endpoint::Ping, _, Some(door)) => return door.handle_ping(call),
            (Endpoint::Transactions, _, Some(door)) => return door.handle_transaction(call),
            _ => {}
        }
        match (endpoint, &self.matrix, &self.token) {
            (
                Endpoint::GetToken | Endpoint::SfuGet | Endpoint::DelegateDelayedLeave,
                Some(matrix),
                _,
            ) => self.dispatch_matrix(endpoint, matrix, call),
            (Endpoint::Token, _, Some(token)) => token.handle_token(call, &self.rate_limiter),
            (Endpoint::Health, _, Some(token)) => token.handle_health(call),
            (Endpoint::Root, _, Some(token)) => token.handle_root(call),
            // a preflight is no promise that the path exists, and one that fails would hide the 404
            _ if call.method == "OPTIONS" => Response {
                headers: self.fallback_cors_headers(call),
                ..Response::empty()
            },
            _ => self.reject_unknown_path(call),
        }
    }

    fn dispatch_matrix(
        &self,
        endpoint: Endpoint,
        matrix: &MatrixApi,
        call: &ApiRequest<'_>,
    ) -> Response {
        match call.method {
            "OPTIONS" => Response::empty(),
            "POST" => match self.rate_limiter.check(call.client, call.rate_key) {
                Err(after) => Response::rate_limited(after),
                Ok(()) if endpoint == Endpoint::SfuGet => {
                    matrix.handle_token("sfu/get", call, request_body::parse_sfu_get(call.body))
                }
                Ok(()) if endpoint == Endpoint::DelegateDelayedLeave => matrix
                    .handle_delegate(call, request_body::parse_delegate_delayed_leave(call.body)),
                Ok(()) => {
                    matrix.handle_token("get_token", call, request_body::parse_get_token(call.body))
                }
            },
            _ => Response::method_not_allowed("POST, OPTIONS"),
        }
    }

    /// What pages learn where the Matrix door is closed; none stands for what they do otherwise.
    fn fallback_cors_headers(&self, call: &ApiRequest<'_>) -> Option<ResponseHeaders> {
        match (&self.matrix, &self.token) {
            (None, Some(token)) => Some(token.cors_headers(call)),
            _ => None,
        }
    }

    fn reject_unknown_path(&self, call: &ApiRequest<'_>) -> Response {
        let (method, path) = (
            truncate_for_log(call.method),
            truncate_for_log(strip_query(call.target)),
        );
        info!(
            "refused status=404 client={} method={method:?} path={path:?}",
            call.client
        );
        match (&self.matrix, &self.token) {
            (Some(_), _) | (None, None) => Response::not_found(),
            (None, Some(_)) => Response {
                headers: self.fallback_cors_headers(call),
                ..Response::json(404, &json!({ "detail": "Not Found" }))
            },
        }
    }
}

fn respond_to_probe(call: &ApiRequest<'_>, well: impl Fn() -> Response) -> Response {
    match call.method {
        "GET" | "HEAD" => {
            debug!("asked how it is");
            well()
        }
        "OPTIONS" => Response::empty(),
        _ => Response::method_not_allowed("GET, HEAD, OPTIONS"),
    }
}
