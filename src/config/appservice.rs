//! Application-service mode: which homeserver we are beside, and how both know each other.

use std::collections::BTreeMap;
use std::time::Duration;

use super::reader::{SettingValue, SettingsReader, mask_secret};
use super::{Error, values};
use crate::matrix::id::ServerName;
use crate::matrix::registration::{AppServiceRegistration, AppServiceSecret};
use crate::net::base_url::BaseUrl;

const REGISTRATION_FILE: &str = "LIVEKIT_AS_REGISTRATION_FILE";
const AS_TOKEN: &str = "LIVEKIT_AS_TOKEN";
const HS_TOKEN: &str = "LIVEKIT_HS_TOKEN";
const HS_SERVER_NAME: &str = "LIVEKIT_HS_SERVER_NAME";
const HS_URL: &str = "LIVEKIT_HS_URL";
const MEMBERSHIP_CHECK: &str = "LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS";
/// Any of these opens the door.
pub(super) const ENABLING_SETTINGS: [&str; 5] = [
    REGISTRATION_FILE,
    AS_TOKEN,
    HS_TOKEN,
    HS_SERVER_NAME,
    HS_URL,
];
/// What an administrator is told who opens the door for users of any homeserver as well.
pub(super) const BOTH_MODES_WARNING: &str = "the doors for users of any homeserver and for the application service are both open: /get_token and /sfu/get \
    do not ask who is in a Matrix room, so whoever is not in it, or banned from it, gets a token there (their own settings close them; see README)";
/// Tokens shorter than this draw a warning: a generated one has 64.
const SHORT_TOKEN_CHARS: usize = 32;
/// For how long a token lets in, unless somebody says otherwise: membership is checked when it is made out, so not for long.
const DEFAULT_TOKEN_LIFETIME: Duration = Duration::from_secs(600);
const HS_URL_EXPECTED: &str =
    "an http or https URL like http://synapse:8008 without user, query or fragment";

/// The homeserver that passes its users' wishes on to us.
#[derive(Debug, Clone)]
pub struct AppServiceConfig {
    /// Its name: these users are local.
    pub server_name: ServerName,
    /// Its client-server API as this service reaches it.
    pub client_api_url: BaseUrl,
    /// What both know each other by.
    pub registration: AppServiceRegistration,
    /// For how long a token can be used to join.
    pub token_lifetime: Duration,
    /// How often it is asked whether those who are in a call are still in the Matrix room.
    pub membership_check_interval: Duration,
}

/// Reads everything about it. `lifetime` is what was read for tokens in general, and `overrides` may say where the homeserver is.
pub(super) fn read(
    reader: &mut SettingsReader<'_>,
    lifetime: Option<Duration>,
    overrides: Option<&BTreeMap<ServerName, BaseUrl>>,
) -> Option<AppServiceConfig> {
    let registration = read_registration(reader);
    let server = read_required(
        reader,
        HS_SERVER_NAME,
        "the server name of the homeserver, like example.com",
    );
    let server = server.and_then(|value| {
        let expected = "a server name like example.com or example.com:8448";
        reader.parse_value(value, expected, |text| {
            ServerName::parse(text).map_err(|_| text)
        })
    });
    let url = read_homeserver_url(reader, server.as_ref(), overrides);
    let check = reader.parse_or_default(MEMBERSHIP_CHECK, "30", "1 to 3600 seconds", |text| {
        values::parse_seconds(text, 1..=3600)
    });
    let general = reader.is_set("LIVEKIT_TOKEN_LIFETIME_SECONDS");
    Some(AppServiceConfig {
        server_name: server?,
        client_api_url: url?,
        registration: registration?,
        token_lifetime: if general {
            lifetime?
        } else {
            DEFAULT_TOKEN_LIFETIME
        },
        membership_check_interval: check?,
    })
}

/// The file, or both tokens; if both are there, they agree.
fn read_registration(reader: &mut SettingsReader<'_>) -> Option<AppServiceRegistration> {
    let before = reader.errors.len();
    let file = reader.read_file(REGISTRATION_FILE);
    let tokens = (reader.read_value(AS_TOKEN), reader.read_value(HS_TOKEN));
    if reader.errors.len() > before {
        return None;
    }
    let read = file.and_then(|file| match AppServiceRegistration::parse(&file.text) {
        Ok(registration) => {
            reader
                .report
                .add_setting(REGISTRATION_FILE, "(read)", file.origin);
            Some(registration)
        }
        Err(expected) => {
            reader.push_invalid(
                REGISTRATION_FILE,
                expected.to_string(),
                format!("{} without", file.origin),
            );
            None
        }
    });
    if reader.errors.len() > before {
        return None;
    }
    let given = match tokens {
        (None, None) if read.is_some() => return warn_short_tokens(reader, read),
        (as_token, hs_token) => {
            let as_token = read_shared_token(
                reader,
                AS_TOKEN,
                as_token,
                read.as_ref().map(|r| &r.as_token),
            );
            let hs_token = read_shared_token(
                reader,
                HS_TOKEN,
                hs_token,
                read.as_ref().map(|r| &r.hs_token),
            );
            let id = read.and_then(|registration| registration.id);
            AppServiceRegistration::new(as_token?, hs_token?)
                .map(|given| AppServiceRegistration { id, ..given })
        }
    };
    if given.is_none() {
        reader.push_invalid(
            HS_TOKEN,
            format!("another token than {AS_TOKEN}"),
            "the same",
        );
    }
    warn_short_tokens(reader, given)
}

/// A token of its own variable, or else of the file.
fn read_shared_token(
    reader: &mut SettingsReader<'_>,
    name: &'static str,
    value: Option<SettingValue>,
    of_file: Option<&AppServiceSecret>,
) -> Option<AppServiceSecret> {
    let Some(value) = value else {
        if of_file.is_none() {
            let expected =
                format!("the token of that name in the registration, or {REGISTRATION_FILE}");
            reader.errors.push(Error::Missing { name, expected });
        }
        return of_file.cloned();
    };
    let Some(token) = AppServiceSecret::parse(&value.text) else {
        let found = super::reader::describe_length(&value.text);
        reader.push_invalid(name, "1 to 512 visible ASCII characters", found);
        return None;
    };
    if of_file.is_some_and(|other| *other != token) {
        reader.errors.push(Error::Conflict {
            name,
            other: REGISTRATION_FILE,
        });
        return None;
    }
    reader
        .report
        .add_setting(name, mask_secret(&value.text), value.origin);
    Some(token)
}

fn warn_short_tokens(
    reader: &mut SettingsReader<'_>,
    registration: Option<AppServiceRegistration>,
) -> Option<AppServiceRegistration> {
    let registration = registration?;
    let tokens = [&registration.as_token, &registration.hs_token];
    if tokens
        .iter()
        .any(|token| token.length() < SHORT_TOKEN_CHARS)
    {
        reader.report.add_warning(format!(
            "a token of the registration has fewer than {SHORT_TOKEN_CHARS} characters; generate-registration makes better ones"
        ));
    }
    Some(registration)
}

/// Where the homeserver is: its own setting, or the override for it.
fn read_homeserver_url(
    reader: &mut SettingsReader<'_>,
    server: Option<&ServerName>,
    overrides: Option<&BTreeMap<ServerName, BaseUrl>>,
) -> Option<BaseUrl> {
    let before = reader.errors.len();
    if let Some(value) = reader.read_value(HS_URL) {
        return reader.parse_value(value, HS_URL_EXPECTED, parse_http_url);
    }
    if reader.errors.len() > before {
        return None;
    }
    let found = overrides?.get(server?).cloned();
    if found.is_none() {
        reader.errors.push(Error::Missing {
            name: HS_URL,
            expected: HS_URL_EXPECTED.into(),
        });
    }
    found
}

fn parse_http_url(text: &str) -> Result<BaseUrl, &str> {
    let scheme = text.split("://").next().unwrap_or_default();
    let http = ["http", "https"]
        .iter()
        .any(|s| scheme.eq_ignore_ascii_case(s));
    BaseUrl::parse(text).ok().filter(|_| http).ok_or(text)
}

fn read_required(
    reader: &mut SettingsReader<'_>,
    name: &'static str,
    expected: &str,
) -> Option<SettingValue> {
    let before = reader.errors.len();
    let value = reader.read_value(name);
    if value.is_none() && reader.errors.len() == before {
        let expected = expected.into();
        reader.errors.push(Error::Missing { name, expected });
    }
    value
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Environment};
    use super::*;

    const TOKENS: [(&str, &str); 2] = [
        (AS_TOKEN, "never-logged-as-token-of-at-least-32"),
        (HS_TOKEN, "never-logged-hs-token-of-at-least-32"),
    ];
    const WHERE: [(&str, &str); 2] = [
        (HS_SERVER_NAME, "example.com"),
        (HS_URL, "http://synapse:8008/"),
    ];

    fn read(more: &[(&'static str, &str)]) -> (Result<Config, String>, String) {
        let needed = [
            ("LIVEKIT_URL", "wss://sfu.example.com"),
            ("LIVEKIT_KEY", "APIkey"),
            (
                "LIVEKIT_SECRET",
                "a-secret-of-at-least-thirty-two-characters",
            ),
        ];
        let env: Environment = needed.iter().chain(more).copied().collect();
        let (config, report) = Config::read_with_defaults(&env);
        let told = format!("{:?} {:?}", report.warnings(), report.settings());
        let errors = |errors: Vec<Error>| errors.iter().map(|e| format!("{e}\n")).collect();
        (config.map_err(errors), told)
    }

    #[test]
    fn its_settings_open_its_door_and_no_other() {
        let (config, told) = read(&[TOKENS, WHERE].concat());
        let config = config.unwrap();
        assert!(
            !config.matrix_enabled && config.token_endpoint.is_none(),
            "{told}"
        );
        let appservice = config.appservice.unwrap();
        assert_eq!(appservice.client_api_url.to_string(), "http://synapse:8008");
        assert_eq!(appservice.token_lifetime, DEFAULT_TOKEN_LIFETIME);
        assert!(appservice.registration.as_token.matches(TOKENS[0].1));
        assert!(!told.contains("never-logged"), "{told}");
        let both = [("LIVEKIT_FULL_ACCESS_HOMESERVERS", "example.com")];
        let config = read(&[&TOKENS[..], &WHERE, &both].concat()).0.unwrap();
        assert!(config.matrix_enabled && config.appservice.is_some());
        let config = read(&[]).0.unwrap();
        assert!(config.matrix_enabled && config.appservice.is_none());
    }

    #[test]
    fn the_general_lifetime_holds_for_it_if_somebody_set_it() {
        let set = [("LIVEKIT_TOKEN_LIFETIME_SECONDS", "3600")];
        let config = read(&[&TOKENS[..], &WHERE, &set].concat()).0.unwrap();
        assert_eq!(config.appservice.unwrap().token_lifetime.as_secs(), 3600);
    }

    #[test]
    fn an_override_says_where_the_homeserver_is_as_well() {
        let place = [
            (HS_SERVER_NAME, "example.com"),
            (
                "LIVEKIT_CS_API_URL_OVERRIDES",
                "example.com=https://hs.internal",
            ),
        ];
        let config = read(&[TOKENS, place].concat()).0.unwrap();
        assert_eq!(
            config.appservice.unwrap().client_api_url.to_string(),
            "https://hs.internal"
        );
    }

    #[test]
    fn what_is_wrong_stops_the_start_by_its_name_and_shows_no_token() {
        let all = [TOKENS, WHERE].concat();
        let without = |name| {
            all.iter()
                .copied()
                .filter(|(n, _)| *n != name)
                .collect::<Vec<_>>()
        };
        for name in [AS_TOKEN, HS_TOKEN, HS_SERVER_NAME, HS_URL] {
            let error = read(&without(name)).0.unwrap_err();
            assert!(error.starts_with(&format!("{name}: ")), "{name}: {error}");
        }
        for (name, value) in [
            (AS_TOKEN, "never logged"),
            (HS_TOKEN, TOKENS[0].1),
            (HS_SERVER_NAME, "https://example.com"),
            (HS_URL, "wss://synapse"),
            (HS_URL, "synapse:8008"),
            (MEMBERSHIP_CHECK, "0"),
            (MEMBERSHIP_CHECK, "3601"),
            (REGISTRATION_FILE, "/nowhere/at/all"),
            (REGISTRATION_FILE, "/etc/passwd"),
        ] {
            let mut settings = without(name);
            settings.push((name, value));
            let error = read(&settings).0.unwrap_err();
            assert!(error.starts_with(&format!("{name}: ")), "{name}: {error}");
            assert!(!error.contains("never"), "{error}");
        }
    }
}
