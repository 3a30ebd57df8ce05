//! Logins of applications: who issues JWTs, for whom, and where the keys are.

use std::collections::HashSet;
use std::path::Path;

use super::super::Error;
use super::super::reader::{SettingValue, SettingsReader, describe_length, quote_redacted};
use super::POLICY_FILE;
use crate::net::address::AddressPolicy;
use crate::token::CallerName;
use crate::token::jwks::JwksUrl;
use crate::token::jwt::{DEFAULT_IDENTITY_CLAIM, JwtIssuer, KeySource};
use crate::token::keys::KeySet;
use crate::token::policy_file::JwtIssuerSettings;

const ISSUER: &str = "TOKEN_SERVER_JWT_ISSUER";
const AUDIENCE: &str = "TOKEN_SERVER_JWT_AUDIENCE";
const JWT_KEYS: &str = "TOKEN_SERVER_JWT_KEYS";
const JWT_SECRET: &str = "TOKEN_SERVER_JWT_SECRET";
const JWT_SECRET_FILE: &str = "TOKEN_SERVER_JWT_SECRET_FILE";
const IDENTITY_CLAIM: &str = "TOKEN_SERVER_JWT_IDENTITY_CLAIM";
/// What the issuer of the variables is called, in the policy file and in the log.
const JWT_CALLER_NAME: &str = "jwt";
/// Most logins: each with a URL has a thread that fetches its keys.
const MAX_JWT_ISSUERS: usize = 32;

/// The login of the variables.
pub(super) fn read(
    reader: &mut SettingsReader<'_>,
    networks: &AddressPolicy,
) -> Option<JwtIssuer<JwksUrl>> {
    let before = reader.errors.len();
    let issuer = reader.read_value(ISSUER);
    let audience = reader.read_value(AUDIENCE);
    let keys = reader.read_value(JWT_KEYS);
    let secrets = [
        reader.read_value(JWT_SECRET),
        reader.read_file(JWT_SECRET_FILE),
    ];
    let mut secrets = secrets.into_iter().flatten();
    let (secret, more) = (secrets.next(), secrets.next());
    let claim = reader.read_value(IDENTITY_CLAIM);
    let any = [&issuer, &audience, &keys, &secret, &claim];
    if any.iter().all(|value| value.is_none()) || reader.errors.len() > before {
        return None;
    }
    let mut missing = |name: &'static str, expected: &str, value: &Option<SettingValue>| {
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
        (Some(keys), None, None) => parse_key_source(reader, JWT_KEYS, &keys.text, networks),
        (None, Some(secret), None) => parse_shared_secret(reader, secret.name, secret.text.trim()),
        (None, None, _) => {
            let expected = "a JWKS or PEM file or the https URL of a JWKS; or a secret for HS256 in TOKEN_SERVER_JWT_SECRET";
            missing(JWT_KEYS, expected, &keys);
            None
        }
        _ => {
            let expected = "one of TOKEN_SERVER_JWT_KEYS, TOKEN_SERVER_JWT_SECRET and TOKEN_SERVER_JWT_SECRET_FILE";
            reader.push_invalid(JWT_KEYS, expected, "more than one");
            None
        }
    };
    let (issuer, audience) = (issuer?, audience?);
    for value in [&issuer, &audience].into_iter().chain(&keys).chain(&claim) {
        reader
            .report
            .add_setting(value.name, &*value.text, value.origin.clone());
    }
    Some(JwtIssuer {
        name: CallerName::parse(JWT_CALLER_NAME)?,
        issuer: issuer.text,
        audience: audience.text,
        identity_claim: claim.map_or_else(|| DEFAULT_IDENTITY_CLAIM.to_owned(), |claim| claim.text),
        keys: found?,
    })
}

/// A login of the policy file.
pub(super) fn read_policy_issuer(
    reader: &mut SettingsReader<'_>,
    name: &CallerName,
    jwt: &JwtIssuerSettings,
    networks: &AddressPolicy,
) -> Option<JwtIssuer<JwksUrl>> {
    let keys = match (&jwt.keys, &jwt.secret_file) {
        (Some(keys), _) => parse_key_source(reader, POLICY_FILE, keys, networks),
        (None, Some(path)) => {
            let text = reader.read_file_content(POLICY_FILE, Path::new(path))?;
            parse_shared_secret(reader, POLICY_FILE, text.trim())
        }
        (None, None) => None,
    };
    Some(JwtIssuer {
        name: name.clone(),
        issuer: jwt.issuer.clone(),
        audience: jwt.audience.clone(),
        identity_claim: jwt
            .identity_claim
            .clone()
            .unwrap_or_else(|| DEFAULT_IDENTITY_CLAIM.to_owned()),
        keys: keys?,
    })
}

/// A file, or a URL.
fn parse_key_source(
    reader: &mut SettingsReader<'_>,
    name: &'static str,
    text: &str,
    networks: &AddressPolicy,
) -> Option<KeySource<JwksUrl>> {
    let found = if text.contains("://") {
        let url = JwksUrl::parse(text, networks).map(KeySource::Remote);
        url.map_err(|invalid| invalid.to_string())
    } else {
        let keys = KeySet::read_file(Path::new(text)).map(KeySource::Fixed);
        keys.map_err(|error| error.to_string())
    };
    found
        .map_err(|reason| {
            let expected = "a file of JWT keys (JWKS or PEM), or the https URL of a JWKS";
            reader.push_invalid(
                name,
                expected,
                format!("{}: {reason}", quote_redacted(text)),
            );
        })
        .ok()
}

fn parse_shared_secret(
    reader: &mut SettingsReader<'_>,
    name: &'static str,
    secret: &str,
) -> Option<KeySource<JwksUrl>> {
    let keys = KeySet::from_secret(secret).map(KeySource::Fixed);
    keys.map_err(|error| {
        let length = describe_length(secret);
        reader.push_invalid(name, "a secret for HS256", format!("{length}: {error}"));
    })
    .ok()
}

/// Refuses what would be passed over in silence: a second login that no token could be told to be of.
pub(super) fn check_issuers(reader: &mut SettingsReader<'_>, logins: &[JwtIssuer<JwksUrl>]) {
    let mut seen = HashSet::new();
    for login in logins {
        if !seen.insert((&login.issuer, &login.audience)) {
            let expected = "logins that differ in issuer or audience";
            let found = format!(
                "those of {} in another one too",
                quote_redacted(login.name.as_str())
            );
            reader.push_invalid(POLICY_FILE, expected, found);
        }
    }
    if logins.len() > MAX_JWT_ISSUERS {
        let expected = format!("at most {MAX_JWT_ISSUERS} logins");
        reader.push_invalid(POLICY_FILE, expected, logins.len().to_string());
    }
}
