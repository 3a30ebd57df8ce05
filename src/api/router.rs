//! Router: from method and path to the endpoint that answers.

use std::sync::Arc;

use log::info;

use super::appservice::AppServiceApi;
use super::matrix::MatrixApi;
use super::rate_limit::AddressRateLimiter;
use super::readiness::{Readiness, readiness_response};
use super::refusal::{Refusal, RefusalThrottles, detail, detail_rate_limited};
use super::request::{ApiRequest, RequestContext};
use super::request_body;
use super::token::TokenApi;
use super::webhook::WebhookApi;
use crate::exchange::appservice::{HomeserverProof, HsTokenError, MscVersion};
use crate::server::HttpResponse;
use crate::token::Credentials;
use crate::util::metrics::{self, MetricsSnapshot};
use crate::util::text::truncate_chars;

/// Characters of an unknown path that reach the log.
const MAX_LOGGED_PATH_CHARS: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    GetToken,
    SfuGet,
    DelegateDelayedLeave,
    SfuWebhook,
    Liveness,
    Readiness,
    Token,
    Health,
    Root,
    ClientGetToken(MscVersion),
    ClientDelegateDelayedLeave,
    FederationGetToken,
    Ping,
    Transactions,
    Unknown,
}

/// Who uses an endpoint, which decides CORS header fields and the form of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Audience {
    /// Matrix clients, probes and the SFU: errors of the Matrix API, CORS for any web page.
    Matrix,
    /// Our homeserver: errors of the Matrix API, no CORS.
    Homeserver,
    /// Other applications: errors of the example server, CORS for the allowed origins.
    Application,
}

impl Endpoint {
    /// The endpoint's name in log and metrics.
    fn as_str(self) -> &'static str {
        match self {
            Self::GetToken => "get_token",
            Self::SfuGet => "sfu/get",
            Self::DelegateDelayedLeave => "delegate_delayed_leave",
            Self::SfuWebhook => "sfu_webhook",
            Self::Liveness => "healthz",
            Self::Readiness => "readyz",
            Self::Token => "token",
            Self::Health => "health",
            Self::Root => "root",
            Self::ClientGetToken(_) => "client/get_token",
            Self::ClientDelegateDelayedLeave => "client/delegate_delayed_leave",
            Self::FederationGetToken => "federation/get_token",
            Self::Ping => "ping",
            Self::Transactions => "transactions",
            Self::Unknown => "unknown",
        }
    }

    fn audience(self) -> Audience {
        match self {
            Self::ClientGetToken(_)
            | Self::ClientDelegateDelayedLeave
            | Self::FederationGetToken
            | Self::Ping
            | Self::Transactions => Audience::Homeserver,
            Self::Token | Self::Health | Self::Root => Audience::Application,
            _ => Audience::Matrix,
        }
    }

    /// Methods, as `Allow` lists them.
    fn methods(self) -> &'static str {
        match self {
            Self::Liveness | Self::Readiness => "GET, HEAD, OPTIONS",
            Self::Health | Self::Root => "GET, HEAD",
            Self::Transactions => "PUT",
            _ if self.audience() == Audience::Matrix => "POST, OPTIONS",
            _ => "POST",
        }
    }

    fn is_rate_limited(self) -> bool {
        matches!(
            self,
            Self::GetToken | Self::SfuGet | Self::DelegateDelayedLeave | Self::Token
        )
    }
}

/// Parses the last segments of a path: a proxy may strip its prefix or not, or add a slash.
fn parse_endpoint(path: &str) -> Endpoint {
    let mut segments = path.rsplit('/').filter(|segment| !segment.is_empty());
    match (segments.next(), segments.next()) {
        (Some("get_token"), _) => Endpoint::GetToken,
        (Some("get"), Some("sfu")) => Endpoint::SfuGet,
        (Some("delegate_delayed_leave"), _) => Endpoint::DelegateDelayedLeave,
        (Some("sfu_webhook"), _) => Endpoint::SfuWebhook,
        (Some("healthz"), _) => Endpoint::Liveness,
        (Some("readyz"), _) => Endpoint::Readiness,
        (Some("token"), _) => Endpoint::Token,
        (Some("health"), _) => Endpoint::Health,
        (None, _) => Endpoint::Root,
        _ => Endpoint::Unknown,
    }
}

/// Parses a path that our homeserver passes on; `None` if it is not one. The homeserver passes on whole paths (MSC4512), perhaps below a
/// prefix of this service. What its users append to such a path leads to no other endpoint.
fn parse_proxied_endpoint(path: &str) -> Option<Endpoint> {
    let segments: Vec<_> = path.split('/').filter(|s| !s.is_empty()).collect();
    let is_start = |pair: &[&str]| matches!(pair, ["_matrix", "client" | "federation" | "app"]);
    let start = segments.windows(2).position(is_start)?;
    let (api, rest) = (segments[start + 1], &segments[start + 2..]);
    let (version, rest) = match rest {
        ["v1", rest @ ..] => (MscVersion::Stable, rest),
        ["unstable", "io.element.msc4195", rest @ ..] => (MscVersion::Unstable, rest),
        _ => return Some(Endpoint::Unknown),
    };
    Some(match (api, version, rest) {
        ("client", _, ["rtc", "livekit", "get_token"]) => Endpoint::ClientGetToken(version),
        ("client", _, ["rtc", "livekit", "delegate_delayed_leave"]) => {
            Endpoint::ClientDelegateDelayedLeave
        }
        ("federation", _, ["rtc", "livekit", "get_token"]) => Endpoint::FederationGetToken,
        ("app", MscVersion::Stable, ["ping"]) => Endpoint::Ping,
        ("app", MscVersion::Stable, ["transactions", _]) => Endpoint::Transactions,
        _ => Endpoint::Unknown,
    })
}

/// The path of a request target, without its query.
pub(super) fn path_of(target: &str) -> &str {
    target.split(['?', '#']).next().unwrap_or_default()
}

/// The endpoint of a request, resolved once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestRoute {
    endpoint: Endpoint,
    /// Whether the settings enable the endpoint.
    enabled: bool,
    /// Whether our homeserver sends the request, for an endpoint of its own.
    pub(super) homeserver: Result<HomeserverProof, HsTokenError>,
}

impl RequestRoute {
    /// Whether our homeserver pushes events.
    pub(super) fn is_transaction(self) -> bool {
        self.endpoint == Endpoint::Transactions && self.homeserver.is_ok()
    }
}

/// All endpoints; those that the settings disable are `None`.
#[derive(Debug)]
pub(crate) struct Router {
    pub matrix: Option<Arc<MatrixApi>>,
    pub appservice: Option<Arc<AppServiceApi>>,
    pub webhook: Option<Arc<WebhookApi>>,
    /// `None`: always ready.
    pub readiness: Option<Arc<Readiness>>,
    pub token: Option<Arc<TokenApi>>,
    rate_limiter: AddressRateLimiter,
    throttles: RefusalThrottles,
}

impl Router {
    /// A router with liveness and readiness only.
    pub(crate) fn new(rate_limiter: AddressRateLimiter) -> Self {
        Self {
            matrix: None,
            appservice: None,
            webhook: None,
            readiness: None,
            token: None,
            rate_limiter,
            throttles: RefusalThrottles::default(),
        }
    }

    /// Finds the endpoint of a request, and checks whether our homeserver sends it.
    pub(super) fn resolve(&self, target: &str, authorization: Option<&str>) -> RequestRoute {
        let (path, appservice) = (path_of(target), self.appservice.as_ref());
        let proxied = appservice.and_then(|_| parse_proxied_endpoint(path));
        let endpoint = proxied.unwrap_or_else(|| parse_endpoint(path));
        let homeserver = match appservice {
            Some(appservice) if endpoint.audience() == Audience::Homeserver => {
                appservice.authenticate(authorization)
            }
            _ => Err(HsTokenError::Missing),
        };
        RequestRoute {
            endpoint,
            enabled: self.is_enabled(endpoint),
            homeserver,
        }
    }

    fn is_enabled(&self, endpoint: Endpoint) -> bool {
        match endpoint {
            Endpoint::Liveness | Endpoint::Readiness => true,
            Endpoint::SfuWebhook => self.webhook.is_some(),
            Endpoint::Unknown => false,
            _ => match endpoint.audience() {
                Audience::Matrix => self.matrix.is_some(),
                Audience::Homeserver => self.appservice.is_some(),
                Audience::Application => self.token.is_some(),
            },
        }
    }

    /// Metrics that delegation and membership know.
    pub(super) fn gauge_values(&self) -> MetricsSnapshot {
        let webhook = self.webhook.as_ref();
        webhook
            .map(|webhook| webhook.gauge_values())
            .unwrap_or_default()
    }

    /// Whether the response waits for other servers.
    pub(super) fn needs_upstream(
        &self,
        method: &str,
        route: RequestRoute,
        credentials: Credentials<'_>,
    ) -> bool {
        match route.endpoint {
            // the first request waits for the SFU
            Endpoint::Readiness => true,
            _ if !route.enabled || method != "POST" => false,
            Endpoint::Token => {
                let token = self.token.as_ref();
                token.is_some_and(|token| token.needs_upstream(credentials))
            }
            Endpoint::GetToken
            | Endpoint::SfuGet
            | Endpoint::DelegateDelayedLeave
            | Endpoint::ClientGetToken(_)
            | Endpoint::ClientDelegateDelayedLeave
            | Endpoint::FederationGetToken
            // for the leave store, which may be a remote Redis
            | Endpoint::SfuWebhook => true,
            _ => false,
        }
    }

    /// Answers a request. May wait for other servers.
    pub(super) fn respond(&self, route: RequestRoute, request: &ApiRequest<'_>) -> HttpResponse {
        let endpoint = route.endpoint.as_str();
        let context = RequestContext::start(request, endpoint, route.homeserver, &self.throttles);
        let response = self.respond_with_cors(route, &context);
        metrics::count_request(endpoint, response.status, context.started.elapsed());
        response
    }

    fn respond_with_cors(&self, route: RequestRoute, context: &RequestContext<'_>) -> HttpResponse {
        let (request, token) = (context.request, self.token.as_ref());
        let audience = match route.endpoint {
            // with `POST /token` alone, there are no Matrix clients
            _ if !route.enabled && self.matrix.is_none() && token.is_some() => {
                Audience::Application
            }
            _ if !route.enabled => Audience::Matrix,
            endpoint => endpoint.audience(),
        };
        let is_application = audience == Audience::Application;
        if is_application
            && route.enabled
            && request.method == "OPTIONS"
            && let Some(response) = token.and_then(|token| token.preflight(request))
        {
            return response;
        }
        let mut response = self.answer(route.endpoint, route.enabled, audience, context);
        match audience {
            Audience::Matrix => response.with_matrix_cors(),
            Audience::Homeserver => response,
            Audience::Application => {
                let headers = token.map(|token| token.cors_headers(request));
                response.headers.extend(headers.into_iter().flatten());
                response
            }
        }
    }

    fn answer(
        &self,
        endpoint: Endpoint,
        enabled: bool,
        audience: Audience,
        context: &RequestContext<'_>,
    ) -> HttpResponse {
        let request = context.request;
        let is_application = audience == Audience::Application;
        match request.method {
            // also for unknown paths: a failed preflight would hide the 404 from the web page
            "OPTIONS" if !enabled || audience == Audience::Matrix => return HttpResponse::empty(),
            _ if !enabled => return reject_unknown_path(is_application, context),
            method if !endpoint.methods().split(", ").any(|name| name == method) => {
                let response = match is_application {
                    true => detail(405, "Method Not Allowed"),
                    false => {
                        HttpResponse::matrix_error(405, "M_UNRECOGNIZED", "Unrecognized method")
                    }
                };
                return response.with_header("Allow", endpoint.methods());
            }
            _ => {}
        }
        if endpoint.is_rate_limited()
            && let Err(after) = self.rate_limiter.check(request.rate_key)
        {
            return context.refuse(Refusal::address_rate_limited(match is_application {
                true => detail_rate_limited(after),
                false => HttpResponse::matrix_rate_limited(after),
            }));
        }
        match self.handle(endpoint, context) {
            Some(Ok(response)) => response,
            Some(Err(refusal)) => context.refuse(refusal),
            None => reject_unknown_path(is_application, context),
        }
    }

    fn handle(
        &self,
        endpoint: Endpoint,
        context: &RequestContext<'_>,
    ) -> Option<Result<HttpResponse, Refusal>> {
        let (matrix, appservice) = (self.matrix.as_ref(), self.appservice.as_ref());
        Some(match endpoint {
            Endpoint::GetToken => matrix?.issue_token(context, request_body::parse_get_token),
            Endpoint::SfuGet => matrix?.issue_token(context, request_body::parse_sfu_get),
            Endpoint::DelegateDelayedLeave => matrix?.delegate_leave(context),
            Endpoint::SfuWebhook => self.webhook.as_ref()?.receive(context),
            Endpoint::Liveness => Ok(HttpResponse::empty()),
            Endpoint::Readiness => {
                let readiness = self.readiness.as_ref();
                let problems = readiness.map(Readiness::problems).unwrap_or_default();
                Ok(readiness_response(&problems))
            }
            Endpoint::Token => self.token.as_ref()?.issue_token(context),
            Endpoint::Health => Ok(self.token.as_ref()?.health()),
            Endpoint::Root => Ok(self.token.as_ref()?.root()),
            Endpoint::ClientGetToken(version) => appservice?.issue_client_token(context, version),
            Endpoint::ClientDelegateDelayedLeave => appservice?.delegate_leave(context),
            Endpoint::FederationGetToken => appservice?.issue_federation_token(context),
            Endpoint::Ping => appservice?.ping(context),
            Endpoint::Transactions => appservice?.receive_transaction(context),
            Endpoint::Unknown => return None,
        })
    }
}

fn reject_unknown_path(is_application: bool, context: &RequestContext<'_>) -> HttpResponse {
    let request = context.request;
    let path = truncate_chars(path_of(request.target), MAX_LOGGED_PATH_CHARS);
    info!(
        request:% = context.id,
        client:% = request.client,
        endpoint = context.endpoint,
        status = 404,
        method = request.method,
        path;
        "request refused"
    );
    match is_application {
        true => detail(404, "Not Found"),
        false => HttpResponse::matrix_error(404, "M_UNRECOGNIZED", "Unrecognized request"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxied_paths_are_whole_and_below_a_prefix() {
        for (target, expected) in [
            (
                "/_matrix/client/v1/rtc/livekit/get_token",
                Some(Endpoint::ClientGetToken(MscVersion::Stable)),
            ),
            (
                "/_matrix/client/unstable/io.element.msc4195/rtc/livekit/get_token?x",
                Some(Endpoint::ClientGetToken(MscVersion::Unstable)),
            ),
            (
                "/a//_matrix/client/v1//rtc/livekit/get_token/",
                Some(Endpoint::ClientGetToken(MscVersion::Stable)),
            ),
            (
                "/_matrix/client/v1/rtc/livekit/delegate_delayed_leave",
                Some(Endpoint::ClientDelegateDelayedLeave),
            ),
            (
                "/_matrix/federation/v1/rtc/livekit/get_token",
                Some(Endpoint::FederationGetToken),
            ),
            (
                "/_matrix/federation/unstable/io.element.msc4195/rtc/livekit/get_token",
                Some(Endpoint::FederationGetToken),
            ),
            ("/_matrix/app/v1/ping", Some(Endpoint::Ping)),
            (
                "/_matrix/app/v1/transactions/7",
                Some(Endpoint::Transactions),
            ),
            ("/_matrix/app/v1/transactions", Some(Endpoint::Unknown)),
            (
                "/_matrix/federation/v1/rtc/livekit/delegate_delayed_leave",
                Some(Endpoint::Unknown),
            ),
            (
                "/_matrix/client/v2/rtc/livekit/get_token",
                Some(Endpoint::Unknown),
            ),
            (
                "/_matrix/client/unstable/other/rtc/livekit/get_token",
                Some(Endpoint::Unknown),
            ),
            ("/_matrix/client/v1/rtc/get_token", Some(Endpoint::Unknown)),
            (
                "/_matrix/client/v1/rtc%2Flivekit/get_token",
                Some(Endpoint::Unknown),
            ),
            (
                "/_matrix/client/v1/rtc/livekit/get_token/x",
                Some(Endpoint::Unknown),
            ),
            ("/_matrix/client/get_token", Some(Endpoint::Unknown)),
            (
                "/_matrix/app/unstable/io.element.msc4195/ping",
                Some(Endpoint::Unknown),
            ),
            (
                "/_matrix/livekit/_matrix/client/v1/rtc/livekit/get_token",
                Some(Endpoint::ClientGetToken(MscVersion::Stable)),
            ),
            (
                "/_matrix/client/v1/rtc/livekit/_matrix/x/readyz",
                Some(Endpoint::Unknown),
            ),
            (
                "/_matrix/client/v1/rtc/livekit/_matrix/x/sfu_webhook",
                Some(Endpoint::Unknown),
            ),
            (
                "/_matrix/client/v1/rtc/livekit/_matrix/federation/v1/rtc/livekit/get_token",
                Some(Endpoint::Unknown),
            ),
            (
                "/_matrix/federation/v1/rtc/livekit/_matrix/app/v1/ping",
                Some(Endpoint::Unknown),
            ),
            ("/_matrix/client/healthz", Some(Endpoint::Unknown)),
            ("/_matrix/livekit/jwt/get_token", None),
            ("/_matrix/livekit/client/readyz", None),
            ("/get_token?/_matrix/client/v1/rtc/livekit/get_token", None),
            ("/_matrix", None),
        ] {
            assert_eq!(
                parse_proxied_endpoint(path_of(target)),
                expected,
                "{target}"
            );
        }
    }

    #[test]
    fn the_last_segments_of_a_path_decide() {
        for (target, expected) in [
            ("/get_token", Endpoint::GetToken),
            ("//get_token", Endpoint::GetToken),
            ("/get_token/", Endpoint::GetToken),
            ("/livekit/jwt/get_token?x=/healthz", Endpoint::GetToken),
            ("/livekit/jwt//sfu//get//", Endpoint::SfuGet),
            ("/sfu/get", Endpoint::SfuGet),
            ("/healthz", Endpoint::Liveness),
            ("http://host/healthz", Endpoint::Liveness),
            ("/get", Endpoint::Unknown),
            ("/token", Endpoint::Token),
            ("/livekit//token/", Endpoint::Token),
            ("/api/health?x", Endpoint::Health),
            ("/token/x", Endpoint::Unknown),
            ("/xsfu/get", Endpoint::Unknown),
            ("/sfu/get/x", Endpoint::Unknown),
            ("/?/get_token", Endpoint::Root),
            ("/", Endpoint::Root),
            ("//", Endpoint::Root),
            ("/x/delegate_delayed_leave/", Endpoint::DelegateDelayedLeave),
            ("/livekit/sfu_webhook", Endpoint::SfuWebhook),
            ("/readyz", Endpoint::Readiness),
        ] {
            assert_eq!(parse_endpoint(path_of(target)), expected, "{target}");
        }
    }
}
