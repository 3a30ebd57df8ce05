//! The general token endpoint: an application, or a user of it, becomes a participant of one room.
//!
//! Authenticate the caller, authorise what they ask for, sign; every step needs what the one before it gave.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::api_key::{API_KEY_PREFIX, CallerApiKeys};
use super::caller::{Caller, CallerName};
use super::jwt;
use super::jwt::JwtIssuers;
use super::policy::{CallerPolicy, ParticipantRequest, PolicyError, TokenGrant};
use crate::livekit::access_token::{AccessToken, Claims, SharedApiKeys};
use crate::net::address::client_key;
use crate::util::random;
use crate::util::rate_limiter::{Rate, RateLimiter};
use crate::util::sync::Swappable;

/// Most callers, users and addresses whose pace is remembered; beyond it the one that waits least starts afresh.
const MAX_RATE_KEYS: usize = 16_384;

/// What a request shows of who sent it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Credentials<'a> {
    /// Nothing.
    Missing,
    /// An API key or a JWT.
    ApiKeyOrJwt(&'a str),
    /// Something that we do not take.
    Unsupported,
}

/// Who the callers are and what they may do. Replaced as a whole when the administrator says so.
#[derive(Debug, Default)]
pub(crate) struct CallerRegistry {
    /// Those with API keys.
    pub api_keys: CallerApiKeys,
    /// Those whose login is believed.
    pub issuers: JwtIssuers,
    /// The name of those whom nobody has to authenticate, if there are such.
    pub anonymous: Option<CallerName>,
    /// The rules for each.
    pub policies: BTreeMap<CallerName, Arc<CallerPolicy>>,
    /// The rules for all others.
    pub default_policy: Arc<CallerPolicy>,
}

impl CallerRegistry {
    /// Whether nobody at all could be a caller.
    pub(crate) fn is_empty(&self) -> bool {
        self.api_keys.is_empty() && self.issuers.is_empty() && self.anonymous.is_none()
    }

    fn policy_for(&self, name: &CallerName) -> Arc<CallerPolicy> {
        Arc::clone(self.policies.get(name).unwrap_or(&self.default_policy))
    }
}

/// A caller who was let in, and the rules for them.
#[derive(Debug)]
pub(crate) struct AuthenticatedCaller {
    caller: Caller,
    policy: Arc<CallerPolicy>,
    api_key_id: Option<String>,
}

impl AuthenticatedCaller {
    /// Who it is.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The id of the API key that was shown.
    pub(crate) fn api_key_id(&self) -> Option<&str> {
        self.api_key_id.as_deref()
    }
}

/// A token, and what it is for.
#[derive(Debug)]
pub(crate) struct TokenSourceReply {
    /// The token.
    pub access_token: AccessToken,
    /// What it lets its holder do.
    pub grant: TokenGrant,
    /// When it ends, in seconds since 1970.
    pub expires_at: u64,
}

/// Why a caller is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Error {
    /// No caller is configured at all.
    NoCallerConfigured,
    /// Nothing was shown.
    MissingCredentials,
    /// What was shown is not accepted.
    InvalidCredentials(String),
    /// The keys of the login that signed it cannot be had, but perhaps after this time.
    KeysUnavailable(String, Duration),
    /// The caller has asked too often, and may ask again after this time.
    RateLimited(CallerName, Duration),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCallerConfigured => f.write_str("no caller is configured"),
            Self::MissingCredentials => f.write_str("neither an API key nor a JWT was shown"),
            Self::InvalidCredentials(cause) | Self::KeysUnavailable(cause, _) => f.write_str(cause),
            Self::RateLimited(name, _) => write!(f, "too many requests of caller {name}"),
        }
    }
}

impl std::error::Error for Error {}

/// Whose pace is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum RateKey {
    /// An application.
    Caller(CallerName),
    /// A user of an application that has a login.
    User(CallerName, String),
    /// An address, where nobody has a name.
    Address(IpAddr),
}

/// Everything that is needed to sign for callers.
#[derive(Debug)]
pub(crate) struct TokenSource {
    api_keys: SharedApiKeys,
    registry: Swappable<CallerRegistry>,
    rate_limiter: RateLimiter<RateKey>,
}

impl TokenSource {
    /// Signs with the first of `keys` for the callers in `registry`.
    pub(crate) fn new(keys: impl Into<SharedApiKeys>, registry: CallerRegistry) -> Self {
        Self {
            api_keys: keys.into(),
            registry: Swappable::new(registry),
            // each caller has a pace of their own
            rate_limiter: RateLimiter::new(MAX_RATE_KEYS),
        }
    }

    /// Replaces the callers from the next request on.
    pub(crate) fn replace_registry(&self, registry: CallerRegistry) {
        self.registry.replace(registry);
    }

    /// The callers as they are now.
    pub(crate) fn registry(&self) -> Arc<CallerRegistry> {
        self.registry.get()
    }

    /// Whether [`Self::admit`] would wait for the server that has a login's keys.
    pub(crate) fn would_wait(&self, shown: Credentials<'_>, clock: u64) -> bool {
        match shown {
            Credentials::ApiKeyOrJwt(token) if !token.starts_with(API_KEY_PREFIX) => {
                self.registry().issuers.would_wait(token, clock)
            }
            Credentials::Missing | Credentials::ApiKeyOrJwt(_) | Credentials::Unsupported => false,
        }
    }

    /// Lets a caller in at `clock` (seconds since 1970) by what they show. `client` is the address that they are counted under if they have no name, and none
    /// where addresses say nothing.
    pub(crate) fn authenticate(
        &self,
        shown: Credentials<'_>,
        client: Option<IpAddr>,
        now: Instant,
        clock: u64,
    ) -> Result<AuthenticatedCaller, Error> {
        let book = self.registry();
        let (caller, key, payer) = authenticate_credentials(&book, shown, client, clock)?;
        let policy = book.policy_for(&caller.name);
        if let (Some(payer), 1..) = (payer, policy.requests_per_minute) {
            self.rate_limiter
                .try_acquire(&payer, Rate::per_minute(policy.requests_per_minute), now)
                .map_err(|after| Error::RateLimited(caller.name.clone(), after))?;
        }
        Ok(AuthenticatedCaller {
            caller,
            policy,
            api_key_id: key,
        })
    }

    /// Signs what an admitted caller asks for, at `now` (seconds since 1970), if they may have it.
    pub(crate) fn issue_access_token(
        &self,
        admitted: &AuthenticatedCaller,
        asked: ParticipantRequest,
        now: u64,
    ) -> Result<TokenSourceReply, PolicyError> {
        let terms = admitted.policy.authorize(&admitted.caller, asked, || {
            // who is not told such a name cannot guess it
            let bytes: [u8; 16] = random::bytes();
            format!("{:032x}", u128::from_ne_bytes(bytes))
        })?;
        let claims = Claims::join_with_grants(
            terms.identity.clone(),
            &terms.room,
            &terms.grants,
            &terms.sources,
            terms.profile.clone(),
        );
        let token = claims.sign(
            self.api_keys.get().signing(),
            now,
            Duration::from_secs(terms.lifetime),
        );
        Ok(TokenSourceReply {
            access_token: token,
            expires_at: now.saturating_add(terms.lifetime),
            grant: terms,
        })
    }
}

/// Who shows this, the id of their API key, and whose pace it is.
fn authenticate_credentials(
    book: &CallerRegistry,
    shown: Credentials<'_>,
    client: Option<IpAddr>,
    clock: u64,
) -> Result<(Caller, Option<String>, Option<RateKey>), Error> {
    if book.is_empty() {
        return Err(Error::NoCallerConfigured);
    }
    match (shown, &book.anonymous) {
        (Credentials::ApiKeyOrJwt(token), _)
            if token.starts_with(API_KEY_PREFIX) && !book.api_keys.is_empty() =>
        {
            let found = book.api_keys.find(token);
            let (name, id) = found
                .ok_or_else(|| Error::InvalidCredentials("the API key is not known".into()))?;
            let (name, claims) = (name.clone(), None);
            let payer = RateKey::Caller(name.clone());
            Ok((Caller { name, claims }, Some(id.to_owned()), Some(payer)))
        }
        (Credentials::ApiKeyOrJwt(token), _) if !book.issuers.is_empty() => {
            let (issuer, claims) =
                book.issuers
                    .verify(token, clock)
                    .map_err(|error| match error {
                        jwt::Error::KeysUnavailable(after) => {
                            Error::KeysUnavailable(error.to_string(), after)
                        }
                        error => Error::InvalidCredentials(error.to_string()),
                    })?;
            let name = issuer.name().clone();
            let user = issuer.user_identity(&claims).unwrap_or_default().to_owned();
            let payer = RateKey::User(name.clone(), user);
            let claims = Some(claims);
            Ok((Caller { name, claims }, None, Some(payer)))
        }
        // a proxy that authenticates may pass on what it was shown
        (_, Some(name)) => {
            let (name, claims) = (name.clone(), None);
            let payer = client.map(|client| RateKey::Address(client_key(client)));
            Ok((Caller { name, claims }, None, payer))
        }
        (Credentials::Missing, None) => Err(Error::MissingCredentials),
        (Credentials::ApiKeyOrJwt(_) | Credentials::Unsupported, None) => Err(
            Error::InvalidCredentials("what was shown is of no kind that is taken here".into()),
        ),
    }
}
