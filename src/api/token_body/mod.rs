//! Request bodies of `POST /token`: the standard form of LiveKit's SDKs and that of the example server, in one parser.
//!
//! Lenient where clients differ: unknown fields are ignored and `null` counts as absent. Whatever changes the token is parsed strictly,
//! and duplicate fields are refused. Errors have the form of FastAPI, which the example server uses.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value, json};

use crate::livekit::access_token::{AgentDispatch, Grant, TrackSource};
use crate::token::policy::{ADMIN_GRANTS, ParticipantRequest, PolicyError};
use crate::util::json;
use crate::util::text::truncate_chars;

/// Characters of a client's field name that reach a response or the log.
const MAX_FIELD_NAME_CHARS: usize = 64;
/// Validation errors in one response.
const MAX_VALIDATION_ERRORS: usize = 10;
/// Message about a body that is no JSON object.
const NOT_AN_OBJECT: &str = "Input should be a valid dictionary or object to extract fields from";

/// Why a body is refused.
#[derive(Debug, Clone, PartialEq)]
pub enum Error {
    /// The body cannot be parsed.
    Invalid(Vec<ValidationError>),
    /// The body has a forbidden field or value.
    Refused(PolicyError),
}

/// An invalid field, in FastAPI's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidationError {
    kind: &'static str,
    location: Vec<String>,
    message: &'static str,
}

impl ValidationError {
    /// A required field is missing.
    pub(crate) fn missing(field: &str) -> Self {
        Self::new(&[field], "missing", "Field required")
    }

    fn new(location: &[&str], kind: &'static str, message: &'static str) -> Self {
        let parts = location
            .iter()
            .map(|part| truncate_field_name(part).to_owned());
        Self {
            kind,
            location: parts.collect(),
            message,
        }
    }

    /// An item of the response's `detail`. Omits the invalid value, which may be a secret in the wrong field.
    pub(crate) fn to_json(&self) -> Value {
        let location = self.location.iter().map(String::as_str);
        let location: Vec<&str> = ["body"].into_iter().chain(location).collect();
        json!({ "type": self.kind, "loc": location, "msg": self.message })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(errors) => {
                let texts = errors.iter().map(|error| match error.location.is_empty() {
                    true => error.message.to_owned(),
                    false => format!("{}: {}", error.location.join("."), error.message),
                });
                f.write_str(&texts.collect::<Vec<_>>().join("; "))
            }
            Self::Refused(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

/// Parses a body of this content type.
///
/// # Errors
/// The content type is not JSON, the body is not a JSON object, or a field is invalid.
pub fn parse_token_body(
    content_type: Option<&str>,
    body: &[u8],
) -> Result<ParticipantRequest, Error> {
    let invalid = |kind, message| Error::Invalid(vec![ValidationError::new(&[], kind, message)]);
    if body.is_empty() {
        return Err(invalid("missing", "Field required"));
    }
    // browsers let pages of any origin send other types without a preflight
    if !content_type.is_some_and(is_json) {
        return Err(invalid("model_attributes_type", NOT_AN_OBJECT));
    }
    match json::parse_unique_keys(body) {
        Some(Value::Object(fields)) => parse_fields(&fields),
        Some(_) => Err(invalid("model_attributes_type", NOT_AN_OBJECT)),
        None => Err(invalid("json_invalid", "JSON decode error")),
    }
}

fn is_json(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default();
    let media_type = media_type.trim().to_ascii_lowercase();
    let subtype = media_type.strip_prefix("application/");
    subtype.is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

fn parse_fields(fields: &Map<String, Value>) -> Result<ParticipantRequest, Error> {
    let mut errors = ValidationErrors::default();
    let value = |name| fields.get(name).filter(|value| !value.is_null());
    let standard_fields = [
        "participant_identity",
        "participant_metadata",
        "participant_attributes",
        "room_config",
    ];
    let is_standard_form = value("participant_name").is_none()
        || standard_fields
            .iter()
            .any(|name| fields.contains_key(*name));
    let mut string = |name: &'static str| errors.read_string(&[name], value(name));
    let (room, identity, display_name) = (
        string("room_name"),
        string("participant_identity"),
        string("participant_name"),
    );
    let metadata = match (string("participant_metadata"), string("metadata")) {
        (Some(standard), Some(example)) if standard != example => {
            let expected = "the same as in participant_metadata";
            return Err(Error::Refused(PolicyError::invalid("metadata", expected)));
        }
        (Some(standard), _) => Some(("participant_metadata", standard)),
        (None, example) => example.map(|example| ("metadata", example)),
    };
    let attributes = errors.read_attributes(value("participant_attributes"));
    let lifetime = errors.read_seconds("ttl_seconds", value("ttl_seconds"));
    let agents = parse_agents(value("room_config"), &mut errors);
    let grants = parse_grants(value("participant_grants"), &mut errors);
    if !errors.0.is_empty() {
        return Err(Error::Invalid(errors.0));
    }
    let (grants, sources) = grants.map_err(Error::Refused)?;
    Ok(ParticipantRequest {
        room,
        identity,
        display_name,
        metadata,
        attributes,
        agents: agents.map_err(Error::Refused)?,
        grants,
        sources,
        lifetime,
        is_standard_form,
    })
}

/// Parses the agents of a `room_config`. Any other option that is set in it is forbidden.
fn parse_agents(
    config: Option<&Value>,
    errors: &mut ValidationErrors,
) -> Result<Vec<AgentDispatch>, PolicyError> {
    let config = errors.read_object(&["room_config"], config);
    let mut agents = Vec::new();
    for (name, value) in config.into_iter().flatten().filter(|(_, v)| !v.is_null()) {
        match name.as_str() {
            "agents" => {}
            _ if !is_set(value) => continue,
            _ => return Err(forbidden_option("room_config", name)),
        }
        let Some(list) = value.as_array() else {
            let message = "Input should be a valid list";
            errors.add(&["room_config", name], "list_type", message);
            continue;
        };
        for (index, agent) in list.iter().enumerate() {
            agents.push(parse_agent(&index.to_string(), agent, errors)?);
        }
    }
    Ok(agents)
}

fn parse_agent(
    index: &str,
    agent: &Value,
    errors: &mut ValidationErrors,
) -> Result<AgentDispatch, PolicyError> {
    let mut dispatch = AgentDispatch {
        agent_name: String::new(),
        metadata: String::new(),
    };
    let fields = errors.read_object(&["room_config", "agents", index], Some(agent));
    for (name, value) in fields.into_iter().flatten().filter(|(_, v)| !v.is_null()) {
        let location = ["room_config", "agents", index, name];
        let mut text = || {
            let text = errors.read_string(&location, Some(value));
            text.unwrap_or_default()
        };
        match name.as_str() {
            // protobuf's JSON has both spellings
            "agent_name" | "agentName" => dispatch.agent_name = text(),
            "metadata" => dispatch.metadata = text(),
            _ if !is_set(value) => {}
            _ => {
                let agent = format!("room_config.agents[{index}]");
                return Err(forbidden_option(&agent, name));
            }
        }
    }
    Ok(dispatch)
}

fn forbidden_option(object: &str, name: &str) -> PolicyError {
    let field = format!("{object}.{}", truncate_field_name(name));
    PolicyError::forbidden(field, "no caller may set it")
}

/// Whether a value differs from the default, which protobuf's JSON may omit.
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
    requested: Option<&Value>,
    errors: &mut ValidationErrors,
) -> Result<GrantsAndSources, PolicyError> {
    let (mut grants, mut sources) = (BTreeMap::new(), None);
    let requested = errors.read_object(&["participant_grants"], requested);
    for (name, value) in requested
        .into_iter()
        .flatten()
        .filter(|(_, v)| !v.is_null())
    {
        let field = || format!("participant_grants.{}", truncate_field_name(name));
        if name == "canPublishSources" {
            sources = Some(parse_sources(&field(), value)?);
            continue;
        }
        let Some(wanted) = value.as_bool() else {
            let message = "Input should be a valid boolean";
            errors.add(&["participant_grants", name], "bool_type", message);
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

/// Refuses an empty list, which would mean all sources to the SFU.
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

fn truncate_field_name(name: &str) -> &str {
    truncate_chars(name, MAX_FIELD_NAME_CHARS)
}

/// The validation errors found so far.
#[derive(Default)]
struct ValidationErrors(Vec<ValidationError>);

impl ValidationErrors {
    fn add(&mut self, location: &[&str], kind: &'static str, message: &'static str) {
        if self.0.len() < MAX_VALIDATION_ERRORS {
            self.0.push(ValidationError::new(location, kind, message));
        }
    }

    fn read_string(&mut self, location: &[&str], value: Option<&Value>) -> Option<String> {
        let value = value?;
        if let Value::String(text) = value {
            return Some(text.clone());
        }
        self.add(location, "string_type", "Input should be a valid string");
        None
    }

    fn read_object<'a>(
        &mut self,
        location: &[&str],
        value: Option<&'a Value>,
    ) -> Option<&'a Map<String, Value>> {
        let value = value?;
        if value.as_object().is_none() {
            self.add(location, "dict_type", "Input should be a valid dictionary");
        }
        value.as_object()
    }

    fn read_attributes(&mut self, value: Option<&Value>) -> BTreeMap<String, String> {
        let location = "participant_attributes";
        let fields = self.read_object(&[location], value);
        fields
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| {
                Some((
                    key.clone(),
                    self.read_string(&[location, key], Some(value))?,
                ))
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
