//! A JWT that was read, and is not believed yet (RFC 7515, 3.1; RFC 7519, 4.1).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::token::keys::{JwsAlgorithm, KeyLookupError};
use crate::util::json;

/// Longest JWT in bytes: the door lets no more than 16 KiB of head through.
pub(crate) const MAX_JWT_BYTES: usize = 16 * 1024;
/// Seconds by which the clocks of the login and of this host may differ.
pub(crate) const CLOCK_LEEWAY: u64 = 60;
/// Characters of a stranger's text that reach the log.
const MAX_LOGGED_CHARS: usize = 100;
/// Types of JWT that stand for a user (RFC 7519, 5.1; RFC 9068, 2.1). Others of the same issuer, such as log-out tokens, do not.
const USER_TOKEN_TYPES: [&str; 2] = ["jwt", "at+jwt"];

/// Why a JWT is not accepted: for the log, never for the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtRejection {
    /// Not three segments of unpadded base64url with JSON objects, or a claim of a wrong type.
    Malformed,
    /// A type that stands for no user.
    UnsupportedType(String),
    /// Not RS256, ES256, EdDSA or HS256: `none`, for one.
    UnsupportedAlgorithm(String),
    /// A critical extension (RFC 7515, 4.1.11); we know of none.
    CriticalExtension,
    /// Issued by nobody in the settings.
    UnknownIssuer(String),
    /// For somebody else.
    WrongAudience,
    /// `exp` has passed.
    Expired,
    /// `nbf` or `iat` is still to come.
    NotYetValid,
    /// No key is for it.
    KeyLookup(KeyLookupError),
    /// Not signed by the key that it names.
    BadSignature,
}

impl JwtRejection {
    pub(super) fn unknown_issuer(named: Option<&str>) -> Self {
        Self::UnknownIssuer(truncate_for_log(named.unwrap_or_default()))
    }
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

fn truncate_for_log(text: &str) -> String {
    text.chars().take(MAX_LOGGED_CHARS).collect()
}

/// What a JWT says, with nothing known about whether it is true.
pub(super) struct UnverifiedJwt<'a> {
    /// What is signed.
    pub(super) signing_input: &'a str,
    pub(super) signature: Vec<u8>,
    pub(super) algorithm: JwsAlgorithm,
    /// The id of its key.
    pub(super) key_id: Option<String>,
    pub(super) claims: Map<String, Value>,
}

impl<'a> UnverifiedJwt<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, JwtRejection> {
        if text.len() > MAX_JWT_BYTES {
            return Err(JwtRejection::Malformed);
        }
        let (message, signature) = text.rsplit_once('.').ok_or(JwtRejection::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(JwtRejection::Malformed)?;
        let header: JwtHeader = decode_json_segment(header)?;
        if header.crit {
            return Err(JwtRejection::CriticalExtension);
        }
        if let Some(kind) = header.typ {
            let short = kind.to_ascii_lowercase();
            let short = short.strip_prefix("application/").unwrap_or(&short);
            if !USER_TOKEN_TYPES.contains(&short) {
                return Err(JwtRejection::UnsupportedType(truncate_for_log(&kind)));
            }
        }
        let algorithm = JwsAlgorithm::parse(&header.alg);
        Ok(Self {
            signing_input: message,
            signature: decode_base64url(signature)?,
            algorithm: algorithm
                .ok_or_else(|| JwtRejection::UnsupportedAlgorithm(truncate_for_log(&header.alg)))?,
            key_id: header.kid,
            claims: decode_json_segment(claims)?,
        })
    }

    pub(super) fn issuer(&self) -> Option<&str> {
        self.claims.get("iss")?.as_str()
    }

    /// Whether an audience is its own, or among its own.
    pub(super) fn has_audience(&self, audience: &str) -> bool {
        match self.claims.get("aud") {
            Some(Value::Array(several)) => several.iter().any(|one| one == audience),
            one => one.and_then(Value::as_str) == Some(audience),
        }
    }

    /// Whether it is valid at `now`. An end is required; a beginning, and a date of issue, only have to be past.
    pub(super) fn check_time_claims(&self, now: u64) -> Result<(), JwtRejection> {
        let date = |name| {
            self.claims
                .get(name)
                .map(|value| parse_numeric_date(value).ok_or(JwtRejection::Malformed))
        };
        let end = date("exp").ok_or(JwtRejection::Malformed)??;
        if now >= end.saturating_add(CLOCK_LEEWAY) {
            return Err(JwtRejection::Expired);
        }
        for name in ["nbf", "iat"] {
            if date(name)
                .transpose()?
                .is_some_and(|begin| now.saturating_add(CLOCK_LEEWAY) < begin)
            {
                return Err(JwtRejection::NotYetValid);
            }
        }
        Ok(())
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

/// True even where `null` stands.
fn is_present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// A `NumericDate` (RFC 7519, 2) in whole seconds, which may be written with a fraction; before 1970 is 1970.
fn parse_numeric_date(date: &Value) -> Option<u64> {
    // the cast saturates, and any date of that year will do
    date.as_u64()
        .or_else(|| date.as_f64().map(|seconds| seconds as u64))
}

fn decode_base64url(segment: &str) -> Result<Vec<u8>, JwtRejection> {
    URL_SAFE_NO_PAD
        .decode(segment)
        .map_err(|_| JwtRejection::Malformed)
}

fn decode_json_segment<T: DeserializeOwned>(segment: &str) -> Result<T, JwtRejection> {
    json::parse_object(&decode_base64url(segment)?).ok_or(JwtRejection::Malformed)
}
