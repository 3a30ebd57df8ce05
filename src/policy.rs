//! What a caller of the token endpoint may ask for. No I/O and no clock here.

pub mod file;
pub mod pattern;
mod refusal;

use std::collections::{BTreeMap, BTreeSet};

use crate::caller::Caller;
use crate::livekit::token::{
    Agent, Grant, Identity, MAX_ATTRIBUTES, MAX_METADATA, MAX_NAME, Profile, RoomName, Source,
};
use crate::policy::pattern::{Known, Pattern};
pub use crate::policy::refusal::Refusal;

/// Seconds: longest lifetime of a token, a year. Who wants more wants no end.
pub const MAX_LIFETIME: u64 = 365 * 86_400;
/// Seconds: shortest lifetime that may be asked for; a client needs some to connect.
pub const MIN_LIFETIME: u64 = 10;
/// Bytes of metadata where nobody says otherwise: with [`ATTRIBUTES`] and the rest the token stays below the 8 KiB that proxies
/// take as one line, for browsers put it into a URL.
pub const METADATA: usize = 4096;
/// Bytes of attributes where nobody says otherwise; see [`METADATA`].
pub const ATTRIBUTES: usize = 1024;
/// Most agents that one token calls.
pub const MAX_AGENTS: usize = 16;

/// The rules for one caller.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Rooms that they may enter.
    pub rooms: Vec<Pattern>,
    /// Whom they may send there.
    pub identities: Vec<Pattern>,
    /// What is granted unless it is declined.
    pub grants: BTreeSet<Grant>,
    /// What is granted beyond that if it is asked for.
    pub grants_on_request: BTreeSet<Grant>,
    /// What participants may send; empty is everything.
    pub sources: BTreeSet<Source>,
    /// Agents that they may call.
    pub agents: Vec<Pattern>,
    /// Bytes of metadata, also of each agent's; none is not allowed at zero.
    pub max_metadata: usize,
    /// Bytes of attributes, keys and values together.
    pub max_attributes: usize,
    /// Seconds for which a token is valid if nothing is asked for.
    pub lifetime: u64,
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

impl Default for Policy {
    /// Any one room as anybody, to talk and to listen there, for a day.
    fn default() -> Self {
        Self {
            rooms: vec![Pattern::anything()],
            identities: vec![Pattern::anything()],
            grants: [Grant::Publish, Grant::Subscribe, Grant::PublishData].into(),
            grants_on_request: BTreeSet::new(),
            sources: BTreeSet::new(),
            agents: Vec::new(),
            max_metadata: METADATA,
            max_attributes: ATTRIBUTES,
            lifetime: 86_400,
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
pub struct Asked {
    /// The room.
    pub room: Option<String>,
    /// The participant.
    pub identity: Option<String>,
    /// What others are shown; the participant too, if nothing else says who that is.
    pub name: Option<String>,
    /// For the participant, with the name of the field that it came in.
    pub metadata: Option<(&'static str, String)>,
    /// For the participant.
    pub attributes: BTreeMap<String, String>,
    /// Whom to call into the room.
    pub agents: Vec<Agent>,
    /// Grants, asked for or declined.
    pub grants: BTreeMap<Grant, bool>,
    /// What the participant wants to send, if not everything.
    pub sources: Option<BTreeSet<Source>>,
    /// Seconds.
    pub lifetime: Option<u64>,
    /// Whether it is LiveKit's standard form rather than the example's, in which a name says who somebody is.
    pub standard: bool,
}

/// What was allowed: nothing else can be signed.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    /// The one room.
    pub room: RoomName,
    /// The participant.
    pub identity: Identity,
    /// What they may do.
    pub grants: BTreeSet<Grant>,
    /// What they may send; empty is everything.
    pub sources: BTreeSet<Source>,
    /// What else there is about them.
    pub profile: Profile,
    /// Seconds.
    pub lifetime: u64,
}

impl Policy {
    /// Decides what of what a caller asks for they get: all of it, or nothing. `random` names those that nobody named.
    pub fn allow(
        &self,
        caller: &Caller,
        asked: Asked,
        random: impl Fn() -> String,
    ) -> Result<Terms, Refusal> {
        let claims = caller.claims.as_ref();
        let nobody = Known {
            identity: None,
            claims,
        };
        let identity = self.identity(&asked, nobody, &random);
        let known = Known {
            identity: identity.as_ref().map(|(_, identity)| identity.as_str()),
            claims,
        };
        let room = asked
            .room
            .clone()
            .or_else(|| implied(&self.rooms, known, self.random_room, &random));
        let ((field, identity), room) = match (&identity, room) {
            (Some(identity), Some(room)) => (identity, room),
            (identity, room) => {
                let missing = [
                    room.is_none().then_some("room_name"),
                    // the one field that will do in either form
                    identity.is_none().then_some("participant_name"),
                ];
                return Err(Refusal::Missing(missing.into_iter().flatten().collect()));
            }
        };
        self.check_name("room_name", &room)?;
        self.check_name(field, identity)?;
        if !any(&self.identities, identity, nobody) {
            let reason = "this caller may not send such a participant";
            return Err(Refusal::forbidden(*field, reason));
        }
        if !any(&self.rooms, &room, known) {
            let reason = "this caller may not enter such a room";
            return Err(Refusal::forbidden("room_name", reason));
        }
        let expected = || format!("1 to {MAX_NAME} bytes without control characters");
        let identity =
            Identity::new(identity.clone()).map_err(|_| Refusal::invalid(*field, expected()))?;
        let room = RoomName::new(room).map_err(|_| Refusal::invalid("room_name", expected()))?;
        let lifetime = self.lifetime_of(asked.lifetime)?;
        let (grants, sources) = self.grants_of(&asked)?;
        let profile = self.profile(asked)?;
        Ok(Terms {
            room,
            identity,
            grants,
            sources,
            profile,
            lifetime,
        })
    }

    /// Who is to enter, and the field that says so.
    fn identity(
        &self,
        asked: &Asked,
        known: Known<'_>,
        random: &impl Fn() -> String,
    ) -> Option<(&'static str, String)> {
        if let Some(identity) = &asked.identity {
            return Some(("participant_identity", identity.clone()));
        }
        // whoever is bound to one identity has it, whatever they call themselves
        if let Some(own) = implied(&self.identities, known, false, random) {
            return Some(("participant_identity", own));
        }
        let random = || implied(&self.identities, known, self.random_identity, random);
        let by_name = || Some(("participant_name", asked.name.clone()?));
        let by_chance = || Some(("participant_identity", random()?));
        if asked.standard {
            by_chance().or_else(by_name)
        } else {
            by_name().or_else(by_chance)
        }
    }

    fn check_name(&self, field: &'static str, name: &str) -> Result<(), Refusal> {
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            let expected = format!("1 to {MAX_NAME} bytes without control characters");
            return Err(Refusal::invalid(field, expected));
        }
        if name.chars().count() < self.min_name_length {
            let expected = format!("at least {} characters", self.min_name_length);
            return Err(Refusal::invalid(field, expected));
        }
        Ok(())
    }

    fn lifetime_of(&self, asked: Option<u64>) -> Result<u64, Refusal> {
        const FIELD: &str = "ttl_seconds";
        match asked {
            None => Ok(self.lifetime),
            Some(seconds) if seconds < MIN_LIFETIME => {
                let expected = format!("{MIN_LIFETIME} seconds or more");
                Err(Refusal::invalid(FIELD, expected))
            }
            Some(seconds) if seconds > self.max_lifetime => {
                let reason = format!("this caller gets {} seconds at most", self.max_lifetime);
                Err(Refusal::forbidden(FIELD, reason))
            }
            Some(seconds) => Ok(seconds),
        }
    }

    fn grants_of(&self, asked: &Asked) -> Result<(BTreeSet<Grant>, BTreeSet<Source>), Refusal> {
        let mut grants = self.grants.clone();
        for (&grant, &wanted) in &asked.grants {
            if !wanted {
                grants.remove(&grant);
            } else if self.grants_on_request.contains(&grant) {
                grants.insert(grant);
            } else if !grants.contains(&grant) {
                let field = format!("participant_grants.{}", grant.as_str());
                return Err(Refusal::forbidden(field, "this caller may not grant it"));
            }
        }
        let sources = match &asked.sources {
            None => self.sources.clone(),
            Some(wanted) if self.sources.is_empty() || wanted.is_subset(&self.sources) => {
                wanted.clone()
            }
            Some(_) => {
                let field = "participant_grants.canPublishSources";
                return Err(Refusal::forbidden(
                    field,
                    "this caller may not grant them all",
                ));
            }
        };
        Ok((grants, sources))
    }

    fn profile(&self, asked: Asked) -> Result<Profile, Refusal> {
        let name = asked.name.filter(|name| !name.is_empty());
        if let Some(name) = &name
            && (name.len() > MAX_NAME || name.chars().any(char::is_control))
        {
            let expected = format!("at most {MAX_NAME} bytes without control characters");
            return Err(Refusal::invalid("participant_name", expected));
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
            return Err(Refusal::invalid("room_config.agents", expected));
        }
        for (index, agent) in asked.agents.iter().enumerate() {
            let field = |part| format!("room_config.agents[{index}].{part}");
            let name = &agent.agent_name;
            if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
                let expected = format!("1 to {MAX_NAME} bytes without control characters");
                return Err(Refusal::invalid(field("agent_name"), expected));
            }
            if !any(&self.agents, name, Known::default()) {
                let reason = "this caller may not call such an agent";
                return Err(Refusal::forbidden(field("agent_name"), reason));
            }
            let size = agent.metadata.len();
            if size > 0 {
                check_size(&field("metadata"), size, self.max_metadata, MAX_METADATA)?;
            }
        }
        Ok(Profile {
            name,
            metadata: metadata.map(|(_, text)| text),
            attributes,
            agents: asked.agents,
        })
    }
}

fn any(patterns: &[Pattern], name: &str, known: Known<'_>) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name, known))
}

/// The name that patterns leave no choice about, or a random one that fits the first of them.
fn implied(
    patterns: &[Pattern],
    known: Known<'_>,
    may_be_random: bool,
    random: &impl Fn() -> String,
) -> Option<String> {
    match patterns {
        [only] if only.is_definite() => only.filled(known, ""),
        [first, ..] if may_be_random => first.filled(known, &random()),
        _ => None,
    }
}

/// `most` is the caller's bound, `limit` LiveKit's own.
fn check_size(field: &str, size: usize, most: usize, limit: usize) -> Result<(), Refusal> {
    if size > limit {
        return Err(Refusal::invalid(field, format!("at most {limit} bytes")));
    }
    if most == 0 {
        return Err(Refusal::forbidden(field, "this caller may not set it"));
    }
    if size > most {
        let reason = format!("this caller may set at most {most} bytes");
        return Err(Refusal::forbidden(field, reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
