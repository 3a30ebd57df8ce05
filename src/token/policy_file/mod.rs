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
    keys: Option<Vec<Spanned<String>>>,
    jwt: Option<Spanned<JwtIssuerSettings>>,
    rooms: Option<Spanned<Vec<Spanned<String>>>>,
    identities: Option<Spanned<Vec<Spanned<String>>>>,
    grants: Option<Vec<Spanned<String>>>,
    grants_on_request: Option<Vec<Spanned<String>>>,
    sources: Option<Spanned<Vec<Spanned<String>>>>,
    agents: Option<Vec<Spanned<String>>>,
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
    let key_hashes = parse_list(entry.keys.as_deref(), |text| {
        // the text is not repeated: it may be the key itself
        let expected = "keys: expected sha256: and 64 hexadecimal digits, as keygen prints them";
        ApiKeyHash::parse(text).ok_or_else(|| expected.to_owned())
    })?;
    Ok(PolicyFileCaller {
        policy,
        key_hashes: key_hashes.unwrap_or_default(),
        jwt: entry.jwt.as_ref().map(|jwt| jwt.get_ref().clone()),
        sets_identities: entry.identities.is_some(),
    })
}

fn apply_entry(entry: &PolicyFileTomlEntry, base: &CallerPolicy) -> SpannedResult<CallerPolicy> {
    let mut policy = base.clone();
    let pattern = |text: &str| NamePattern::parse(text).map_err(|invalid| invalid.to_string());
    let pattern_without_identity = |text: &str| match pattern(text)? {
        pattern if pattern.uses_identity() => Err("{identity} is allowed in rooms only".into()),
        pattern => Ok(pattern),
    };
    if let Some(rooms) = &entry.rooms {
        policy.rooms = parse_non_empty_list(rooms, "rooms", pattern)?;
    }
    if let Some(identities) = &entry.identities {
        policy.identities =
            parse_non_empty_list(identities, "identities", pattern_without_identity)?;
    }
    if let Some(grants) = parse_list(entry.grants.as_deref(), parse_grant)? {
        policy.grants = grants.into_iter().collect();
    }
    if let Some(grants) = parse_list(entry.grants_on_request.as_deref(), parse_grant)? {
        policy.grants_on_request = grants.into_iter().collect();
    }
    if let Some(sources) = &entry.sources {
        let name = "sources (to forbid publishing, omit canPublish from grants)";
        let sources = parse_non_empty_list(sources, name, parse_source)?;
        policy.sources = sources.into_iter().collect();
    }
    if let Some(agents) = parse_list(entry.agents.as_deref(), pattern_without_identity)? {
        policy.agents = agents;
    }
    apply_numbers(entry, &mut policy)?;
    policy.random_room = entry.random_room.unwrap_or(policy.random_room);
    policy.random_identity = entry.random_identity.unwrap_or(policy.random_identity);
    Ok(policy)
}

fn apply_numbers(entry: &PolicyFileTomlEntry, policy: &mut CallerPolicy) -> SpannedResult<()> {
    let size = |value, name, max| {
        let number = check_range(value, name, 0..=max)?;
        Ok(number.and_then(|number| usize::try_from(number).ok()))
    };
    let bytes = &entry.max_metadata_bytes;
    if let Some(max) = size(bytes, "max_metadata_bytes", MAX_METADATA as u64)? {
        policy.max_metadata = max;
    }
    let bytes = &entry.max_attributes_bytes;
    if let Some(max) = size(bytes, "max_attributes_bytes", MAX_ATTRIBUTES as u64)? {
        policy.max_attributes = max;
    }
    let length = &entry.min_name_length;
    if let Some(min) = size(length, "min_name_length", MAX_MIN_NAME_LENGTH)? {
        policy.min_name_length = min.max(1);
    }
    let rate = &entry.requests_per_minute;
    let rate = check_range(rate, "requests_per_minute", 0..=MAX_REQUESTS_PER_MINUTE)?;
    if let Some(rate) = rate.and_then(|rate| u32::try_from(rate).ok()) {
        policy.requests_per_minute = rate;
    }
    apply_lifetimes(entry, policy)
}

/// A default lifetime alone raises the maximum, a maximum alone lowers the default.
fn apply_lifetimes(entry: &PolicyFileTomlEntry, policy: &mut CallerPolicy) -> SpannedResult<()> {
    let lifetime = |value, name| check_range(value, name, MIN_LIFETIME..=MAX_LIFETIME);
    let max = lifetime(&entry.max_lifetime_seconds, "max_lifetime_seconds")?;
    let default = lifetime(&entry.lifetime_seconds, "lifetime_seconds")?;
    let inherited = policy.max_lifetime;
    policy.max_lifetime = max.unwrap_or(default.map_or(inherited, |own| own.max(inherited)));
    policy.default_lifetime = default.unwrap_or(policy.default_lifetime.min(policy.max_lifetime));
    match &entry.lifetime_seconds {
        Some(value) if policy.default_lifetime > policy.max_lifetime => {
            let reason = format!(
                "lifetime_seconds: expected at most max_lifetime_seconds, which is {}",
                policy.max_lifetime
            );
            Err(SpannedError::new(value, reason))
        }
        _ => Ok(()),
    }
}

fn check_range(
    value: &Option<Spanned<u64>>,
    name: &str,
    range: RangeInclusive<u64>,
) -> SpannedResult<Option<u64>> {
    match value {
        Some(number) if !range.contains(number.get_ref()) => {
            let (min, max) = range.into_inner();
            let found = number.get_ref();
            let reason = format!("{name}: expected {min} to {max}, found {found}");
            Err(SpannedError::new(number, reason))
        }
        value => Ok(value.as_ref().map(|number| *number.get_ref())),
    }
}

fn parse_grant(word: &str) -> Result<Grant, String> {
    Grant::parse(word).ok_or_else(|| {
        if ADMIN_GRANTS.contains(&word) {
            return format!("{word} is never granted to a participant");
        }
        let accepted: Vec<_> = ACCEPTED_GRANTS.iter().map(|grant| grant.as_str()).collect();
        format!("expected grants of {}, found {word:?}", accepted.join(", "))
    })
}

fn parse_source(word: &str) -> Result<TrackSource, String> {
    TrackSource::parse(word).ok_or_else(|| {
        let sources = TrackSource::ALL.iter();
        let accepted: Vec<_> = sources.map(|source| source.as_str()).collect();
        let accepted = accepted.join(", ");
        format!("expected sources of {accepted}, found {word:?}")
    })
}

/// Parses a list that must not be empty, because an empty list could be mistaken for no restriction.
fn parse_non_empty_list<T>(
    list: &Spanned<Vec<Spanned<String>>>,
    name: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> SpannedResult<Vec<T>> {
    match parse_list(Some(list.get_ref()), parse)? {
        Some(values) if !values.is_empty() => Ok(values),
        _ => Err(SpannedError::new(
            list,
            format!("{name}: expected at least one"),
        )),
    }
}

fn parse_list<T>(
    texts: Option<&[Spanned<String>]>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> SpannedResult<Option<Vec<T>>> {
    let Some(texts) = texts else { return Ok(None) };
    if let Some(excess) = texts.get(MAX_LIST_ENTRIES) {
        let reason = format!("expected at most {MAX_LIST_ENTRIES} in a list");
        return Err(SpannedError::new(excess, reason));
    }
    let values = texts
        .iter()
        .map(|text| parse(text.get_ref()).map_err(|reason| SpannedError::new(text, reason)));
    values.collect::<SpannedResult<_>>().map(Some)
}
