//! JWTs that an application's login system issues to its users (RFC 7519).

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::jwks::{JwksRefresher, JwksUrl, RemoteJwks};
use super::keys::{JwsAlgorithm, KeyLookupError, KeySet, decode_base64url};
use super::{CallerName, Error};
use crate::util::json;
use crate::util::text::truncate_chars;

/// Longest JWT in bytes, that of a request head.
pub(crate) const MAX_JWT_BYTES: usize = 16 * 1024;
/// Seconds by which the clocks of the issuer and of this host may differ.
pub(crate) const CLOCK_LEEWAY: u64 = 60;
/// The claim that identifies the user by default.
pub(crate) const DEFAULT_IDENTITY_CLAIM: &str = "sub";
/// Most characters of a JWT's texts in the log.
const MAX_LOGGED_CHARS: usize = 100;
/// Accepted values of `typ` (RFC 7519, 5.1; RFC 9068, 2.1). An issuer's other JWTs, such as logout tokens, authenticate no user.
const USER_TOKEN_TYPES: [&str; 2] = ["jwt", "at+jwt"];

/// A configured issuer of JWTs, which is a caller of the token endpoint. `R` is a [`JwksUrl`] in the settings, and the key set
/// at that URL in operation.
#[derive(Debug, Clone)]
pub struct JwtIssuer<R = Arc<RemoteJwks>> {
    /// The name of the caller.
    pub name: CallerName,
    /// Required `iss`.
    pub issuer: String,
    /// Required `aud`, alone or among others.
    pub audience: String,
    /// The claim that identifies the user.
    pub identity_claim: String,
    /// Source of the keys.
    pub keys: KeySource<R>,
}

/// Source of an issuer's keys; see [`JwtIssuer`] about `R`.
#[derive(Debug, Clone)]
pub enum KeySource<R = Arc<RemoteJwks>> {
    /// A file or a secret, read with the settings.
    Fixed(KeySet),
    /// A JWKS that the issuer publishes.
    Remote(R),
}

impl JwtIssuer<JwksUrl> {
    /// The issuer in operation: its remote keys are fetched and refreshed.
    ///
    /// # Errors
    /// The refresh thread cannot be started.
    pub(crate) fn start(&self, refresher: &mut JwksRefresher) -> io::Result<JwtIssuer> {
        Ok(JwtIssuer {
            name: self.name.clone(),
            issuer: self.issuer.clone(),
            audience: self.audience.clone(),
            identity_claim: self.identity_claim.clone(),
            keys: match &self.keys {
                KeySource::Fixed(keys) => KeySource::Fixed(keys.clone()),
                KeySource::Remote(url) => KeySource::Remote(refresher.key_set(url.clone())?),
            },
        })
    }
}

/// Reason why a JWT is rejected: for the log, never for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtRejection {
    /// Not three segments of unpadded base64url with JSON objects, or a claim of a wrong type.
    Malformed,
    /// A `typ` that authenticates no user.
    UnsupportedType(String),
    /// Not RS256, ES256, EdDSA or HS256; for example `none`.
    UnsupportedAlgorithm(String),
    /// A critical extension (RFC 7515, 4.1.11); none is supported.
    CriticalExtension,
    /// No configured issuer has this `iss`.
    UnknownIssuer(String),
    WrongAudience,
    /// `exp` has passed.
    Expired,
    /// `nbf` or `iat` is in the future.
    NotYetValid,
    KeyLookup(KeyLookupError),
    BadSignature,
}

impl fmt::Display for JwtRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnsupportedType(found) => return write!(f, "JWT has the type {found:?}"),
            Self::UnsupportedAlgorithm(found) => {
                return write!(f, "JWT has the algorithm {found:?}");
            }
            Self::UnknownIssuer(found) => return write!(f, "JWT has an unknown issuer, {found:?}"),
            Self::Malformed => "JWT is malformed",
            Self::CriticalExtension => "JWT has a critical extension",
            Self::WrongAudience => "JWT is for another audience",
            Self::Expired => "JWT has expired",
            Self::NotYetValid => "JWT is not valid yet",
            Self::KeyLookup(KeyLookupError::UnknownKey) => "JWT names an unknown key",
            Self::KeyLookup(KeyLookupError::AlgorithmMismatch) => {
                "JWT has another algorithm than its key"
            }
            Self::KeyLookup(KeyLookupError::Ambiguous) => {
                "JWT does not say by which key it is signed"
            }
            Self::BadSignature => "JWT has a wrong signature",
        })
    }
}

impl std::error::Error for JwtRejection {}

/// A JWT of a configured issuer, valid but for its signature, which is not verified yet.
#[derive(Debug)]
pub struct UnverifiedJwt {
    issuer: Arc<JwtIssuer>,
    /// Header and claims, encoded.
    signing_input: Box<str>,
    signature: Vec<u8>,
    algorithm: JwsAlgorithm,
    key_id: Option<String>,
    claims: Map<String, Value>,
}

impl UnverifiedJwt {
    /// Parses a JWT of one of `issuers`, and checks all but its signature at `now` (seconds since 1970). Never waits: only a
    /// JWT that passes may trigger a fetch of keys.
    ///
    /// # Errors
    /// The JWT is malformed, not supported, of another issuer, for another audience, or not valid at `now`.
    pub fn parse(text: &str, issuers: &[Arc<JwtIssuer>], now: u64) -> Result<Self, JwtRejection> {
        if text.len() > MAX_JWT_BYTES {
            return Err(JwtRejection::Malformed);
        }
        let (signing_input, signature) = text.rsplit_once('.').ok_or(JwtRejection::Malformed)?;
        let (header, claims) = signing_input
            .split_once('.')
            .ok_or(JwtRejection::Malformed)?;
        let header: JwtHeader = decode_json_segment(header)?;
        header.check_extensions_and_type()?;
        let signature = decode_base64url(signature).ok_or(JwtRejection::Malformed)?;
        let algorithm = JwsAlgorithm::parse(&header.alg)
            .ok_or_else(|| JwtRejection::UnsupportedAlgorithm(truncate_for_log(&header.alg)))?;
        let claims = decode_json_segment(claims)?;
        let issuer = find_issuer(issuers, &claims)?;
        check_time_claims(&claims, now)?;
        Ok(Self {
            issuer: issuer.clone(),
            signing_input: signing_input.into(),
            signature,
            algorithm,
            key_id: header.kid,
            claims,
        })
    }

    /// Verifies the signature and returns the claims. Waits for the issuer's server if the key is unknown and can be fetched.
    ///
    /// # Errors
    /// [`Error::JwtRejected`]; [`Error::KeysUnavailable`], if the key is unknown and the issuer's server did not respond.
    pub fn verify(&self) -> Result<&Map<String, Value>, Error> {
        let keys = match &self.issuer.keys {
            KeySource::Fixed(keys) => return Ok(self.verify_with(keys)?),
            KeySource::Remote(keys) => keys,
        };
        match keys
            .cached(Instant::now())
            .map(|keys| self.verify_with(&keys))
        {
            None | Some(Err(JwtRejection::KeyLookup(KeyLookupError::UnknownKey))) => {}
            Some(result) => return Ok(result?),
        }
        let keys = keys.fetch().map_err(Error::KeysUnavailable)?;
        Ok(self.verify_with(&keys)?)
    }

    fn verify_with(&self, keys: &KeySet) -> Result<&Map<String, Value>, JwtRejection> {
        let key = keys
            .select(self.algorithm, self.key_id.as_deref())
            .map_err(JwtRejection::KeyLookup)?;
        if key.verify_signature(self.signing_input.as_bytes(), &self.signature) {
            Ok(&self.claims)
        } else {
            Err(JwtRejection::BadSignature)
        }
    }

    /// Whether [`Self::verify`] would wait for the issuer's server.
    pub fn needs_key_fetch(&self) -> bool {
        let KeySource::Remote(keys) = &self.issuer.keys else {
            return false;
        };
        let now = Instant::now();
        let is_unknown = keys.cached(now).is_none_or(|keys| {
            let key = keys.select(self.algorithm, self.key_id.as_deref());
            matches!(key, Err(KeyLookupError::UnknownKey))
        });
        is_unknown && keys.can_fetch(now)
    }

    /// The issuer whose `iss` and `aud` the JWT has.
    pub fn issuer(&self) -> &JwtIssuer {
        &self.issuer
    }

    pub(super) fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// The user's id, if the claim for it is a text.
    pub(super) fn user(&self) -> Option<&str> {
        self.claims.get(&self.issuer.identity_claim)?.as_str()
    }
}

#[derive(Deserialize)]
struct JwtHeader {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    #[serde(default, deserialize_with = "is_present")]
    crit: bool,
}

/// True even for `null`.
fn is_present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

impl JwtHeader {
    fn check_extensions_and_type(&self) -> Result<(), JwtRejection> {
        if self.crit {
            return Err(JwtRejection::CriticalExtension);
        }
        let Some(media_type) = &self.typ else {
            return Ok(());
        };
        // the prefix may be omitted (RFC 7515, 4.1.9)
        let short = media_type.to_ascii_lowercase();
        let short = short.strip_prefix("application/").unwrap_or(&short);
        if USER_TOKEN_TYPES.contains(&short) {
            Ok(())
        } else {
            Err(JwtRejection::UnsupportedType(truncate_for_log(media_type)))
        }
    }
}

fn find_issuer<'a>(
    issuers: &'a [Arc<JwtIssuer>],
    claims: &Map<String, Value>,
) -> Result<&'a Arc<JwtIssuer>, JwtRejection> {
    let name = claims.get("iss").and_then(Value::as_str);
    let has_audience = |audience: &String| match claims.get("aud") {
        Some(Value::Array(audiences)) => audiences.iter().any(|one| one == audience),
        single => single.and_then(Value::as_str) == Some(audience),
    };
    let mut same_name = issuers
        .iter()
        .filter(|issuer| Some(&*issuer.issuer) == name)
        .peekable();
    if same_name.peek().is_none() {
        let name = truncate_for_log(name.unwrap_or_default());
        return Err(JwtRejection::UnknownIssuer(name));
    }
    same_name
        .find(|issuer| has_audience(&issuer.audience))
        .ok_or(JwtRejection::WrongAudience)
}

/// Checks `exp`, which is required, and `nbf` and `iat`, which are not.
fn check_time_claims(claims: &Map<String, Value>, now: u64) -> Result<(), JwtRejection> {
    let date = |name| {
        claims
            .get(name)
            .map(|date| parse_numeric_date(date).ok_or(JwtRejection::Malformed))
            .transpose()
    };
    let expires_at = date("exp")?.ok_or(JwtRejection::Malformed)?;
    if now >= expires_at.saturating_add(CLOCK_LEEWAY) {
        return Err(JwtRejection::Expired);
    }
    for name in ["nbf", "iat"] {
        if date(name)?.is_some_and(|date| now.saturating_add(CLOCK_LEEWAY) < date) {
            return Err(JwtRejection::NotYetValid);
        }
    }
    Ok(())
}

/// A `NumericDate` (RFC 7519, 2) in whole seconds since 1970, from a number with or without a fraction; 0 for earlier dates.
fn parse_numeric_date(date: &Value) -> Option<u64> {
    // the cast saturates, which is right for dates that far away
    date.as_u64()
        .or_else(|| date.as_f64().map(|seconds| seconds as u64))
}

fn decode_json_segment<T: DeserializeOwned>(segment: &str) -> Result<T, JwtRejection> {
    decode_base64url(segment)
        .and_then(|json| json::parse_object(&json))
        .ok_or(JwtRejection::Malformed)
}

fn truncate_for_log(text: &str) -> String {
    truncate_chars(text, MAX_LOGGED_CHARS).to_owned()
}
