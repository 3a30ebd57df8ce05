//! Logins of applications: who issues JWTs, for whom, and where the keys are.

use std::collections::HashSet;
use std::path::Path;

use super::super::Error;
use super::super::reader::{Reader, Value, characters, quoted};
use super::POLICY_FILE;
use crate::caller::Name;
use crate::caller::jwks::{Keys, Url};
use crate::net::address::AddressPolicy;
use crate::policy::file::JwtEntry;

const ISSUER: &str = "TOKEN_SERVER_JWT_ISSUER";
const AUDIENCE: &str = "TOKEN_SERVER_JWT_AUDIENCE";
const JWT_KEYS: &str = "TOKEN_SERVER_JWT_KEYS";
const JWT_SECRET: &str = "TOKEN_SERVER_JWT_SECRET";
const JWT_SECRET_FILE: &str = "TOKEN_SERVER_JWT_SECRET_FILE";
const IDENTITY_CLAIM: &str = "TOKEN_SERVER_JWT_IDENTITY_CLAIM";
/// What the issuer of the variables is called, in the policy file and in the log.
const JWT_CALLER: &str = "jwt";
/// Most logins: each with a URL has a thread that fetches its keys.
const MAX_LOGINS: usize = 32;

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

/// The login of the variables.
pub(super) fn read(reader: &mut Reader<'_>, networks: &AddressPolicy) -> Option<Login> {
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
pub(super) fn listed(
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
        let length = characters(secret);
        reader.wrong(name, "a secret for HS256", format!("{length}: {error}"));
    })
    .ok()
}

/// Refuses what would be passed over in silence: a second login that no token could be told to be of.
pub(super) fn check_all(reader: &mut Reader<'_>, logins: &[Login]) {
    let mut seen = HashSet::new();
    for login in logins {
        if !seen.insert((&login.issuer, &login.audience)) {
            let expected = "logins that differ in issuer or audience";
            let found = format!(
                "those of {} in another one too",
                quoted(login.name.as_str())
            );
            reader.wrong(POLICY_FILE, expected, found);
        }
    }
    if logins.len() > MAX_LOGINS {
        let expected = format!("at most {MAX_LOGINS} logins");
        reader.wrong(POLICY_FILE, expected, logins.len().to_string());
    }
}
