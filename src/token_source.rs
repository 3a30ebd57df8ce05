//! The general token endpoint: an application, or a user of it, becomes a participant of one room.
//!
//! Authenticate the caller, authorise what they ask for, sign; every step needs what the one before it gave.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use crate::caller::api_key::{ApiKeys, PREFIX};
use crate::caller::jwt::{self, Issuers};
use crate::caller::{Caller, Name};
use crate::livekit::token::{AccessToken, ApiKey, Claims};
use crate::net::address::party;
use crate::net::rate::Rate;
use crate::policy::{Asked, Policy, Refusal, Terms};
use crate::random;

/// Most callers, users and addresses whose pace is remembered; beyond it the one that waits least starts afresh.
const MAX_PACES: usize = 16_384;

/// What a request shows of who sent it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shown<'a> {
    /// Nothing.
    Nothing,
    /// An API key or a JWT.
    Token(&'a str),
    /// Something that we do not take.
    Other,
}

/// Who the callers are and what they may do. Replaced as a whole when the administrator says so.
#[derive(Debug, Default)]
pub struct Book {
    /// Those with API keys.
    pub keys: ApiKeys,
    /// Those whose login is believed.
    pub issuers: Issuers,
    /// The name of those whom nobody has to authenticate, if there are such.
    pub anyone: Option<Name>,
    /// The rules for each.
    pub policies: BTreeMap<Name, Arc<Policy>>,
    /// The rules for all others.
    pub default: Arc<Policy>,
}

impl Book {
    /// Whether nobody at all could be a caller.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.issuers.is_empty() && self.anyone.is_none()
    }

    fn policy(&self, name: &Name) -> Arc<Policy> {
        Arc::clone(self.policies.get(name).unwrap_or(&self.default))
    }
}

/// A caller who was let in, and the rules for them.
#[derive(Debug)]
pub struct Admitted {
    caller: Caller,
    policy: Arc<Policy>,
    key: Option<String>,
}

impl Admitted {
    /// Who it is.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The id of the API key that was shown.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

/// A token, and what it is for.
#[derive(Debug)]
pub struct Granted {
    /// The token.
    pub token: AccessToken,
    /// What it lets its holder do.
    pub terms: Terms,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
}

/// Why a caller is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// No caller is configured at all.
    NobodyConfigured,
    /// Nothing was shown.
    NothingShown,
    /// What was shown is not accepted.
    NotAccepted(String),
    /// The keys of the login that signed it cannot be had, but perhaps after this time.
    KeysUnavailable(String, Duration),
    /// The caller has asked too often, and may ask again after this time.
    TooOften(Name, Duration),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NobodyConfigured => f.write_str("no caller is configured"),
            Self::NothingShown => f.write_str("neither an API key nor a JWT was shown"),
            Self::NotAccepted(cause) | Self::KeysUnavailable(cause, _) => f.write_str(cause),
            Self::TooOften(name, _) => write!(f, "too many requests of caller {name}"),
        }
    }
}

impl std::error::Error for Error {}

/// Whose pace is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Payer {
    /// An application.
    Caller(Name),
    /// A user of an application that has a login.
    User(Name, String),
    /// An address, where nobody has a name.
    Address(IpAddr),
}

/// Everything that is needed to sign for callers.
#[derive(Debug)]
pub struct TokenSource {
    key: RwLock<ApiKey>,
    book: RwLock<Arc<Book>>,
    paces: Rate<Payer>,
}

impl TokenSource {
    /// Signs with `key` for those in `book`.
    pub fn new(key: ApiKey, book: Book) -> Self {
        Self {
            key: RwLock::new(key),
            book: RwLock::new(Arc::new(book)),
            // each caller has a pace of their own
            paces: Rate::new(Duration::ZERO, 0, MAX_PACES),
        }
    }

    /// Goes by another book from the next request on.
    pub fn replace(&self, book: Book) {
        *self.book.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(book);
    }

    /// The book as it is now.
    pub fn book(&self) -> Arc<Book> {
        Arc::clone(&self.book.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Signs with this key from now on.
    pub fn sign_with(&self, key: ApiKey) {
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = key;
    }

    fn signing_key(&self) -> RwLockReadGuard<'_, ApiKey> {
        self.key.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether [`Self::admit`] would wait for the server that has a login's keys.
    pub fn would_wait(&self, shown: Shown<'_>, clock: u64) -> bool {
        match shown {
            Shown::Token(token) if !token.starts_with(PREFIX) => {
                self.book().issuers.would_wait(token, clock)
            }
            Shown::Nothing | Shown::Token(_) | Shown::Other => false,
        }
    }

    /// Lets a caller in at `clock` (seconds since 1970) by what they show. `client` is the address that they are counted under if they have no name, and none
    /// where addresses say nothing.
    pub fn admit(
        &self,
        shown: Shown<'_>,
        client: Option<IpAddr>,
        now: Instant,
        clock: u64,
    ) -> Result<Admitted, Error> {
        let book = self.book();
        let (caller, key, payer) = authenticated(&book, shown, client, clock)?;
        let policy = book.policy(&caller.name);
        if let (Some(payer), 1..) = (payer, policy.requests_per_minute) {
            self.paces
                .take_of(&payer, policy.requests_per_minute, now)
                .map_err(|after| Error::TooOften(caller.name.clone(), after))?;
        }
        Ok(Admitted {
            caller,
            policy,
            key,
        })
    }

    /// Signs what an admitted caller asks for, at `now` (seconds since 1970), if they may have it.
    pub fn token(&self, admitted: &Admitted, asked: Asked, now: u64) -> Result<Granted, Refusal> {
        let terms = admitted.policy.allow(&admitted.caller, asked, || {
            // who is not told such a name cannot guess it
            let bytes: [u8; 16] = random::bytes();
            format!("{:032x}", u128::from_ne_bytes(bytes))
        })?;
        let claims = Claims::participant(
            terms.identity.clone(),
            &terms.room,
            &terms.grants,
            &terms.sources,
            terms.profile.clone(),
        );
        let token = claims.sign(
            &self.signing_key(),
            now,
            Duration::from_secs(terms.lifetime),
        );
        Ok(Granted {
            token,
            expires: now.saturating_add(terms.lifetime),
            terms,
        })
    }
}

/// Who shows this, the id of their API key, and whose pace it is.
fn authenticated(
    book: &Book,
    shown: Shown<'_>,
    client: Option<IpAddr>,
    clock: u64,
) -> Result<(Caller, Option<String>, Option<Payer>), Error> {
    if book.is_empty() {
        return Err(Error::NobodyConfigured);
    }
    match (shown, &book.anyone) {
        (Shown::Token(token), _) if token.starts_with(PREFIX) && !book.keys.is_empty() => {
            let found = book.keys.find(token);
            let (name, id) =
                found.ok_or_else(|| Error::NotAccepted("the API key is not known".into()))?;
            let (name, claims) = (name.clone(), None);
            let payer = Payer::Caller(name.clone());
            Ok((Caller { name, claims }, Some(id.to_owned()), Some(payer)))
        }
        (Shown::Token(token), _) if !book.issuers.is_empty() => {
            let (issuer, claims) =
                book.issuers
                    .verify(token, clock)
                    .map_err(|error| match error {
                        jwt::Error::KeysUnavailable(after) => {
                            Error::KeysUnavailable(error.to_string(), after)
                        }
                        error => Error::NotAccepted(error.to_string()),
                    })?;
            let name = issuer.name().clone();
            let user = issuer.identity(&claims).unwrap_or_default().to_owned();
            let payer = Payer::User(name.clone(), user);
            let claims = Some(claims);
            Ok((Caller { name, claims }, None, Some(payer)))
        }
        // a proxy that authenticates may pass on what it was shown
        (_, Some(name)) => {
            let (name, claims) = (name.clone(), None);
            let payer = client.map(|client| Payer::Address(party(client)));
            Ok((Caller { name, claims }, None, payer))
        }
        (Shown::Nothing, None) => Err(Error::NothingShown),
        (Shown::Token(_) | Shown::Other, None) => Err(Error::NotAccepted(
            "what was shown is of no kind that is taken here".into(),
        )),
    }
}

#[cfg(test)]
mod tests;
