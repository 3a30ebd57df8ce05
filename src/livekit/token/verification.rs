//! Tokens of others: what the SFU signed, and whether it did.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::Mac;
use serde::Deserialize;

use super::ApiKey;
use super::grant::VideoGrant;
use crate::json;

/// Longest token that is verified, in bytes. An SFU's webhook carries less than 1 KiB; the door lets 16 KiB of head through.
pub const MAX_TOKEN: usize = 16 * 1024;
/// Seconds by which the clocks of the SFU and of this host may differ; the SFU's own figure.
pub const LEEWAY: u64 = 60;

/// What a verified token says.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// The API key that signed it.
    pub issuer: String,
    /// The participant, if it is anybody's.
    pub identity: Option<String>,
    /// Padded base64 of the SHA-256 of the body that it vouches for, if it is a webhook's.
    pub sha256: Option<String>,
}

/// Why a token is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyError {
    /// Not three segments of unpadded base64url, or not the JSON that the SFU would write.
    Malformed,
    /// An algorithm other than HS256, or a critical extension (RFC 7515, 4.1.11).
    Algorithm,
    /// Issued by a key that we do not know.
    UnknownKey,
    /// Not signed by the key that it names.
    Signature,
    /// `exp` has passed.
    Expired,
    /// `nbf` is still to come.
    NotYetValid,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "token is malformed",
            Self::Algorithm => "token is not signed with HS256",
            Self::UnknownKey => "token names an unknown API key",
            Self::Signature => "token has a wrong signature",
            Self::Expired => "token has expired",
            Self::NotYetValid => "token is not valid yet",
        })
    }
}

impl std::error::Error for VerifyError {}

#[derive(Deserialize)]
struct ReadHeader {
    alg: Option<String>,
    crit: Option<serde_json::Value>,
}

/// A wrong type in any claim that the SFU knows makes the whole token invalid, as it does for the SFU.
#[derive(Deserialize)]
struct ReadClaims {
    iss: String,
    sub: Option<String>,
    nbf: Option<u64>,
    exp: i64,
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "metadata")]
    _metadata: Option<String>,
    #[serde(rename = "attributes")]
    _attributes: Option<BTreeMap<String, String>>,
    #[serde(rename = "video")]
    _video: Option<VideoGrant>,
    sha256: Option<String>,
}

/// Verifies a token at `now` (seconds since 1970) against every key that we know.
pub fn verify(token: &str, keys: &[ApiKey], now: u64) -> Result<Verified, VerifyError> {
    if token.len() > MAX_TOKEN {
        return Err(VerifyError::Malformed);
    }
    let (message, signature) = token.rsplit_once('.').ok_or(VerifyError::Malformed)?;
    let (header, claims) = message.split_once('.').ok_or(VerifyError::Malformed)?;
    let header: ReadHeader = decode(header)?;
    if header.alg.as_deref() != Some("HS256") || header.crit.is_some() {
        return Err(VerifyError::Algorithm);
    }
    let claims: ReadClaims = decode(claims)?;
    let key = keys
        .iter()
        .find(|key| *key.id == *claims.iss)
        .ok_or(VerifyError::UnknownKey)?;
    let signature = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| VerifyError::Malformed)?;
    key.mac
        .clone()
        .chain_update(message)
        .verify_slice(&signature)
        .map_err(|_| VerifyError::Signature)?;
    let expires = u64::try_from(claims.exp).unwrap_or(0);
    if now >= expires.saturating_add(LEEWAY) {
        return Err(VerifyError::Expired);
    }
    if claims
        .nbf
        .is_some_and(|nbf| now.saturating_add(LEEWAY) < nbf)
    {
        return Err(VerifyError::NotYetValid);
    }
    Ok(Verified {
        issuer: claims.iss,
        identity: claims.sub,
        sha256: claims.sha256,
    })
}

pub(super) fn decode<T: serde::de::DeserializeOwned>(segment: &str) -> Result<T, VerifyError> {
    let json = URL_SAFE_NO_PAD
        .decode(segment)
        .map_err(|_| VerifyError::Malformed)?;
    json::object(&json).ok_or(VerifyError::Malformed)
}
