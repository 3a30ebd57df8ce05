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

impl Audience {
    /// An error, with its text for the Matrix API and for the example server.
    fn unrecognized(self, status: u16, matrix: &str, application: &str) -> HttpResponse {
        match self {
            Self::Application => detail(status, application),
            _ => HttpResponse::matrix_error(status, "M_UNRECOGNIZED", matrix),
        }
    }
}

impl Endpoint {
    /// Name in log and metrics, audience, and methods as `Allow` lists them.
    fn description(self) -> (&'static str, Audience, &'static str) {
        use Audience::{Application, Homeserver, Matrix};
        const POST: &str = "POST, OPTIONS";
        const PROBE: &str = "GET, HEAD, OPTIONS";
        match self {
            Self::GetToken => ("get_token", Matrix, POST),
            Self::SfuGet => ("sfu/get", Matrix, POST),
            Self::DelegateDelayedLeave => ("delegate_delayed_leave", Matrix, POST),
            Self::SfuWebhook => ("sfu_webhook", Matrix, POST),
            Self::Liveness => ("healthz", Matrix, PROBE),
            Self::Readiness => ("readyz", Matrix, PROBE),
            Self::Token => ("token", Application, "POST"),
            Self::Health => ("health", Application, "GET, HEAD"),
            Self::Root => ("root", Application, "GET, HEAD"),
            Self::ClientGetToken(_) => ("client/get_token", Homeserver, "POST"),
            Self::ClientDelegateDelayedLeave => {
                ("client/delegate_delayed_leave", Homeserver, "POST")
            }
            Self::FederationGetToken => ("federation/get_token", Homeserver, "POST"),
            Self::Ping => ("ping", Homeserver, "POST"),
            Self::Transactions => ("transactions", Homeserver, "PUT"),
            Self::Unknown => ("unknown", Matrix, ""),
        }
    }

    fn audience(self) -> Audience {
        self.description().1
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
pub(super) fn path_without_query(target: &str) -> &str {
    target.split(['?', '#']).next().unwrap_or_default()
}

/// The endpoint of a request, resolved once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestRoute {
    endpoint: Endpoint,
    /// Whether the settings enable the endpoint.
    open: bool,
    /// Whether our homeserver sends the request, for an endpoint of its own.
    pub(super) homeserver: Result<HomeserverProof, HsTokenError>,
}

impl RequestRoute {
    /// The endpoint's name in log and metrics.
    pub(super) fn name(self) -> &'static str {
        self.endpoint.description().0
    }

    /// Whether the endpoint takes over a delayed leave, without a token.
    pub(super) fn delegates_leave(self) -> bool {
        matches!(
            self.endpoint,
            Endpoint::DelegateDelayedLeave | Endpoint::ClientDelegateDelayedLeave
        )
    }

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
        let (path, appservice) = (path_without_query(target), self.appservice.as_ref());
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
            open: self.is_open(endpoint),
            homeserver,
        }
    }

    fn is_open(&self, endpoint: Endpoint) -> bool {
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

    /// Gauges of delegation and membership.
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
            _ if !route.open || method != "POST" => false,
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
        let context = RequestContext::start(request, route, &self.throttles);
        let audience = match &self.token {
            _ if route.open => route.endpoint.audience(),
            // with `POST /token` alone, there are no Matrix clients
            Some(_) if self.matrix.is_none() => Audience::Application,
            _ => Audience::Matrix,
        };
        let response = match (audience, &self.token) {
            (Audience::Application, Some(token)) => {
                let preflight = match request.method {
                    "OPTIONS" if route.open => token.preflight(request),
                    _ => None,
                };
                preflight.unwrap_or_else(|| {
                    let mut response = self.answer(audience, &context);
                    response.headers.extend(token.cors_headers(request));
                    response
                })
            }
            (Audience::Matrix, _) => self.answer(audience, &context).with_matrix_cors(),
            _ => self.answer(audience, &context),
        };
        metrics::count_request(route.name(), response.status, context.started.elapsed());
        response
    }

    fn answer(&self, audience: Audience, context: &RequestContext<'_>) -> HttpResponse {
        let (method, route) = (context.request.method, context.route);
        let (_, _, methods) = route.endpoint.description();
        if method == "OPTIONS" && (!route.open || audience == Audience::Matrix) {
            // also for unknown paths: a failed preflight would hide the 404 from the web page
            return HttpResponse::empty();
        }
        if !route.open {
            return reject_unknown_path(audience, context);
        }
        if !methods.split(", ").any(|name| name == method) {
            return audience
                .unrecognized(405, "Unrecognized method", "Method Not Allowed")
                .with_header("Allow", methods);
        }
        // a capability probe costs no more than a refusal for its rate
        if route.endpoint.is_rate_limited()
            && !context.is_capability_probe()
            && let Err(after) = self.rate_limiter.check(context.request.origin.limit_key)
        {
            return context.refuse(Refusal::address_rate_limited(match audience {
                Audience::Application => detail_rate_limited(after),
                _ => HttpResponse::matrix_rate_limited(after),
            }));
        }
        match self.handle(route.endpoint, context) {
            Some(Ok(response)) => response,
            Some(Err(refusal)) => context.refuse(refusal),
            None => reject_unknown_path(audience, context),
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

fn reject_unknown_path(audience: Audience, context: &RequestContext<'_>) -> HttpResponse {
    let path = path_without_query(context.request.target);
    info!(
        request:% = context.id,
        client:% = context.client(),
        endpoint = context.route.name(),
        status = 404,
        method = context.request.method,
        path = truncate_chars(path, MAX_LOGGED_PATH_CHARS);
        "request refused"
    );
    audience.unrecognized(404, "Unrecognized request", "Not Found")
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
                parse_proxied_endpoint(path_without_query(target)),
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
            assert_eq!(
                parse_endpoint(path_without_query(target)),
                expected,
                "{target}"
            );
        }
    }
}
