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
use super::keys::{JwsAlgorithm, KeyLookupError, KeySet, VerificationKey, decode_base64url};
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
                "JWT has no key id (kid) and the issuer has several keys"
            }
            Self::BadSignature => "JWT has a wrong signature",
        })
    }
}

impl std::error::Error for JwtRejection {}

/// A JWT with a valid signature, of a configured issuer.
#[derive(Debug)]
pub struct VerifiedJwt<'a> {
    /// The issuer.
    pub issuer: &'a JwtIssuer,
    /// All claims.
    pub claims: Map<String, Value>,
}

impl VerifiedJwt<'_> {
    /// The user's id, if the claim for it is a text.
    pub fn user(&self) -> Option<&str> {
        self.claims.get(&self.issuer.identity_claim)?.as_str()
    }
}

/// Verifies a JWT of one of `issuers` at `now` (seconds since 1970). The signature comes last: only a JWT that is valid otherwise
/// can trigger a fetch of keys, for which this function waits.
///
/// # Errors
/// [`Error::JwtRejected`]; [`Error::KeysUnavailable`], if the key is unknown and the issuer's server did not respond.
pub fn verify_jwt<'a>(
    text: &str,
    issuers: &'a [JwtIssuer],
    now: u64,
) -> Result<VerifiedJwt<'a>, Error> {
    let jwt = UnverifiedJwt::parse(text)?;
    let (issuer, claims) = jwt.check_claims(issuers, now)?;
    issuer.verify_signature(&jwt)?;
    Ok(VerifiedJwt { issuer, claims })
}

/// Whether [`verify_jwt`] would wait for an issuer's server. Decodes no claims, unless an issuer lacks the key.
pub fn needs_key_fetch(text: &str, issuers: &[JwtIssuer], now: u64) -> bool {
    let Ok(jwt) = UnverifiedJwt::parse(text) else {
        return false;
    };
    issuers.iter().any(|issuer| issuer.needs_key_fetch(&jwt))
        && jwt
            .check_claims(issuers, now)
            .is_ok_and(|(issuer, _)| issuer.needs_key_fetch(&jwt))
}

impl JwtIssuer {
    fn verify_signature(&self, jwt: &UnverifiedJwt<'_>) -> Result<(), Error> {
        let keys = match &self.keys {
            KeySource::Fixed(keys) => return Ok(jwt.verify_signature(keys)?),
            KeySource::Remote(keys) => keys,
        };
        let cached = keys.cached(Instant::now());
        match cached.map(|keys| jwt.verify_signature(&keys)) {
            None | Some(Err(JwtRejection::KeyLookup(KeyLookupError::UnknownKey))) => {}
            Some(result) => return Ok(result?),
        }
        let keys = keys.fetch().map_err(Error::KeysUnavailable)?;
        Ok(jwt.verify_signature(&keys)?)
    }

    fn needs_key_fetch(&self, jwt: &UnverifiedJwt<'_>) -> bool {
        let KeySource::Remote(keys) = &self.keys else {
            return false;
        };
        let now = Instant::now();
        let cached = keys.cached(now);
        let is_unknown = cached
            .is_none_or(|keys| matches!(jwt.select_key(&keys), Err(KeyLookupError::UnknownKey)));
        is_unknown && keys.can_fetch(now)
    }
}

/// A JWT whose header is parsed; claims and signature are not verified, the claims not even decoded.
struct UnverifiedJwt<'a> {
    /// Header and claims, encoded.
    signing_input: &'a str,
    encoded_claims: &'a str,
    signature: Vec<u8>,
    algorithm: JwsAlgorithm,
    key_id: Option<String>,
}

impl<'a> UnverifiedJwt<'a> {
    fn parse(text: &'a str) -> Result<Self, JwtRejection> {
        if text.len() > MAX_JWT_BYTES {
            return Err(JwtRejection::Malformed);
        }
        let (signing_input, signature) = text.rsplit_once('.').ok_or(JwtRejection::Malformed)?;
        let (header, encoded_claims) = signing_input
            .split_once('.')
            .ok_or(JwtRejection::Malformed)?;
        let header: JwtHeader = decode_json_segment(header)?;
        if header.crit {
            return Err(JwtRejection::CriticalExtension);
        }
        if let Some(media_type) = header.typ {
            // the prefix may be omitted (RFC 7515, 4.1.9)
            let short = media_type.to_ascii_lowercase();
            let short = short.strip_prefix("application/").unwrap_or(&short);
            if !USER_TOKEN_TYPES.contains(&short) {
                return Err(JwtRejection::UnsupportedType(truncate_for_log(&media_type)));
            }
        }
        Ok(Self {
            signing_input,
            encoded_claims,
            signature: decode_base64url(signature).ok_or(JwtRejection::Malformed)?,
            algorithm: JwsAlgorithm::parse(&header.alg)
                .ok_or_else(|| JwtRejection::UnsupportedAlgorithm(truncate_for_log(&header.alg)))?,
            key_id: header.kid,
        })
    }

    /// Decodes the claims, and checks `iss`, `aud` and the time claims.
    fn check_claims<'i>(
        &self,
        issuers: &'i [JwtIssuer],
        now: u64,
    ) -> Result<(&'i JwtIssuer, Map<String, Value>), JwtRejection> {
        let claims = decode_json_segment(self.encoded_claims)?;
        let issuer = find_issuer(issuers, &claims)?;
        check_time_claims(&claims, now)?;
        Ok((issuer, claims))
    }

    fn select_key<'k>(&self, keys: &'k KeySet) -> Result<&'k VerificationKey, KeyLookupError> {
        keys.select(self.algorithm, self.key_id.as_deref())
    }

    fn verify_signature(&self, keys: &KeySet) -> Result<(), JwtRejection> {
        let key = self.select_key(keys).map_err(JwtRejection::KeyLookup)?;
        if key.verify_signature(self.signing_input.as_bytes(), &self.signature) {
            Ok(())
        } else {
            Err(JwtRejection::BadSignature)
        }
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

fn find_issuer<'a>(
    issuers: &'a [JwtIssuer],
    claims: &Map<String, Value>,
) -> Result<&'a JwtIssuer, JwtRejection> {
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
