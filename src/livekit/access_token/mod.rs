//! LiveKit access tokens: JWTs signed with HS256 (RFC 7515, 7518, 7519).

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
use serde::{Deserialize, Serialize};
use sha2::Sha256;

pub(crate) use self::verification::AccessTokenError;
pub use self::verification::verify;
use super::id::{ParticipantIdentity, RoomName};
use super::sealed_attribute::SealedAttribute;
use crate::util::sync::Swappable;

/// Recommended minimum length of a secret in bytes (RFC 7518, 3.2: the length of the hash); the SFU logs an error for shorter ones.
pub(crate) const RECOMMENDED_SECRET_BYTES: usize = 32;
/// Longest metadata in bytes: the SFU's limit.
pub(crate) const MAX_METADATA: usize = 512 * 1024;
/// Longest attributes in bytes, keys and values together: the SFU's limit.
pub(crate) const MAX_ATTRIBUTES: usize = 64 * 1024;

const JWT_HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// An API key of the SFU with its secret.
#[derive(Clone)]
pub struct ApiKey {
    id: Box<str>,
    mac: Hmac<Sha256>,
}

impl ApiKey {
    /// An API key from its id, which is the issuer of its tokens, and its secret.
    pub fn new(id: &str, secret: &str) -> Self {
        // HMAC takes keys of any length
        let mac = Hmac::new_from_slice(secret.as_bytes()).unwrap_or_else(|_| unreachable!());
        Self { id: id.into(), mac }
    }

    /// The id of the key: `iss` of its tokens.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Derives a key for another purpose. `label` must not begin with `eyJ`, as every signed token does: a derived key must not be a
    /// signature.
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
    /// Compares the ids, and digests instead of the secrets.
    fn eq(&self, other: &Self) -> bool {
        let digest = |key: &Self| key.derive_key("comparison of API keys");
        self.id == other.id && digest(self) == digest(other)
    }
}

/// The configured API keys: the first one signs, all of them verify.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiKeys(Vec<ApiKey>);

impl ApiKeys {
    /// Keys of which `signing` signs.
    pub fn new(signing: ApiKey, others: impl IntoIterator<Item = ApiKey>) -> Self {
        Self([signing].into_iter().chain(others).collect())
    }

    /// The signing key.
    pub fn signing(&self) -> &ApiKey {
        &self.0[0]
    }

    /// All keys, the signing key first.
    pub fn all(&self) -> &[ApiKey] {
        &self.0
    }
}

/// API keys shared by everything that signs or verifies: a reload replaces them for all at once.
#[derive(Debug, Clone)]
pub struct SharedApiKeys(Arc<Swappable<ApiKeys>>);

impl SharedApiKeys {
    /// Shares `keys` among all clones of the result.
    pub fn new(keys: ApiKeys) -> Self {
        Self(Arc::new(Swappable::new(keys)))
    }

    pub(crate) fn get(&self) -> Arc<ApiKeys> {
        self.0.get()
    }

    /// Replaces the keys of all clones.
    pub(crate) fn replace(&self, keys: ApiKeys) {
        self.0.replace(keys);
    }
}

impl From<ApiKey> for SharedApiKeys {
    fn from(key: ApiKey) -> Self {
        Self::new(ApiKeys::new(key, []))
    }
}

/// Claims of an access token. The constructors name a room and an identity for every grant that needs them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Claims {
    identity: Option<ParticipantIdentity>,
    video: VideoGrant,
    profile: ParticipantProfile,
}

impl Claims {
    /// Claims for joining `room`, without the permission to create it or to be hidden in it.
    pub fn join(
        identity: ParticipantIdentity,
        room: &RoomName,
        permissions: JoinPermissions,
    ) -> Self {
        Self {
            identity: Some(identity),
            video: VideoGrant {
                room_create: Some(false),
                hidden: Some(false),
                can_publish: Some(permissions.can_publish),
                can_subscribe: Some(permissions.can_subscribe),
                can_update_own_metadata: permissions.can_update_own_metadata.then_some(true),
                ..VideoGrant::join(room)
            },
            profile: ParticipantProfile::default(),
        }
    }

    /// Claims for joining `room` with these grants. An empty `sources` does not limit what can be published.
    pub(crate) fn join_with_grants(
        identity: ParticipantIdentity,
        room: &RoomName,
        grants: &BTreeSet<Grant>,
        sources: &BTreeSet<TrackSource>,
        profile: ParticipantProfile,
    ) -> Self {
        let granted = |grant| grants.contains(&grant);
        let only_if_granted = |grant| granted(grant).then_some(true);
        let source_names = || sources.iter().map(|s| s.as_str().to_owned()).collect();
        Self {
            identity: Some(identity),
            video: VideoGrant {
                // absent means granted for these three, and not granted for the others
                can_publish: Some(granted(Grant::Publish)),
                can_subscribe: Some(granted(Grant::Subscribe)),
                can_publish_data: Some(granted(Grant::PublishData)),
                // an empty list would mean all sources
                can_publish_sources: (!sources.is_empty()).then(source_names),
                can_update_own_metadata: only_if_granted(Grant::UpdateOwnMetadata),
                can_subscribe_metrics: only_if_granted(Grant::SubscribeMetrics),
                hidden: only_if_granted(Grant::Hidden),
                recorder: only_if_granted(Grant::Recorder),
                agent: only_if_granted(Grant::Agent),
                ..VideoGrant::join(room)
            },
            profile,
        }
    }

    /// Adds the sealed attribute to the participant's attributes.
    pub(crate) fn with_sealed_attribute(mut self, attribute: &SealedAttribute) -> Self {
        self.profile.attributes.extend(attribute.to_attributes());
        self
    }

    /// Claims for this service's calls to create rooms. They would let a participant delete any room: never issue them to a client.
    pub fn create_room() -> Self {
        Self::without_identity(VideoGrant {
            room_create: Some(true),
            ..VideoGrant::default()
        })
    }

    /// Claims for this service's calls about the participants of `room`. Never issue them to a client.
    pub(crate) fn room_admin(room: &RoomName) -> Self {
        Self::without_identity(VideoGrant {
            room_admin: Some(true),
            room: Some(room.as_str().to_owned()),
            ..VideoGrant::default()
        })
    }

    /// Claims for this service's calls to list rooms. Never issue them to a client.
    pub(crate) fn list_rooms() -> Self {
        Self::without_identity(VideoGrant {
            room_list: Some(true),
            ..VideoGrant::default()
        })
    }

    fn without_identity(video: VideoGrant) -> Self {
        Self {
            video,
            ..Self::default()
        }
    }

    /// Signs the claims at `now` (seconds since 1970), valid for `lifetime`.
    pub fn sign(&self, key: &ApiKey, now: u64, lifetime: Duration) -> AccessToken {
        let profile = &self.profile;
        let claims = SignedClaims {
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
        // strings, booleans and integers always serialise
        let json = serde_json::to_string(&claims).unwrap_or_else(|_| unreachable!());
        let message = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(JWT_HEADER),
            URL_SAFE_NO_PAD.encode(json)
        );
        AccessToken(key.sign(&message))
    }
}

/// Permissions of a Matrix user in the room that the user joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JoinPermissions {
    /// May send audio, video and data.
    pub can_publish: bool,
    /// May receive what other participants send.
    pub can_subscribe: bool,
    /// May change the participant's own name, metadata and attributes.
    pub can_update_own_metadata: bool,
}

macro_rules! string_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$of])* $variant,)* }

        impl $name {
            /// All variants.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Parses LiveKit's name.
            pub fn parse(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|variant| variant.as_str() == name)
            }

            /// LiveKit's name.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

string_enum! {
    /// A grant that an access token of the general token endpoint can have. Administrative grants (`roomCreate`, `roomAdmin`,
    /// `roomList`, `roomRecord`, `ingressAdmin`) are not among them.
    Grant {
        /// May send audio and video.
        Publish = "canPublish",
        /// May receive what other participants send.
        Subscribe = "canSubscribe",
        /// May send data messages.
        PublishData = "canPublishData",
        /// May change the participant's own name, metadata and attributes.
        UpdateOwnMetadata = "canUpdateOwnMetadata",
        /// May receive the metrics of other participants.
        SubscribeMetrics = "canSubscribeMetrics",
        /// Is invisible to other participants.
        Hidden = "hidden",
        /// Is a recorder.
        Recorder = "recorder",
        /// Is an agent.
        Agent = "agent",
    }
}

string_enum! {
    /// A source of a media track.
    TrackSource {
        /// A camera.
        Camera = "camera",
        /// A microphone.
        Microphone = "microphone",
        /// A screen.
        ScreenShare = "screen_share",
        /// The audio of a shared screen.
        ScreenShareAudio = "screen_share_audio",
    }
}

/// Name, metadata, attributes and agents in an access token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ParticipantProfile {
    /// Display name.
    pub name: Option<String>,
    /// Metadata in a format of the application.
    pub metadata: Option<String>,
    /// Attributes in a format of the application.
    pub attributes: BTreeMap<String, String>,
    /// Agents that LiveKit dispatches to the room when the participant joins.
    pub agents: Vec<AgentDispatch>,
}

/// An agent to dispatch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentDispatch {
    /// The name under which the agent is registered.
    pub agent_name: String,
    /// Metadata for the agent.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub metadata: String,
}

/// A signed access token.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken(String);

impl AccessToken {
    /// The token as text: for its owner only, never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(hidden)")
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

/// LiveKit's `RoomConfiguration` in the JSON of proto3, as far as it is needed.
#[derive(Serialize)]
struct RoomConfig<'a> {
    agents: &'a [AgentDispatch],
}

impl RoomConfig<'_> {
    fn is_empty(&self) -> bool {
        self.agents.is_empty()
    }
}

/// The `video` claim.
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
    can_subscribe_metrics: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recorder: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<bool>,
}

impl VideoGrant {
    fn join(room: &RoomName) -> Self {
        Self {
            room_join: Some(true),
            room: Some(room.as_str().to_owned()),
            ..Self::default()
        }
    }
}
