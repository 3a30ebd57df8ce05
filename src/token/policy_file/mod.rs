//! The policy file: TOML, parsed strictly. `contrib/policy.toml` documents every key.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use serde::Deserialize;
use toml::Spanned;

use super::CallerName;
use super::api_key::ApiKeyHash;
use super::jwt::DEFAULT_IDENTITY_CLAIM;
use super::pattern::NamePattern;
use super::policy::{ACCEPTED_GRANTS, ADMIN_GRANTS, CallerPolicy, MAX_LIFETIME, MIN_LIFETIME};
use crate::livekit::access_token::{Grant, MAX_ATTRIBUTES, MAX_METADATA, TrackSource};

/// Most entries of one list.
const MAX_LIST_ENTRIES: usize = 100;
/// Longest `min_name_length`.
const MAX_MIN_NAME_LENGTH: u64 = 64;
/// Highest `requests_per_minute`.
const MAX_REQUESTS_PER_MINUTE: u64 = 1_000_000;
/// The name of the caller for requests without credentials.
pub(crate) const ANONYMOUS_CALLER: &str = "anyone";

/// A policy file, merged with the settings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PolicyFile {
    /// The policy of callers that are not in the file.
    pub default: CallerPolicy,
    /// The callers of the file.
    pub callers: BTreeMap<CallerName, PolicyFileCaller>,
}

/// One caller of a policy file.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyFileCaller {
    /// The caller's policy.
    pub policy: CallerPolicy,
    /// The hashes of the caller's API keys.
    pub key_hashes: Vec<ApiKeyHash>,
    /// The issuer of the caller's JWTs.
    pub jwt: Option<JwtIssuerSettings>,
    /// Whether the caller's own entry has `identities`.
    pub sets_identities: bool,
}

impl PolicyFileCaller {
    /// A caller without credentials in the file.
    pub fn from_policy(policy: CallerPolicy) -> Self {
        Self {
            policy,
            key_hashes: Vec::new(),
            jwt: None,
            sets_identities: false,
        }
    }
}

/// The entry `jwt` of a caller. The files that it names are not read yet.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtIssuerSettings {
    /// Required `iss`.
    pub issuer: String,
    /// Required `aud`.
    pub audience: String,
    /// A JWKS or PEM file, or the URL of a JWKS.
    pub keys: Option<String>,
    /// A file with an HS256 secret.
    pub secret_file: Option<String>,
    /// The claim that identifies the user.
    pub identity_claim: Option<String>,
}

/// The file as TOML, with the position of each value.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFileToml {
    default: Option<Spanned<PolicyFileTomlEntry>>,
    #[serde(default)]
    callers: BTreeMap<Spanned<String>, Spanned<PolicyFileTomlEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFileTomlEntry {
    keys: Option<TextList>,
    jwt: Option<Spanned<JwtIssuerSettings>>,
    rooms: Option<TextList>,
    identities: Option<TextList>,
    grants: Option<TextList>,
    grants_on_request: Option<TextList>,
    sources: Option<TextList>,
    agents: Option<TextList>,
    max_metadata_bytes: Option<Spanned<u64>>,
    max_attributes_bytes: Option<Spanned<u64>>,
    lifetime_seconds: Option<Spanned<u64>>,
    max_lifetime_seconds: Option<Spanned<u64>>,
    random_room: Option<bool>,
    random_identity: Option<bool>,
    min_name_length: Option<Spanned<u64>>,
    requests_per_minute: Option<Spanned<u64>>,
}

impl PolicyFileTomlEntry {
    fn has_credentials(&self) -> bool {
        self.keys.is_some() || self.jwt.is_some()
    }
}

/// Error in a policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The line, counted from 1, if known.
    pub line: Option<usize>,
    /// What was expected and found.
    pub reason: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

impl std::error::Error for Error {}

struct SpannedError {
    /// Byte offset in the file.
    offset: usize,
    reason: String,
}

impl SpannedError {
    fn new<T>(value: &Spanned<T>, reason: impl Into<String>) -> Self {
        Self {
            offset: value.span().start,
            reason: reason.into(),
        }
    }
}

/// Strings with their positions.
type TextList = Spanned<Vec<Spanned<String>>>;

type SpannedResult<T> = Result<T, SpannedError>;

/// Parses a policy file. Values that a caller does not set are those of `[default]`, or else of `base`.
///
/// # Errors
/// The first error of the file.
pub fn parse(text: &str, base: &CallerPolicy) -> Result<PolicyFile, Error> {
    let file: PolicyFileToml = toml::from_str(text).map_err(|error| Error {
        line: error.span().map(|span| line_number(text, span.start)),
        reason: error.message().to_owned(),
    })?;
    validate(&file, base).map_err(|SpannedError { offset, reason }| Error {
        line: Some(line_number(text, offset)),
        reason,
    })
}

fn line_number(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

fn validate(file: &PolicyFileToml, base: &CallerPolicy) -> SpannedResult<PolicyFile> {
    let default = match &file.default {
        None => base.clone(),
        Some(entry) if entry.get_ref().has_credentials() => {
            let reason = "[default] is not a caller: keys and jwt belong in [callers.NAME]";
            return Err(SpannedError::new(entry, reason));
        }
        Some(entry) => apply_entry(entry.get_ref(), base)?,
    };
    let mut callers = BTreeMap::new();
    for (name, entry) in &file.callers {
        let Some(caller) = CallerName::parse(name.get_ref()) else {
            let reason = "caller name: expected 1 to 64 of A-Z a-z 0-9 _ . -";
            return Err(SpannedError::new(name, reason));
        };
        if caller.as_str() == ANONYMOUS_CALLER && entry.get_ref().has_credentials() {
            let reason =
                "[callers.anyone] is for TOKEN_SERVER_AUTH=none: keys and jwt are not allowed";
            return Err(SpannedError::new(name, reason));
        }
        callers.insert(caller, parse_caller(entry.get_ref(), &default)?);
    }
    Ok(PolicyFile { default, callers })
}

fn parse_caller(
    entry: &PolicyFileTomlEntry,
    default: &CallerPolicy,
) -> SpannedResult<PolicyFileCaller> {
    let mut policy = apply_entry(entry, default)?;
    if let Some(spanned) = &entry.jwt {
        let jwt = spanned.get_ref();
        let reason = if jwt.keys.is_some() == jwt.secret_file.is_some() {
            "jwt: expected either keys or secret_file"
        } else if jwt.issuer.is_empty() {
            "jwt: issuer: expected a text that is not empty"
        } else if jwt.audience.is_empty() {
            "jwt: audience: expected a text that is not empty"
        } else {
            ""
        };
        if !reason.is_empty() {
            return Err(SpannedError::new(spanned, reason));
        }
        if entry.identities.is_none() {
            let claim = jwt.identity_claim.as_deref();
            let claim = claim.unwrap_or(DEFAULT_IDENTITY_CLAIM);
            policy.identities = vec![NamePattern::equal_to_claim(claim)];
        }
    }
    let mut key_hashes = Vec::new();
    parse_list(&entry.keys, 0, parse_key_hash, &mut key_hashes)?;
    Ok(PolicyFileCaller {
        policy,
        key_hashes,
        jwt: entry.jwt.as_ref().map(|jwt| jwt.get_ref().clone()),
        sets_identities: entry.identities.is_some(),
    })
}

fn apply_entry(entry: &PolicyFileTomlEntry, base: &CallerPolicy) -> SpannedResult<CallerPolicy> {
    let mut policy = base.clone();
    parse_list(&entry.rooms, 1, parse_pattern, &mut policy.rooms)?;
    let identities = &mut policy.identities;
    parse_list(&entry.identities, 1, parse_static_pattern, identities)?;
    parse_list(&entry.grants, 0, parse_grant, &mut policy.grants)?;
    let grants_on_request = &mut policy.grants_on_request;
    parse_list(&entry.grants_on_request, 0, parse_grant, grants_on_request)?;
    parse_list(&entry.sources, 1, parse_source, &mut policy.sources)?;
    parse_list(&entry.agents, 0, parse_static_pattern, &mut policy.agents)?;
    let bytes = 0..=MAX_METADATA as u64;
    parse_number(&entry.max_metadata_bytes, bytes, &mut policy.max_metadata)?;
    let (bytes, max_bytes) = (0..=MAX_ATTRIBUTES as u64, &mut policy.max_attributes);
    parse_number(&entry.max_attributes_bytes, bytes, max_bytes)?;
    let (lengths, min_length) = (0..=MAX_MIN_NAME_LENGTH, &mut policy.min_name_length);
    parse_number(&entry.min_name_length, lengths, min_length)?;
    policy.min_name_length = policy.min_name_length.max(1);
    let (rates, rate) = (0..=MAX_REQUESTS_PER_MINUTE, &mut policy.requests_per_minute);
    parse_number(&entry.requests_per_minute, rates, rate)?;
    apply_lifetimes(entry, &mut policy)?;
    policy.random_room = entry.random_room.unwrap_or(policy.random_room);
    policy.random_identity = entry.random_identity.unwrap_or(policy.random_identity);
    Ok(policy)
}

/// A default lifetime alone raises the maximum, a maximum alone lowers the default.
fn apply_lifetimes(entry: &PolicyFileTomlEntry, policy: &mut CallerPolicy) -> SpannedResult<()> {
    let lifetimes = MIN_LIFETIME..=MAX_LIFETIME;
    let (default, max) = (&mut policy.default_lifetime, &mut policy.max_lifetime);
    parse_number(&entry.lifetime_seconds, lifetimes.clone(), default)?;
    if entry.lifetime_seconds.is_some() {
        *max = (*max).max(*default);
    }
    parse_number(&entry.max_lifetime_seconds, lifetimes, max)?;
    match &entry.lifetime_seconds {
        None => *default = (*default).min(*max),
        Some(value) if default > max => {
            let reason =
                format!("lifetime_seconds: expected at most max_lifetime_seconds, which is {max}");
            return Err(SpannedError::new(value, reason));
        }
        Some(_) => {}
    }
    Ok(())
}

/// Parses a number into `target`, which stays as it is if the number is not in the file.
fn parse_number<T: TryFrom<u64>>(
    value: &Option<Spanned<u64>>,
    range: RangeInclusive<u64>,
    target: &mut T,
) -> SpannedResult<()> {
    let Some(value) = value else { return Ok(()) };
    let number = *value.get_ref();
    match T::try_from(number) {
        Ok(number_in_range) if range.contains(&number) => *target = number_in_range,
        _ => {
            let (min, max) = range.into_inner();
            let reason = format!("expected {min} to {max}, found {number}");
            return Err(SpannedError::new(value, reason));
        }
    }
    Ok(())
}

/// Parses a list of `min` to [`MAX_LIST_ENTRIES`] entries into `target`, which stays as it is if the list is not in the file. Where
/// an empty list could be mistaken for no restriction, `min` is 1.
fn parse_list<T, C: FromIterator<T>>(
    list: &Option<TextList>,
    min: usize,
    parse: impl Fn(&str) -> Result<T, String>,
    target: &mut C,
) -> SpannedResult<()> {
    let Some(list) = list else { return Ok(()) };
    let texts = list.get_ref();
    if !(min..=MAX_LIST_ENTRIES).contains(&texts.len()) {
        let reason = format!("expected a list of {min} to {MAX_LIST_ENTRIES} entries");
        return Err(SpannedError::new(list, reason));
    }
    let values = texts
        .iter()
        .map(|text| parse(text.get_ref()).map_err(|reason| SpannedError::new(text, reason)));
    *target = values.collect::<SpannedResult<C>>()?;
    Ok(())
}

fn parse_key_hash(text: &str) -> Result<ApiKeyHash, String> {
    // the text is not repeated: it may be the key itself
    let expected = "keys: expected sha256: and 64 hexadecimal digits, as keygen prints them";
    ApiKeyHash::parse(text).ok_or_else(|| expected.to_owned())
}

fn parse_pattern(text: &str) -> Result<NamePattern, String> {
    NamePattern::parse(text).map_err(|invalid| invalid.to_string())
}

/// Parses a pattern that does not depend on the participant's identity.
fn parse_static_pattern(text: &str) -> Result<NamePattern, String> {
    match parse_pattern(text)? {
        pattern if pattern.uses_identity() => Err("{identity} is allowed in rooms only".into()),
        pattern => Ok(pattern),
    }
}

fn parse_grant(name: &str) -> Result<Grant, String> {
    Grant::parse(name).ok_or_else(|| {
        if ADMIN_GRANTS.contains(&name) {
            return format!("{name} is never granted to a participant");
        }
        let accepted: Vec<_> = ACCEPTED_GRANTS.iter().map(|grant| grant.as_str()).collect();
        format!("expected grants of {}, found {name:?}", accepted.join(", "))
    })
}

fn parse_source(name: &str) -> Result<TrackSource, String> {
    TrackSource::parse(name).ok_or_else(|| {
        let sources = TrackSource::ALL.iter();
        let accepted: Vec<_> = sources.map(|source| source.as_str()).collect();
        format!(
            "expected sources of {}, found {name:?}",
            accepted.join(", ")
        )
    })
}
