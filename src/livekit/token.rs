//! LiveKit access tokens: JWTs signed with HS256 (RFC 7515, 7518, 7519), by hand.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::json;

/// Longest room name or identity in bytes: the SFU's own limit.
pub const MAX_NAME: usize = 256;
/// Longest token that is verified, in bytes. An SFU's webhook carries less than 1 KiB; the door lets 16 KiB of head through.
pub const MAX_TOKEN: usize = 16 * 1024;
/// Seconds by which the clocks of the SFU and of this host may differ; the SFU's own figure.
pub const LEEWAY: u64 = 60;
/// Secrets shorter than this many bytes draw an error in the SFU's log (RFC 7518, 3.2: a key as long as the hash).
pub const SHORT_SECRET: usize = 32;

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// An API key of the SFU and its secret, ready to sign and verify.
#[derive(Clone)]
pub struct ApiKey {
    id: Box<str>,
    mac: Hmac<Sha256>,
}

impl ApiKey {
    /// Takes the key's id, which tokens name as their issuer, and its secret.
    pub fn new(id: &str, secret: &str) -> Self {
        // HMAC takes keys of any length
        let mac = Hmac::new_from_slice(secret.as_bytes()).unwrap_or_else(|_| unreachable!());
        Self { id: id.into(), mac }
    }

    /// The public half.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn sign(&self, message: &str) -> String {
        let tag = self
            .mac
            .clone()
            .chain_update(message)
            .finalize()
            .into_bytes();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}, secret hidden)", self.id)
    }
}

/// A name that LiveKit does not accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidName;

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "expected 1 to {MAX_NAME} bytes without control characters"
        )
    }
}

impl std::error::Error for InvalidName {}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub struct $name(String);

        impl $name {
            /// Accepts 1 to 256 bytes without control characters.
            pub fn new(text: String) -> Result<Self, InvalidName> {
                let fits = (1..=MAX_NAME).contains(&text.len()) && !text.chars().any(char::is_control);
                if fits { Ok(Self(text)) } else { Err(InvalidName) }
            }

            /// The name itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// The name of a LiveKit room.
    RoomName
}
name! {
    /// Who a participant is within a room; a second one of the same identity replaces the first.
    Identity
}
name! {
    /// One connection of a participant, as the SFU numbers them.
    Sid
}

/// What a participant may do in the room that they join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Participation {
    /// May send audio, video and data.
    pub can_publish: bool,
    /// May receive what others send.
    pub can_subscribe: bool,
    /// May change their own name, metadata and attributes.
    pub can_update_own_metadata: bool,
}

/// LiveKit's `video` grant. Its fields are set by the constructors of [`Claims`] only.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct VideoGrant {
    #[serde(skip_serializing_if = "Option::is_none")]
    room_create: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_list: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_record: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_admin: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_join: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    can_publish: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    can_subscribe: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    can_publish_data: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    can_publish_sources: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    can_update_own_metadata: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden: Option<bool>,
}

/// What a token will say. There is no way to claim a room without naming it, nor to join one as nobody.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims {
    identity: Option<Identity>,
    video: VideoGrant,
}

impl Claims {
    /// Lets `identity` join `room`, and neither create nor hide in it.
    pub fn join(identity: Identity, room: &RoomName, may: Participation) -> Self {
        let video = VideoGrant {
            room_join: Some(true),
            room: Some(room.0.clone()),
            room_create: Some(false),
            hidden: Some(false),
            can_publish: Some(may.can_publish),
            can_subscribe: Some(may.can_subscribe),
            can_update_own_metadata: may.can_update_own_metadata.then_some(true),
            ..VideoGrant::default()
        };
        Self {
            identity: Some(identity),
            video,
        }
    }

    /// Lets us create rooms. It would let a participant delete any room: never hand it out.
    pub fn create_room() -> Self {
        Self {
            identity: None,
            video: VideoGrant {
                room_create: Some(true),
                ..VideoGrant::default()
            },
        }
    }

    /// Lets us look up and remove the participants of `room`. Never hand it out.
    pub fn administer(room: &RoomName) -> Self {
        Self {
            identity: None,
            video: VideoGrant {
                room_admin: Some(true),
                room: Some(room.0.clone()),
                ..VideoGrant::default()
            },
        }
    }

    /// Lets us list rooms. Never hand it out.
    pub fn list_rooms() -> Self {
        Self {
            identity: None,
            video: VideoGrant {
                room_list: Some(true),
                ..VideoGrant::default()
            },
        }
    }

    /// Signs the claims at `now` (seconds since 1970), valid for `lifetime`.
    pub fn sign(&self, key: &ApiKey, now: u64, lifetime: Duration) -> AccessToken {
        let wire = SignedClaims {
            iss: &key.id,
            sub: self.identity.as_ref(),
            nbf: now,
            exp: now.saturating_add(lifetime.as_secs()),
            video: &self.video,
        };
        // strings, booleans and integers only: none of them can fail
        let json = serde_json::to_string(&wire).unwrap_or_else(|_| unreachable!());
        let message = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(HEADER),
            URL_SAFE_NO_PAD.encode(json)
        );
        AccessToken(key.sign(&message))
    }
}

#[derive(Serialize)]
struct SignedClaims<'a> {
    iss: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a Identity>,
    nbf: u64,
    exp: u64,
    video: &'a VideoGrant,
}

/// A signed token: whoever holds it is let in.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken(String);

impl AccessToken {
    /// The token itself, for the one who asked and nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(hidden)")
    }
}

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

fn decode<T: serde::de::DeserializeOwned>(segment: &str) -> Result<T, VerifyError> {
    let json = URL_SAFE_NO_PAD
        .decode(segment)
        .map_err(|_| VerifyError::Malformed)?;
    json::object(&json).ok_or(VerifyError::Malformed)
}

#[cfg(test)]
pub(crate) mod tests;
