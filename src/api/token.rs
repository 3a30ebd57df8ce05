//! The door for everyone else: `POST /token`, and what the example server has beside it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{debug, info, warn};
use serde_json::{Value, json};

use super::cors::{AllowedOrigins, ResponseHeaders};
use super::rate_limit::AddressRateLimiter;
use super::response::Response;
use super::router::ApiRequest;
use super::token_body;
use super::token_body::ValidationError;
use crate::server::ClientAddress;
use crate::token::policy::PolicyError;
use crate::token::{AuthenticatedCaller, Credentials, Error, ParticipantToken, TokenSource};
use crate::util::clock::{Timestamp, unix_seconds_now};
use crate::util::log_throttle::LogThrottle;
use crate::util::metrics;
use crate::util::random;

/// Carries an API key, for those whose Authorization is taken.
pub(crate) const API_KEY_HEADER: &str = "X-API-Key";
/// Methods that a page may use, as in the example.
const CORS_METHODS: &str = "GET, POST";
/// Said to whoever finds the endpoint without any caller: a forgotten setting is no open door.
const NO_CALLER_CONFIGURED: &str = "No caller is configured: set TOKEN_SERVER_API_KEYS, TOKEN_SERVER_JWT_ISSUER or TOKEN_SERVER_POLICY_FILE; TOKEN_SERVER_AUTH=none opens it to everyone";

/// The token source behind its door.
#[derive(Debug)]
pub(crate) struct TokenApi {
    token_source: Arc<TokenSource>,
    livekit_url: String,
    allowed_origins: AllowedOrigins,
    rate_limit_throttle: LogThrottle,
}

impl TokenApi {
    /// `url` is where clients find the SFU, `origins` are the pages that may ask.
    pub(crate) fn new(source: Arc<TokenSource>, url: String, origins: AllowedOrigins) -> Self {
        Self {
            token_source: source,
            livekit_url: url,
            allowed_origins: origins,
            rate_limit_throttle: LogThrottle::default(),
        }
    }

    /// Whether the answer will wait for another server.
    pub(crate) fn needs_upstream(&self, shown: Credentials<'_>) -> bool {
        self.token_source.needs_key_fetch(shown, unix_seconds_now())
    }

    /// What pages learn of any reply.
    pub(crate) fn cors_headers(&self, call: &ApiRequest<'_>) -> ResponseHeaders {
        self.allowed_origins.response_headers(call.origin)
    }

    /// `/token`.
    pub(crate) fn handle_token(
        &self,
        call: &ApiRequest<'_>,
        turnstile: &AddressRateLimiter,
    ) -> Response {
        self.with_cors(call, "POST", |door| door.issue_token(call, turnstile))
    }

    /// `/health`, as the example has it.
    pub(crate) fn handle_health(&self, call: &ApiRequest<'_>) -> Response {
        self.with_cors(call, "GET, HEAD", |_| {
            debug!("health");
            let timestamp = Timestamp(SystemTime::now()).to_string();
            let body = json!({ "status": "healthy", "service": "livekit-token-server", "timestamp": timestamp });
            Response::json(200, &body)
        })
    }

    /// `/`: what there is.
    pub(crate) fn handle_root(&self, call: &ApiRequest<'_>) -> Response {
        self.with_cors(call, "GET, HEAD", |_| {
            let body = json!({
                "service": "LiveKit Token Server",
                "version": env!("CARGO_PKG_VERSION"),
                "endpoints": { "POST /token": "Generate access token", "GET /health": "Health check" },
                "documentation": "contrib/openapi.json of livekit-token-service",
            });
            Response::json(200, &body)
        })
    }

    /// Answers preflights and wrong methods, and puts on what pages look for.
    fn with_cors(
        &self,
        call: &ApiRequest<'_>,
        allow: &'static str,
        work: impl Fn(&Self) -> Response,
    ) -> Response {
        if let ("OPTIONS", Some(origin), Some((method, fields))) =
            (call.method, call.origin, call.preflight)
        {
            let (granted, fields) =
                self.allowed_origins
                    .preflight(origin, method, fields, CORS_METHODS);
            let reply = match granted {
                true => Response::empty(),
                false => detail_response(400, "Disallowed by CORS"),
            };
            let fields = Some(fields);
            return Response {
                headers: fields,
                ..reply
            };
        }
        let reply = if allow.split(", ").any(|method| method == call.method) {
            work(self)
        } else {
            Response {
                allow: Some(allow),
                ..detail_response(405, "Method Not Allowed")
            }
        };
        let mut fields = self.cors_headers(call);
        if reply.status == 401 {
            fields.push(("WWW-Authenticate", "Bearer".to_owned()));
        }
        Response {
            headers: Some(fields),
            ..reply
        }
    }

    fn issue_token(&self, call: &ApiRequest<'_>, turnstile: &AddressRateLimiter) -> Response {
        if let Err(after) = turnstile.check(call.client, call.rate_key) {
            return rate_limit_response(after);
        }
        let line = TokenRequestContext {
            request_id: u32::from_ne_bytes(random::bytes()),
            client: call.client,
            started: Instant::now(),
        };
        let clock = unix_seconds_now();
        let admitted = match self.token_source.authenticate(
            call.credentials,
            call.rate_key,
            line.started,
            clock,
        ) {
            Ok(admitted) => admitted,
            Err(error) => return self.refuse(&line, &error),
        };
        let asked = match token_body::parse_token_body(call.content_type, call.body) {
            Ok(asked) => asked,
            Err(error) => {
                let reply = Response::from(&error);
                let field = match &error {
                    token_body::Error::Refused(refusal) => refusal.field(),
                    token_body::Error::Invalid(_) => "",
                };
                line.log_refused(Some(&admitted), reply.status, field, &error);
                return reply;
            }
        };
        let standard = asked.is_standard_form;
        match self
            .token_source
            .issue_access_token(&admitted, asked, clock)
        {
            Ok(granted) => {
                metrics::count_token_issued("token_endpoint", "full");
                line.log_issued(&admitted, &granted);
                self.token_response(&granted, if standard { 201 } else { 200 })
            }
            Err(refusal) => {
                let reply = Response::from(&refusal);
                line.log_refused(Some(&admitted), reply.status, refusal.field(), &refusal);
                reply
            }
        }
    }

    fn refuse(&self, line: &TokenRequestContext, error: &Error) -> Response {
        if let Error::RateLimited(name, after) = error {
            debug!(
                "refused request={:08x} client={} endpoint=token caller={name} status=429 cause=\"{error}\"",
                line.request_id, line.client
            );
            if let Some(count) = self.rate_limit_throttle.count(line.started) {
                warn!("rate_limited refused={count} by=caller last={name}");
            }
            return rate_limit_response(*after);
        }
        let reply = match error {
            Error::NoCallerConfigured => detail_response(401, NO_CALLER_CONFIGURED),
            Error::MissingCredentials => {
                detail_response(401, "Show an API key or a token of your login as a Bearer")
            }
            // one sentence for all reasons: who guesses learns nothing
            Error::UnsupportedCredentials | Error::UnknownApiKey | Error::JwtRejected(_) => {
                detail_response(401, "The credentials are not accepted")
            }
            Error::KeysUnavailable(after) => {
                detail_response(503, "The keys of the login cannot be had at present")
                    .with_retry_after(*after)
            }
            Error::RateLimited(_, after) => rate_limit_response(*after),
        };
        line.log_refused(None, reply.status, "", error);
        reply
    }

    /// The fields of the standard and those of the example, which has a date beside the token.
    fn token_response(&self, granted: &ParticipantToken, status: u16) -> Response {
        let terms = &granted.grant;
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(granted.expires_at));
        let body = json!({
            "server_url": self.livekit_url,
            "participant_token": granted.access_token.expose(),
            "room_name": terms.room.as_str(),
            "participant_name": terms.profile.name.as_deref().unwrap_or_default(),
            "participant_identity": terms.identity.as_str(),
            "token": granted.access_token.expose(),
            "url": self.livekit_url,
            "expires_at": Timestamp(expires.unwrap_or(UNIX_EPOCH)).to_string(),
        });
        Response::json(status, &body)
    }
}

/// What every line about one request says.
struct TokenRequestContext {
    request_id: u32,
    client: ClientAddress,
    started: Instant,
}

impl TokenRequestContext {
    fn log_issued(&self, admitted: &AuthenticatedCaller, granted: &ParticipantToken) {
        let (id, client, ms) = (
            self.request_id,
            self.client,
            self.started.elapsed().as_millis(),
        );
        let (terms, by) = (&granted.grant, CallerLogFields(admitted));
        let (room, identity) = (terms.room.as_str(), terms.identity.as_str());
        let grants: Vec<_> = terms.grants.iter().map(|grant| grant.as_str()).collect();
        let sources: Vec<_> = terms.sources.iter().map(|source| source.as_str()).collect();
        let agents: Vec<_> = terms
            .profile
            .agents
            .iter()
            .map(|a| a.agent_name.as_str())
            .collect();
        let agents = agents.join(",");
        let sentence = format!("Token generated for user {identity} in room {room}");
        info!(
            "granted request={id:08x} client={client} endpoint=token {by} room={room:?} identity={identity:?} grants={} sources={} \
             agents={agents:?} ttl={} ms={ms} audit={sentence:?}",
            grants.join(","),
            sources.join(","),
            terms.lifetime,
        );
    }

    fn log_refused(
        &self,
        admitted: Option<&AuthenticatedCaller>,
        status: u16,
        field: &str,
        error: &dyn std::fmt::Display,
    ) {
        let (id, client, ms) = (
            self.request_id,
            self.client,
            self.started.elapsed().as_millis(),
        );
        metrics::count_refusal(match status {
            401 => "unauthenticated",
            403 => "forbidden",
            503 => "keys_unavailable",
            _ => "bad_request",
        });
        let by = admitted.map_or_else(String::new, |admitted| {
            format!("{} ", CallerLogFields(admitted))
        });
        let cause = error.to_string();
        info!(
            "refused request={id:08x} client={client} endpoint=token {by}status={status} field={field:?} ms={ms} cause={cause:?}"
        );
    }
}

/// Who asks, for the log.
struct CallerLogFields<'a>(&'a AuthenticatedCaller);

impl std::fmt::Display for CallerLogFields<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "caller={}", self.0.name())?;
        self.0
            .api_key_id()
            .map_or(Ok(()), |key| write!(f, " key={key}"))
    }
}

/// An error as the example tells it.
fn detail_response(status: u16, detail: &str) -> Response {
    Response::json(status, &json!({ "detail": detail }))
}

fn rate_limit_response(after: Duration) -> Response {
    detail_response(429, "Too many requests").with_retry_after(after)
}

fn validation_response<'a>(problems: impl Iterator<Item = &'a ValidationError>) -> Response {
    let detail: Vec<Value> = problems.map(ValidationError::to_json).collect();
    Response::json(422, &json!({ "detail": detail }))
}

impl From<&token_body::Error> for Response {
    fn from(error: &token_body::Error) -> Self {
        match error {
            token_body::Error::Invalid(problems) => validation_response(problems.iter()),
            token_body::Error::Refused(refusal) => Self::from(refusal),
        }
    }
}

impl From<&PolicyError> for Response {
    fn from(error: &PolicyError) -> Self {
        match error {
            PolicyError::Missing(fields) => {
                let problems: Vec<_> = fields
                    .iter()
                    .map(|field| ValidationError::missing(field))
                    .collect();
                validation_response(problems.iter())
            }
            PolicyError::Invalid { .. } => detail_response(400, &error.to_string()),
            PolicyError::Forbidden { .. } => detail_response(403, &error.to_string()),
        }
    }
}
