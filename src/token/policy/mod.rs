//! What a caller of the token endpoint may ask for. No I/O and no clock here.

mod error;
pub(crate) mod file;
pub(crate) mod pattern;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use self::error::PolicyError;
use self::pattern::{NamePattern, PatternContext};
use super::caller::Caller;
use crate::livekit::access_token::{
    AgentDispatch, Grant, MAX_ATTRIBUTES, MAX_METADATA, ParticipantProfile, TrackSource,
};
use crate::livekit::id::{MAX_NAME_BYTES, ParticipantIdentity, RoomName};

/// Seconds: longest lifetime of a token, a year. Who wants more wants no end.
pub const MAX_LIFETIME: u64 = 365 * 86_400;
/// Seconds: shortest lifetime that may be asked for; a client needs some to connect.
pub const MIN_LIFETIME: u64 = 10;
/// Bytes of metadata where nobody says otherwise: with [`ATTRIBUTES`] and the rest the token stays below the 8 KiB that proxies
/// take as one line, for browsers put it into a URL.
pub(crate) const DEFAULT_MAX_METADATA: usize = 4096;
/// Bytes of attributes where nobody says otherwise; see [`METADATA`].
pub(crate) const DEFAULT_MAX_ATTRIBUTES: usize = 1024;
/// Most agents that one token calls.
pub(crate) const MAX_AGENTS: usize = 16;

/// The rules for one caller.
#[derive(Debug, Clone, PartialEq)]
pub struct CallerPolicy {
    /// Rooms that they may enter.
    pub rooms: Vec<NamePattern>,
    /// Whom they may send there.
    pub identities: Vec<NamePattern>,
    /// What is granted unless it is declined.
    pub grants: BTreeSet<Grant>,
    /// What is granted beyond that if it is asked for.
    pub grants_on_request: BTreeSet<Grant>,
    /// What participants may send; empty is everything.
    pub sources: BTreeSet<TrackSource>,
    /// Agents that they may call.
    pub agents: Vec<NamePattern>,
    /// Bytes of metadata, also of each agent's; none is not allowed at zero.
    pub max_metadata: usize,
    /// Bytes of attributes, keys and values together.
    pub max_attributes: usize,
    /// Seconds for which a token is valid if nothing is asked for.
    pub default_lifetime: u64,
    /// Seconds for which a token may be valid.
    pub max_lifetime: u64,
    /// Whether who names no room gets one of their own.
    pub random_room: bool,
    /// Whether who names no participant gets a new one.
    pub random_identity: bool,
    /// Characters that names of rooms and participants have at least.
    pub min_name_length: usize,
    /// Tokens a minute; zero is without limit.
    pub requests_per_minute: u32,
}

impl Default for CallerPolicy {
    /// Any one room as anybody, to talk and to listen there, for a day.
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

/// What is asked for: parsed, not believed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ParticipantRequest {
    /// The room.
    pub room: Option<String>,
    /// The participant.
    pub identity: Option<String>,
    /// What others are shown; the participant too, if nothing else says who that is.
    pub display_name: Option<String>,
    /// For the participant, with the name of the field that it came in.
    pub metadata: Option<(&'static str, String)>,
    /// For the participant.
    pub attributes: BTreeMap<String, String>,
    /// Whom to call into the room.
    pub agents: Vec<AgentDispatch>,
    /// Grants, asked for or declined.
    pub grants: BTreeMap<Grant, bool>,
    /// What the participant wants to send, if not everything.
    pub sources: Option<BTreeSet<TrackSource>>,
    /// Seconds.
    pub lifetime: Option<u64>,
    /// Whether it is LiveKit's standard form rather than the example's, in which a name says who somebody is.
    pub is_standard_form: bool,
}

/// What was allowed: nothing else can be signed.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenGrant {
    /// The one room.
    pub room: RoomName,
    /// The participant.
    pub identity: ParticipantIdentity,
    /// What they may do.
    pub grants: BTreeSet<Grant>,
    /// What they may send; empty is everything.
    pub sources: BTreeSet<TrackSource>,
    /// What else there is about them.
    pub profile: ParticipantProfile,
    /// Seconds.
    pub lifetime: u64,
}

impl CallerPolicy {
    /// Decides what of what a caller asks for they get: all of it, or nothing. `random` names those that nobody named.
    pub fn authorize(
        &self,
        caller: &Caller,
        asked: ParticipantRequest,
        random: impl Fn() -> String,
    ) -> Result<TokenGrant, PolicyError> {
        let claims = caller.claims.as_ref();
        let nobody = PatternContext {
            identity: None,
            claims,
        };
        let identity = self.resolve_identity(&asked, nobody, &random);
        let known = PatternContext {
            identity: identity.as_ref().map(|(_, identity)| identity.as_str()),
            claims,
        };
        let room = asked
            .room
            .clone()
            .or_else(|| default_name(&self.rooms, known, self.random_room, &random));
        let ((field, identity), room) = match (&identity, room) {
            (Some(identity), Some(room)) => (identity, room),
            (identity, room) => {
                let missing = [
                    room.is_none().then_some("room_name"),
                    // the one field that will do in either form
                    identity.is_none().then_some("participant_name"),
                ];
                return Err(PolicyError::Missing(
                    missing.into_iter().flatten().collect(),
                ));
            }
        };
        self.check_name("room_name", &room)?;
        self.check_name(field, identity)?;
        if !any_matches(&self.identities, identity, nobody) {
            let reason = "this caller may not send such a participant";
            return Err(PolicyError::forbidden(*field, reason));
        }
        if !any_matches(&self.rooms, &room, known) {
            let reason = "this caller may not enter such a room";
            return Err(PolicyError::forbidden("room_name", reason));
        }
        let expected = || format!("1 to {MAX_NAME_BYTES} bytes without control characters");
        let identity = ParticipantIdentity::new(identity.clone())
            .map_err(|_| PolicyError::invalid(*field, expected()))?;
        let room =
            RoomName::new(room).map_err(|_| PolicyError::invalid("room_name", expected()))?;
        let lifetime = self.resolve_lifetime(asked.lifetime)?;
        let (grants, sources) = self.resolve_grants(&asked)?;
        let profile = self.resolve_profile(asked)?;
        Ok(TokenGrant {
            room,
            identity,
            grants,
            sources,
            profile,
            lifetime,
        })
    }

    /// Who is to enter, and the field that says so.
    fn resolve_identity(
        &self,
        asked: &ParticipantRequest,
        known: PatternContext<'_>,
        random: &impl Fn() -> String,
    ) -> Option<(&'static str, String)> {
        if let Some(identity) = &asked.identity {
            return Some(("participant_identity", identity.clone()));
        }
        // whoever is bound to one identity has it, whatever they call themselves
        if let Some(own) = default_name(&self.identities, known, false, random) {
            return Some(("participant_identity", own));
        }
        let random = || default_name(&self.identities, known, self.random_identity, random);
        let by_name = || Some(("participant_name", asked.display_name.clone()?));
        let by_chance = || Some(("participant_identity", random()?));
        if asked.is_standard_form {
            by_chance().or_else(by_name)
        } else {
            by_name().or_else(by_chance)
        }
    }

    fn check_name(&self, field: &'static str, name: &str) -> Result<(), PolicyError> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
            let expected = format!("1 to {MAX_NAME_BYTES} bytes without control characters");
            return Err(PolicyError::invalid(field, expected));
        }
        if name.chars().count() < self.min_name_length {
            let expected = format!("at least {} characters", self.min_name_length);
            return Err(PolicyError::invalid(field, expected));
        }
        Ok(())
    }

    fn resolve_lifetime(&self, asked: Option<u64>) -> Result<u64, PolicyError> {
        const FIELD: &str = "ttl_seconds";
        match asked {
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
        asked: &ParticipantRequest,
    ) -> Result<(BTreeSet<Grant>, BTreeSet<TrackSource>), PolicyError> {
        let mut grants = self.grants.clone();
        for (&grant, &wanted) in &asked.grants {
            if !wanted {
                grants.remove(&grant);
            } else if self.grants_on_request.contains(&grant) {
                grants.insert(grant);
            } else if !grants.contains(&grant) {
                let field = format!("participant_grants.{}", grant.as_str());
                return Err(PolicyError::forbidden(
                    field,
                    "this caller may not grant it",
                ));
            }
        }
        let sources = match &asked.sources {
            None => self.sources.clone(),
            Some(wanted) if self.sources.is_empty() || wanted.is_subset(&self.sources) => {
                wanted.clone()
            }
            Some(_) => {
                let field = "participant_grants.canPublishSources";
                return Err(PolicyError::forbidden(
                    field,
                    "this caller may not grant them all",
                ));
            }
        };
        Ok((grants, sources))
    }

    fn resolve_profile(
        &self,
        asked: ParticipantRequest,
    ) -> Result<ParticipantProfile, PolicyError> {
        let name = asked.display_name.filter(|name| !name.is_empty());
        if let Some(name) = &name
            && (name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control))
        {
            let expected = format!("at most {MAX_NAME_BYTES} bytes without control characters");
            return Err(PolicyError::invalid("participant_name", expected));
        }
        let metadata = asked.metadata.filter(|(_, text)| !text.is_empty());
        if let Some((field, text)) = &metadata {
            check_size(field, text.len(), self.max_metadata, MAX_METADATA)?;
        }
        let attributes = asked.attributes;
        let size = attributes
            .iter()
            .map(|(key, value)| key.len() + value.len());
        if !attributes.is_empty() {
            let field = "participant_attributes";
            check_size(field, size.sum(), self.max_attributes, MAX_ATTRIBUTES)?;
        }
        if asked.agents.len() > MAX_AGENTS {
            let expected = format!("at most {MAX_AGENTS} agents");
            return Err(PolicyError::invalid("room_config.agents", expected));
        }
        for (index, agent) in asked.agents.iter().enumerate() {
            let field = |part| format!("room_config.agents[{index}].{part}");
            let name = &agent.agent_name;
            if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control)
            {
                let expected = format!("1 to {MAX_NAME_BYTES} bytes without control characters");
                return Err(PolicyError::invalid(field("agent_name"), expected));
            }
            if !any_matches(&self.agents, name, PatternContext::default()) {
                let reason = "this caller may not call such an agent";
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
            agents: asked.agents,
        })
    }
}

fn any_matches(patterns: &[NamePattern], name: &str, known: PatternContext<'_>) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name, known))
}

/// The name that patterns leave no choice about, or a random one that fits the first of them.
fn default_name(
    patterns: &[NamePattern],
    known: PatternContext<'_>,
    may_be_random: bool,
    random: &impl Fn() -> String,
) -> Option<String> {
    match patterns {
        [only] if only.is_without_wildcard() => only.expand(known, ""),
        [first, ..] if may_be_random => first.expand(known, &random()),
        _ => None,
    }
}

/// `most` is the caller's bound, `limit` LiveKit's own.
fn check_size(field: &str, size: usize, most: usize, limit: usize) -> Result<(), PolicyError> {
    if size > limit {
        return Err(PolicyError::invalid(
            field,
            format!("at most {limit} bytes"),
        ));
    }
    if most == 0 {
        return Err(PolicyError::forbidden(field, "this caller may not set it"));
    }
    if size > most {
        let reason = format!("this caller may set at most {most} bytes");
        return Err(PolicyError::forbidden(field, reason));
    }
    Ok(())
}
