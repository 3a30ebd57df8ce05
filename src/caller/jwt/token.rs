//! A JWT that was read, and is not believed yet (RFC 7515, 3.1; RFC 7519, 4.1).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::caller::jwks::{Algorithm, Miss};
use crate::json;

/// Longest JWT in bytes: the door lets no more than 16 KiB of head through.
pub const MAX_TOKEN: usize = 16 * 1024;
/// Seconds by which the clocks of the login and of this host may differ.
pub const LEEWAY: u64 = 60;
/// Characters of a stranger's text that reach the log.
const MAX_SHOWN: usize = 100;
/// Types of JWT that stand for a user (RFC 7519, 5.1; RFC 9068, 2.1). Others of the same issuer, such as log-out tokens, do not.
const TYPES: [&str; 2] = ["jwt", "at+jwt"];

/// Why a JWT is not accepted: for the log, never for the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Not three segments of unpadded base64url with JSON objects, or a claim of a wrong type.
    Malformed,
    /// A type that stands for no user.
    Type(String),
    /// Not RS256, ES256, EdDSA or HS256: `none`, for one.
    Algorithm(String),
    /// A critical extension (RFC 7515, 4.1.11); we know of none.
    Critical,
    /// Issued by nobody in the settings.
    Issuer(String),
    /// For somebody else.
    Audience,
    /// `exp` has passed.
    Expired,
    /// `nbf` or `iat` is still to come.
    NotYetValid,
    /// No key is for it.
    Key(Miss),
    /// Not signed by the key that it names.
    Signature,
}

impl Cause {
    pub(super) fn issuer(named: Option<&str>) -> Self {
        Self::Issuer(shown(named.unwrap_or_default()))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Type(found) => return write!(f, "JWT has the type {found:?}"),
            Self::Algorithm(found) => return write!(f, "JWT has the algorithm {found:?}"),
            Self::Issuer(found) => return write!(f, "JWT has an unknown issuer, {found:?}"),
            Self::Malformed => "JWT is malformed",
            Self::Critical => "JWT has a critical extension",
            Self::Audience => "JWT is for another audience",
            Self::Expired => "JWT has expired",
            Self::NotYetValid => "JWT is not valid yet",
            Self::Key(Miss::Unknown) => "JWT names an unknown key",
            Self::Key(Miss::Algorithm) => "JWT has another algorithm than its key",
            Self::Key(Miss::Ambiguous) => "JWT does not say by which key it is signed",
            Self::Signature => "JWT has a wrong signature",
        })
    }
}

fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}

/// What a JWT says, with nothing known about whether it is true.
pub(super) struct Token<'a> {
    /// What is signed.
    pub(super) message: &'a str,
    pub(super) signature: Vec<u8>,
    pub(super) algorithm: Algorithm,
    /// The id of its key.
    pub(super) key: Option<String>,
    pub(super) claims: Map<String, Value>,
}

impl<'a> Token<'a> {
    pub(super) fn read(text: &'a str) -> Result<Self, Cause> {
        if text.len() > MAX_TOKEN {
            return Err(Cause::Malformed);
        }
        let (message, signature) = text.rsplit_once('.').ok_or(Cause::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(Cause::Malformed)?;
        let header: Header = decoded(header)?;
        if header.crit {
            return Err(Cause::Critical);
        }
        if let Some(kind) = header.typ {
            let short = kind.to_ascii_lowercase();
            let short = short.strip_prefix("application/").unwrap_or(&short);
            if !TYPES.contains(&short) {
                return Err(Cause::Type(shown(&kind)));
            }
        }
        let algorithm = Algorithm::named(&header.alg);
        Ok(Self {
            message,
            signature: bytes(signature)?,
            algorithm: algorithm.ok_or_else(|| Cause::Algorithm(shown(&header.alg)))?,
            key: header.kid,
            claims: decoded(claims)?,
        })
    }

    pub(super) fn issuer(&self) -> Option<&str> {
        self.claims.get("iss")?.as_str()
    }

    /// Whether an audience is its own, or among its own.
    pub(super) fn is_for(&self, audience: &str) -> bool {
        match self.claims.get("aud") {
            Some(Value::Array(several)) => several.iter().any(|one| one == audience),
            one => one.and_then(Value::as_str) == Some(audience),
        }
    }

    /// Whether it is valid at `now`. An end is required; a beginning, and a date of issue, only have to be past.
    pub(super) fn check_dates(&self, now: u64) -> Result<(), Cause> {
        let date = |name| {
            self.claims
                .get(name)
                .map(|value| seconds(value).ok_or(Cause::Malformed))
        };
        let end = date("exp").ok_or(Cause::Malformed)??;
        if now >= end.saturating_add(LEEWAY) {
            return Err(Cause::Expired);
        }
        for name in ["nbf", "iat"] {
            if date(name)
                .transpose()?
                .is_some_and(|begin| now.saturating_add(LEEWAY) < begin)
            {
                return Err(Cause::NotYetValid);
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    #[serde(default, deserialize_with = "is_there")]
    crit: bool,
}

/// True even where `null` stands.
fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// A `NumericDate` (RFC 7519, 2) in whole seconds, which may be written with a fraction; before 1970 is 1970.
fn seconds(date: &Value) -> Option<u64> {
    // the cast saturates, and any date of that year will do
    date.as_u64()
        .or_else(|| date.as_f64().map(|seconds| seconds as u64))
}

fn bytes(segment: &str) -> Result<Vec<u8>, Cause> {
    URL_SAFE_NO_PAD
        .decode(segment)
        .map_err(|_| Cause::Malformed)
}

fn decoded<T: DeserializeOwned>(segment: &str) -> Result<T, Cause> {
    json::object(&bytes(segment)?).ok_or(Cause::Malformed)
}
