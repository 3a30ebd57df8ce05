//! The policy of a caller: which participants, rooms, grants and lifetimes it may request. Pure: no I/O, no clock.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value};

use super::pattern::{NamePattern, PatternContext};
use crate::livekit::access_token::{
    AgentDispatch, Grant, MAX_ATTRIBUTES, MAX_METADATA, ParticipantProfile, TrackSource,
};
use crate::livekit::id::{MAX_NAME_BYTES, ParticipantIdentity, RoomName, is_valid_name};

/// The list of grants that a policy may accept, and a request contain. [`ADMIN_GRANTS`] are refused everywhere.
pub(crate) const ACCEPTED_GRANTS: &[Grant] = Grant::ALL;
/// Grants that no participant gets, because they apply to the whole server or to other participants.
pub(crate) const ADMIN_GRANTS: [&str; 5] = [
    "roomCreate",
    "roomList",
    "roomRecord",
    "roomAdmin",
    "ingressAdmin",
];
/// Longest lifetime of an access token, in seconds: a year.
pub const MAX_LIFETIME: u64 = 365 * 86_400;
/// Shortest lifetime of an access token, in seconds: a client needs time to connect.
pub const MIN_LIFETIME: u64 = 10;
/// Default bound of metadata in bytes. With [`DEFAULT_MAX_ATTRIBUTES`] the access token stays below the 8 KiB that proxies accept
/// in a request line; browsers put it into a URL.
pub(crate) const DEFAULT_MAX_METADATA: usize = 4096;
/// Default bound of attributes in bytes.
pub(crate) const DEFAULT_MAX_ATTRIBUTES: usize = 1024;
/// Most agents that one access token dispatches.
pub(crate) const MAX_AGENTS: usize = 16;

/// The policy of one caller.
#[derive(Debug, Clone, PartialEq)]
pub struct CallerPolicy {
    /// Allowed rooms.
    pub rooms: Vec<NamePattern>,
    /// Allowed identities of participants.
    pub identities: Vec<NamePattern>,
    /// Granted unless the request declines them.
    pub grants: BTreeSet<Grant>,
    /// Granted if the request asks for them.
    pub grants_on_request: BTreeSet<Grant>,
    /// Track sources that a participant may publish; empty means all.
    pub sources: BTreeSet<TrackSource>,
    /// Agents that a request may dispatch.
    pub agents: Vec<NamePattern>,
    /// Most bytes of metadata, and of the metadata of each agent; with 0, metadata is forbidden.
    pub max_metadata: usize,
    /// Most bytes of attributes, keys and values together; with 0, attributes are forbidden.
    pub max_attributes: usize,
    /// Lifetime of an access token if the request has none, in seconds.
    pub default_lifetime: u64,
    /// Longest lifetime of an access token in seconds.
    pub max_lifetime: u64,
    /// Whether a request without a room gets a random room.
    pub random_room: bool,
    /// Whether a request without a participant gets a random identity.
    pub random_identity: bool,
    /// Fewest characters of a room name and of an identity.
    pub min_name_length: usize,
    /// Most requests a minute; 0 means no limit.
    pub requests_per_minute: u32,
}

impl Default for CallerPolicy {
    /// Any room and any identity, to publish and subscribe, for a day.
    fn default() -> Self {
        Self {
            rooms: vec![NamePattern::wildcard()],
            identities: vec![NamePattern::wildcard()],
            grants: [Grant::Publish, Grant::Subscribe, Grant::PublishData].into(),
            grants_on_request: BTreeSet::new(),
            sources: BTreeSet::new(),
            agents: Vec::new(),
            max_metadata: DEFAULT_MAX_METADATA,
            max_attributes: DEFAULT_MAX_ATTRIBUTES,
            default_lifetime: 86_400,
            max_lifetime: 86_400,
            random_room: false,
            random_identity: false,
            min_name_length: 1,
            requests_per_minute: 600,
        }
    }
}

/// A parsed request for an access token, not authorized yet.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ParticipantRequest {
    /// The room.
    pub room: Option<String>,
    /// The participant's identity.
    pub identity: Option<String>,
    /// The name that other participants see; also the identity, if the request has no other.
    pub display_name: Option<String>,
    /// Metadata of the participant, with the name of the field in the request.
    pub metadata: Option<(&'static str, String)>,
    /// Attributes of the participant.
    pub attributes: BTreeMap<String, String>,
    /// Agents to dispatch into the room.
    pub agents: Vec<AgentDispatch>,
    /// Grants that are requested (true) or declined (false).
    pub grants: BTreeMap<Grant, bool>,
    /// Track sources to publish; none means all that the policy allows.
    pub sources: Option<BTreeSet<TrackSource>>,
    /// Lifetime of the access token in seconds.
    pub lifetime: Option<u64>,
    /// True for LiveKit's standard form; false for the form of the example server, where the name identifies the participant.
    pub is_standard_form: bool,
}

/// What a policy allowed: the content of an access token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenGrant {
    /// The room.
    pub room: RoomName,
    /// The participant's identity.
    pub identity: ParticipantIdentity,
    /// What the participant may do.
    pub grants: BTreeSet<Grant>,
    /// What the participant may publish; empty means all track sources.
    pub sources: BTreeSet<TrackSource>,
    /// Name, metadata, attributes and agents.
    pub profile: ParticipantProfile,
    /// Lifetime of the access token in seconds.
    pub lifetime: u64,
}

/// Reason why a policy does not allow a request. Names the field of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyError {
    /// Required fields that are missing.
    Missing(Vec<&'static str>),
    /// A value that no caller may request.
    Invalid {
        /// The field.
        field: String,
        /// What the field accepts.
        expected: String,
    },
    /// A value that this caller may not request.
    Forbidden {
        /// The field.
        field: String,
        /// The reason, for the caller.
        reason: String,
    },
}

impl PolicyError {
    /// [`Self::Invalid`].
    pub fn invalid(field: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            expected: expected.into(),
        }
    }

    /// [`Self::Forbidden`].
    pub fn forbidden(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Forbidden {
            field: field.into(),
            reason: reason.into(),
        }
    }

    fn invalid_name(field: impl Into<String>) -> Self {
        let expected = format!("1 to {MAX_NAME_BYTES} bytes without control characters");
        Self::invalid(field, expected)
    }

    /// The first field with an error.
    pub fn field(&self) -> &str {
        match self {
            Self::Missing(fields) => fields.first().copied().unwrap_or_default(),
            Self::Invalid { field, .. } | Self::Forbidden { field, .. } => field,
        }
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(fields) => write!(f, "{}: required", fields.join(", ")),
            Self::Invalid { field, expected } => write!(f, "{field}: expected {expected}"),
            Self::Forbidden { field, reason } => write!(f, "{field}: {reason}"),
        }
    }
}

impl std::error::Error for PolicyError {}

impl CallerPolicy {
    /// Authorizes a request as a whole. `claims` are those of the caller's JWT. `random` returns the variable part of random names.
    ///
    /// # Errors
    /// The first part of the request that is missing, invalid or forbidden.
    pub fn authorize(
        &self,
        claims: Option<&Map<String, Value>>,
        mut request: ParticipantRequest,
        random: impl Fn() -> String,
    ) -> Result<TokenGrant, PolicyError> {
        let context = PatternContext {
            identity: None,
            claims,
        };
        let identity = self.resolve_identity(&mut request, context, &random);
        let room = request.room.take().or_else(|| {
            let identity = identity.as_ref().map(|(_, identity)| identity.as_str());
            let context = PatternContext { identity, claims };
            default_name(&self.rooms, context, self.random_room, &random)
        });
        let ((field, identity), room) = match (identity, room) {
            (Some(identity), Some(room)) => (identity, room),
            (identity, room) => {
                let room = room.is_none().then_some("room_name");
                // the one field for it that both forms have
                let identity = identity.is_none().then_some("participant_name");
                return Err(PolicyError::Missing(
                    room.into_iter().chain(identity).collect(),
                ));
            }
        };
        let room = RoomName::new(room).map_err(|_| PolicyError::invalid_name("room_name"))?;
        self.check_name_length("room_name", room.as_str())?;
        let identity =
            ParticipantIdentity::new(identity).map_err(|_| PolicyError::invalid_name(field))?;
        self.check_name_length(field, identity.as_str())?;
        if !any_matches(&self.identities, identity.as_str(), context) {
            let reason = "this caller may not use this identity";
            return Err(PolicyError::forbidden(field, reason));
        }
        let context = PatternContext {
            identity: Some(identity.as_str()),
            claims,
        };
        if !any_matches(&self.rooms, room.as_str(), context) {
            let reason = "this caller may not use this room";
            return Err(PolicyError::forbidden("room_name", reason));
        }
        let lifetime = self.resolve_lifetime(request.lifetime)?;
        let (grants, sources) = self.resolve_grants(&request)?;
        let profile = self.resolve_profile(request)?;
        Ok(TokenGrant {
            room,
            identity,
            grants,
            sources,
            profile,
            lifetime,
        })
    }

    /// The identity, and the field of the request that it is attributed to.
    fn resolve_identity(
        &self,
        request: &mut ParticipantRequest,
        context: PatternContext<'_>,
        random: &impl Fn() -> String,
    ) -> Option<(&'static str, String)> {
        // the only allowed identity takes precedence over a display name
        let identity = request
            .identity
            .take()
            .or_else(|| default_name(&self.identities, context, false, random));
        if let Some(identity) = identity {
            return Some(("participant_identity", identity));
        }
        let random = || default_name(&self.identities, context, self.random_identity, random);
        let from_random = || Some(("participant_identity", random()?));
        let from_name = || Some(("participant_name", request.display_name.clone()?));
        if request.is_standard_form {
            from_random().or_else(from_name)
        } else {
            from_name().or_else(from_random)
        }
    }

    fn check_name_length(&self, field: &'static str, name: &str) -> Result<(), PolicyError> {
        if name.chars().count() < self.min_name_length {
            let expected = format!("at least {} characters", self.min_name_length);
            return Err(PolicyError::invalid(field, expected));
        }
        Ok(())
    }

    fn resolve_lifetime(&self, requested: Option<u64>) -> Result<u64, PolicyError> {
        const FIELD: &str = "ttl_seconds";
        match requested {
            None => Ok(self.default_lifetime),
            Some(seconds) if seconds < MIN_LIFETIME => {
                let expected = format!("{MIN_LIFETIME} seconds or more");
                Err(PolicyError::invalid(FIELD, expected))
            }
            Some(seconds) if seconds > self.max_lifetime => {
                let reason = format!("this caller gets {} seconds at most", self.max_lifetime);
                Err(PolicyError::forbidden(FIELD, reason))
            }
            Some(seconds) => Ok(seconds),
        }
    }

    fn resolve_grants(
        &self,
        request: &ParticipantRequest,
    ) -> Result<(BTreeSet<Grant>, BTreeSet<TrackSource>), PolicyError> {
        let mut grants = self.grants.clone();
        for (&grant, &is_requested) in &request.grants {
            if !is_requested {
                grants.remove(&grant);
            } else if self.grants_on_request.contains(&grant) {
                grants.insert(grant);
            } else if !grants.contains(&grant) {
                let field = format!("participant_grants.{}", grant.as_str());
                let reason = "this caller may not grant it";
                return Err(PolicyError::forbidden(field, reason));
            }
        }
        let sources = request.sources.as_ref().unwrap_or(&self.sources);
        if !self.sources.is_empty() && !sources.is_subset(&self.sources) {
            let field = "participant_grants.canPublishSources";
            let reason = "this caller may not grant them all";
            return Err(PolicyError::forbidden(field, reason));
        }
        Ok((grants, sources.clone()))
    }

    fn resolve_profile(
        &self,
        request: ParticipantRequest,
    ) -> Result<ParticipantProfile, PolicyError> {
        let name = request.display_name.filter(|name| !name.is_empty());
        if !name.as_deref().is_none_or(is_valid_name) {
            return Err(PolicyError::invalid_name("participant_name"));
        }
        let metadata = request.metadata.filter(|(_, text)| !text.is_empty());
        if let Some((field, text)) = &metadata {
            check_size(field, text.len(), self.max_metadata, MAX_METADATA)?;
        }
        let attributes = request.attributes;
        if !attributes.is_empty() {
            let sizes = attributes
                .iter()
                .map(|(key, value)| key.len() + value.len());
            let field = "participant_attributes";
            check_size(field, sizes.sum(), self.max_attributes, MAX_ATTRIBUTES)?;
        }
        if request.agents.len() > MAX_AGENTS {
            let expected = format!("at most {MAX_AGENTS} agents");
            return Err(PolicyError::invalid("room_config.agents", expected));
        }
        for (index, agent) in request.agents.iter().enumerate() {
            let field = |part| format!("room_config.agents[{index}].{part}");
            if !is_valid_name(&agent.agent_name) {
                return Err(PolicyError::invalid_name(field("agent_name")));
            }
            if !any_matches(&self.agents, &agent.agent_name, PatternContext::default()) {
                let reason = "this caller may not dispatch this agent";
                return Err(PolicyError::forbidden(field("agent_name"), reason));
            }
            let size = agent.metadata.len();
            if size > 0 {
                check_size(&field("metadata"), size, self.max_metadata, MAX_METADATA)?;
            }
        }
        Ok(ParticipantProfile {
            name,
            metadata: metadata.map(|(_, text)| text),
            attributes,
            agents: request.agents,
        })
    }
}

fn any_matches(patterns: &[NamePattern], name: &str, context: PatternContext<'_>) -> bool {
    patterns
        .iter()
        .any(|pattern| pattern.matches(name, context))
}

/// The only name that the patterns allow, or a random one that matches the first pattern.
fn default_name(
    patterns: &[NamePattern],
    context: PatternContext<'_>,
    is_random_allowed: bool,
    random: &impl Fn() -> String,
) -> Option<String> {
    match patterns {
        [only] if only.is_without_wildcard() => only.expand(context, ""),
        [first, ..] if is_random_allowed => first.expand(context, &random()),
        _ => None,
    }
}

/// Checks a size in bytes against the caller's bound and LiveKit's own.
fn check_size(
    field: &str,
    size: usize,
    caller_max: usize,
    livekit_max: usize,
) -> Result<(), PolicyError> {
    if size > livekit_max {
        let expected = format!("at most {livekit_max} bytes");
        return Err(PolicyError::invalid(field, expected));
    }
    if caller_max == 0 {
        return Err(PolicyError::forbidden(field, "this caller may not set it"));
    }
    if size > caller_max {
        let reason = format!("this caller may set at most {caller_max} bytes");
        return Err(PolicyError::forbidden(field, reason));
    }
    Ok(())
}
