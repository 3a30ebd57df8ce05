//! Tokens of others: what the SFU signed, and whether it did.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::Mac;
use serde::Deserialize;

use super::ApiKey;
use super::grant::VideoGrant;
use crate::util::json;

/// Longest token that is verified, in bytes. An SFU's webhook carries less than 1 KiB; the door lets 16 KiB of head through.
pub(crate) const MAX_ACCESS_TOKEN_BYTES: usize = 16 * 1024;
/// Seconds by which the clocks of the SFU and of this host may differ; the SFU's own figure.
pub(crate) const CLOCK_LEEWAY: u64 = 60;

/// What a verified token says.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifiedClaims {
    /// The API key that signed it.
    pub issuer: String,
    /// The participant, if it is anybody's.
    pub identity: Option<String>,
    /// Padded base64 of the SHA-256 of the body that it vouches for, if it is a webhook's.
    pub sha256: Option<String>,
}

/// Why a token is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessTokenError {
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

impl fmt::Display for AccessTokenError {
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

impl std::error::Error for AccessTokenError {}

#[derive(Deserialize)]
struct AccessTokenHeader {
    alg: Option<String>,
    crit: Option<serde_json::Value>,
}

/// A wrong type in any claim that the SFU knows makes the whole token invalid, as it does for the SFU.
#[derive(Deserialize)]
struct AccessTokenPayload {
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
pub fn verify(token: &str, keys: &[ApiKey], now: u64) -> Result<VerifiedClaims, AccessTokenError> {
    if token.len() > MAX_ACCESS_TOKEN_BYTES {
        return Err(AccessTokenError::Malformed);
    }
    let (message, signature) = token.rsplit_once('.').ok_or(AccessTokenError::Malformed)?;
    let (header, claims) = message.split_once('.').ok_or(AccessTokenError::Malformed)?;
    let header: AccessTokenHeader = decode_segment(header)?;
    if header.alg.as_deref() != Some("HS256") || header.crit.is_some() {
        return Err(AccessTokenError::Algorithm);
    }
    let claims: AccessTokenPayload = decode_segment(claims)?;
    let key = keys
        .iter()
        .find(|key| *key.id == *claims.iss)
        .ok_or(AccessTokenError::UnknownKey)?;
    let signature = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| AccessTokenError::Malformed)?;
    key.mac
        .clone()
        .chain_update(message)
        .verify_slice(&signature)
        .map_err(|_| AccessTokenError::Signature)?;
    let expires = u64::try_from(claims.exp).unwrap_or(0);
    if now >= expires.saturating_add(CLOCK_LEEWAY) {
        return Err(AccessTokenError::Expired);
    }
    if claims
        .nbf
        .is_some_and(|nbf| now.saturating_add(CLOCK_LEEWAY) < nbf)
    {
        return Err(AccessTokenError::NotYetValid);
    }
    Ok(VerifiedClaims {
        issuer: claims.iss,
        identity: claims.sub,
        sha256: claims.sha256,
    })
}

pub(super) fn decode_segment<T: serde::de::DeserializeOwned>(
    segment: &str,
) -> Result<T, AccessTokenError> {
    let json = URL_SAFE_NO_PAD
        .decode(segment)
        .map_err(|_| AccessTokenError::Malformed)?;
    json::parse_object(&json).ok_or(AccessTokenError::Malformed)
}
