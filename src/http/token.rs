//! The door for everyone else: `POST /token`, and what the example server has beside it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{debug, info, warn};
use serde_json::{Value, json};

use crate::clock::{Timestamp, unix};
use crate::http::ask::{self, Problem};
use crate::http::cors::{Fields, Origins};
use crate::http::limit::Turnstile;
use crate::http::reply::Reply;
use crate::http::route::Call;
use crate::metrics;
use crate::policy::Refusal;
use crate::random;
use crate::tally::Tally;
use crate::token_source::{Admitted, Error, Granted, Shown, TokenSource};

/// Carries an API key, for those whose Authorization is taken.
pub const API_KEY_HEADER: &str = "X-API-Key";
/// Methods that a page may use, as in the example.
const METHODS: &str = "GET, POST";
/// Said to whoever finds the endpoint without any caller: a forgotten setting is no open door.
const NOBODY_CONFIGURED: &str = "No caller is configured: set TOKEN_SERVER_API_KEYS, TOKEN_SERVER_JWT_ISSUER or TOKEN_SERVER_POLICY_FILE; TOKEN_SERVER_AUTH=none opens it to everyone";

/// What a request shows: an API key in a field of its own, or a bearer token. More than one of either is nothing that we take.
pub fn shown<'a>(
    mut keys: impl Iterator<Item = &'a str>,
    mut authorizations: impl Iterator<Item = &'a str>,
) -> Shown<'a> {
    let (key, authorization) = (keys.next(), authorizations.next());
    let several = keys.next().is_some() || authorizations.next().is_some();
    match (key, authorization) {
        _ if several => Shown::Other,
        (Some(key), authorization) => match authorization.and_then(bearer) {
            Some(token) if token != key.trim() => Shown::Other,
            // another scheme may be meant for a proxy
            _ => Shown::Token(key.trim()),
        },
        (None, Some(authorization)) => bearer(authorization).map_or(Shown::Other, Shown::Token),
        (None, None) => Shown::Nothing,
    }
}

fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The token source behind its door.
#[derive(Debug)]
pub struct TokenDoor {
    source: Arc<TokenSource>,
    url: String,
    origins: Origins,
    limited: Tally,
}

impl TokenDoor {
    /// `url` is where clients find the SFU, `origins` are the pages that may ask.
    pub fn new(source: Arc<TokenSource>, url: String, origins: Origins) -> Self {
        Self {
            source,
            url,
            origins,
            limited: Tally::default(),
        }
    }

    /// Whether the answer will wait for another server.
    pub fn would_wait(&self, shown: Shown<'_>) -> bool {
        self.source.would_wait(shown, unix(SystemTime::now()))
    }

    /// What pages learn of any reply.
    pub fn page(&self, call: &Call<'_>) -> Fields {
        self.origins.reply(call.origin)
    }

    /// `/token`.
    pub fn answer(&self, call: &Call<'_>, turnstile: &Turnstile) -> Reply {
        self.dressed(call, "POST", |door| door.token(call, turnstile))
    }

    /// `/health`, as the example has it.
    pub fn health(&self, call: &Call<'_>) -> Reply {
        self.dressed(call, "GET, HEAD", |_| {
            debug!("health");
            let timestamp = Timestamp(SystemTime::now()).to_string();
            let body = json!({ "status": "healthy", "service": "livekit-token-server", "timestamp": timestamp });
            Reply::json(200, &body)
        })
    }

    /// `/`: what there is.
    pub fn root(&self, call: &Call<'_>) -> Reply {
        self.dressed(call, "GET, HEAD", |_| {
            let body = json!({
                "service": "LiveKit Token Server",
                "version": env!("CARGO_PKG_VERSION"),
                "endpoints": { "POST /token": "Generate access token", "GET /health": "Health check" },
                "documentation": "contrib/openapi.json of livekit-token-service",
            });
            Reply::json(200, &body)
        })
    }

    /// Answers preflights and wrong methods, and puts on what pages look for.
    fn dressed(
        &self,
        call: &Call<'_>,
        allow: &'static str,
        work: impl Fn(&Self) -> Reply,
    ) -> Reply {
        if let ("OPTIONS", Some(origin), Some((method, fields))) =
            (call.method, call.origin, call.preflight)
        {
            let (granted, fields) = self.origins.preflight(origin, method, fields, METHODS);
            let reply = match granted {
                true => Reply::empty(),
                false => refusal(400, "Disallowed by CORS"),
            };
            let fields = Some(fields);
            return Reply { fields, ..reply };
        }
        let reply = if allow.split(", ").any(|method| method == call.method) {
            work(self)
        } else {
            Reply {
                allow: Some(allow),
                ..refusal(405, "Method Not Allowed")
            }
        };
        let mut fields = self.page(call);
        if reply.status == 401 {
            fields.push(("WWW-Authenticate", "Bearer".to_owned()));
        }
        Reply {
            fields: Some(fields),
            ..reply
        }
    }

    fn token(&self, call: &Call<'_>, turnstile: &Turnstile) -> Reply {
        if let Err(after) = turnstile.pass(call.client) {
            return limited(after);
        }
        let line = Line {
            id: u32::from_ne_bytes(random::bytes()),
            client: call.client,
            started: Instant::now(),
        };
        let clock = unix(SystemTime::now());
        let client = turnstile.counted(call.client);
        let admitted = match self.source.admit(call.shown, client, line.started, clock) {
            Ok(admitted) => admitted,
            Err(error) => return self.turned_away(&line, &error),
        };
        let asked = match ask::read(call.content_type, call.body) {
            Ok(asked) => asked,
            Err(error) => {
                let reply = Reply::from(&error);
                let field = match &error {
                    ask::Error::Refused(refusal) => refusal.field(),
                    ask::Error::Unreadable(_) => "",
                };
                line.refused(Some(&admitted), reply.status, field, &error);
                return reply;
            }
        };
        let standard = asked.standard;
        match self.source.token(&admitted, asked, clock) {
            Ok(granted) => {
                metrics::token("endpoint", "full");
                line.granted(&admitted, &granted);
                self.granted(&granted, if standard { 201 } else { 200 })
            }
            Err(refusal) => {
                let reply = Reply::from(&refusal);
                line.refused(Some(&admitted), reply.status, refusal.field(), &refusal);
                reply
            }
        }
    }

    fn turned_away(&self, line: &Line<'_>, error: &Error) -> Reply {
        if let Error::TooOften(name, after) = error {
            debug!(
                "refused request={:08x} client={} endpoint=token caller={name} status=429 cause=\"{error}\"",
                line.id, line.client
            );
            if let Some(count) = self.limited.count(line.started) {
                warn!("rate_limited refused={count} by=caller last={name}");
            }
            return limited(*after);
        }
        let reply = match error {
            Error::NobodyConfigured => refusal(401, NOBODY_CONFIGURED),
            Error::NothingShown => {
                refusal(401, "Show an API key or a token of your login as a Bearer")
            }
            // one sentence for all reasons: who guesses learns nothing
            Error::NotAccepted(_) => refusal(401, "The credentials are not accepted"),
            Error::KeysUnavailable(_, after) => {
                refusal(503, "The keys of the login cannot be had at present").retry(*after)
            }
            Error::TooOften(_, after) => limited(*after),
        };
        line.refused(None, reply.status, "", error);
        reply
    }

    /// The fields of the standard and those of the example, which has a date beside the token.
    fn granted(&self, granted: &Granted, status: u16) -> Reply {
        let terms = &granted.terms;
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(granted.expires));
        let body = json!({
            "server_url": self.url,
            "participant_token": granted.token.expose(),
            "room_name": terms.room.as_str(),
            "participant_name": terms.profile.name.as_deref().unwrap_or_default(),
            "participant_identity": terms.identity.as_str(),
            "token": granted.token.expose(),
            "url": self.url,
            "expires_at": Timestamp(expires.unwrap_or(UNIX_EPOCH)).to_string(),
        });
        Reply::json(status, &body)
    }
}

/// What every line about one request says.
struct Line<'a> {
    id: u32,
    client: &'a str,
    started: Instant,
}

impl Line<'_> {
    fn granted(&self, admitted: &Admitted, granted: &Granted) {
        let (id, client, ms) = (self.id, self.client, self.started.elapsed().as_millis());
        let (terms, by) = (&granted.terms, By(admitted));
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

    fn refused(
        &self,
        admitted: Option<&Admitted>,
        status: u16,
        field: &str,
        error: &dyn std::fmt::Display,
    ) {
        let (id, client, ms) = (self.id, self.client, self.started.elapsed().as_millis());
        metrics::denied(match status {
            401 => "not_authenticated",
            403 => "forbidden",
            503 => "keys_unavailable",
            _ => "bad_request",
        });
        let by = admitted.map_or_else(String::new, |admitted| format!("{} ", By(admitted)));
        let cause = error.to_string();
        info!(
            "refused request={id:08x} client={client} endpoint=token {by}status={status} field={field:?} ms={ms} cause={cause:?}"
        );
    }
}

/// Who asks, for the log.
struct By<'a>(&'a Admitted);

impl std::fmt::Display for By<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "caller={}", self.0.caller().name)?;
        self.0.key().map_or(Ok(()), |key| write!(f, " key={key}"))
    }
}

/// An error as the example tells it.
fn refusal(status: u16, detail: &str) -> Reply {
    Reply::json(status, &json!({ "detail": detail }))
}

fn limited(after: Duration) -> Reply {
    refusal(429, "Too many requests").retry(after)
}

fn unreadable<'a>(problems: impl Iterator<Item = &'a Problem>) -> Reply {
    let detail: Vec<Value> = problems.map(Problem::json).collect();
    Reply::json(422, &json!({ "detail": detail }))
}

impl From<&ask::Error> for Reply {
    fn from(error: &ask::Error) -> Self {
        match error {
            ask::Error::Unreadable(problems) => unreadable(problems.iter()),
            ask::Error::Refused(refusal) => Self::from(refusal),
        }
    }
}

impl From<&Refusal> for Reply {
    fn from(error: &Refusal) -> Self {
        match error {
            Refusal::Missing(fields) => {
                let problems: Vec<_> = fields.iter().map(|field| Problem::missing(field)).collect();
                unreadable(problems.iter())
            }
            Refusal::Invalid { .. } => refusal(400, &error.to_string()),
            Refusal::Forbidden { .. } => refusal(403, &error.to_string()),
        }
    }
}
