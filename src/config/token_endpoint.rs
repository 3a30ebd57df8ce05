//! The token endpoint for applications (`/token`): callers, their login, and what each may request.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::reader::{
    Reported, SettingOrigin, SettingValue, SettingsReader, describe_length, quote_redacted,
};
use super::table::{
    CORS_ORIGINS, Section, Setting, TOKEN_EXPIRY_HOURS, TOKEN_SERVER_API_KEYS,
    TOKEN_SERVER_API_KEYS_FILE, TOKEN_SERVER_AUTH, TOKEN_SERVER_JWT_AUDIENCE,
    TOKEN_SERVER_JWT_IDENTITY_CLAIM, TOKEN_SERVER_JWT_ISSUER, TOKEN_SERVER_JWT_KEYS,
    TOKEN_SERVER_JWT_SECRET, TOKEN_SERVER_JWT_SECRET_FILE, TOKEN_SERVER_MIN_NAME_LENGTH,
    TOKEN_SERVER_POLICY_FILE, TOKEN_SERVER_RATE_PER_CALLER,
};
use crate::api::cors::AllowedOrigins;
use crate::net::address::AddressPolicy;
use crate::token::api_key::{ApiKeyHash, CallerApiKeys, MAX_API_KEYS};
use crate::token::jwks::JwksUrl;
use crate::token::jwt::{DEFAULT_IDENTITY_CLAIM, JwtIssuer, KeySource};
use crate::token::keys::KeySet;
use crate::token::pattern::NamePattern;
use crate::token::policy::CallerPolicy;
use crate::token::policy_file::{self, ANONYMOUS_CALLER, JwtIssuerSettings, PolicyFile};
use crate::token::{CallerName, CallerRegistry};

/// Metadata that makes tokens too long for a URL, in bytes.
const LARGE_METADATA_BYTES: usize = 5 * 1024;
/// The caller name of the login that the variables set.
const LOGIN_CALLER_NAME: &str = "jwt";
/// Most logins: each one with a URL has a thread that fetches its keys.
const MAX_JWT_ISSUERS: usize = 32;

/// The token endpoint. A reload reads each part but the origins on its own.
#[derive(Debug, Clone)]
pub(crate) struct TokenEndpointConfig {
    caller_keys: Vec<(ApiKeyHash, CallerName)>,
    login: Option<JwtIssuer<JwksUrl>>,
    policy: PolicyConfig,
    /// Who may call, made from the parts above.
    pub callers: CallerRegistry<JwksUrl>,
    /// Origins of web pages that may call.
    pub allowed_origins: AllowedOrigins,
}

/// The policy file, and the issuers of JWTs in it.
#[derive(Debug, Clone)]
struct PolicyConfig {
    file: PolicyFile,
    jwt_issuers: Vec<JwtIssuer<JwksUrl>>,
}

/// Reads the token endpoint; `current` is that of a running service. `dev_on_loopback`: `--dev` serves this host only.
pub(super) fn read(
    reader: &mut SettingsReader<'_>,
    current: Option<&TokenEndpointConfig>,
    dev_on_loopback: bool,
    address_policy: &AddressPolicy,
) -> Option<TokenEndpointConfig> {
    let caller_keys = reader.section(
        Section::CallerKeys,
        current.map(|current| &current.caller_keys),
        read_caller_keys,
    );
    let login = reader.section(
        Section::Login,
        current.map(|current| &current.login),
        |reader| read_login(reader, address_policy),
    );
    let policy = reader.section(
        Section::Policy,
        current.map(|current| &current.policy),
        |reader| read_policy(reader, dev_on_loopback, address_policy),
    );
    let (caller_keys, login, policy) = (caller_keys?, login?, policy?);
    reader.section(Section::Callers, current, |reader| {
        let callers = combine_callers(
            reader,
            &caller_keys,
            login.as_ref(),
            &policy,
            dev_on_loopback,
        );
        let allowed_origins = match current {
            Some(current) => Ok(current.allowed_origins.clone()),
            None => reader.parse(&CORS_ORIGINS, AllowedOrigins::parse),
        };
        Ok(TokenEndpointConfig {
            callers: callers?,
            allowed_origins: allowed_origins?,
            caller_keys,
            login,
            policy,
        })
    })
}

fn combine_callers(
    reader: &mut SettingsReader<'_>,
    caller_keys: &[(ApiKeyHash, CallerName)],
    login: Option<&JwtIssuer<JwksUrl>>,
    policy: &PolicyConfig,
    dev_on_loopback: bool,
) -> Result<CallerRegistry<JwksUrl>, Reported> {
    let without_credentials = reader.parse_optional(&TOKEN_SERVER_AUTH, |text| match text {
        "none" => Ok(()),
        other => Err(other),
    });
    let jwt_issuers: Vec<_> = login
        .into_iter()
        .chain(&policy.jwt_issuers)
        .cloned()
        .collect();
    let issuers = check_issuers(reader, &jwt_issuers);
    let mut api_keys = caller_keys.to_vec();
    for (name, entry) in &policy.file.callers {
        api_keys.extend(entry.key_hashes.iter().map(|hash| (*hash, name.clone())));
    }
    if api_keys.len() > MAX_API_KEYS {
        let expected = format!("at most {MAX_API_KEYS} keys in all");
        return Err(reader.invalid(&TOKEN_SERVER_API_KEYS, expected, api_keys.len().to_string()));
    }
    let without_credentials = without_credentials?.is_some();
    issuers?;
    if without_credentials {
        reader.warn(
            "ANYONE WHO REACHES /token CAN JOIN ROOMS, since TOKEN_SERVER_AUTH is none: for development, or behind a proxy that authenticates",
        );
    }
    let is_open =
        without_credentials || dev_on_loopback && api_keys.is_empty() && jwt_issuers.is_empty();
    let policies = policy.file.callers.iter();
    let mut policies: BTreeMap<_, _> = policies
        .map(|(name, entry)| (name.clone(), Arc::new(entry.policy.clone())))
        .collect();
    if let Some(login) = login {
        policies.insert(
            login.name.clone(),
            Arc::new(login_policy(login, &policy.file)),
        );
    }
    Ok(CallerRegistry {
        api_keys: CallerApiKeys::new(api_keys),
        issuers: jwt_issuers,
        anonymous: is_open
            .then(|| CallerName::parse(ANONYMOUS_CALLER))
            .flatten(),
        policies,
        default_policy: Arc::new(policy.file.default.clone()),
    })
}

/// The policy of the login's users: unless the policy file has identities for them, each user's identity is their claim.
fn login_policy(login: &JwtIssuer<JwksUrl>, file: &PolicyFile) -> CallerPolicy {
    let entry = file.callers.get(&login.name);
    let mut policy = entry.map_or(&file.default, |entry| &entry.policy).clone();
    if !entry.is_some_and(|entry| entry.sets_identities) {
        policy.identities = vec![NamePattern::equal_to_claim(&login.identity_claim)];
    }
    policy
}

/// Refuses issuers that a token cannot tell apart, and too many of them.
fn check_issuers(
    reader: &mut SettingsReader<'_>,
    issuers: &[JwtIssuer<JwksUrl>],
) -> Result<(), Reported> {
    let (setting, mut result) = (&TOKEN_SERVER_POLICY_FILE, Ok(()));
    let mut seen = HashSet::new();
    for issuer in issuers {
        if !seen.insert((&issuer.issuer, &issuer.audience)) {
            let name = quote_redacted(issuer.name.as_str());
            let expected = "logins that differ in issuer or audience";
            let found = format!("those of {name} in another one too");
            result = Err(reader.invalid(setting, expected, found));
        }
    }
    if issuers.len() > MAX_JWT_ISSUERS {
        let expected = format!("at most {MAX_JWT_ISSUERS} logins");
        result = Err(reader.invalid(setting, expected, issuers.len().to_string()));
    }
    result
}

fn read_caller_keys(
    reader: &mut SettingsReader<'_>,
) -> Result<Vec<(ApiKeyHash, CallerName)>, Reported> {
    let values = [
        reader.value(&TOKEN_SERVER_API_KEYS),
        reader.file(&TOKEN_SERVER_API_KEYS_FILE),
    ];
    let values = values.into_iter().collect::<Result<Vec<_>, _>>()?;
    let (mut keys, mut result) = (Vec::new(), Ok(()));
    for value in values.into_iter().flatten() {
        let first = keys.len();
        for (entry, number) in value.text.split([',', '\n']).map(str::trim).zip(1..) {
            if entry.is_empty() || entry.starts_with('#') {
                continue;
            }
            match parse_caller_key(entry) {
                Some((_, name)) if name.as_str() == ANONYMOUS_CALLER => {
                    let expected = "another name: anyone is the caller without credentials";
                    let found = quote_redacted(ANONYMOUS_CALLER);
                    result = Err(reader.invalid(value.setting, expected, found));
                }
                Some(key) => keys.push(key),
                // not shown: it may be an API key
                None => {
                    let expected = value.setting.expected_form();
                    let found = format!("something else in entry {number}");
                    result = Err(reader.invalid(value.setting, expected, found));
                }
            }
        }
        let names: Vec<_> = keys[first..]
            .iter()
            .map(|(_, name)| name.as_str())
            .collect();
        let names = names.join(",");
        reader.report_as(value.setting, names, value.origin);
    }
    result.map(|()| keys)
}

/// Parses `NAME:SHA256`.
fn parse_caller_key(text: &str) -> Option<(ApiKeyHash, CallerName)> {
    let (name, hash) = text.split_once(':')?;
    Some((
        ApiKeyHash::parse(hash.trim())?,
        CallerName::parse(name.trim())?,
    ))
}

/// Reads the login that the variables set.
fn read_login(
    reader: &mut SettingsReader<'_>,
    address_policy: &AddressPolicy,
) -> Result<Option<JwtIssuer<JwksUrl>>, Reported> {
    let issuer = reader.value(&TOKEN_SERVER_JWT_ISSUER);
    let audience = reader.value(&TOKEN_SERVER_JWT_AUDIENCE);
    let keys = reader.value(&TOKEN_SERVER_JWT_KEYS);
    let secret = reader.any_of(&[&TOKEN_SERVER_JWT_SECRET, &TOKEN_SERVER_JWT_SECRET_FILE]);
    let claim = reader.value(&TOKEN_SERVER_JWT_IDENTITY_CLAIM);
    let (issuer, audience, claim) = (issuer?, audience?, claim?);
    let (keys, secret) = (keys?, secret?);
    if [&issuer, &audience, &keys, &secret, &claim]
        .iter()
        .all(|value| value.is_none())
    {
        return Ok(None);
    }
    let issuer = required(reader, &TOKEN_SERVER_JWT_ISSUER, issuer);
    let audience = required(reader, &TOKEN_SERVER_JWT_AUDIENCE, audience);
    if let Some(claim) = &claim {
        reader.report_value(claim);
    }
    let setting = &TOKEN_SERVER_JWT_KEYS;
    let keys = match (keys, secret) {
        (Some(keys), None) => {
            reader.report_value(&keys);
            read_key_source(reader, setting, &keys.text, address_policy)
        }
        (None, Some(secret)) => {
            reader.report_value(&secret);
            parse_shared_secret(reader, secret.setting, &secret.text)
        }
        (None, None) => Err(reader.missing(setting, setting.expected_form())),
        (Some(_), Some(secret)) => {
            let expected = format!("nothing beside {}", secret.setting.name);
            Err(reader.invalid(setting, expected, "another source of keys"))
        }
    };
    let name = CallerName::parse(LOGIN_CALLER_NAME);
    Ok(Some(JwtIssuer {
        name: name.unwrap_or_else(|| unreachable!("the name is valid")),
        issuer: issuer?,
        audience: audience?,
        identity_claim: claim.map_or_else(|| DEFAULT_IDENTITY_CLAIM.into(), |claim| claim.text),
        keys: keys?,
    }))
}

fn required(
    reader: &mut SettingsReader<'_>,
    setting: &Setting,
    value: Option<SettingValue>,
) -> Result<String, Reported> {
    let Some(value) = value else {
        return Err(reader.missing(setting, setting.expected_form()));
    };
    reader.report_value(&value);
    Ok(value.text)
}

/// Reads a file or parses a URL.
fn read_key_source(
    reader: &mut SettingsReader<'_>,
    setting: &Setting,
    text: &str,
    address_policy: &AddressPolicy,
) -> Result<KeySource<JwksUrl>, Reported> {
    let keys = if text.contains("://") {
        let url = JwksUrl::parse(text, address_policy).map(KeySource::Remote);
        url.map_err(|invalid| invalid.to_string())
    } else {
        let keys = KeySet::read_file(Path::new(text)).map(KeySource::Fixed);
        keys.map_err(|error| error.to_string())
    };
    keys.map_err(|reason| {
        let expected = "a file of JWT keys (JWKS or PEM), or the https URL of a JWKS";
        let found = format!("{}: {reason}", quote_redacted(text));
        reader.invalid(setting, expected, found)
    })
}

fn parse_shared_secret(
    reader: &mut SettingsReader<'_>,
    setting: &Setting,
    secret: &str,
) -> Result<KeySource<JwksUrl>, Reported> {
    let keys = KeySet::from_secret(secret).map(KeySource::Fixed);
    keys.map_err(|error| {
        let found = format!("{}: {error}", describe_length(secret));
        reader.invalid(setting, "a secret for HS256", found)
    })
}

/// Reads the policy file, on the basis of the policy that the variables give.
fn read_policy(
    reader: &mut SettingsReader<'_>,
    dev_on_loopback: bool,
    address_policy: &AddressPolicy,
) -> Result<PolicyConfig, Reported> {
    let hours = reader.integer::<u64>(&TOKEN_EXPIRY_HOURS);
    let min_name_length = reader.integer(&TOKEN_SERVER_MIN_NAME_LENGTH);
    let requests_per_minute = reader.integer(&TOKEN_SERVER_RATE_PER_CALLER);
    let value = reader.file(&TOKEN_SERVER_POLICY_FILE);
    let lifetime = hours? * 3600;
    let base = CallerPolicy {
        default_lifetime: lifetime,
        max_lifetime: lifetime,
        min_name_length: min_name_length?,
        requests_per_minute: requests_per_minute?,
        random_room: dev_on_loopback,
        random_identity: dev_on_loopback,
        ..CallerPolicy::default()
    };
    let Some(value) = value? else {
        return Ok(PolicyConfig {
            file: PolicyFile {
                default: base,
                callers: BTreeMap::new(),
            },
            jwt_issuers: Vec::new(),
        });
    };
    let SettingOrigin::File(path) = value.origin else {
        unreachable!("the value is the content of a file");
    };
    let (setting, path) = (value.setting, path.to_string_lossy());
    let file = policy_file::parse(&value.text, &base).map_err(|error| {
        let found = format!("{} {error}", quote_redacted(&path));
        reader.invalid(setting, setting.expected_form(), found)
    })?;
    reader.report_as(setting, path, SettingOrigin::Environment);
    let policies = file.callers.values().map(|entry| &entry.policy);
    let is_large = |policy: &CallerPolicy| policy.max_metadata > LARGE_METADATA_BYTES;
    if policies.chain([&file.default]).any(is_large) {
        let name = setting.name;
        reader.warn(format!(
            "{name} allows more than {LARGE_METADATA_BYTES} bytes of metadata: browsers put tokens into a URL, and many proxies refuse \
             one of 8 KiB"
        ));
    }
    let (mut jwt_issuers, mut result) = (Vec::new(), Ok(()));
    for (name, entry) in &file.callers {
        let Some(jwt) = &entry.jwt else { continue };
        match read_policy_issuer(reader, name, jwt, address_policy) {
            Ok(issuer) => jwt_issuers.push(issuer),
            Err(reported) => result = Err(reported),
        }
    }
    result.map(|()| PolicyConfig { file, jwt_issuers })
}

/// Reads the keys of an issuer in the policy file.
fn read_policy_issuer(
    reader: &mut SettingsReader<'_>,
    name: &CallerName,
    jwt: &JwtIssuerSettings,
    address_policy: &AddressPolicy,
) -> Result<JwtIssuer<JwksUrl>, Reported> {
    let setting = &TOKEN_SERVER_POLICY_FILE;
    let keys = match (&jwt.keys, &jwt.secret_file) {
        (Some(keys), _) => read_key_source(reader, setting, keys, address_policy),
        (None, Some(path)) => {
            let text = reader.file_content(setting, Path::new(path))?;
            parse_shared_secret(reader, setting, text.trim())
        }
        (None, None) => unreachable!("the policy file is checked"),
    };
    Ok(JwtIssuer {
        name: name.clone(),
        issuer: jwt.issuer.clone(),
        audience: jwt.audience.clone(),
        identity_claim: jwt
            .identity_claim
            .clone()
            .unwrap_or_else(|| DEFAULT_IDENTITY_CLAIM.into()),
        keys: keys?,
    })
}
