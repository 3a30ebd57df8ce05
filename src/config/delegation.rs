//! Delegated leaves: where homeservers are told about them, and where leaves survive a crash.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::reader::{SettingValue, SettingsReader, describe_length, mask_secret, quote_redacted};
use super::{Error, values};
use crate::delegation::store::RedisAddress;
use crate::matrix::id::ServerName;
use crate::net::base_url::BaseUrl;

const REDIS_URL: &str = "LIVEKIT_REDIS_URL";
const REDIS_PASSWORD: &str = "LIVEKIT_REDIS_PASSWORD";
const REDIS_PASSWORD_FILE: &str = "LIVEKIT_REDIS_PASSWORD_FILE";
const STATE_DIR: &str = "LIVEKIT_STATE_DIR";
/// systemd's, of `StateDirectory=`: colon separated if there are several.
const STATE_DIRECTORY: &str = "STATE_DIRECTORY";
/// The value of `LIVEKIT_STATE_DIR` that is no directory.
const MEMORY: &str = "memory";

/// Where leaves are kept.
#[derive(Debug, Clone)]
pub enum LeaveStoreConfig {
    /// Nowhere: they end with the process.
    Memory,
    /// In a file in this directory.
    Directory(PathBuf),
    /// In a Redis, where others like us find them.
    Redis(RedisAddress),
}

/// Everything about delegated leaves.
#[derive(Debug, Clone)]
pub struct DelegationConfig {
    /// Homeservers whose client-server API is not looked up but called at this URL.
    pub client_api_overrides: BTreeMap<ServerName, BaseUrl>,
    /// How often the SFU is asked about those who are connected; none is only in doubt.
    pub presence_check_interval: Option<Duration>,
    /// Where leaves are kept.
    pub store: LeaveStoreConfig,
}

/// `anybody` may hand us their leave: else it does not matter where leaves are kept.
pub(super) fn read(reader: &mut SettingsReader<'_>, anybody: bool) -> Option<DelegationConfig> {
    let client_api_overrides = reader.parse_or_default(
        "LIVEKIT_CS_API_URL_OVERRIDES",
        "",
        values::URL_OVERRIDES_EXPECTED,
        values::parse_url_overrides,
    );
    let check = reader.parse_or_default(
        "LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS",
        "60",
        "0 to 86400 seconds",
        |text| values::parse_seconds(text, 0..=86_400),
    );
    let store = read_store(reader, anybody);
    Some(DelegationConfig {
        client_api_overrides: client_api_overrides?,
        presence_check_interval: check.map(|every| (!every.is_zero()).then_some(every))?,
        store: store?,
    })
}

/// Redis before a directory, and a directory of ours before systemd's.
fn read_store(reader: &mut SettingsReader<'_>, anybody: bool) -> Option<LeaveStoreConfig> {
    let before = reader.errors.len();
    let (redis, password) = (reader.read_value(REDIS_URL), read_redis_password(reader));
    let given = reader.read_value(STATE_DIR);
    let systemds = reader.read_value(STATE_DIRECTORY).and_then(first_directory);
    if reader.errors.len() > before {
        return None;
    }
    if let Some(url) = redis {
        for value in given.iter() {
            let name = value.name;
            reader
                .report
                .add_warning(format!("{name} has no effect beside {REDIS_URL}"));
        }
        return self::read_redis(reader, url, password);
    }
    if let Some(password) = password {
        let name = password.name;
        reader
            .report
            .add_warning(format!("{name} has no effect without {REDIS_URL}"));
    }
    match given.or(systemds) {
        Some(value) if value.text == MEMORY => {
            reader
                .report
                .add_setting(value.name, value.text, value.origin);
            Some(LeaveStoreConfig::Memory)
        }
        Some(value) => read_directory(reader, value),
        None => {
            if anybody {
                reader.report.add_warning(format!(
                    "delegated leaves are kept in memory, and a restart forgets who is in a call: {STATE_DIR} names a directory for them"
                ));
            }
            Some(LeaveStoreConfig::Memory)
        }
    }
}

fn read_redis(
    reader: &mut SettingsReader<'_>,
    url: SettingValue,
    password: Option<SettingValue>,
) -> Option<LeaveStoreConfig> {
    match RedisAddress::parse(&url.text) {
        Ok(address) => {
            reader
                .report
                .add_setting(url.name, address.to_string(), url.origin);
            let password = password.map(|value| {
                let shown = mask_secret(&value.text);
                reader.report.add_setting(value.name, shown, value.origin);
                value.text
            });
            Some(LeaveStoreConfig::Redis(address.with_password(password)))
        }
        Err(reason) => {
            // what looks like no URL may be a password
            let expected = reason.trim_start_matches("expected ");
            reader.push_invalid(url.name, expected, describe_length(&url.text));
            None
        }
    }
}

/// The password of Redis, from a variable or a file.
fn read_redis_password(reader: &mut SettingsReader<'_>) -> Option<SettingValue> {
    let direct = reader.read_value(REDIS_PASSWORD);
    let mut file = reader.read_file(REDIS_PASSWORD_FILE);
    if let Some(file) = &mut file {
        file.text = file.text.trim().to_owned();
    }
    if let (Some(direct), Some(file)) = (&direct, &file)
        && direct.text != file.text
    {
        reader.errors.push(Error::Conflict {
            name: REDIS_PASSWORD_FILE,
            other: REDIS_PASSWORD,
        });
    }
    direct.or(file)
}

fn read_directory(
    reader: &mut SettingsReader<'_>,
    value: SettingValue,
) -> Option<LeaveStoreConfig> {
    let path = PathBuf::from(&value.text);
    if !path.is_absolute() || !path.is_dir() {
        let expected = format!("an absolute path of a directory that exists, or {MEMORY}");
        reader.push_invalid(value.name, expected, quote_redacted(&value.text));
        return None;
    }
    reader
        .report
        .add_setting(value.name, value.text, value.origin);
    Some(LeaveStoreConfig::Directory(path))
}

/// The first of systemd's directories.
fn first_directory(value: SettingValue) -> Option<SettingValue> {
    let text = value.text.split(':').next()?.to_owned();
    (!text.is_empty()).then_some(SettingValue { text, ..value })
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Environment};
    use super::*;

    fn read(more: &[(&'static str, &str)]) -> (Result<LeaveStoreConfig, String>, String) {
        let needed = [
            ("LIVEKIT_URL", "wss://sfu.example.com"),
            ("LIVEKIT_KEY", "APIkey"),
            (
                "LIVEKIT_SECRET",
                "a-secret-of-at-least-thirty-two-characters",
            ),
            ("LIVEKIT_FULL_ACCESS_HOMESERVERS", "example.com"),
        ];
        let env: Environment = needed.iter().chain(more).copied().collect();
        let (config, report) = Config::read_with_defaults(&env);
        let shown = format!("{:?}", report.warnings());
        let config = config.map_err(|errors| format!("{errors:?}"));
        (config.map(|config| config.delegation.store), shown)
    }

    #[test]
    fn leaves_are_kept_where_the_administrator_says() {
        let place = |more: &[_]| format!("{:?}", read(more).0.unwrap());
        assert_eq!(place(&[]), "Memory");
        assert_eq!(
            place(&[("STATE_DIRECTORY", "/tmp:/usr")]),
            "Directory(\"/tmp\")"
        );
        let both = [("STATE_DIRECTORY", "/tmp"), (STATE_DIR, "/usr")];
        assert_eq!(place(&both), "Directory(\"/usr\")");
        assert_eq!(
            place(&[("STATE_DIRECTORY", "/tmp"), (STATE_DIR, "memory")]),
            "Memory"
        );
        let redis = [(STATE_DIR, "/tmp"), (REDIS_URL, "redis://:secret@cache")];
        assert_eq!(
            place(&redis),
            "Redis(RedisAddress(redis://cache:6379/0, credentials hidden))"
        );
    }

    #[test]
    fn memory_is_warned_of_unless_it_was_asked_for() {
        let warns = |more: &[_]| read(more).1.contains("kept in memory");
        assert!(warns(&[]));
        assert!(!warns(&[(STATE_DIR, "memory")]));
        assert!(!warns(&[(STATE_DIR, "/tmp")]));
    }

    #[test]
    fn a_wrong_place_stops_the_start_and_no_password_is_shown() {
        for (name, value) in [
            (STATE_DIR, "relative"),
            (STATE_DIR, "/nowhere/at/all"),
            (STATE_DIR, "/etc/passwd"),
            (STATE_DIRECTORY, "/nowhere/at/all"),
            (REDIS_URL, "never-logged"),
            (REDIS_URL, "http://u:never-logged@h"),
            (REDIS_PASSWORD_FILE, "/nowhere/at/all"),
            ("LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS", "-1"),
            ("LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS", "86401"),
            ("LIVEKIT_CS_API_URL_OVERRIDES", "example.com"),
            ("LIVEKIT_CS_API_URL_OVERRIDES", "example.com=ftp://x"),
        ] {
            let error = read(&[(name, value)]).0.unwrap_err();
            assert!(
                error.contains(name) && !error.contains("never-logged"),
                "{error}"
            );
        }
        let (_, warnings) = read(&[(REDIS_PASSWORD, "never-logged")]);
        assert!(warnings.contains("no effect without") && !warnings.contains("never-logged"));
    }
}
