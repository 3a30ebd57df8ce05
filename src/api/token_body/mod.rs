//! Wire bodies of `POST /token`: LiveKit's standard form and that of the older example, in one reading.
//!
//! Lenient where clients differ: unknown fields and null are passed over. What would change a token is read strictly.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value, json};

use crate::livekit::access_token::{AgentDispatch, Grant, TrackSource};
use crate::token::policy::file::ADMIN_GRANTS;
use crate::token::policy::{ParticipantRequest, PolicyError};
use crate::util::json;

/// Longest text of a field's name that is repeated, in characters.
const MAX_FIELD_NAME_CHARS: usize = 64;
/// Most problems that are told at once.
const MAX_VALIDATION_ERRORS: usize = 10;

/// What is wrong with a body.
#[derive(Debug, Clone, PartialEq)]
pub enum Error {
    /// It cannot be read: a list of what is wrong where.
    Invalid(Vec<ValidationError>),
    /// It can be read, and asks for what nobody gets.
    Refused(PolicyError),
}

/// What is wrong in one place, as FastAPI tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidationError {
    kind: &'static str,
    location: Vec<String>,
    message: &'static str,
}

impl ValidationError {
    /// A field that is not there.
    pub fn missing(field: &str) -> Self {
        Self::new(&[field], "missing", "Field required")
    }

    fn new(place: &[&str], kind: &'static str, message: &'static str) -> Self {
        let place = place
            .iter()
            .map(|part| part.chars().take(MAX_FIELD_NAME_CHARS).collect());
        Self {
            kind,
            location: place.collect(),
            message,
        }
    }

    /// As it stands in the reply. What was found is not repeated: it may be a secret in the wrong place.
    pub fn to_json(&self) -> Value {
        let place: Vec<&str> = ["body"]
            .into_iter()
            .chain(self.location.iter().map(String::as_str))
            .collect();
        json!({ "type": self.kind, "loc": place, "msg": self.message })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(problems) => {
                let told = problems
                    .iter()
                    .map(|problem| match problem.location.is_empty() {
                        true => problem.message.to_owned(),
                        false => format!("{}: {}", problem.location.join("."), problem.message),
                    });
                f.write_str(&told.collect::<Vec<_>>().join("; "))
            }
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

/// Reads a body of this content type.
pub fn parse_token_body(
    content_type: Option<&str>,
    body: &[u8],
) -> Result<ParticipantRequest, Error> {
    let whole = |kind, message| Error::Invalid(vec![ValidationError::new(&[], kind, message)]);
    if body.is_empty() {
        return Err(whole("missing", "Field required"));
    }
    let not_an_object = "Input should be a valid dictionary or object to extract fields from";
    // a page of any origin may send other types without asking the browser's leave
    if !content_type.is_some_and(is_json) {
        return Err(whole("model_attributes_type", not_an_object));
    }
    match json::parse_unique_keys(body) {
        Some(Value::Object(fields)) => parse_fields(&fields),
        Some(_) => Err(whole("model_attributes_type", not_an_object)),
        None => Err(whole("json_invalid", "JSON decode error")),
    }
}

fn is_json(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default();
    let kind = kind.trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

fn parse_fields(fields: &Map<String, Value>) -> Result<ParticipantRequest, Error> {
    let mut problems = ValidationErrors::default();
    let text = |name| fields.get(name).filter(|value| !value.is_null());
    let standard_fields = [
        "participant_identity",
        "participant_metadata",
        "participant_attributes",
        "room_config",
    ];
    let standard = text("participant_name").is_none()
        || standard_fields
            .iter()
            .any(|name| fields.contains_key(*name));
    let mut string = |name: &'static str| problems.read_string(&[name], text(name));
    let (room, identity, name) = (
        string("room_name"),
        string("participant_identity"),
        string("participant_name"),
    );
    let (newer, older) = (string("participant_metadata"), string("metadata"));
    let metadata = match (newer, older) {
        (Some(newer), Some(older)) if newer != older => {
            let expected = "the same as in participant_metadata";
            return Err(Error::Refused(PolicyError::invalid("metadata", expected)));
        }
        (Some(newer), _) => Some(("participant_metadata", newer)),
        (None, older) => older.map(|older| ("metadata", older)),
    };
    let attributes = problems.read_attributes(text("participant_attributes"));
    let lifetime = problems.read_seconds("ttl_seconds", text("ttl_seconds"));
    let agents = parse_agents(text("room_config"), &mut problems);
    let grants = parse_grants(text("participant_grants"), &mut problems);
    if !problems.0.is_empty() {
        return Err(Error::Invalid(problems.0));
    }
    let (grants, sources) = grants.map_err(Error::Refused)?;
    Ok(ParticipantRequest {
        room,
        identity,
        display_name: name,
        metadata,
        attributes,
        agents: agents.map_err(Error::Refused)?,
        grants,
        sources,
        lifetime,
        is_standard_form: standard,
    })
}

/// The agents of a `room_config`, and a refusal for everything else in it that is not as good as absent.
fn parse_agents(
    config: Option<&Value>,
    problems: &mut ValidationErrors,
) -> Result<Vec<AgentDispatch>, PolicyError> {
    let Some(config) = problems.read_object(&["room_config"], config) else {
        return Ok(Vec::new());
    };
    let reason = "no caller may set it";
    let mut agents = Vec::new();
    for (name, value) in config.iter().filter(|(_, value)| !value.is_null()) {
        if name != "agents" {
            if is_set(value) {
                let field = format!("room_config.{}", truncate_field_name(name));
                return Err(PolicyError::forbidden(field, reason));
            }
            continue;
        }
        let Some(list) = value.as_array() else {
            let message = "Input should be a valid list";
            problems.add(&["room_config", name], "list_type", message);
            continue;
        };
        for (index, agent) in list.iter().enumerate() {
            let index = index.to_string();
            let place = ["room_config", "agents", &index];
            let mut dispatch = AgentDispatch {
                agent_name: String::new(),
                metadata: String::new(),
            };
            let fields = problems
                .read_object(&place, Some(agent))
                .into_iter()
                .flatten();
            for (name, value) in fields.filter(|(_, value)| !value.is_null()) {
                let place = [place[0], place[1], place[2], name];
                let mut text = || {
                    problems
                        .read_string(&place, Some(value))
                        .unwrap_or_default()
                };
                match name.as_str() {
                    // protobuf's JSON has both spellings
                    "agent_name" | "agentName" => dispatch.agent_name = text(),
                    "metadata" => dispatch.metadata = text(),
                    _ if !is_set(value) => {}
                    _ => {
                        let field =
                            format!("room_config.agents[{index}].{}", truncate_field_name(name));
                        return Err(PolicyError::forbidden(field, reason));
                    }
                }
            }
            agents.push(dispatch);
        }
    }
    Ok(agents)
}

/// What protobuf's JSON would leave out says nothing.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

type GrantsAndSources = (BTreeMap<Grant, bool>, Option<BTreeSet<TrackSource>>);

fn parse_grants(
    asked: Option<&Value>,
    problems: &mut ValidationErrors,
) -> Result<GrantsAndSources, PolicyError> {
    let (mut grants, mut sources) = (BTreeMap::new(), None);
    let asked = problems.read_object(&["participant_grants"], asked);
    for (name, value) in asked.into_iter().flatten().filter(|(_, v)| !v.is_null()) {
        let field = || format!("participant_grants.{}", truncate_field_name(name));
        if name == "canPublishSources" {
            sources = Some(parse_sources(&field(), value)?);
            continue;
        }
        let Some(wanted) = value.as_bool() else {
            problems.add(
                &["participant_grants", name],
                "bool_type",
                "Input should be a valid boolean",
            );
            continue;
        };
        match Grant::parse(name) {
            Some(grant) => {
                grants.insert(grant, wanted);
            }
            None if ADMIN_GRANTS.contains(&name.as_str()) => {
                if wanted {
                    return Err(PolicyError::forbidden(field(), "no caller may grant it"));
                }
            }
            // every token lets its holder join
            None if name == "roomJoin" && wanted => {}
            None => {
                return Err(PolicyError::invalid(
                    field(),
                    "a grant of a participant, in camel case",
                ));
            }
        }
    }
    Ok((grants, sources))
}

/// An empty list would mean everything to the SFU, which is hardly what was meant.
fn parse_sources(field: &str, value: &Value) -> Result<BTreeSet<TrackSource>, PolicyError> {
    let known: Vec<_> = TrackSource::ALL
        .iter()
        .map(|source| source.as_str())
        .collect();
    let expected =
        || PolicyError::invalid(field, format!("a list of some of {}", known.join(", ")));
    let list = value
        .as_array()
        .filter(|list| !list.is_empty())
        .ok_or_else(expected)?;
    list.iter()
        .map(|source| {
            source
                .as_str()
                .and_then(TrackSource::parse)
                .ok_or_else(expected)
        })
        .collect()
}

fn truncate_field_name(name: &str) -> String {
    name.chars().take(MAX_FIELD_NAME_CHARS).collect()
}

/// What is wrong so far.
#[derive(Default)]
struct ValidationErrors(Vec<ValidationError>);

impl ValidationErrors {
    fn add(&mut self, place: &[&str], kind: &'static str, message: &'static str) {
        if self.0.len() < MAX_VALIDATION_ERRORS {
            self.0.push(ValidationError::new(place, kind, message));
        }
    }

    fn read_string(&mut self, place: &[&str], value: Option<&Value>) -> Option<String> {
        let value = value?;
        if let Value::String(text) = value {
            return Some(text.clone());
        }
        self.add(place, "string_type", "Input should be a valid string");
        None
    }

    fn read_object<'a>(
        &mut self,
        place: &[&str],
        value: Option<&'a Value>,
    ) -> Option<&'a Map<String, Value>> {
        let value = value?;
        if value.as_object().is_none() {
            self.add(place, "dict_type", "Input should be a valid dictionary");
        }
        value.as_object()
    }

    fn read_attributes(&mut self, value: Option<&Value>) -> BTreeMap<String, String> {
        let place = "participant_attributes";
        let fields = self.read_object(&[place], value);
        fields
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| {
                Some((key.clone(), self.read_string(&[place, key], Some(value))?))
            })
            .collect()
    }

    fn read_seconds(&mut self, name: &'static str, value: Option<&Value>) -> Option<u64> {
        let value = value?;
        if value.as_u64().is_none() {
            self.add(&[name], "int_type", "Input should be a valid integer");
        }
        value.as_u64()
    }
}
