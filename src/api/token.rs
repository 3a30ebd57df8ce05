//! `POST /token` for any application, and the other endpoints of LiveKit's example server: `/health` and `/`.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::info;
use serde::Serialize;
use serde_json::json;

use super::cors::{AllowedOrigins, ResponseHeaders};
use super::refusal::{Refusal, detail};
use super::request::{ApiRequest, RequestContext};
use super::token_body;
use crate::server::HttpResponse;
use crate::token::{AuthenticatedCaller, Credentials, ParticipantToken, TokenSource};
use crate::util::clock::{Timestamp, unix_seconds_now};
use crate::util::metrics;
use crate::util::sync::Swappable;

/// Carries an API key if `Authorization` is needed for something else.
pub(crate) const API_KEY_HEADER: &str = "X-API-Key";
/// Methods that web pages may use, as in the example server.
const CORS_METHODS: &str = "GET, POST";

/// The endpoints for applications.
#[derive(Debug)]
pub(crate) struct TokenApi {
    token_source: Arc<TokenSource>,
    /// The SFU's URL for clients.
    livekit_url: Swappable<String>,
    allowed_origins: AllowedOrigins,
}

/// The fields of LiveKit's standard form and those of the example server.
#[derive(Serialize)]
struct TokenSourceResponse<'a> {
    expires_at: String,
    participant_identity: &'a str,
    participant_name: &'a str,
    participant_token: &'a str,
    room_name: &'a str,
    server_url: &'a str,
    token: &'a str,
    url: &'a str,
}

impl TokenApi {
    /// `livekit_url` is the SFU's URL for clients, `allowed_origins` the web pages that may use the endpoints.
    pub(crate) fn new(
        token_source: Arc<TokenSource>,
        livekit_url: String,
        allowed_origins: AllowedOrigins,
    ) -> Self {
        Self {
            token_source,
            livekit_url: Swappable::new(livekit_url),
            allowed_origins,
        }
    }

    /// Replaces the SFU's URL for clients.
    pub(crate) fn replace_livekit_url(&self, livekit_url: String) {
        self.livekit_url.replace(livekit_url);
    }

    /// Whether the response waits for another server.
    pub(super) fn needs_upstream(&self, credentials: Credentials<'_>) -> bool {
        self.token_source
            .needs_key_fetch(credentials, unix_seconds_now())
    }

    /// CORS header fields of a response.
    pub(super) fn cors_headers(&self, request: &ApiRequest<'_>) -> ResponseHeaders {
        let origin = request.header("Origin");
        self.allowed_origins.response_headers(origin)
    }

    /// The response to a preflight; `None` if the request is not one.
    pub(super) fn preflight(&self, request: &ApiRequest<'_>) -> Option<HttpResponse> {
        let origin = request.header("Origin")?;
        let method = request.header("Access-Control-Request-Method")?;
        let headers = request.header("Access-Control-Request-Headers");
        let (granted, cors_headers) =
            self.allowed_origins
                .preflight(origin, method, headers, CORS_METHODS);
        let mut response = match granted {
            true => HttpResponse::empty(),
            false => detail(400, "Disallowed by CORS"),
        };
        response.headers.extend(cors_headers);
        Some(response)
    }

    /// `POST /token`.
    pub(super) fn issue_token(
        &self,
        context: &RequestContext<'_>,
    ) -> Result<HttpResponse, Refusal> {
        let request = context.request;
        let credentials = Credentials::parse(
            request.header_values(API_KEY_HEADER),
            request.header_values("Authorization"),
        );
        let now = unix_seconds_now();
        let caller = self.token_source.authenticate(
            credentials,
            request.origin.limit_key,
            context.started,
            now,
        )?;
        let refuse = |refusal: Refusal| refusal.with_caller(&caller);
        let body = token_body::parse_token_body(request.header("Content-Type"), request.body)
            .map_err(|error| refuse(error.into()))?;
        let status = if body.is_standard_form { 201 } else { 200 };
        let reply = self
            .token_source
            .issue_access_token(&caller, body, now)
            .map_err(|error| refuse(error.into()))?;
        metrics::count_token_issued("token_endpoint", "full");
        log_issued(context, &caller, &reply);
        Ok(self.token_response(&reply, status))
    }

    /// `GET /health`, as in the example server.
    pub(super) fn health(&self) -> HttpResponse {
        let timestamp = Timestamp(SystemTime::now()).to_string();
        let body = json!({ "status": "healthy", "service": "livekit-token-server", "timestamp": timestamp });
        HttpResponse::json(200, &body)
    }

    /// `GET /`: a list of the endpoints, as in the example server.
    pub(super) fn root(&self) -> HttpResponse {
        let body = json!({
            "service": "LiveKit Token Server",
            "version": env!("CARGO_PKG_VERSION"),
            "endpoints": { "POST /token": "Generate access token", "GET /health": "Health check" },
            "documentation": "contrib/openapi.json of livekit-token-service",
        });
        HttpResponse::json(200, &body)
    }

    fn token_response(&self, reply: &ParticipantToken, status: u16) -> HttpResponse {
        let (grant, token) = (&reply.grant, reply.access_token.expose());
        let expires_at = UNIX_EPOCH.checked_add(Duration::from_secs(reply.expires_at));
        let url = self.livekit_url.get();
        let response = TokenSourceResponse {
            expires_at: Timestamp(expires_at.unwrap_or(UNIX_EPOCH)).to_string(),
            participant_identity: grant.identity.as_str(),
            participant_name: grant.profile.name.as_deref().unwrap_or_default(),
            participant_token: token,
            room_name: grant.room.as_str(),
            server_url: &url,
            token,
            url: &url,
        };
        HttpResponse::json(status, &response)
    }
}

fn log_issued(
    context: &RequestContext<'_>,
    caller: &AuthenticatedCaller,
    reply: &ParticipantToken,
) {
    let grant = &reply.grant;
    let join = |words: &mut dyn Iterator<Item = &str>| words.collect::<Vec<_>>().join(",");
    let agents = grant.profile.agents.iter();
    info!(
        request:% = context.id,
        client:% = context.client(),
        endpoint = context.route.name(),
        caller:% = caller.name(),
        key = caller.api_key_id(),
        room:% = grant.room,
        identity:% = grant.identity,
        grants:% = join(&mut grant.grants.iter().map(|grant| grant.as_str())),
        sources:% = join(&mut grant.sources.iter().map(|source| source.as_str())),
        agents:% = join(&mut agents.map(|agent| agent.agent_name.as_str())),
        ttl = grant.lifetime,
        ms = context.elapsed_ms(),
        // the sentence of the example server's log
        audit:% = format_args!("Token generated for user {} in room {}", grant.identity, grant.room);
        "token issued"
    );
}
