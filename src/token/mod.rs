//! The general token endpoint: an application, or a user of one, becomes a participant of one LiveKit room.
//!
//! [`TokenSource::authenticate`] verifies the credentials, for which it may fetch keys of a JWT issuer, and limits the rate.
//! [`TokenSource::issue_access_token`] applies the caller's policy and signs.
//!
//! - `api_key`, `jwt`: the two kinds of credentials.
//! - `keys`, `jwks`: keys that verify JWTs, from files and from issuers.
//! - `policy`, `pattern`, `policy_file`: what callers may request.

pub(crate) mod api_key;
pub(crate) mod jwks;
pub(crate) mod jwt;
pub(crate) mod keys;
pub(crate) mod pattern;
pub(crate) mod policy;
pub(crate) mod policy_file;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use self::api_key::{API_KEY_PREFIX, CallerApiKeys};
use self::jwks::{JwksRefresher, JwksUrl, RemoteJwks};
use self::jwt::{JwtIssuer, JwtRejection};
use self::policy::{CallerPolicy, ParticipantRequest, PolicyError, TokenGrant};
use crate::livekit::access_token::{AccessToken, Claims, SharedApiKeys};
use crate::util::auth::parse_bearer;
use crate::util::random;
use crate::util::rate_limiter::{Rate, RateLimiter};
use crate::util::sync::Swappable;
use crate::util::text::hex;

/// Longest name of a caller in bytes; it is in every log line of the caller's requests.
pub(crate) const MAX_CALLER_NAME: usize = 64;
/// Most callers, users and addresses with a rate limit in memory.
const MAX_RATE_KEYS: usize = 16_384;

/// The name of a caller in the settings and the policy file: 1 to 64 of `A-Z a-z 0-9 _ . -`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallerName(String);

impl CallerName {
    /// Parses a name.
    pub fn parse(text: &str) -> Option<Self> {
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let is_name = (1..=MAX_CALLER_NAME).contains(&text.len()) && text.bytes().all(is_allowed);
        is_name.then(|| Self(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CallerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The credentials in the header of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Credentials<'a> {
    Missing,
    /// An API key, which starts with [`API_KEY_PREFIX`], or a JWT.
    ApiKeyOrJwt(&'a str),
    /// Another scheme, or several credentials.
    Unsupported,
}

impl<'a> Credentials<'a> {
    /// Reads credentials from the values of `X-API-Key` and of `Authorization`.
    pub(crate) fn parse(
        mut api_keys: impl Iterator<Item = &'a str>,
        mut authorizations: impl Iterator<Item = &'a str>,
    ) -> Self {
        let (key, authorization) = (api_keys.next(), authorizations.next());
        if api_keys.next().is_some() || authorizations.next().is_some() {
            return Self::Unsupported;
        }
        match (key, authorization) {
            (Some(key), authorization) => match authorization.and_then(parse_bearer) {
                Some(token) if token != key.trim() => Self::Unsupported,
                // another scheme may be for a proxy
                _ => Self::ApiKeyOrJwt(key.trim()),
            },
            (None, Some(authorization)) => {
                parse_bearer(authorization).map_or(Self::Unsupported, Self::ApiKeyOrJwt)
            }
            (None, None) => Self::Missing,
        }
    }
}

/// The configured callers and their policies. A reload replaces it as a whole. `R` is a [`JwksUrl`] in the settings, and the key
/// set at that URL in operation.
#[derive(Debug, Clone)]
pub(crate) struct CallerRegistry<R = Arc<RemoteJwks>> {
    pub(crate) api_keys: CallerApiKeys,
    /// Issuers of JWTs; two with the same `iss` differ in `aud`.
    pub(crate) issuers: Vec<JwtIssuer<R>>,
    /// The caller of requests without credentials, if such requests are allowed.
    pub(crate) anonymous: Option<CallerName>,
    pub(crate) policies: BTreeMap<CallerName, Arc<CallerPolicy>>,
    /// The policy of callers that have none of their own.
    pub(crate) default_policy: Arc<CallerPolicy>,
}

impl<R> CallerRegistry<R> {
    /// Whether no request can be authenticated.
    fn is_empty(&self) -> bool {
        self.api_keys.is_empty() && self.issuers.is_empty() && self.anonymous.is_none()
    }

    /// The names of all callers, separated by commas, or `none`.
    pub(crate) fn summary(&self) -> String {
        let mut names = self.api_keys.caller_names();
        names.extend(self.issuers.iter().map(|issuer| &issuer.name));
        let names = self.anonymous.iter().chain(names);
        let names: Vec<&str> = names.map(CallerName::as_str).collect();
        match names.is_empty() {
            true => "none".to_owned(),
            false => names.join(","),
        }
    }
}

impl CallerRegistry<JwksUrl> {
    /// The registry in operation: remote keys are fetched and refreshed; key sets that are in use already keep their keys.
    ///
    /// # Errors
    /// The refresh thread cannot be started.
    pub(crate) fn start(&self, refresher: &mut JwksRefresher) -> io::Result<CallerRegistry> {
        let issuers = self.issuers.iter().map(|issuer| issuer.start(refresher));
        Ok(CallerRegistry {
            api_keys: self.api_keys.clone(),
            issuers: issuers.collect::<io::Result<_>>()?,
            anonymous: self.anonymous.clone(),
            policies: self.policies.clone(),
            default_policy: self.default_policy.clone(),
        })
    }
}

impl CallerRegistry {
    /// Authenticates a caller. Returns the key of its rate limit too.
    fn authenticate(
        &self,
        credentials: Credentials<'_>,
        client: Option<IpAddr>,
        unix_now: u64,
    ) -> Result<(AuthenticatedCaller, Option<RateKey>), Error> {
        if self.is_empty() {
            return Err(Error::NoCallerConfigured);
        }
        let caller = |name: &CallerName| AuthenticatedCaller {
            policy: Arc::clone(self.policies.get(name).unwrap_or(&self.default_policy)),
            name: name.clone(),
            api_key_id: None,
            claims: None,
        };
        match (credentials, &self.anonymous) {
            (Credentials::ApiKeyOrJwt(key), _)
                if key.starts_with(API_KEY_PREFIX) && !self.api_keys.is_empty() =>
            {
                let (name, id) = self.api_keys.find(key).ok_or(Error::UnknownApiKey)?;
                let api_key_id = Some(id.to_owned());
                let rate_key = Some(RateKey::Caller(name.clone()));
                let caller = caller(name);
                Ok((
                    AuthenticatedCaller {
                        api_key_id,
                        ..caller
                    },
                    rate_key,
                ))
            }
            (Credentials::ApiKeyOrJwt(token), _) if !self.issuers.is_empty() => {
                let jwt = jwt::verify_jwt(token, &self.issuers, unix_now)?;
                let user = jwt.user().unwrap_or_default().to_owned();
                let rate_key = Some(RateKey::User(jwt.issuer.name.clone(), user));
                let caller = caller(&jwt.issuer.name);
                let claims = Some(jwt.claims);
                Ok((AuthenticatedCaller { claims, ..caller }, rate_key))
            }
            // an authenticating proxy may forward the credentials that it accepted
            (_, Some(name)) => Ok((caller(name), client.map(RateKey::Address))),
            (Credentials::Missing, None) => Err(Error::MissingCredentials),
            (Credentials::ApiKeyOrJwt(_) | Credentials::Unsupported, None) => {
                Err(Error::UnsupportedCredentials)
            }
        }
    }
}

/// A caller whose credentials are verified, and whose rate limit is not exceeded.
#[derive(Debug)]
pub(crate) struct AuthenticatedCaller {
    name: CallerName,
    policy: Arc<CallerPolicy>,
    api_key_id: Option<String>,
    claims: Option<Map<String, Value>>,
}

impl AuthenticatedCaller {
    pub(crate) fn name(&self) -> &CallerName {
        &self.name
    }

    /// The id of the API key.
    pub(crate) fn api_key_id(&self) -> Option<&str> {
        self.api_key_id.as_deref()
    }
}

/// A LiveKit access token for one participant.
#[derive(Debug)]
pub(crate) struct ParticipantToken {
    pub(crate) access_token: AccessToken,
    pub(crate) grant: TokenGrant,
    /// Seconds since 1970.
    pub(crate) expires_at: u64,
}

/// Reason why a caller is not authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The settings configure no caller at all.
    NoCallerConfigured,
    MissingCredentials,
    /// Neither an API key nor a JWT, or a kind that no caller has.
    UnsupportedCredentials,
    UnknownApiKey,
    JwtRejected(JwtRejection),
    /// The JWT's key is unknown, and its issuer's server did not respond; a retry makes sense after this time.
    KeysUnavailable(Duration),
    /// The caller exceeded its rate; a retry makes sense after this time.
    RateLimited(CallerName, Duration),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCallerConfigured => "no caller is configured",
            Self::MissingCredentials => "neither an API key nor a JWT in the request",
            Self::UnsupportedCredentials => "credentials of an unsupported kind",
            Self::UnknownApiKey => "API key is unknown",
            Self::JwtRejected(rejection) => return rejection.fmt(f),
            Self::KeysUnavailable(_) => {
                "JWT names an unknown key, and the issuer's keys could not be fetched"
            }
            Self::RateLimited(name, _) => return write!(f, "too many requests of caller {name}"),
        })
    }
}

impl std::error::Error for Error {}

impl From<JwtRejection> for Error {
    fn from(rejection: JwtRejection) -> Self {
        Self::JwtRejected(rejection)
    }
}

/// The subject of a rate limit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum RateKey {
    Caller(CallerName),
    /// A user of a caller that is a JWT issuer.
    User(CallerName, String),
    /// The address of an anonymous client.
    Address(IpAddr),
}

/// Authenticates callers and issues access tokens to them.
#[derive(Debug)]
pub(crate) struct TokenSource {
    api_keys: SharedApiKeys,
    registry: Swappable<CallerRegistry>,
    rate_limiter: RateLimiter<RateKey>,
}

impl TokenSource {
    /// Signs with the first of `api_keys` for the callers in `registry`.
    pub(crate) fn new(api_keys: impl Into<SharedApiKeys>, registry: CallerRegistry) -> Self {
        Self {
            api_keys: api_keys.into(),
            registry: Swappable::new(registry),
            rate_limiter: RateLimiter::new(MAX_RATE_KEYS),
        }
    }

    /// Replaces the callers for later requests.
    pub(crate) fn replace_registry(&self, registry: CallerRegistry) {
        self.registry.replace(registry);
    }

    /// Whether [`Self::authenticate`] would wait for the server of a JWT issuer. Never waits itself.
    pub(crate) fn needs_key_fetch(&self, credentials: Credentials<'_>, unix_now: u64) -> bool {
        match credentials {
            Credentials::ApiKeyOrJwt(token) if !token.starts_with(API_KEY_PREFIX) => {
                jwt::needs_key_fetch(token, &self.registry.get().issuers, unix_now)
            }
            Credentials::ApiKeyOrJwt(_) | Credentials::Missing | Credentials::Unsupported => false,
        }
    }

    /// Authenticates the caller that the credentials name, and counts the request against the caller's rate limit. `client` is
    /// the rate-limit key of an anonymous client, if its address is known. `unix_now` is in seconds since 1970.
    ///
    /// # Errors
    /// See [`Error`].
    pub(crate) fn authenticate(
        &self,
        credentials: Credentials<'_>,
        client: Option<IpAddr>,
        now: Instant,
        unix_now: u64,
    ) -> Result<AuthenticatedCaller, Error> {
        let registry = self.registry.get();
        let (caller, rate_key) = registry.authenticate(credentials, client, unix_now)?;
        if let (Some(key), rate @ 1..) = (rate_key, caller.policy.requests_per_minute) {
            self.rate_limiter
                .try_acquire(&key, Rate::per_minute(rate), now)
                .map_err(|retry_after| Error::RateLimited(caller.name.clone(), retry_after))?;
        }
        Ok(caller)
    }

    /// Signs an access token at `now` (seconds since 1970) for the participant that the caller requests.
    ///
    /// # Errors
    /// The caller's policy does not allow the request.
    pub(crate) fn issue_access_token(
        &self,
        caller: &AuthenticatedCaller,
        request: ParticipantRequest,
        now: u64,
    ) -> Result<ParticipantToken, PolicyError> {
        // 128 bits: a random room cannot be guessed
        let random_name = || hex(&random::bytes::<16>());
        let claims = caller.claims.as_ref();
        let grant = caller.policy.authorize(claims, request, random_name)?;
        let claims = Claims::join_with_grants(
            grant.identity.clone(),
            &grant.room,
            &grant.grants,
            &grant.sources,
            grant.profile.clone(),
        );
        let lifetime = Duration::from_secs(grant.lifetime);
        Ok(ParticipantToken {
            access_token: claims.sign(self.api_keys.get().signing(), now, lifetime),
            expires_at: now.saturating_add(grant.lifetime),
            grant,
        })
    }
}
