//! The general token endpoint: whether it is open, who may call it, and what they may ask for.

mod doors;
mod login;

use std::collections::BTreeMap;

pub use self::doors::Doors;
pub(super) use self::doors::doors;
pub use self::login::{Login, LoginKeys};
use super::reader::{Reader, quoted};
use super::report::Origin;
use super::{Environment, Error, values};
use crate::caller::Name;
use crate::caller::api_key::{ApiKeys, KeyHash, MAX_KEYS};
use crate::http::cors::Origins;
use crate::net::address::AddressPolicy;
use crate::policy::file::{ANYONE, PolicyFile};
use crate::policy::pattern::Pattern;
use crate::policy::{Policy, file};

const AUTH: &str = "TOKEN_SERVER_AUTH";
const API_KEYS: &str = "TOKEN_SERVER_API_KEYS";
const API_KEYS_FILE: &str = "TOKEN_SERVER_API_KEYS_FILE";
const POLICY_FILE: &str = "TOKEN_SERVER_POLICY_FILE";
/// Bytes of metadata beyond which tokens may be too long for a URL.
const LARGE_METADATA: usize = 5 * 1024;
const KEYS_EXPECTED: &str = "NAME:SHA256 as keygen prints it, comma or newline separated";
/// Where pages are that may ask, if nobody says: the example's.
const ORIGINS: &str = "http://localhost:3000";

/// The general endpoint.
#[derive(Debug, Clone)]
pub struct TokenServer {
    /// Who may call it.
    pub callers: Callers,
    /// The web pages that may.
    pub origins: Origins,
    dev_local: bool,
    networks: AddressPolicy,
}

impl TokenServer {
    /// Reads the callers again: the variables have not changed since the start, but what they name may have.
    pub fn read_again(&self, env: &Environment) -> Result<Callers, Vec<Error>> {
        let mut reader = Reader::new(env);
        match callers(&mut reader, self.dev_local, &self.networks) {
            Some(callers) if reader.errors.is_empty() => Ok(callers),
            _ => Err(reader.errors),
        }
    }
}

/// Who may call, as the settings and the policy file say.
#[derive(Debug, Clone)]
pub struct Callers {
    /// The hashes of API keys.
    pub keys: ApiKeys,
    /// Logins.
    pub logins: Vec<Login>,
    /// The name of those whom nobody authenticates, if they may call.
    pub anyone: Option<Name>,
    /// The rules for each, and for all others.
    pub policies: PolicyFile,
}

impl Callers {
    /// Who they are, in a few words.
    pub fn summary(&self) -> String {
        let keyed = self.keys.names().into_iter().map(Name::as_str);
        let logins = self.logins.iter().map(|login| login.name.as_str());
        let mut names: Vec<&str> = keyed.chain(logins).collect();
        names.sort_unstable();
        names.dedup();
        match (&self.anyone, names.is_empty()) {
            (Some(_), true) => "anyone".into(),
            (Some(_), false) => format!("anyone,{}", names.join(",")),
            (None, true) => "nobody".into(),
            (None, false) => names.join(","),
        }
    }
}

/// Reads everything about the endpoint. `dev_local` is true where `--dev` serves this host only.
pub(super) fn read(
    reader: &mut Reader<'_>,
    dev_local: bool,
    networks: &AddressPolicy,
) -> Option<TokenServer> {
    let callers = callers(reader, dev_local, networks);
    let expected = "origins like https://app.example.com without a path, separated by commas or spaces, or * alone";
    let origins = reader.parsed("CORS_ORIGINS", ORIGINS, expected, Origins::parse);
    Some(TokenServer {
        callers: callers?,
        origins: origins?,
        dev_local,
        networks: networks.clone(),
    })
}

fn callers(reader: &mut Reader<'_>, dev_local: bool, networks: &AddressPolicy) -> Option<Callers> {
    let ground = ground(reader, dev_local);
    let none = reader.value(AUTH);
    let none = none.and_then(|value| {
        let expected = "none, or nothing where callers show API keys or JWTs";
        reader.understood(value, expected, |text| match text {
            "none" => Ok(()),
            other => Err(other),
        })
    });
    let mut keys = api_keys(reader);
    let own = login::read(reader, networks);
    let mut policies = policies(reader, &ground?);
    let mut logins = Vec::new();
    if let Some(login) = own {
        let identities = vec![Pattern::claim(
            login.identity_claim.as_deref().unwrap_or("sub"),
        )];
        let default = policies
            .as_ref()
            .map(|file| file.default.clone())
            .unwrap_or_default();
        // a caller of this name in the file has rules of its own, but seldom says that users are themselves
        if let Some(policies) = &mut policies {
            let entry = policies.callers.entry(login.name.clone());
            let entry = entry.or_insert_with(|| file::Entry::of(default));
            entry.policy.identities = match entry.names_identities {
                true => std::mem::take(&mut entry.policy.identities),
                false => identities,
            };
        }
        logins.push(login);
    }
    let policies = policies?;
    for (name, entry) in &policies.callers {
        keys.extend(entry.keys.iter().map(|hash| (*hash, name.clone())));
        if let Some(jwt) = &entry.jwt {
            logins.extend(login::listed(reader, name, jwt, networks));
        }
    }
    login::check_all(reader, &logins);
    if keys.len() > MAX_KEYS {
        let found = keys.len().to_string();
        reader.wrong(API_KEYS, format!("at most {MAX_KEYS} keys in all"), found);
    }
    let rules = policies.callers.values().map(|entry| &entry.policy);
    if rules
        .chain([&policies.default])
        .any(|rules| rules.max_metadata > LARGE_METADATA)
    {
        reader.report.warn(format!(
            "{POLICY_FILE} allows more than {LARGE_METADATA} bytes of metadata: browsers put tokens into a URL, and many proxies refuse one of 8 KiB"
        ));
    }
    let open = none.is_some() || dev_local && keys.is_empty() && logins.is_empty();
    if none.is_some() {
        reader.report.warn(
            "ANYBODY WHO REACHES /token CAN JOIN ROOMS, as TOKEN_SERVER_AUTH is none: for development, or behind a proxy that authenticates",
        );
    }
    Some(Callers {
        keys: ApiKeys::new(keys),
        logins,
        anyone: open.then(|| Name::parse(ANYONE)).flatten(),
        policies,
    })
}

/// What holds for callers of whom the policy file says nothing.
fn ground(reader: &mut Reader<'_>, dev_local: bool) -> Option<Policy> {
    let hours = reader.parsed("TOKEN_EXPIRY_HOURS", "24", "1 to 8760 hours", |text| {
        values::number(text, 1..=8760)
    });
    let least = reader.parsed(
        "TOKEN_SERVER_MIN_NAME_LENGTH",
        "1",
        "1 to 64 characters",
        |text| values::number(text, 1..=64),
    );
    let rate = reader.parsed(
        "TOKEN_SERVER_RATE_PER_CALLER",
        "600",
        "0 to 1000000 requests a minute",
        |text| values::number(text, 0..=1_000_000),
    );
    let lifetime = u64::try_from(hours?).ok()? * 3600;
    Some(Policy {
        lifetime,
        max_lifetime: lifetime,
        min_name_length: least?,
        requests_per_minute: u32::try_from(rate?).ok()?,
        random_room: dev_local,
        random_identity: dev_local,
        ..Policy::default()
    })
}

fn policies(reader: &mut Reader<'_>, ground: &Policy) -> Option<PolicyFile> {
    let before = reader.errors.len();
    let Some(value) = reader.file(POLICY_FILE) else {
        let nothing = PolicyFile {
            default: ground.clone(),
            callers: BTreeMap::new(),
        };
        return (reader.errors.len() == before).then_some(nothing);
    };
    let Origin::File(path) = &value.origin else {
        return None;
    };
    let shown = path.to_string_lossy().into_owned();
    match file::read(&value.text, ground) {
        Ok(policies) => {
            reader.report.set(POLICY_FILE, shown, Origin::Environment);
            Some(policies)
        }
        Err(error) => {
            let found = format!("{} {error}", quoted(&shown));
            reader.wrong(POLICY_FILE, "a policy file as contrib/policy.toml", found);
            None
        }
    }
}

fn api_keys(reader: &mut Reader<'_>) -> Vec<(KeyHash, Name)> {
    let given = [reader.value(API_KEYS), reader.file(API_KEYS_FILE)];
    let mut keys = Vec::new();
    for value in given.into_iter().flatten() {
        let before = keys.len();
        for (index, entry) in value.text.split([',', '\n']).enumerate() {
            let entry = entry.trim();
            if entry.is_empty() || entry.starts_with('#') {
                continue;
            }
            let pair = entry.split_once(':');
            let pair = pair.and_then(|(name, hash)| {
                Some((KeyHash::parse(hash.trim())?, Name::parse(name.trim())?))
            });
            match pair {
                Some((_, name)) if name.as_str() == ANYONE => {
                    let expected = "another name: anyone is whoever shows no key";
                    reader.wrong(value.name, expected, quoted(ANYONE));
                }
                Some(pair) => keys.push(pair),
                // it may be a key, so not repeated
                None => {
                    let found = format!("something else in entry {}", index + 1);
                    reader.wrong(value.name, KEYS_EXPECTED, found);
                }
            }
        }
        let names: Vec<_> = keys[before..]
            .iter()
            .map(|(_, name)| name.as_str())
            .collect();
        reader.report.set(value.name, names.join(","), value.origin);
    }
    keys
}

#[cfg(test)]
mod tests;
