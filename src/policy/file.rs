//! The policy file: TOML, read strictly. `contrib/policy.toml` explains every key.

mod wire;

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use toml::Spanned;

use super::{MAX_LIFETIME, MIN_LIFETIME, Policy};
use crate::caller::Name;
use crate::caller::api_key::KeyHash;
use crate::livekit::token::{Grant, MAX_ATTRIBUTES, MAX_METADATA, Source};
use crate::policy::pattern::Pattern;
use wire::{Wire, WireEntry};

/// Grants that no participant is ever given, as they rule over rooms and not within one.
pub const NEVER_GRANTED: [&str; 5] = [
    "roomCreate",
    "roomList",
    "roomRecord",
    "roomAdmin",
    "ingressAdmin",
];
/// Most patterns in one list.
const MAX_PATTERNS: usize = 100;
/// The entry of those whom nobody has to authenticate.
pub const ANYONE: &str = "anyone";

/// What the file says, on the ground of what the settings say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PolicyFile {
    /// For callers that are not in the file.
    pub default: Policy,
    /// For those that are.
    pub callers: BTreeMap<Name, Entry>,
}

/// One caller.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The rules.
    pub policy: Policy,
    /// The hashes of their API keys.
    pub keys: Vec<KeyHash>,
    /// Who signs their JWTs.
    pub jwt: Option<JwtEntry>,
    /// Whether the file says who the participants of this very caller may be.
    pub names_identities: bool,
}

impl Entry {
    /// A caller of whom no more is known.
    pub fn of(policy: Policy) -> Self {
        Self {
            policy,
            keys: Vec::new(),
            jwt: None,
            names_identities: false,
        }
    }
}

/// An issuer of JWTs, as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtEntry {
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
struct Fault(usize, String);

type Faulty<T> = Result<T, Fault>;

/// Reads a policy file; what it does not say of a caller is as in its `[default]`, and what that does not say as in `ground`.
pub fn read(text: &str, ground: &Policy) -> Result<PolicyFile, Error> {
    let wire: Wire = toml::from_str(text).map_err(|error| Error {
        line: error.span().map(|span| line(text, span.start)),
        reason: error.message().to_owned(),
    })?;
    understood(wire, ground).map_err(|Fault(at, reason)| Error {
        line: Some(line(text, at)),
        reason,
    })
}

fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|b| *b == b'\n').count()
}

fn understood(wire: Wire, ground: &Policy) -> Faulty<PolicyFile> {
    let mut default = ground.clone();
    if let Some(entry) = &wire.default {
        let (at, entry) = (entry.span().start, entry.get_ref());
        if entry.keys.is_some() || entry.jwt.is_some() {
            let reason = "[default] is nobody: keys and jwt belong to a caller";
            return Err(Fault(at, reason.into()));
        }
        default = policy(entry, ground)?;
    }
    let mut callers = BTreeMap::new();
    for (name, entry) in &wire.callers {
        let at = name.span().start;
        let Some(name) = Name::parse(name.get_ref()) else {
            let reason = "a caller's name: expected 1 to 64 of A-Z a-z 0-9 _ . -";
            return Err(Fault(at, reason.into()));
        };
        let entry = entry.get_ref();
        if name.as_str() == ANYONE && (entry.keys.is_some() || entry.jwt.is_some()) {
            let reason =
                "[callers.anyone] is for TOKEN_SERVER_AUTH=none: it has neither keys nor jwt";
            return Err(Fault(at, reason.into()));
        }
        callers.insert(name, caller(entry, &default)?);
    }
    Ok(PolicyFile { default, callers })
}

fn caller(wire: &WireEntry, default: &Policy) -> Faulty<Entry> {
    let mut policy = policy(wire, default)?;
    let jwt = wire.jwt.as_ref().map(|jwt| jwt.get_ref().clone());
    if let Some(jwt) = &wire.jwt {
        if jwt.get_ref().keys.is_some() == jwt.get_ref().secret_file.is_some() {
            let reason = "jwt: expected either keys or secret_file";
            return Err(Fault(jwt.span().start, reason.into()));
        }
        for (text, name) in [
            (&jwt.get_ref().issuer, "issuer"),
            (&jwt.get_ref().audience, "audience"),
        ] {
            if text.is_empty() {
                let reason = format!("jwt: {name}: expected something");
                return Err(Fault(jwt.span().start, reason));
            }
        }
        if wire.identities.is_none() {
            let claim = jwt.get_ref().identity_claim.as_deref().unwrap_or("sub");
            policy.identities = vec![Pattern::claim(claim)];
        }
    }
    let keys = list(wire.keys.as_deref(), |text| {
        KeyHash::parse(text).ok_or_else(|| {
            // it may be the key itself
            "keys: expected sha256: and 64 hexadecimal digits, as keygen prints them".into()
        })
    })?;
    Ok(Entry {
        policy,
        keys: keys.unwrap_or_default(),
        jwt,
        names_identities: wire.identities.is_some(),
    })
}

fn policy(wire: &WireEntry, ground: &Policy) -> Faulty<Policy> {
    let mut policy = ground.clone();
    let pattern = |text: &str| Pattern::parse(text).map_err(|invalid| invalid.to_string());
    let plain = |text: &str| match pattern(text)? {
        speaks if speaks.names_identity() => Err("{identity} has a meaning in rooms only".into()),
        pattern => Ok(pattern),
    };
    if let Some(rooms) = &wire.rooms {
        policy.rooms = some(rooms, "rooms", pattern)?;
    }
    if let Some(identities) = &wire.identities {
        policy.identities = some(identities, "identities", plain)?;
    }
    if let Some(grants) = list(wire.grants.as_deref(), grant)? {
        policy.grants = grants.into_iter().collect();
    }
    if let Some(grants) = list(wire.grants_on_request.as_deref(), grant)? {
        policy.grants_on_request = grants.into_iter().collect();
    }
    if let Some(sources) = &wire.sources {
        let sources = some(
            sources,
            "sources (without canPublish there are none)",
            source,
        )?;
        policy.sources = sources.into_iter().collect();
    }
    if let Some(agents) = list(wire.agents.as_deref(), plain)? {
        policy.agents = agents;
    }
    numbers(wire, &mut policy)?;
    policy.random_room = wire.random_room.unwrap_or(policy.random_room);
    policy.random_identity = wire.random_identity.unwrap_or(policy.random_identity);
    Ok(policy)
}

fn numbers(wire: &WireEntry, policy: &mut Policy) -> Faulty<()> {
    let size = |given: &Option<Spanned<u64>>, name, most| {
        let number = number(given, name, 0..=most as u64)?;
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
    let longest = number(
        &wire.max_lifetime_seconds,
        "max_lifetime_seconds",
        lifetimes.clone(),
    )?;
    let usual = number(&wire.lifetime_seconds, "lifetime_seconds", lifetimes)?;
    policy.max_lifetime = match (longest, usual) {
        (Some(longest), _) => longest,
        (None, Some(usual)) => policy.max_lifetime.max(usual),
        (None, None) => policy.max_lifetime,
    };
    policy.lifetime = usual.unwrap_or(policy.lifetime.min(policy.max_lifetime));
    if let (Some(usual), true) = (
        &wire.lifetime_seconds,
        policy.lifetime > policy.max_lifetime,
    ) {
        let reason = format!(
            "lifetime_seconds: expected at most max_lifetime_seconds, which is {}",
            policy.max_lifetime
        );
        return Err(Fault(usual.span().start, reason));
    }
    if let Some(least) = size(&wire.min_name_length, "min_name_length", 64)? {
        policy.min_name_length = least.max(1);
    }
    let rate = number(
        &wire.requests_per_minute,
        "requests_per_minute",
        0..=1_000_000,
    )?;
    if let Some(rate) = rate.and_then(|rate| u32::try_from(rate).ok()) {
        policy.requests_per_minute = rate;
    }
    Ok(())
}

fn number(
    given: &Option<Spanned<u64>>,
    name: &str,
    range: std::ops::RangeInclusive<u64>,
) -> Faulty<Option<u64>> {
    match given {
        Some(number) if !range.contains(number.get_ref()) => {
            let (least, most) = range.into_inner();
            let found = number.get_ref();
            let reason = format!("{name}: expected {least} to {most}, found {found}");
            Err(Fault(number.span().start, reason))
        }
        given => Ok(given.as_ref().map(|number| *number.get_ref())),
    }
}

fn grant(word: &str) -> Result<Grant, String> {
    Grant::parse(word).ok_or_else(|| {
        if NEVER_GRANTED.contains(&word) {
            return format!("{word} is never granted to a participant");
        }
        let known: Vec<_> = Grant::ALL.iter().map(|grant| grant.as_str()).collect();
        format!("expected grants of {}, found {word:?}", known.join(", "))
    })
}

fn source(word: &str) -> Result<Source, String> {
    Source::parse(word).ok_or_else(|| {
        let known: Vec<_> = Source::ALL.iter().map(|source| source.as_str()).collect();
        format!("expected sources of {}, found {word:?}", known.join(", "))
    })
}

/// A list in which there has to be something, for nothing could be taken for everything.
fn some<T>(
    list_of: &Spanned<Vec<Spanned<String>>>,
    name: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Faulty<Vec<T>> {
    if list_of.get_ref().is_empty() {
        let reason = format!("{name}: expected at least one");
        return Err(Fault(list_of.span().start, reason));
    }
    Ok(list(Some(list_of.get_ref()), parse)?.unwrap_or_default())
}

fn list<T>(
    texts: Option<&[Spanned<String>]>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Faulty<Option<Vec<T>>> {
    let Some(texts) = texts else { return Ok(None) };
    if let Some(beyond) = texts.get(MAX_PATTERNS) {
        let reason = format!("expected at most {MAX_PATTERNS} in a list");
        return Err(Fault(beyond.span().start, reason));
    }
    let one = |text: &Spanned<String>| {
        parse(text.get_ref()).map_err(|reason| Fault(text.span().start, reason))
    };
    texts.iter().map(one).collect::<Faulty<_>>().map(Some)
}

#[cfg(test)]
mod tests;
