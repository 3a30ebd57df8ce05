//! The general token endpoint: whether it is open, who may call it, and what they may ask for.

mod endpoints;
mod jwt_issuer;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) use self::endpoints::OpenEndpoints;
pub(super) use self::endpoints::find_open_endpoints;
use super::reader::{SettingsReader, quote_redacted};
use super::report::SettingOrigin;
use super::{Environment, Error, values};
use crate::api::cors::AllowedOrigins;
use crate::net::address::AddressPolicy;
use crate::token::api_key::{ApiKeyHash, CallerApiKeys, MAX_API_KEYS};
use crate::token::jwks::JwksUrl;
use crate::token::pattern::NamePattern;
use crate::token::policy::CallerPolicy;
use crate::token::policy_file::{ANONYMOUS_CALLER, PolicyFile};
use crate::token::{CallerName, CallerRegistry, policy_file};

const AUTH: &str = "TOKEN_SERVER_AUTH";
const API_KEYS: &str = "TOKEN_SERVER_API_KEYS";
const API_KEYS_FILE: &str = "TOKEN_SERVER_API_KEYS_FILE";
const POLICY_FILE: &str = "TOKEN_SERVER_POLICY_FILE";
/// Bytes of metadata beyond which tokens may be too long for a URL.
const LARGE_METADATA_BYTES: usize = 5 * 1024;
const API_KEYS_EXPECTED: &str = "NAME:SHA256 as keygen prints it, comma or newline separated";
/// Where pages are that may ask, if nobody says: the example's.
const DEFAULT_ORIGINS: &str = "http://localhost:3000";

/// The general endpoint.
#[derive(Debug, Clone)]
pub struct TokenEndpointConfig {
    /// Who may call it.
    pub(crate) callers: CallerRegistry<JwksUrl>,
    /// The web pages that may.
    pub allowed_origins: AllowedOrigins,
    dev_on_loopback: bool,
    address_policy: AddressPolicy,
}

impl TokenEndpointConfig {
    /// Reads the callers again: the variables have not changed since the start, but what they name may have.
    pub(crate) fn reload_callers(
        &self,
        env: &Environment,
    ) -> Result<CallerRegistry<JwksUrl>, Vec<Error>> {
        let mut reader = SettingsReader::new(env);
        match read_callers(&mut reader, self.dev_on_loopback, &self.address_policy) {
            Some(callers) if reader.errors.is_empty() => Ok(callers),
            _ => Err(reader.errors),
        }
    }
}

/// Reads everything about the endpoint. `dev_local` is true where `--dev` serves this host only.
pub(super) fn read(
    reader: &mut SettingsReader<'_>,
    dev_local: bool,
    networks: &AddressPolicy,
) -> Option<TokenEndpointConfig> {
    let callers = read_callers(reader, dev_local, networks);
    let expected = "origins like https://app.example.com without a path, separated by commas or spaces, or * alone";
    let origins = reader.parse_or_default(
        "CORS_ORIGINS",
        DEFAULT_ORIGINS,
        expected,
        AllowedOrigins::parse,
    );
    Some(TokenEndpointConfig {
        callers: callers?,
        allowed_origins: origins?,
        dev_on_loopback: dev_local,
        address_policy: networks.clone(),
    })
}

fn read_callers(
    reader: &mut SettingsReader<'_>,
    dev_local: bool,
    networks: &AddressPolicy,
) -> Option<CallerRegistry<JwksUrl>> {
    let ground = read_default_policy(reader, dev_local);
    let none = reader.read_value(AUTH);
    let none = none.and_then(|value| {
        let expected = "none, or nothing where callers show API keys or JWTs";
        reader.parse_value(value, expected, |text| match text {
            "none" => Ok(()),
            other => Err(other),
        })
    });
    let mut keys = read_api_keys(reader);
    let own = jwt_issuer::read(reader, networks);
    let mut policies = read_policy_file(reader, &ground?);
    let mut logins = Vec::new();
    if let Some(login) = own {
        let identities = vec![NamePattern::equal_to_claim(&login.identity_claim)];
        let default = policies
            .as_ref()
            .map(|file| file.default.clone())
            .unwrap_or_default();
        // a caller of this name in the file has rules of its own, but seldom says that users are themselves
        if let Some(policies) = &mut policies {
            let entry = policies.callers.entry(login.name.clone());
            let entry =
                entry.or_insert_with(|| policy_file::PolicyFileCaller::from_policy(default));
            entry.policy.identities = match entry.sets_identities {
                true => std::mem::take(&mut entry.policy.identities),
                false => identities,
            };
        }
        logins.push(login);
    }
    let policies = policies?;
    for (name, entry) in &policies.callers {
        keys.extend(entry.key_hashes.iter().map(|hash| (*hash, name.clone())));
        if let Some(jwt) = &entry.jwt {
            logins.extend(jwt_issuer::read_policy_issuer(reader, name, jwt, networks));
        }
    }
    jwt_issuer::check_issuers(reader, &logins);
    if keys.len() > MAX_API_KEYS {
        let found = keys.len().to_string();
        reader.push_invalid(
            API_KEYS,
            format!("at most {MAX_API_KEYS} keys in all"),
            found,
        );
    }
    let rules = policies.callers.values().map(|entry| &entry.policy);
    if rules
        .chain([&policies.default])
        .any(|rules| rules.max_metadata > LARGE_METADATA_BYTES)
    {
        reader.report.add_warning(format!(
            "{POLICY_FILE} allows more than {LARGE_METADATA_BYTES} bytes of metadata: browsers put tokens into a URL, and many proxies refuse one of 8 KiB"
        ));
    }
    let open = none.is_some() || dev_local && keys.is_empty() && logins.is_empty();
    if none.is_some() {
        reader.report.add_warning(
            "ANYBODY WHO REACHES /token CAN JOIN ROOMS, as TOKEN_SERVER_AUTH is none: for development, or behind a proxy that authenticates",
        );
    }
    let policy = |(name, entry): (_, policy_file::PolicyFileCaller)| (name, Arc::new(entry.policy));
    Some(CallerRegistry {
        api_keys: CallerApiKeys::new(keys),
        issuers: logins,
        anonymous: open.then(|| CallerName::parse(ANONYMOUS_CALLER)).flatten(),
        policies: policies.callers.into_iter().map(policy).collect(),
        default_policy: Arc::new(policies.default),
    })
}

/// What holds for callers of whom the policy file says nothing.
fn read_default_policy(reader: &mut SettingsReader<'_>, dev_local: bool) -> Option<CallerPolicy> {
    let hours = reader.parse_or_default("TOKEN_EXPIRY_HOURS", "24", "1 to 8760 hours", |text| {
        values::parse_number(text, 1..=8760)
    });
    let least = reader.parse_or_default(
        "TOKEN_SERVER_MIN_NAME_LENGTH",
        "1",
        "1 to 64 characters",
        |text| values::parse_number(text, 1..=64),
    );
    let rate = reader.parse_or_default(
        "TOKEN_SERVER_RATE_PER_CALLER",
        "600",
        "0 to 1000000 requests a minute",
        |text| values::parse_number(text, 0..=1_000_000),
    );
    let lifetime = u64::try_from(hours?).ok()? * 3600;
    Some(CallerPolicy {
        default_lifetime: lifetime,
        max_lifetime: lifetime,
        min_name_length: least?,
        requests_per_minute: u32::try_from(rate?).ok()?,
        random_room: dev_local,
        random_identity: dev_local,
        ..CallerPolicy::default()
    })
}

fn read_policy_file(reader: &mut SettingsReader<'_>, ground: &CallerPolicy) -> Option<PolicyFile> {
    let before = reader.errors.len();
    let Some(value) = reader.read_file(POLICY_FILE) else {
        let nothing = PolicyFile {
            default: ground.clone(),
            callers: BTreeMap::new(),
        };
        return (reader.errors.len() == before).then_some(nothing);
    };
    let SettingOrigin::File(path) = &value.origin else {
        return None;
    };
    let shown = path.to_string_lossy().into_owned();
    match policy_file::parse(&value.text, ground) {
        Ok(policies) => {
            reader
                .report
                .add_setting(POLICY_FILE, shown, SettingOrigin::Environment);
            Some(policies)
        }
        Err(error) => {
            let found = format!("{} {error}", quote_redacted(&shown));
            reader.push_invalid(POLICY_FILE, "a policy file as contrib/policy.toml", found);
            None
        }
    }
}

fn read_api_keys(reader: &mut SettingsReader<'_>) -> Vec<(ApiKeyHash, CallerName)> {
    let given = [reader.read_value(API_KEYS), reader.read_file(API_KEYS_FILE)];
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
                Some((
                    ApiKeyHash::parse(hash.trim())?,
                    CallerName::parse(name.trim())?,
                ))
            });
            match pair {
                Some((_, name)) if name.as_str() == ANONYMOUS_CALLER => {
                    let expected = "another name: anyone is whoever shows no key";
                    reader.push_invalid(value.name, expected, quote_redacted(ANONYMOUS_CALLER));
                }
                Some(pair) => keys.push(pair),
                // it may be a key, so not repeated
                None => {
                    let found = format!("something else in entry {}", index + 1);
                    reader.push_invalid(value.name, API_KEYS_EXPECTED, found);
                }
            }
        }
        let names: Vec<_> = keys[before..]
            .iter()
            .map(|(_, name)| name.as_str())
            .collect();
        reader
            .report
            .add_setting(value.name, names.join(","), value.origin);
    }
    keys
}
