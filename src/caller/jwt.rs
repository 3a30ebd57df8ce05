//! JWTs of an application's own login (RFC 7519): who issued them, for whom, until when, and by which key.
//!
//! The key decides on the algorithm, never the token (RFC 8725, 3.1).

use std::fmt;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::caller::Name;
use crate::caller::jwks::{Jwks, Key, Keys, Miss};

mod token;

use token::Token;
pub use token::{Cause, LEEWAY, MAX_TOKEN};

/// What identifies a user where the settings do not say otherwise.
pub const IDENTITY_CLAIM: &str = "sub";

/// Where an issuer's keys are from.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// The settings: a file, or a secret.
    Fixed(Keys),
    /// The issuer itself.
    Url(Jwks),
}

/// A login whose users may ask for tokens.
#[derive(Debug, Clone)]
pub struct Issuer {
    name: Name,
    issuer: String,
    audience: String,
    identity_claim: String,
    keys: KeySource,
}

/// Why a JWT lets nobody in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// It is not a good one. The cause is for the log only.
    NotAccepted(Cause),
    /// Its key is not known, and the issuer's server did not say whether there is such a key; try again after this time.
    KeysUnavailable(Duration),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAccepted(cause) => cause.fmt(f),
            Self::KeysUnavailable(_) => f.write_str(
                "JWT names a key that is not known, and the issuer's keys could not be fetched",
            ),
        }
    }
}

impl std::error::Error for Error {}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        Self::NotAccepted(cause)
    }
}

impl Issuer {
    /// A login that writes `issuer` into its tokens as `iss`, and `audience` as `aud` into those that are for us.
    pub fn new(name: Name, issuer: String, audience: String, keys: KeySource) -> Self {
        Self {
            name,
            issuer,
            audience,
            identity_claim: IDENTITY_CLAIM.to_owned(),
            keys,
        }
    }

    /// Takes users by another claim than `sub`.
    pub fn identity_claim(self, identity_claim: String) -> Self {
        Self {
            identity_claim,
            ..self
        }
    }

    /// What the administrator calls it.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Where its keys are from.
    pub fn keys(&self) -> &KeySource {
        &self.keys
    }

    /// Who the user is, by the claims of an accepted token.
    pub fn identity<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a str> {
        claims.get(&self.identity_claim)?.as_str()
    }

    /// Whether a key of ours signed the token. May wait for the issuer's server, if none is known that could have.
    fn has_signed(&self, token: &Token<'_>) -> Result<(), Error> {
        let published = match &self.keys {
            KeySource::Fixed(keys) => return Ok(signed_by(token, keys.pick_for(token))?),
            KeySource::Url(published) => published,
        };
        if let Some(keys) = published.keys(Instant::now()) {
            match keys.pick_for(token) {
                Err(Miss::Unknown) => {}
                key => return Ok(signed_by(token, key)?),
            }
        }
        let keys = published.newer().map_err(Error::KeysUnavailable)?;
        Ok(signed_by(token, keys.pick_for(token))?)
    }

    fn would_wait(&self, token: &Token<'_>) -> bool {
        let KeySource::Url(published) = &self.keys else {
            return false;
        };
        let now = Instant::now();
        let unknown = published
            .keys(now)
            .is_none_or(|keys| matches!(keys.pick_for(token), Err(Miss::Unknown)));
        unknown && published.would_wait(now)
    }
}

impl Keys {
    fn pick_for(&self, token: &Token<'_>) -> Result<&Key, Miss> {
        self.pick(token.algorithm, token.key.as_deref())
    }
}

fn signed_by(token: &Token<'_>, key: Result<&Key, Miss>) -> Result<(), Cause> {
    let key = key.map_err(Cause::Key)?;
    if key.has_signed(token.message.as_bytes(), &token.signature) {
        Ok(())
    } else {
        Err(Cause::Signature)
    }
}

/// All logins.
#[derive(Debug, Clone, Default)]
pub struct Issuers(Vec<Issuer>);

impl Issuers {
    /// Takes them all; two with the same `iss` have to differ in their audience.
    pub fn new(issuers: Vec<Issuer>) -> Self {
        Self(issuers)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Issuer> {
        self.0.iter()
    }

    /// Verifies a JWT at `now` (seconds since 1970): whose it is, and all that it says. Signature last: only what would pass
    /// otherwise may have its issuer's server asked for keys.
    pub fn verify(&self, text: &str, now: u64) -> Result<(&Issuer, Map<String, Value>), Error> {
        let token = Token::read(text)?;
        let issuer = self.issuer_of(&token)?;
        token.check_dates(now)?;
        issuer.has_signed(&token)?;
        Ok((issuer, token.claims))
    }

    /// Whether [`Issuers::verify`] would wait for an issuer's server, so that the request has to be queued with those that
    /// leave the house.
    pub fn would_wait(&self, text: &str, now: u64) -> bool {
        if !self
            .iter()
            .any(|issuer| matches!(issuer.keys, KeySource::Url(_)))
        {
            return false;
        }
        let Ok(token) = Token::read(text) else {
            return false;
        };
        token.check_dates(now).is_ok()
            && self
                .issuer_of(&token)
                .is_ok_and(|issuer| issuer.would_wait(&token))
    }

    fn issuer_of(&self, token: &Token<'_>) -> Result<&Issuer, Cause> {
        let named = token.issuer();
        let mut ours = self
            .iter()
            .filter(|issuer| Some(&*issuer.issuer) == named)
            .peekable();
        if ours.peek().is_none() {
            return Err(Cause::issuer(named));
        }
        ours.find(|issuer| token.is_for(&issuer.audience))
            .ok_or(Cause::Audience)
    }
}

#[cfg(test)]
mod tests;
