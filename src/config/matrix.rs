//! Settings of the endpoints for Matrix: homeservers, access tokens, and delegated leaves.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::endpoints::OpenEndpoints;
use super::reader::{Reported, SettingValue, SettingsReader, describe_length, quote_redacted};
use super::table::{
    LIVEKIT_CAN_UPDATE_OWN_METADATA, LIVEKIT_CS_API_URL_OVERRIDES,
    LIVEKIT_FEDERATION_URL_OVERRIDES, LIVEKIT_FULL_ACCESS_HOMESERVERS, LIVEKIT_LOCAL_HOMESERVERS,
    LIVEKIT_OPENID_CACHE_SECONDS, LIVEKIT_REDIS_PASSWORD, LIVEKIT_REDIS_PASSWORD_FILE,
    LIVEKIT_REDIS_URL, LIVEKIT_REMOTE_USERS_MAY_PUBLISH, LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS,
    LIVEKIT_STATE_DIR, LIVEKIT_TOKEN_LIFETIME_SECONDS, STATE_DIRECTORY,
};
use super::values::{parse_full_access, parse_url_overrides};
use crate::delegation::store::RedisAddress;
use crate::exchange::access::FullAccessHomeservers;
use crate::matrix::id::ServerName;
use crate::net::base_url::BaseUrl;

/// The value of `LIVEKIT_STATE_DIR` that is no directory.
const MEMORY: &str = "memory";

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HomeserversConfig {
    /// Homeservers whose users have rooms created.
    pub full_access: FullAccessHomeservers,
    /// Federation URLs that replace discovery.
    pub federation_overrides: BTreeMap<ServerName, BaseUrl>,
    /// Client-server API URLs that replace discovery.
    pub client_api_overrides: BTreeMap<ServerName, BaseUrl>,
}

impl HomeserversConfig {
    /// The homeservers with full access, for logs.
    pub(crate) fn full_access_summary(&self) -> String {
        let names: Vec<_> = self.full_access.names().map(ServerName::as_str).collect();
        match (self.full_access.is_all(), names.is_empty()) {
            (true, _) => "all".into(),
            (false, true) => "none".into(),
            (false, false) => names.join(","),
        }
    }
}

pub(super) fn read_homeservers(
    reader: &mut SettingsReader<'_>,
    endpoints: OpenEndpoints,
) -> Result<HomeserversConfig, Reported> {
    let full_access = read_full_access(reader, endpoints);
    let federation_overrides = reader.parse(&LIVEKIT_FEDERATION_URL_OVERRIDES, parse_url_overrides);
    let client_api_overrides = reader.parse(&LIVEKIT_CS_API_URL_OVERRIDES, parse_url_overrides);
    Ok(HomeserversConfig {
        full_access: full_access?,
        federation_overrides: federation_overrides?,
        client_api_overrides: client_api_overrides?,
    })
}

fn read_full_access(
    reader: &mut SettingsReader<'_>,
    endpoints: OpenEndpoints,
) -> Result<FullAccessHomeservers, Reported> {
    let (current, older) = (&LIVEKIT_FULL_ACCESS_HOMESERVERS, &LIVEKIT_LOCAL_HOMESERVERS);
    let set = reader.parse_optional(current, parse_full_access);
    let set_by_older = reader.parse_optional(older, parse_full_access);
    let (set, set_by_older) = (set?, set_by_older?);
    if set_by_older.is_some() {
        let (older, current) = (older.name, current.name);
        reader.warn(format!("{older} is an older name; write {current} instead"));
    }
    let set = match (set, set_by_older) {
        (Some(current_value), Some(older_value)) if current_value != older_value => {
            return Err(reader.conflict(older, current));
        }
        (set, set_by_older) => set.or(set_by_older),
    };
    let is_set = set.is_some();
    let full_access = match set {
        Some(full_access) => full_access,
        None => {
            let value = reader.default_value(current);
            reader.parse_value(value, parse_full_access)?
        }
    };
    let name = current.name;
    if full_access.is_empty() && endpoints.matrix {
        reader.warn(format!(
            "users of all homeservers are restricted: they can join rooms that exist, and none are created for them; \
             {name}=your.server.name gives full access to yours"
        ));
    } else if full_access.is_all() && is_set {
        reader.warn(format!(
            "users of all homeservers can have rooms created on the SFU, since {name} is *"
        ));
    }
    Ok(full_access)
}

/// The access tokens of Matrix users.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AccessTokensConfig {
    /// For how long a token of the endpoints for OpenID tokens can be used to join.
    pub lifetime: Duration,
    /// The same in application-service mode.
    pub appservice_lifetime: Duration,
    /// Whether participants may change their own name, metadata and attributes.
    pub can_update_own_metadata: bool,
    /// Whether users without full access may publish.
    pub remote_users_may_publish: bool,
    /// For how long the verification of an OpenID token is cached; zero is not at all.
    pub openid_cache_ttl: Duration,
}

pub(super) fn read_access_tokens(
    reader: &mut SettingsReader<'_>,
) -> Result<AccessTokensConfig, Reported> {
    let setting = &LIVEKIT_TOKEN_LIFETIME_SECONDS;
    let lifetime = reader.integer(setting);
    let appservice_default = setting
        .appservice_default
        .and_then(|text| text.parse().ok());
    let appservice_default = appservice_default.filter(|_| !reader.is_set(setting));
    if let (Some(_), Some(row)) = (appservice_default, reader.report.settings.last_mut()) {
        row.display_value = setting.default_text();
    }
    let openid_cache = reader.integer(&LIVEKIT_OPENID_CACHE_SECONDS);
    let can_update_own_metadata = reader.boolean(&LIVEKIT_CAN_UPDATE_OWN_METADATA);
    let remote_users_may_publish = reader.boolean(&LIVEKIT_REMOTE_USERS_MAY_PUBLISH);
    let lifetime = lifetime?;
    Ok(AccessTokensConfig {
        lifetime: Duration::from_secs(lifetime),
        appservice_lifetime: Duration::from_secs(appservice_default.unwrap_or(lifetime)),
        can_update_own_metadata: can_update_own_metadata?,
        remote_users_may_publish: remote_users_may_publish?,
        openid_cache_ttl: Duration::from_secs(openid_cache?),
    })
}

#[derive(Debug, Clone)]
pub(crate) struct DelegationConfig {
    /// Time between checks with the SFU whether participants are connected; none for checks in doubt only.
    pub presence_check_interval: Option<Duration>,
    /// Where leaves are stored.
    pub store: LeaveStoreConfig,
}

/// Where delegated leaves are stored.
#[derive(Debug, Clone)]
pub(crate) enum LeaveStoreConfig {
    /// In memory: leaves end with the process.
    Memory,
    /// In a file in this directory.
    Directory(PathBuf),
    /// In a Redis that several services share.
    Redis(RedisAddress),
}

/// `may_delegate`: there are users whose leaves can be delegated. If not, the store does not matter.
pub(super) fn read_delegation(
    reader: &mut SettingsReader<'_>,
    may_delegate: bool,
) -> Result<DelegationConfig, Reported> {
    let interval = reader.integer(&LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS);
    let store = read_store(reader, may_delegate);
    let interval = Duration::from_secs(interval?);
    Ok(DelegationConfig {
        presence_check_interval: (!interval.is_zero()).then_some(interval),
        store: store?,
    })
}

/// Reads where leaves are stored: Redis comes before a directory, and `LIVEKIT_STATE_DIR` before systemd's.
fn read_store(
    reader: &mut SettingsReader<'_>,
    may_delegate: bool,
) -> Result<LeaveStoreConfig, Reported> {
    let redis = reader.value(&LIVEKIT_REDIS_URL);
    let password = reader.any_of(&[&LIVEKIT_REDIS_PASSWORD, &LIVEKIT_REDIS_PASSWORD_FILE]);
    let directory = reader.value(&LIVEKIT_STATE_DIR);
    let systemd_directory = reader.value(&STATE_DIRECTORY);
    let (redis, password, directory) = (redis?, password?, directory?);
    let systemd_directory = systemd_directory?.and_then(first_directory);
    let redis_name = LIVEKIT_REDIS_URL.name;
    if let Some(redis) = redis {
        if let Some(directory) = directory {
            let name = directory.setting.name;
            reader.warn(format!("{name} has no effect beside {redis_name}"));
        }
        return read_redis(reader, redis, password);
    }
    if let Some(password) = password {
        let name = password.setting.name;
        reader.warn(format!("{name} has no effect without {redis_name}"));
    }
    match directory.or(systemd_directory) {
        Some(value) if value.text == MEMORY => {
            reader.report_value(&value);
            Ok(LeaveStoreConfig::Memory)
        }
        Some(value) => read_directory(reader, value),
        None => {
            if may_delegate {
                let name = LIVEKIT_STATE_DIR.name;
                reader.warn(format!(
                    "delegated leaves are stored in memory, so that a restart loses them: {name} names a directory for them"
                ));
            }
            Ok(LeaveStoreConfig::Memory)
        }
    }
}

fn read_redis(
    reader: &mut SettingsReader<'_>,
    url: SettingValue,
    password: Option<SettingValue>,
) -> Result<LeaveStoreConfig, Reported> {
    match RedisAddress::parse(&url.text) {
        Ok(address) => {
            let display_text = address.to_string();
            reader.report_as(url.setting, display_text, url.origin);
            let password = password.map(|value| {
                reader.report_value(&value);
                value.text
            });
            Ok(LeaveStoreConfig::Redis(address.with_password(password)))
        }
        Err(reason) => {
            // a text that is no URL may be a password
            let expected = reason.trim_start_matches("expected ");
            Err(reader.invalid(url.setting, expected, describe_length(&url.text)))
        }
    }
}

fn read_directory(
    reader: &mut SettingsReader<'_>,
    value: SettingValue,
) -> Result<LeaveStoreConfig, Reported> {
    let path = PathBuf::from(&value.text);
    if !path.is_absolute() || !path.is_dir() {
        let expected = format!("an absolute path of a directory that exists, or {MEMORY}");
        return Err(reader.invalid(value.setting, expected, quote_redacted(&value.text)));
    }
    reader.report_value(&value);
    Ok(LeaveStoreConfig::Directory(path))
}

/// The first directory of `STATE_DIRECTORY`, in which systemd separates several by colons.
fn first_directory(value: SettingValue) -> Option<SettingValue> {
    let text = value.text.split(':').next()?.to_owned();
    (!text.is_empty()).then_some(SettingValue { text, ..value })
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{environment, errors, read_valid};

    const STATE_DIR: &str = "LIVEKIT_STATE_DIR";
    const REDIS_URL: &str = "LIVEKIT_REDIS_URL";

    fn read_store(more: &[(&str, &str)]) -> (String, Vec<String>) {
        let full_access = [("LIVEKIT_FULL_ACCESS_HOMESERVERS", "example.com")];
        let (config, report) = read_valid(&[&full_access, more].concat());
        (format!("{:?}", config.delegation.store), report.warnings)
    }

    #[test]
    fn redis_comes_before_a_directory_and_a_directory_before_memory() {
        let systemd = ("STATE_DIRECTORY", "/tmp:/usr");
        for (settings, store) in [
            (&[][..], "Memory"),
            (&[systemd], "Directory(\"/tmp\")"),
            (&[systemd, (STATE_DIR, "/usr")], "Directory(\"/usr\")"),
            (&[systemd, (STATE_DIR, "memory")], "Memory"),
            (
                &[(STATE_DIR, "/tmp"), (REDIS_URL, "redis://:secret@cache")],
                "Redis(RedisAddress(redis://cache:6379/0, credentials hidden))",
            ),
        ] {
            assert_eq!(read_store(settings).0, store);
        }
    }

    #[test]
    fn memory_draws_a_warning_unless_it_is_chosen() {
        let warned = |more: &[_]| read_store(more).1.iter().any(|w| w.contains("in memory"));
        assert!(warned(&[]));
        assert!(!warned(&[(STATE_DIR, "memory")]));
        assert!(!warned(&[(STATE_DIR, "/tmp")]));
    }

    #[test]
    fn errors_of_stores_and_overrides_show_no_password() {
        for (name, value) in [
            (STATE_DIR, "relative"),
            (STATE_DIR, "/nowhere/at/all"),
            (STATE_DIR, "/etc/passwd"),
            ("STATE_DIRECTORY", "/nowhere/at/all"),
            (REDIS_URL, "never-logged"),
            (REDIS_URL, "http://u:never-logged@h"),
            ("LIVEKIT_REDIS_PASSWORD_FILE", "/nowhere/at/all"),
            ("LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS", "-1"),
            ("LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS", "86401"),
            ("LIVEKIT_CS_API_URL_OVERRIDES", "example.com"),
            ("LIVEKIT_CS_API_URL_OVERRIDES", "example.com=ftp://x"),
        ] {
            let errors = errors(&environment(&[(name, value)])).join(" ");
            assert!(errors.starts_with(name) && !errors.contains("never-logged"));
        }
        let (_, warnings) = read_store(&[("LIVEKIT_REDIS_PASSWORD", "never-logged")]);
        assert!(warnings[0].contains("no effect without") && !warnings[0].contains("never-logged"));
    }

    #[test]
    fn full_access_has_an_older_name_and_draws_warnings() {
        const CURRENT: &str = "LIVEKIT_FULL_ACCESS_HOMESERVERS";
        let older = ("LIVEKIT_LOCAL_HOMESERVERS", "b.org a.org");
        let memory = (STATE_DIR, "memory");
        let (config, report) = read_valid(&[older]);
        assert_eq!(config.homeservers.full_access.names().count(), 2);
        assert!(report.warnings[0].starts_with("LIVEKIT_LOCAL_HOMESERVERS is an older name"));
        let (config, report) = read_valid(&[older, (CURRENT, "a.org,b.org"), memory]);
        assert_eq!(config.homeservers.full_access.names().count(), 2);
        assert_eq!(report.warnings.len(), 1);
        assert_eq!(
            errors(&environment(&[older, (CURRENT, "a.org")])),
            [format!(
                "{}: expected the same as in {CURRENT}, found another value",
                older.0
            )]
        );
        let (config, report) = read_valid(&[(CURRENT, "*")]);
        assert!(config.homeservers.full_access.is_all());
        assert!(report.warnings[0].starts_with("users of all homeservers can have rooms created"));
        let (_, report) = read_valid(&[(CURRENT, "a.org"), memory]);
        assert_eq!(report.warnings, [""; 0]);
    }

    #[test]
    fn the_lifetime_of_access_tokens_is_shorter_in_application_service_mode_unless_it_is_set() {
        let lifetimes = |more: &[_]| {
            let tokens = read_valid(more).0.access_tokens;
            [tokens.lifetime, tokens.appservice_lifetime].map(|lifetime| lifetime.as_secs())
        };
        assert_eq!(lifetimes(&[]), [3600, 600]);
        let set = [("LIVEKIT_TOKEN_LIFETIME_SECONDS", "1800")];
        assert_eq!(lifetimes(&set), [1800, 1800]);
    }
}
