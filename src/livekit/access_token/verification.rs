//! Verification of tokens that the SFU has signed.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::Mac;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{ApiKey, VideoGrant};
use crate::util::json;

/// Longest token in bytes. That of a webhook has less than 1 KiB; the largest request head is 16 KiB.
pub(super) const MAX_ACCESS_TOKEN_BYTES: usize = 16 * 1024;
/// Tolerated difference between the clocks of the SFU and of this host, in seconds; as in the SFU.
pub(super) const CLOCK_LEEWAY: u64 = 60;

/// Claims of a verified token. A wrong type of any claim makes the token malformed, as for the SFU.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct VerifiedClaims {
    iss: String,
    /// The participant's identity.
    #[serde(rename = "sub")]
    pub identity: Option<String>,
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
    /// Padded base64 of the SHA-256 of a webhook's body.
    pub sha256: Option<String>,
}

/// The reason why a token is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessTokenError {
    /// Not three segments of unpadded base64url, or not the JSON that the SFU would write.
    Malformed,
    /// An algorithm other than HS256, or a critical extension (RFC 7515, 4.1.11).
    Algorithm,
    /// The issuer is not a configured API key.
    UnknownKey,
    /// The signature is not that of the issuer.
    Signature,
    /// `exp` has passed.
    Expired,
    /// `nbf` has not passed.
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
    crit: Option<IgnoredAny>,
}

/// Verifies a token at `now` (seconds since 1970).
///
/// # Errors
/// The token is not signed by any of `keys`, or not valid at `now`.
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
    let claims: VerifiedClaims = decode_segment(claims)?;
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
    Ok(claims)
}

pub(super) fn decode_segment<T: serde::de::DeserializeOwned>(
    segment: &str,
) -> Result<T, AccessTokenError> {
    let json = URL_SAFE_NO_PAD
        .decode(segment)
        .map_err(|_| AccessTokenError::Malformed)?;
    json::parse_object(&json).ok_or(AccessTokenError::Malformed)
}
