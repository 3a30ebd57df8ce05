//! LiveKit access tokens: JWTs signed with HS256 (RFC 7515, 7518, 7519), by hand.

mod grant;
#[cfg(test)]
pub(crate) mod tests;
mod verification;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use sha2::Sha256;

pub use self::grant::JoinPermissions;
use self::grant::VideoGrant;
pub(crate) use self::grant::{Grant, TrackSource};
pub(crate) use self::verification::AccessTokenError;
pub use self::verification::verify;
#[cfg(test)]
use self::verification::{CLOCK_LEEWAY, MAX_ACCESS_TOKEN_BYTES};
use super::id::{ParticipantIdentity, RoomName};
use super::sealed_attribute::SealedAttribute;
use crate::util::sync::Swappable;

/// Secrets shorter than this many bytes draw an error in the SFU's log (RFC 7518, 3.2: a key as long as the hash).
pub(crate) const RECOMMENDED_SECRET_BYTES: usize = 32;

/// Longest metadata and longest attributes in bytes: the SFU's own limits.
pub(crate) const MAX_METADATA: usize = 512 * 1024;
/// See [`MAX_METADATA`]; keys and values together.
pub(crate) const MAX_ATTRIBUTES: usize = 64 * 1024;

const JWT_HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

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

    /// A key for something else than tokens, which tells nothing of the secret. Every token begins with `eyJ`: no `label` may.
    pub(crate) fn derive_key(&self, label: &str) -> [u8; 32] {
        let mac = self.mac.clone().chain_update(label);
        mac.finalize().into_bytes().into()
    }

    fn sign(&self, message: &str) -> String {
        let tag = self.derive_key(message);
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}, secret hidden)", self.id)
    }
}

impl PartialEq for ApiKey {
    /// Compares the ids and digests that the secrets give.
    fn eq(&self, other: &Self) -> bool {
        let digest = |key: &Self| key.derive_key("comparison of API keys");
        self.id == other.id && digest(self) == digest(other)
    }
}

/// The SFU's API keys: the first one signs, each of them verifies.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiKeys(Vec<ApiKey>);

impl ApiKeys {
    /// Takes the key that signs, and others that still verify.
    pub fn new(signing: ApiKey, others: impl IntoIterator<Item = ApiKey>) -> Self {
        Self([signing].into_iter().chain(others).collect())
    }

    /// The key that signs.
    pub fn signing(&self) -> &ApiKey {
        &self.0[0]
    }

    /// All keys, the signing one first.
    pub fn all(&self) -> &[ApiKey] {
        &self.0
    }
}

/// The SFU's API keys, shared by everything that signs or verifies with them: a reload replaces them for all at once.
#[derive(Debug, Clone)]
pub struct SharedApiKeys(Arc<Swappable<ApiKeys>>);

impl SharedApiKeys {
    /// Shares these keys.
    pub fn new(keys: ApiKeys) -> Self {
        Self(Arc::new(Swappable::new(keys)))
    }

    /// The keys as they are now.
    pub(crate) fn get(&self) -> Arc<ApiKeys> {
        self.0.get()
    }

    /// Replaces the keys, for all clones.
    pub(crate) fn replace(&self, keys: ApiKeys) {
        self.0.replace(keys);
    }
}

impl From<ApiKey> for SharedApiKeys {
    fn from(key: ApiKey) -> Self {
        Self::new(ApiKeys::new(key, []))
    }
}

/// What a token will say. There is no way to claim a room without naming it, nor to join one as nobody.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Claims {
    identity: Option<ParticipantIdentity>,
    video: VideoGrant,
    profile: ParticipantProfile,
}

/// What else a token tells of a participant, and whom it calls into the room.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ParticipantProfile {
    /// What others are shown instead of the identity.
    pub name: Option<String>,
    /// A text that the application understands.
    pub metadata: Option<String>,
    /// As metadata, by keys.
    pub attributes: BTreeMap<String, String>,
    /// Agents that LiveKit sends into the room when the participant enters.
    pub agents: Vec<AgentDispatch>,
}

/// An agent to be dispatched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentDispatch {
    /// What it is registered as.
    pub agent_name: String,
    /// A text that it understands.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub metadata: String,
}

impl Claims {
    /// Lets `identity` join `room`, and neither create nor hide in it.
    pub fn join(identity: ParticipantIdentity, room: &RoomName, may: JoinPermissions) -> Self {
        Self {
            identity: Some(identity),
            video: VideoGrant::join(room, may),
            profile: ParticipantProfile::default(),
        }
    }

    /// Has them carry a note to ourselves.
    pub fn with_sealed_attribute(mut self, note: &SealedAttribute) -> Self {
        self.profile.attributes.extend(note.to_attributes());
        self
    }

    /// Lets `identity` join `room` with these grants, limited to `sources` if there are any.
    pub fn join_with_grants(
        identity: ParticipantIdentity,
        room: &RoomName,
        grants: &BTreeSet<Grant>,
        sources: &BTreeSet<TrackSource>,
        profile: ParticipantProfile,
    ) -> Self {
        Self {
            identity: Some(identity),
            video: VideoGrant::join_with_grants(room, grants, sources),
            profile,
        }
    }

    /// Lets us create rooms. It would let a participant delete any room: never hand it out.
    pub fn create_room() -> Self {
        Self {
            video: VideoGrant::create_room(),
            ..Self::default()
        }
    }

    /// Lets us look up and remove the participants of `room`. Never hand it out.
    pub fn room_admin(room: &RoomName) -> Self {
        Self {
            video: VideoGrant::room_admin(room),
            ..Self::default()
        }
    }

    /// Lets us list rooms. Never hand it out.
    pub fn list_rooms() -> Self {
        Self {
            video: VideoGrant::list_rooms(),
            ..Self::default()
        }
    }

    /// Signs the claims at `now` (seconds since 1970), valid for `lifetime`.
    pub fn sign(&self, key: &ApiKey, now: u64, lifetime: Duration) -> AccessToken {
        let profile = &self.profile;
        let wire = SignedClaims {
            iss: &key.id,
            sub: self.identity.as_ref(),
            nbf: now,
            exp: now.saturating_add(lifetime.as_secs()),
            name: profile.name.as_deref(),
            video: &self.video,
            metadata: profile.metadata.as_deref(),
            attributes: &profile.attributes,
            room_config: RoomConfig {
                agents: &profile.agents,
            },
        };
        // strings, booleans and integers only: none of them can fail
        let json = serde_json::to_string(&wire).unwrap_or_else(|_| unreachable!());
        let message = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(JWT_HEADER),
            URL_SAFE_NO_PAD.encode(json)
        );
        AccessToken(key.sign(&message))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SignedClaims<'a> {
    iss: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a ParticipantIdentity>,
    nbf: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    video: &'a VideoGrant,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    attributes: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "RoomConfig::is_empty")]
    room_config: RoomConfig<'a>,
}

/// LiveKit's `RoomConfiguration` in proto3's JSON; the rest of it is for administrators.
#[derive(Serialize)]
struct RoomConfig<'a> {
    agents: &'a [AgentDispatch],
}

impl RoomConfig<'_> {
    fn is_empty(&self) -> bool {
        self.agents.is_empty()
    }
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
