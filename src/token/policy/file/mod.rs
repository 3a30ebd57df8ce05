//! The policy file: TOML, read strictly. `contrib/policy.toml` explains every key.

#[cfg(test)]
mod tests;
mod toml_form;

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use toml::Spanned;

use self::toml_form::{PolicyFileToml, PolicyFileTomlEntry};
use super::pattern::NamePattern;
use super::{CallerPolicy, MAX_LIFETIME, MIN_LIFETIME};
use crate::livekit::access_token::{Grant, MAX_ATTRIBUTES, MAX_METADATA, TrackSource};
use crate::token::api_key::ApiKeyHash;
use crate::token::caller::CallerName;

/// Grants that no participant is ever given, as they rule over rooms and not within one.
pub(crate) const ADMIN_GRANTS: [&str; 5] = [
    "roomCreate",
    "roomList",
    "roomRecord",
    "roomAdmin",
    "ingressAdmin",
];
/// Most patterns in one list.
const MAX_PATTERNS: usize = 100;
/// The entry of those whom nobody has to authenticate.
pub(crate) const ANONYMOUS_CALLER: &str = "anyone";

/// What the file says, on the ground of what the settings say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PolicyFile {
    /// For callers that are not in the file.
    pub default: CallerPolicy,
    /// For those that are.
    pub callers: BTreeMap<CallerName, PolicyFileCaller>,
}

/// One caller.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyFileCaller {
    /// The rules.
    pub policy: CallerPolicy,
    /// The hashes of their API keys.
    pub key_hashes: Vec<ApiKeyHash>,
    /// Who signs their JWTs.
    pub jwt: Option<JwtIssuerSettings>,
    /// Whether the file says who the participants of this very caller may be.
    pub sets_identities: bool,
}

impl PolicyFileCaller {
    /// A caller of whom no more is known.
    pub fn from_policy(policy: CallerPolicy) -> Self {
        Self {
            policy,
            key_hashes: Vec::new(),
            jwt: None,
            sets_identities: false,
        }
    }
}

/// An issuer of JWTs, as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtIssuerSettings {
    /// `iss`.
    pub issuer: String,
    /// One of `aud`.
    pub audience: String,
    /// A file, or a URL.
    pub keys: Option<String>,
    /// A file with a secret for HS256.
    pub secret_file: Option<String>,
    /// The claim that says who somebody is.
    pub identity_claim: Option<String>,
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The line, from one on, if it is in one.
    pub line: Option<usize>,
    /// Why it is wrong.
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

/// What is wrong, and the byte where it is.
struct SpannedError(usize, String);

type SpannedResult<T> = Result<T, SpannedError>;

/// Reads a policy file; what it does not say of a caller is as in its `[default]`, and what that does not say as in `ground`.
pub fn parse(text: &str, ground: &CallerPolicy) -> Result<PolicyFile, Error> {
    let wire: PolicyFileToml = toml::from_str(text).map_err(|error| Error {
        line: error.span().map(|span| line_number(text, span.start)),
        reason: error.message().to_owned(),
    })?;
    validate(wire, ground).map_err(|SpannedError(at, reason)| Error {
        line: Some(line_number(text, at)),
        reason,
    })
}

fn line_number(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|b| *b == b'\n').count()
}

fn validate(wire: PolicyFileToml, ground: &CallerPolicy) -> SpannedResult<PolicyFile> {
    let mut default = ground.clone();
    if let Some(entry) = &wire.default {
        let (at, entry) = (entry.span().start, entry.get_ref());
        if entry.keys.is_some() || entry.jwt.is_some() {
            let reason = "[default] is nobody: keys and jwt belong to a caller";
            return Err(SpannedError(at, reason.into()));
        }
        default = apply_settings(entry, ground)?;
    }
    let mut callers = BTreeMap::new();
    for (name, entry) in &wire.callers {
        let at = name.span().start;
        let Some(name) = CallerName::parse(name.get_ref()) else {
            let reason = "a caller's name: expected 1 to 64 of A-Z a-z 0-9 _ . -";
            return Err(SpannedError(at, reason.into()));
        };
        let entry = entry.get_ref();
        if name.as_str() == ANONYMOUS_CALLER && (entry.keys.is_some() || entry.jwt.is_some()) {
            let reason =
                "[callers.anyone] is for TOKEN_SERVER_AUTH=none: it has neither keys nor jwt";
            return Err(SpannedError(at, reason.into()));
        }
        callers.insert(name, parse_caller(entry, &default)?);
    }
    Ok(PolicyFile { default, callers })
}

fn parse_caller(
    wire: &PolicyFileTomlEntry,
    default: &CallerPolicy,
) -> SpannedResult<PolicyFileCaller> {
    let mut policy = apply_settings(wire, default)?;
    let jwt = wire.jwt.as_ref().map(|jwt| jwt.get_ref().clone());
    if let Some(jwt) = &wire.jwt {
        if jwt.get_ref().keys.is_some() == jwt.get_ref().secret_file.is_some() {
            let reason = "jwt: expected either keys or secret_file";
            return Err(SpannedError(jwt.span().start, reason.into()));
        }
        for (text, name) in [
            (&jwt.get_ref().issuer, "issuer"),
            (&jwt.get_ref().audience, "audience"),
        ] {
            if text.is_empty() {
                let reason = format!("jwt: {name}: expected something");
                return Err(SpannedError(jwt.span().start, reason));
            }
        }
        if wire.identities.is_none() {
            let claim = jwt.get_ref().identity_claim.as_deref().unwrap_or("sub");
            policy.identities = vec![NamePattern::equal_to_claim(claim)];
        }
    }
    let keys = parse_list(wire.keys.as_deref(), |text| {
        ApiKeyHash::parse(text).ok_or_else(|| {
            // it may be the key itself
            "keys: expected sha256: and 64 hexadecimal digits, as keygen prints them".into()
        })
    })?;
    Ok(PolicyFileCaller {
        policy,
        key_hashes: keys.unwrap_or_default(),
        jwt,
        sets_identities: wire.identities.is_some(),
    })
}

fn apply_settings(
    wire: &PolicyFileTomlEntry,
    ground: &CallerPolicy,
) -> SpannedResult<CallerPolicy> {
    let mut policy = ground.clone();
    let pattern = |text: &str| NamePattern::parse(text).map_err(|invalid| invalid.to_string());
    let plain = |text: &str| match pattern(text)? {
        speaks if speaks.uses_identity() => Err("{identity} has a meaning in rooms only".into()),
        pattern => Ok(pattern),
    };
    if let Some(rooms) = &wire.rooms {
        policy.rooms = parse_non_empty_list(rooms, "rooms", pattern)?;
    }
    if let Some(identities) = &wire.identities {
        policy.identities = parse_non_empty_list(identities, "identities", plain)?;
    }
    if let Some(grants) = parse_list(wire.grants.as_deref(), parse_grant)? {
        policy.grants = grants.into_iter().collect();
    }
    if let Some(grants) = parse_list(wire.grants_on_request.as_deref(), parse_grant)? {
        policy.grants_on_request = grants.into_iter().collect();
    }
    if let Some(sources) = &wire.sources {
        let sources = parse_non_empty_list(
            sources,
            "sources (without canPublish there are none)",
            parse_source,
        )?;
        policy.sources = sources.into_iter().collect();
    }
    if let Some(agents) = parse_list(wire.agents.as_deref(), plain)? {
        policy.agents = agents;
    }
    apply_numbers(wire, &mut policy)?;
    policy.random_room = wire.random_room.unwrap_or(policy.random_room);
    policy.random_identity = wire.random_identity.unwrap_or(policy.random_identity);
    Ok(policy)
}

fn apply_numbers(wire: &PolicyFileTomlEntry, policy: &mut CallerPolicy) -> SpannedResult<()> {
    let size = |given: &Option<Spanned<u64>>, name, most| {
        let number = checked_number(given, name, 0..=most as u64)?;
        Ok(number.and_then(|number| usize::try_from(number).ok()))
    };
    if let Some(most) = size(&wire.max_metadata_bytes, "max_metadata_bytes", MAX_METADATA)? {
        policy.max_metadata = most;
    }
    if let Some(most) = size(
        &wire.max_attributes_bytes,
        "max_attributes_bytes",
        MAX_ATTRIBUTES,
    )? {
        policy.max_attributes = most;
    }
    let lifetimes = MIN_LIFETIME..=MAX_LIFETIME;
    let longest = checked_number(
        &wire.max_lifetime_seconds,
        "max_lifetime_seconds",
        lifetimes.clone(),
    )?;
    let usual = checked_number(&wire.lifetime_seconds, "lifetime_seconds", lifetimes)?;
    policy.max_lifetime = match (longest, usual) {
        (Some(longest), _) => longest,
        (None, Some(usual)) => policy.max_lifetime.max(usual),
        (None, None) => policy.max_lifetime,
    };
    policy.default_lifetime = usual.unwrap_or(policy.default_lifetime.min(policy.max_lifetime));
    if let (Some(usual), true) = (
        &wire.lifetime_seconds,
        policy.default_lifetime > policy.max_lifetime,
    ) {
        let reason = format!(
            "lifetime_seconds: expected at most max_lifetime_seconds, which is {}",
            policy.max_lifetime
        );
        return Err(SpannedError(usual.span().start, reason));
    }
    if let Some(least) = size(&wire.min_name_length, "min_name_length", 64)? {
        policy.min_name_length = least.max(1);
    }
    let rate = checked_number(
        &wire.requests_per_minute,
        "requests_per_minute",
        0..=1_000_000,
    )?;
    if let Some(rate) = rate.and_then(|rate| u32::try_from(rate).ok()) {
        policy.requests_per_minute = rate;
    }
    Ok(())
}

fn checked_number(
    given: &Option<Spanned<u64>>,
    name: &str,
    range: std::ops::RangeInclusive<u64>,
) -> SpannedResult<Option<u64>> {
    match given {
        Some(number) if !range.contains(number.get_ref()) => {
            let (least, most) = range.into_inner();
            let found = number.get_ref();
            let reason = format!("{name}: expected {least} to {most}, found {found}");
            Err(SpannedError(number.span().start, reason))
        }
        given => Ok(given.as_ref().map(|number| *number.get_ref())),
    }
}

fn parse_grant(word: &str) -> Result<Grant, String> {
    Grant::parse(word).ok_or_else(|| {
        if ADMIN_GRANTS.contains(&word) {
            return format!("{word} is never granted to a participant");
        }
        let known: Vec<_> = Grant::ALL.iter().map(|grant| grant.as_str()).collect();
        format!("expected grants of {}, found {word:?}", known.join(", "))
    })
}

fn parse_source(word: &str) -> Result<TrackSource, String> {
    TrackSource::parse(word).ok_or_else(|| {
        let known: Vec<_> = TrackSource::ALL
            .iter()
            .map(|source| source.as_str())
            .collect();
        format!("expected sources of {}, found {word:?}", known.join(", "))
    })
}

/// A list in which there has to be something, for nothing could be taken for everything.
fn parse_non_empty_list<T>(
    list_of: &Spanned<Vec<Spanned<String>>>,
    name: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> SpannedResult<Vec<T>> {
    if list_of.get_ref().is_empty() {
        let reason = format!("{name}: expected at least one");
        return Err(SpannedError(list_of.span().start, reason));
    }
    Ok(parse_list(Some(list_of.get_ref()), parse)?.unwrap_or_default())
}

fn parse_list<T>(
    texts: Option<&[Spanned<String>]>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> SpannedResult<Option<Vec<T>>> {
    let Some(texts) = texts else { return Ok(None) };
    if let Some(beyond) = texts.get(MAX_PATTERNS) {
        let reason = format!("expected at most {MAX_PATTERNS} in a list");
        return Err(SpannedError(beyond.span().start, reason));
    }
    let one = |text: &Spanned<String>| {
        parse(text.get_ref()).map_err(|reason| SpannedError(text.span().start, reason))
    };
    texts
        .iter()
        .map(one)
        .collect::<SpannedResult<_>>()
        .map(Some)
}
