//! The general token endpoint: whether it is open, who may call it, and what they may ask for.

use std::collections::BTreeMap;
use std::path::Path;

use super::reader::{Reader, Value, quoted};
use super::report::Origin;
use super::{Defaults, Environment, Error, appservice, values};
use crate::caller::Name;
use crate::caller::api_key::{ApiKeys, KeyHash, MAX_KEYS};
use crate::caller::jwks::{Keys, Url};
use crate::http::cors::Origins;
use crate::net::address::AddressPolicy;
use crate::policy::file::{ANYONE, JwtEntry, PolicyFile};
use crate::policy::pattern::Pattern;
use crate::policy::{Policy, file};

/// Settings that are for standalone Matrix alone: any of them opens its door.
const MATRIX: [&str; 6] = [
    "LIVEKIT_FULL_ACCESS_HOMESERVERS",
    "LIVEKIT_LOCAL_HOMESERVERS",
    "LIVEKIT_FEDERATION_URL_OVERRIDES",
    "LIVEKIT_CAN_UPDATE_OWN_METADATA",
    "LIVEKIT_REMOTE_USERS_MAY_PUBLISH",
    "LIVEKIT_OPENID_CACHE_SECONDS",
];
/// Settings that both ways of serving Matrix have: any of them opens that door, unless they are there for the homeserver that has
/// this service for an application service.
const ANY_MATRIX: [&str; 10] = [
    "LIVEKIT_KEY",
    "LIVEKIT_KEY_FROM_FILE",
    "LIVEKIT_KEY_FILE",
    "LIVEKIT_KEYS",
    "LIVEKIT_INSECURE_SKIP_VERIFY_TLS",
    "LIVEKIT_TOKEN_LIFETIME_SECONDS",
    "LIVEKIT_CS_API_URL_OVERRIDES",
    "LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS",
    "LIVEKIT_REDIS_URL",
    "LIVEKIT_REDIS_PASSWORD",
];
/// Settings that are for the general endpoint: any of them opens its door.
const GENERAL: [&str; 13] = [
    AUTH,
    API_KEYS,
    API_KEYS_FILE,
    POLICY_FILE,
    ISSUER,
    AUDIENCE,
    JWT_KEYS,
    JWT_SECRET,
    JWT_SECRET_FILE,
    IDENTITY_CLAIM,
    "TOKEN_SERVER_MIN_NAME_LENGTH",
    "TOKEN_SERVER_RATE_PER_CALLER",
    "TOKEN_SERVER_PORT",
];
/// LiveKit's own name of the key opens it as well, where an application service does not need the key itself.
const API_KEY: &str = "LIVEKIT_API_KEY";
const AUTH: &str = "TOKEN_SERVER_AUTH";
const API_KEYS: &str = "TOKEN_SERVER_API_KEYS";
const API_KEYS_FILE: &str = "TOKEN_SERVER_API_KEYS_FILE";
const POLICY_FILE: &str = "TOKEN_SERVER_POLICY_FILE";
const ISSUER: &str = "TOKEN_SERVER_JWT_ISSUER";
const AUDIENCE: &str = "TOKEN_SERVER_JWT_AUDIENCE";
const JWT_KEYS: &str = "TOKEN_SERVER_JWT_KEYS";
const JWT_SECRET: &str = "TOKEN_SERVER_JWT_SECRET";
const JWT_SECRET_FILE: &str = "TOKEN_SERVER_JWT_SECRET_FILE";
const IDENTITY_CLAIM: &str = "TOKEN_SERVER_JWT_IDENTITY_CLAIM";
/// What the issuer of the variables is called, in the policy file and in the log.
const JWT_CALLER: &str = "jwt";
const KEYS_EXPECTED: &str = "NAME:SHA256 as keygen prints it, comma or newline separated";
/// Where pages are that may ask, if nobody says: the example's.
const ORIGINS: &str = "http://localhost:3000";

/// Which doors are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doors {
    /// `/get_token` and `/sfu/get`.
    pub matrix: bool,
    /// `/token`.
    pub general: bool,
    /// What our homeserver passes on to us.
    pub appservice: bool,
}

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

/// An issuer of JWTs.
#[derive(Debug, Clone)]
pub struct Login {
    /// What the administrator calls it.
    pub name: Name,
    /// `iss`.
    pub issuer: String,
    /// One of `aud`.
    pub audience: String,
    /// The claim that says who somebody is.
    pub identity_claim: Option<String>,
    /// Where its keys are.
    pub keys: LoginKeys,
}

/// Where keys are.
#[derive(Debug, Clone)]
pub enum LoginKeys {
    /// Here.
    Fixed(Keys),
    /// At the issuer's.
    Url(Url),
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

/// Which doors the settings open. Without any that says so, it is Matrix's.
pub(super) fn doors(reader: &Reader<'_>, defaults: &Defaults) -> Doors {
    let any = |names: &[&'static str]| names.iter().any(|name| reader.is_set(name));
    let appservice = any(&appservice::OPENING);
    let general = defaults.dev || any(&GENERAL) || !appservice && any(&[API_KEY]);
    let either = || any(&ANY_MATRIX) || !general;
    Doors {
        matrix: defaults.dev || any(&MATRIX) || !appservice && either(),
        general,
        appservice,
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
    let own = login(reader, networks);
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
            logins.extend(listed_login(reader, name, jwt, networks));
        }
    }
    if keys.len() > MAX_KEYS {
        let found = keys.len().to_string();
        reader.wrong(API_KEYS, format!("at most {MAX_KEYS} keys in all"), found);
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

/// The login of the variables.
fn login(reader: &mut Reader<'_>, networks: &AddressPolicy) -> Option<Login> {
    let before = reader.errors.len();
    let issuer = reader.value(ISSUER);
    let audience = reader.value(AUDIENCE);
    let keys = reader.value(JWT_KEYS);
    let secrets = [reader.value(JWT_SECRET), reader.file(JWT_SECRET_FILE)];
    let mut secrets = secrets.into_iter().flatten();
    let (secret, more) = (secrets.next(), secrets.next());
    let claim = reader.value(IDENTITY_CLAIM);
    let any = [&issuer, &audience, &keys, &secret, &claim];
    if any.iter().all(|value| value.is_none()) || reader.errors.len() > before {
        return None;
    }
    let mut missing = |name: &'static str, expected: &str, value: &Option<Value>| {
        if value.is_none() {
            let expected = expected.into();
            reader.errors.push(Error::Missing { name, expected });
        }
    };
    missing(ISSUER, "the iss of the login's JWTs", &issuer);
    missing(
        AUDIENCE,
        "the aud of those that are for this service",
        &audience,
    );
    let found = match (&keys, secret, more) {
        (Some(keys), None, None) => source(reader, JWT_KEYS, &keys.text, networks),
        (None, Some(secret), None) => shared(reader, secret.name, secret.text.trim()),
        (None, None, _) => {
            let expected = "a JWKS or PEM file or the https URL of a JWKS; or a secret for HS256 in TOKEN_SERVER_JWT_SECRET";
            missing(JWT_KEYS, expected, &keys);
            None
        }
        _ => {
            let expected = "one of TOKEN_SERVER_JWT_KEYS, TOKEN_SERVER_JWT_SECRET and TOKEN_SERVER_JWT_SECRET_FILE";
            reader.wrong(JWT_KEYS, expected, "more than one");
            None
        }
    };
    let (issuer, audience) = (issuer?, audience?);
    for value in [&issuer, &audience].into_iter().chain(&keys).chain(&claim) {
        reader
            .report
            .set(value.name, &*value.text, value.origin.clone());
    }
    Some(Login {
        name: Name::parse(JWT_CALLER)?,
        issuer: issuer.text,
        audience: audience.text,
        identity_claim: claim.map(|claim| claim.text),
        keys: found?,
    })
}

/// A login of the policy file.
fn listed_login(
    reader: &mut Reader<'_>,
    name: &Name,
    jwt: &JwtEntry,
    networks: &AddressPolicy,
) -> Option<Login> {
    let keys = match (&jwt.keys, &jwt.secret_file) {
        (Some(keys), _) => source(reader, POLICY_FILE, keys, networks),
        (None, Some(path)) => {
            let text = reader.content(POLICY_FILE, Path::new(path))?;
            shared(reader, POLICY_FILE, text.trim())
        }
        (None, None) => None,
    };
    Some(Login {
        name: name.clone(),
        issuer: jwt.issuer.clone(),
        audience: jwt.audience.clone(),
        identity_claim: jwt.identity_claim.clone(),
        keys: keys?,
    })
}

/// A file, or a URL.
fn source(
    reader: &mut Reader<'_>,
    name: &'static str,
    text: &str,
    networks: &AddressPolicy,
) -> Option<LoginKeys> {
    let found = if text.contains("://") {
        let url = Url::parse(text, networks).map(LoginKeys::Url);
        url.map_err(|invalid| invalid.to_string())
    } else {
        let keys = Keys::read_file(Path::new(text)).map(LoginKeys::Fixed);
        keys.map_err(|error| error.to_string())
    };
    found
        .map_err(|reason| {
            let expected = "a file of JWT keys (JWKS or PEM), or the https URL of a JWKS";
            reader.wrong(name, expected, format!("{}: {reason}", quoted(text)));
        })
        .ok()
}

fn shared(reader: &mut Reader<'_>, name: &'static str, secret: &str) -> Option<LoginKeys> {
    let keys = Keys::secret(secret).map(LoginKeys::Fixed);
    keys.map_err(|error| {
        let length = super::reader::characters(secret);
        reader.wrong(name, "a secret for HS256", format!("{length}: {error}"));
    })
    .ok()
}

#[cfg(test)]
mod tests;
