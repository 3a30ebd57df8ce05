//! Application-service mode: which homeserver we are beside, and how both know each other.

use std::collections::BTreeMap;
use std::time::Duration;

use super::reader::{Reader, Value, masked};
use super::{Error, values};
use crate::matrix::id::ServerName;
use crate::matrix::registration::{Registration, SharedToken};
use crate::net::base_url::BaseUrl;

const FILE: &str = "LIVEKIT_AS_REGISTRATION_FILE";
const AS_TOKEN: &str = "LIVEKIT_AS_TOKEN";
const HS_TOKEN: &str = "LIVEKIT_HS_TOKEN";
const SERVER_NAME: &str = "LIVEKIT_HS_SERVER_NAME";
const URL: &str = "LIVEKIT_HS_URL";
const CHECK: &str = "LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS";
/// Any of these opens the door.
pub(super) const OPENING: [&str; 5] = [FILE, AS_TOKEN, HS_TOKEN, SERVER_NAME, URL];
/// What an administrator is told who opens the door for users of any homeserver as well.
pub(super) const BOTH_DOORS: &str = "the doors for users of any homeserver and for the application service are both open: /get_token and /sfu/get \
    do not ask who is in a Matrix room, so whoever is not in it, or banned from it, gets a token there (their own settings close them; see README)";
/// Tokens shorter than this draw a warning: a generated one has 64.
const SHORT: usize = 32;
/// For how long a token lets in, unless somebody says otherwise: membership is checked when it is made out, so not for long.
const LIFETIME: Duration = Duration::from_secs(600);
const URL_EXPECTED: &str =
    "an http or https URL like http://synapse:8008 without user, query or fragment";

/// The homeserver that passes its users' wishes on to us.
#[derive(Debug, Clone)]
pub struct AppService {
    /// Its name: these users are local.
    pub server: ServerName,
    /// Its client-server API as this service reaches it.
    pub url: BaseUrl,
    /// What both know each other by.
    pub registration: Registration,
    /// For how long a token can be used to join.
    pub token_lifetime: Duration,
    /// How often it is asked whether those who are in a call are still in the Matrix room.
    pub check: Duration,
}

/// Reads everything about it. `lifetime` is what was read for tokens in general, and `overrides` may say where the homeserver is.
pub(super) fn read(
    reader: &mut Reader<'_>,
    lifetime: Option<Duration>,
    overrides: Option<&BTreeMap<ServerName, BaseUrl>>,
) -> Option<AppService> {
    let registration = registration(reader);
    let server = required(
        reader,
        SERVER_NAME,
        "the server name of the homeserver, like example.com",
    );
    let server = server.and_then(|value| {
        let expected = "a server name like example.com or example.com:8448";
        reader.understood(value, expected, |text| {
            ServerName::parse(text).map_err(|_| text)
        })
    });
    let url = url(reader, server.as_ref(), overrides);
    let check = reader.parsed(CHECK, "30", "1 to 3600 seconds", |text| {
        values::seconds(text, 1..=3600)
    });
    let general = reader.is_set("LIVEKIT_TOKEN_LIFETIME_SECONDS");
    Some(AppService {
        server: server?,
        url: url?,
        registration: registration?,
        token_lifetime: if general { lifetime? } else { LIFETIME },
        check: check?,
    })
}

/// The file, or both tokens; if both are there, they agree.
fn registration(reader: &mut Reader<'_>) -> Option<Registration> {
    let before = reader.errors.len();
    let file = reader.file(FILE);
    let tokens = (reader.value(AS_TOKEN), reader.value(HS_TOKEN));
    if reader.errors.len() > before {
        return None;
    }
    let read = file.and_then(|file| match Registration::read(&file.text) {
        Ok(registration) => {
            reader.report.set(FILE, "(read)", file.origin);
            Some(registration)
        }
        Err(expected) => {
            reader.wrong(
                FILE,
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
        (None, None) if read.is_some() => return warned(reader, read),
        (as_token, hs_token) => {
            let as_token = token(
                reader,
                AS_TOKEN,
                as_token,
                read.as_ref().map(|r| &r.as_token),
            );
            let hs_token = token(
                reader,
                HS_TOKEN,
                hs_token,
                read.as_ref().map(|r| &r.hs_token),
            );
            let id = read.and_then(|registration| registration.id);
            Registration::new(as_token?, hs_token?).map(|given| Registration { id, ..given })
        }
    };
    if given.is_none() {
        reader.wrong(
            HS_TOKEN,
            format!("another token than {AS_TOKEN}"),
            "the same",
        );
    }
    warned(reader, given)
}

/// A token of its own variable, or else of the file.
fn token(
    reader: &mut Reader<'_>,
    name: &'static str,
    value: Option<Value>,
    of_file: Option<&SharedToken>,
) -> Option<SharedToken> {
    let Some(value) = value else {
        if of_file.is_none() {
            let expected = format!("the token of that name in the registration, or {FILE}");
            reader.errors.push(Error::Missing { name, expected });
        }
        return of_file.cloned();
    };
    let Some(token) = SharedToken::parse(&value.text) else {
        let found = super::reader::characters(&value.text);
        reader.wrong(name, "1 to 512 visible ASCII characters", found);
        return None;
    };
    if of_file.is_some_and(|other| *other != token) {
        reader.errors.push(Error::Conflict { name, other: FILE });
        return None;
    }
    reader.report.set(name, masked(&value.text), value.origin);
    Some(token)
}

fn warned(reader: &mut Reader<'_>, registration: Option<Registration>) -> Option<Registration> {
    let registration = registration?;
    let tokens = [&registration.as_token, &registration.hs_token];
    if tokens.iter().any(|token| token.length() < SHORT) {
        reader.report.warn(format!(
            "a token of the registration has fewer than {SHORT} characters; generate-registration makes better ones"
        ));
    }
    Some(registration)
}

/// Where the homeserver is: its own setting, or the override for it.
fn url(
    reader: &mut Reader<'_>,
    server: Option<&ServerName>,
    overrides: Option<&BTreeMap<ServerName, BaseUrl>>,
) -> Option<BaseUrl> {
    let before = reader.errors.len();
    if let Some(value) = reader.value(URL) {
        return reader.understood(value, URL_EXPECTED, http);
    }
    if reader.errors.len() > before {
        return None;
    }
    let found = overrides?.get(server?).cloned();
    if found.is_none() {
        reader.errors.push(Error::Missing {
            name: URL,
            expected: URL_EXPECTED.into(),
        });
    }
    found
}

fn http(text: &str) -> Result<BaseUrl, &str> {
    let scheme = text.split("://").next().unwrap_or_default();
    let http = ["http", "https"]
        .iter()
        .any(|s| scheme.eq_ignore_ascii_case(s));
    BaseUrl::parse(text).ok().filter(|_| http).ok_or(text)
}

fn required(reader: &mut Reader<'_>, name: &'static str, expected: &str) -> Option<Value> {
    let before = reader.errors.len();
    let value = reader.value(name);
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
    const WHERE: [(&str, &str); 2] = [(SERVER_NAME, "example.com"), (URL, "http://synapse:8008/")];

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
        let (config, report) = Config::read(&env);
        let told = format!("{:?} {:?}", report.warnings(), report.settings());
        let errors = |errors: Vec<Error>| errors.iter().map(|e| format!("{e}\n")).collect();
        (config.map_err(errors), told)
    }

    #[test]
    fn its_settings_open_its_door_and_no_other() {
        let (config, told) = read(&[TOKENS, WHERE].concat());
        let config = config.unwrap();
        assert!(!config.matrix && config.token_server.is_none(), "{told}");
        let appservice = config.appservice.unwrap();
        assert_eq!(appservice.url.to_string(), "http://synapse:8008");
        assert_eq!(appservice.token_lifetime, LIFETIME);
        assert!(appservice.registration.as_token.is(TOKENS[0].1));
        assert!(!told.contains("never-logged"), "{told}");
        let both = [("LIVEKIT_FULL_ACCESS_HOMESERVERS", "example.com")];
        let config = read(&[&TOKENS[..], &WHERE, &both].concat()).0.unwrap();
        assert!(config.matrix && config.appservice.is_some());
        let config = read(&[]).0.unwrap();
        assert!(config.matrix && config.appservice.is_none());
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
            (SERVER_NAME, "example.com"),
            (
                "LIVEKIT_CS_API_URL_OVERRIDES",
                "example.com=https://hs.internal",
            ),
        ];
        let config = read(&[TOKENS, place].concat()).0.unwrap();
        assert_eq!(
            config.appservice.unwrap().url.to_string(),
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
        for name in [AS_TOKEN, HS_TOKEN, SERVER_NAME, URL] {
            let error = read(&without(name)).0.unwrap_err();
            assert!(error.starts_with(&format!("{name}: ")), "{name}: {error}");
        }
        for (name, value) in [
            (AS_TOKEN, "never logged"),
            (HS_TOKEN, TOKENS[0].1),
            (SERVER_NAME, "https://example.com"),
            (URL, "wss://synapse"),
            (URL, "synapse:8008"),
            (CHECK, "0"),
            (CHECK, "3601"),
            (FILE, "/nowhere/at/all"),
            (FILE, "/etc/passwd"),
        ] {
            let mut settings = without(name);
            settings.push((name, value));
            let error = read(&settings).0.unwrap_err();
            assert!(error.starts_with(&format!("{name}: ")), "{name}: {error}");
            assert!(!error.contains("never"), "{error}");
        }
    }
}
