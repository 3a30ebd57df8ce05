//! JWTs of an application's own login (RFC 7519): who issued them, for whom, until when, and by which key.
//!
//! The key decides on the algorithm, never the token (RFC 8725, 3.1).

#[cfg(test)]
mod tests;
mod unverified;

#[cfg(test)]
use self::unverified::{CLOCK_LEEWAY, MAX_JWT_BYTES};
use std::fmt;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::caller::CallerName;
use super::keys::{KeyLookupError, KeySet, RemoteJwks, VerificationKey};

pub(crate) use self::unverified::JwtRejection;
use self::unverified::UnverifiedJwt;

/// What identifies a user where the settings do not say otherwise.
pub(crate) const DEFAULT_IDENTITY_CLAIM: &str = "sub";

/// Where an issuer's keys are from.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// The settings: a file, or a secret.
    Fixed(KeySet),
    /// The issuer itself.
    Remote(RemoteJwks),
}

/// A login whose users may ask for tokens.
#[derive(Debug, Clone)]
pub struct JwtIssuer {
    name: CallerName,
    issuer: String,
    audience: String,
    identity_claim: String,
    key_source: KeySource,
}

/// Why a JWT lets nobody in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// It is not a good one. The cause is for the log only.
    Rejected(JwtRejection),
    /// Its key is not known, and the issuer's server did not say whether there is such a key; try again after this time.
    KeysUnavailable(Duration),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(cause) => cause.fmt(f),
            Self::KeysUnavailable(_) => f.write_str(
                "JWT names a key that is not known, and the issuer's keys could not be fetched",
            ),
        }
    }
}

impl std::error::Error for Error {}

impl From<JwtRejection> for Error {
    fn from(cause: JwtRejection) -> Self {
        Self::Rejected(cause)
    }
}

impl JwtIssuer {
    /// A login that writes `issuer` into its tokens as `iss`, and `audience` as `aud` into those that are for us.
    pub fn new(name: CallerName, issuer: String, audience: String, keys: KeySource) -> Self {
        Self {
            name,
            issuer,
            audience,
            identity_claim: DEFAULT_IDENTITY_CLAIM.to_owned(),
            key_source: keys,
        }
    }

    /// Takes users by another claim than `sub`.
    pub fn with_identity_claim(self, identity_claim: String) -> Self {
        Self {
            identity_claim,
            ..self
        }
    }

    /// What the administrator calls it.
    pub fn name(&self) -> &CallerName {
        &self.name
    }

    /// Where its keys are from.
    pub fn key_source(&self) -> &KeySource {
        &self.key_source
    }

    /// Who the user is, by the claims of an accepted token.
    pub fn user_identity<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a str> {
        claims.get(&self.identity_claim)?.as_str()
    }

    /// Whether a key of ours signed the token. May wait for the issuer's server, if none is known that could have.
    fn verify_signature(&self, token: &UnverifiedJwt<'_>) -> Result<(), Error> {
        let published = match &self.key_source {
            KeySource::Fixed(keys) => return Ok(check_signature(token, keys.select_for(token))?),
            KeySource::Remote(published) => published,
        };
        if let Some(keys) = published.cached(Instant::now()) {
            match keys.select_for(token) {
                Err(KeyLookupError::UnknownKey) => {}
                key => return Ok(check_signature(token, key)?),
            }
        }
        let keys = published.refresh().map_err(Error::KeysUnavailable)?;
        Ok(check_signature(token, keys.select_for(token))?)
    }

    fn would_wait(&self, token: &UnverifiedJwt<'_>) -> bool {
        let KeySource::Remote(published) = &self.key_source else {
            return false;
        };
        let now = Instant::now();
        let unknown = published
            .cached(now)
            .is_none_or(|keys| matches!(keys.select_for(token), Err(KeyLookupError::UnknownKey)));
        unknown && published.would_wait(now)
    }
}

impl KeySet {
    fn select_for(&self, token: &UnverifiedJwt<'_>) -> Result<&VerificationKey, KeyLookupError> {
        self.select(token.algorithm, token.key_id.as_deref())
    }
}

fn check_signature(
    token: &UnverifiedJwt<'_>,
    key: Result<&VerificationKey, KeyLookupError>,
) -> Result<(), JwtRejection> {
    let key = key.map_err(JwtRejection::KeyLookup)?;
    if key.verify_signature(token.signing_input.as_bytes(), &token.signature) {
        Ok(())
    } else {
        Err(JwtRejection::BadSignature)
    }
}

/// All logins.
#[derive(Debug, Clone, Default)]
pub struct JwtIssuers(Vec<JwtIssuer>);

impl JwtIssuers {
    /// Takes them all; two with the same `iss` have to differ in their audience.
    pub fn new(issuers: Vec<JwtIssuer>) -> Self {
        Self(issuers)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &JwtIssuer> {
        self.0.iter()
    }

    /// Verifies a JWT at `now` (seconds since 1970): whose it is, and all that it says. Signature last: only what would pass
    /// otherwise may have its issuer's server asked for keys.
    pub fn verify(&self, text: &str, now: u64) -> Result<(&JwtIssuer, Map<String, Value>), Error> {
        let token = UnverifiedJwt::parse(text)?;
        let issuer = self.find_issuer(&token)?;
        token.check_time_claims(now)?;
        issuer.verify_signature(&token)?;
        Ok((issuer, token.claims))
    }

    /// Whether [`Issuers::verify`] would wait for an issuer's server, so that the request has to be queued with those that
    /// leave the house.
    pub fn would_wait(&self, text: &str, now: u64) -> bool {
        if !self
            .iter()
            .any(|issuer| matches!(issuer.key_source, KeySource::Remote(_)))
        {
            return false;
        }
        let Ok(token) = UnverifiedJwt::parse(text) else {
            return false;
        };
        token.check_time_claims(now).is_ok()
            && self
                .find_issuer(&token)
                .is_ok_and(|issuer| issuer.would_wait(&token))
    }

    fn find_issuer(&self, token: &UnverifiedJwt<'_>) -> Result<&JwtIssuer, JwtRejection> {
        let named = token.issuer();
        let mut ours = self
            .iter()
            .filter(|issuer| Some(&*issuer.issuer) == named)
            .peekable();
        if ours.peek().is_none() {
            return Err(JwtRejection::unknown_issuer(named));
        }
        ours.find(|issuer| token.has_audience(&issuer.audience))
            .ok_or(JwtRejection::WrongAudience)
    }
}
