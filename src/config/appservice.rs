//! Application-service mode: the homeserver, and the registration that it and this service share.

use std::collections::BTreeMap;
use std::time::Duration;

use super::reader::{Reported, SettingOrigin, SettingValue, SettingsReader, describe_length};
use super::table::{
    LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS, LIVEKIT_AS_REGISTRATION_FILE, LIVEKIT_AS_TOKEN,
    LIVEKIT_CS_API_URL_OVERRIDES, LIVEKIT_HS_SERVER_NAME, LIVEKIT_HS_TOKEN, LIVEKIT_HS_URL,
    Setting,
};
use super::values::{parse_http_url, parse_server_name};
use crate::matrix::id::ServerName;
use crate::matrix::registration::{AppServiceRegistration, AppServiceSecret};
use crate::net::base_url::BaseUrl;

/// The warning if the endpoints for users of any homeserver are open too.
pub(super) const BOTH_MODES_WARNING: &str = "the endpoints for users of any homeserver are open beside application-service mode: \
    /get_token and /sfu/get do not check who is in a Matrix room, so that users who are not in it, or are banned from it, get a \
    token there (check-config says which setting opens them)";
/// Shorter tokens draw a warning, in characters; a generated token has 64.
const SHORT_TOKEN_CHARS: usize = 32;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AppServiceConfig {
    /// The homeserver's name: its users are local.
    pub server_name: ServerName,
    /// The homeserver's client-server API as this service reaches it.
    pub client_api_url: BaseUrl,
    /// The tokens by which homeserver and service authenticate each other.
    pub registration: AppServiceRegistration,
    /// Time between checks whether a participant is still in the Matrix room.
    pub membership_check_interval: Duration,
}

/// `overrides` (`LIVEKIT_CS_API_URL_OVERRIDES`) may have the homeserver's URL.
pub(super) fn read(
    reader: &mut SettingsReader<'_>,
    overrides: Option<&BTreeMap<ServerName, BaseUrl>>,
) -> Result<AppServiceConfig, Reported> {
    let registration = read_registration(reader);
    let server_name = reader.parse_optional(&LIVEKIT_HS_SERVER_NAME, parse_server_name);
    let server_name = required(reader, &LIVEKIT_HS_SERVER_NAME, server_name);
    let url = read_homeserver_url(reader, &server_name, overrides);
    let interval = reader.integer(&LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS);
    Ok(AppServiceConfig {
        server_name: server_name?,
        client_api_url: url?,
        registration: registration?,
        membership_check_interval: Duration::from_secs(interval?),
    })
}

/// Reads the homeserver's URL: its own setting, or else the override of its client-server API.
fn read_homeserver_url(
    reader: &mut SettingsReader<'_>,
    server_name: &Result<ServerName, Reported>,
    overrides: Option<&BTreeMap<ServerName, BaseUrl>>,
) -> Result<BaseUrl, Reported> {
    if let Some(url) = reader.parse_optional(&LIVEKIT_HS_URL, parse_http_url)? {
        return Ok(url);
    }
    let server_name = server_name.as_ref().map_err(|reported| *reported)?;
    let url = overrides.and_then(|overrides| overrides.get(server_name).cloned());
    if let Some(url) = &url {
        let origin = SettingOrigin::DerivedFrom(LIVEKIT_CS_API_URL_OVERRIDES.name);
        reader.report_as(&LIVEKIT_HS_URL, url.to_string(), origin);
    }
    required(reader, &LIVEKIT_HS_URL, Ok(url))
}

fn required<T>(
    reader: &mut SettingsReader<'_>,
    setting: &Setting,
    value: Result<Option<T>, Reported>,
) -> Result<T, Reported> {
    value?.ok_or_else(|| reader.missing(setting, setting.expected_form()))
}

/// Reads the registration from its file, from the two tokens, or from both if they agree.
fn read_registration(reader: &mut SettingsReader<'_>) -> Result<AppServiceRegistration, Reported> {
    let file = reader.file(&LIVEKIT_AS_REGISTRATION_FILE);
    let as_token = reader.value(&LIVEKIT_AS_TOKEN);
    let hs_token = reader.value(&LIVEKIT_HS_TOKEN);
    let (file, as_token, hs_token) = (file?, as_token?, hs_token?);
    let from_file = file
        .map(|file| parse_registration(reader, file))
        .transpose()?;
    let (file_id, file_tokens) = match from_file {
        Some(registration) => (
            registration.id,
            Some((registration.as_token, registration.hs_token)),
        ),
        None => (None, None),
    };
    let (file_as_token, file_hs_token) = file_tokens.unzip();
    let as_token = agreed_token(reader, &LIVEKIT_AS_TOKEN, as_token, file_as_token);
    let hs_token = agreed_token(reader, &LIVEKIT_HS_TOKEN, hs_token, file_hs_token);
    let (as_token, hs_token) = (as_token?, hs_token?);
    let is_short = |token: &AppServiceSecret| token.length() < SHORT_TOKEN_CHARS;
    if is_short(&as_token) || is_short(&hs_token) {
        reader.warn(format!(
            "a token of the registration has fewer than {SHORT_TOKEN_CHARS} characters; generate-registration makes longer ones"
        ));
    }
    match AppServiceRegistration::new(as_token, hs_token) {
        Some(registration) => Ok(AppServiceRegistration {
            id: file_id,
            ..registration
        }),
        None => {
            let expected = format!("another token than {}", LIVEKIT_AS_TOKEN.name);
            Err(reader.invalid(&LIVEKIT_HS_TOKEN, expected, "the same"))
        }
    }
}

fn parse_registration(
    reader: &mut SettingsReader<'_>,
    file: SettingValue,
) -> Result<AppServiceRegistration, Reported> {
    match AppServiceRegistration::parse(&file.text) {
        Ok(registration) => {
            reader.report_as(file.setting, "(read)", file.origin);
            Ok(registration)
        }
        Err(expected) => {
            let found = format!("{} without", file.origin);
            Err(reader.invalid(file.setting, expected.to_string(), found))
        }
    }
}

/// The token of its own variable, or else of the registration file.
fn agreed_token(
    reader: &mut SettingsReader<'_>,
    setting: &'static Setting,
    value: Option<SettingValue>,
    from_file: Option<AppServiceSecret>,
) -> Result<AppServiceSecret, Reported> {
    let Some(value) = value else {
        return required(reader, setting, Ok(from_file));
    };
    let Some(token) = AppServiceSecret::parse(&value.text) else {
        let found = describe_length(&value.text);
        return Err(reader.invalid(setting, "1 to 512 visible ASCII characters", found));
    };
    if from_file.is_some_and(|other| other != token) {
        return Err(reader.conflict(setting, &LIVEKIT_AS_REGISTRATION_FILE));
    }
    reader.report_value(&value);
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{environment, errors, read_valid};

    const TOKENS: [(&str, &str); 2] = [
        ("LIVEKIT_AS_TOKEN", "never-logged-as-token-of-at-least-32"),
        ("LIVEKIT_HS_TOKEN", "never-logged-hs-token-of-at-least-32"),
    ];
    const HOMESERVER: [(&str, &str); 2] = [
        ("LIVEKIT_HS_SERVER_NAME", "example.com"),
        ("LIVEKIT_HS_URL", "http://synapse:8008/"),
    ];

    #[test]
    fn its_settings_open_its_endpoints_and_no_others() {
        let all = [TOKENS, HOMESERVER].concat();
        let (config, report) = read_valid(&all);
        let open = config.endpoints;
        assert!(open.appservice && !open.matrix && !open.token, "{report:?}");
        let appservice = config.appservice.unwrap();
        assert_eq!(appservice.client_api_url.to_string(), "http://synapse:8008");
        assert!(appservice.registration.as_token.matches(TOKENS[0].1));
        assert!(!format!("{report:?}").contains("never-logged"));
        let full_access = [("LIVEKIT_FULL_ACCESS_HOMESERVERS", "example.com")];
        let (config, report) = read_valid(&[&all[..], &full_access].concat());
        assert!(config.endpoints.matrix && config.appservice.is_some());
        assert!(report.warnings.iter().any(|w| w == BOTH_MODES_WARNING));
        let (config, _) = read_valid(&[]);
        assert!(config.endpoints.matrix && config.appservice.is_none());
    }

    #[test]
    fn an_override_of_the_client_server_api_is_the_homeserver_s_url_too() {
        let override_ = (
            "LIVEKIT_CS_API_URL_OVERRIDES",
            "example.com=https://hs.internal",
        );
        let (config, _) = read_valid(&[TOKENS, [HOMESERVER[0], override_]].concat());
        let url = config.appservice.unwrap().client_api_url;
        assert_eq!(url.to_string(), "https://hs.internal");
    }

    #[test]
    fn errors_name_the_setting_and_show_no_token() {
        let all = [TOKENS, HOMESERVER].concat();
        let without = |name: &str| {
            let others = all.iter().copied().filter(|(other, _)| *other != name);
            others.collect::<Vec<_>>()
        };
        for (name, _) in &all {
            let errors = errors(&environment(&without(name)));
            assert!(errors[0].starts_with(&format!("{name}: ")), "{errors:?}");
        }
        for (name, value) in [
            ("LIVEKIT_AS_TOKEN", "never logged"),
            ("LIVEKIT_HS_TOKEN", TOKENS[0].1),
            ("LIVEKIT_HS_SERVER_NAME", "https://example.com"),
            ("LIVEKIT_HS_URL", "wss://synapse"),
            ("LIVEKIT_HS_URL", "synapse:8008"),
            ("LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS", "0"),
            ("LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS", "3601"),
            ("LIVEKIT_AS_REGISTRATION_FILE", "/nowhere/at/all"),
            ("LIVEKIT_AS_REGISTRATION_FILE", "/etc/passwd"),
        ] {
            let mut settings = without(name);
            settings.push((name, value));
            let errors = errors(&environment(&settings)).join("\n");
            assert!(errors.starts_with(&format!("{name}: ")), "{errors}");
            assert!(!errors.contains("never"), "{errors}");
        }
    }
}
