//! Delegated leaves: where homeservers are told about them, and where leaves survive a crash.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::reader::{Reader, Value, characters, masked, quoted};
use super::{Error, values};
use crate::journal::Address;
use crate::matrix::id::ServerName;
use crate::net::base_url::BaseUrl;

const REDIS: &str = "LIVEKIT_REDIS_URL";
const PASSWORD: &str = "LIVEKIT_REDIS_PASSWORD";
const PASSWORD_FILE: &str = "LIVEKIT_REDIS_PASSWORD_FILE";
const STATE_DIR: &str = "LIVEKIT_STATE_DIR";
/// systemd's, of `StateDirectory=`: colon separated if there are several.
const STATE_DIRECTORY: &str = "STATE_DIRECTORY";
/// The value of `LIVEKIT_STATE_DIR` that is no directory.
const MEMORY: &str = "memory";

/// Where leaves are kept.
#[derive(Debug, Clone)]
pub enum Store {
    /// Nowhere: they end with the process.
    Memory,
    /// In a file in this directory.
    Directory(PathBuf),
    /// In a Redis, where others like us find them.
    Redis(Address),
}

/// Everything about delegated leaves.
#[derive(Debug, Clone)]
pub struct Delegation {
    /// Homeservers whose client-server API is not looked up but called at this URL.
    pub client_api_overrides: BTreeMap<ServerName, BaseUrl>,
    /// How often the SFU is asked about those who are connected; none is only in doubt.
    pub check: Option<Duration>,
    /// Where leaves are kept.
    pub store: Store,
}

/// `anybody` may hand us their leave: else it does not matter where leaves are kept.
pub(super) fn read(reader: &mut Reader<'_>, anybody: bool) -> Option<Delegation> {
    let client_api_overrides = reader.parsed(
        "LIVEKIT_CS_API_URL_OVERRIDES",
        "",
        values::OVERRIDES,
        values::overrides,
    );
    let check = reader.parsed(
        "LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS",
        "60",
        "0 to 86400 seconds",
        |text| values::seconds(text, 0..=86_400),
    );
    let store = store(reader, anybody);
    Some(Delegation {
        client_api_overrides: client_api_overrides?,
        check: check.map(|every| (!every.is_zero()).then_some(every))?,
        store: store?,
    })
}

/// Redis before a directory, and a directory of ours before systemd's.
fn store(reader: &mut Reader<'_>, anybody: bool) -> Option<Store> {
    let before = reader.errors.len();
    let (redis, password) = (reader.value(REDIS), password(reader));
    let given = reader.value(STATE_DIR);
    let systemds = reader.value(STATE_DIRECTORY).and_then(first);
    if reader.errors.len() > before {
        return None;
    }
    if let Some(url) = redis {
        for value in given.iter() {
            let name = value.name;
            reader
                .report
                .warn(format!("{name} has no effect beside {REDIS}"));
        }
        return self::redis(reader, url, password);
    }
    if let Some(password) = password {
        let name = password.name;
        reader
            .report
            .warn(format!("{name} has no effect without {REDIS}"));
    }
    match given.or(systemds) {
        Some(value) if value.text == MEMORY => {
            reader.report.set(value.name, value.text, value.origin);
            Some(Store::Memory)
        }
        Some(value) => directory(reader, value),
        None => {
            if anybody {
                reader.report.warn(format!(
                    "delegated leaves are kept in memory, and a restart forgets who is in a call: {STATE_DIR} names a directory for them"
                ));
            }
            Some(Store::Memory)
        }
    }
}

fn redis(reader: &mut Reader<'_>, url: Value, password: Option<Value>) -> Option<Store> {
    match Address::parse(&url.text) {
        Ok(address) => {
            reader.report.set(url.name, address.to_string(), url.origin);
            let password = password.map(|value| {
                let shown = masked(&value.text);
                reader.report.set(value.name, shown, value.origin);
                value.text
            });
            Some(Store::Redis(address.with_password(password)))
        }
        Err(reason) => {
            // what looks like no URL may be a password
            let expected = reason.trim_start_matches("expected ");
            reader.wrong(url.name, expected, characters(&url.text));
            None
        }
    }
}

/// The password of Redis, from a variable or a file.
fn password(reader: &mut Reader<'_>) -> Option<Value> {
    let direct = reader.value(PASSWORD);
    let mut file = reader.file(PASSWORD_FILE);
    if let Some(file) = &mut file {
        file.text = file.text.trim().to_owned();
    }
    if let (Some(direct), Some(file)) = (&direct, &file)
        && direct.text != file.text
    {
        reader.errors.push(Error::Conflict {
            name: PASSWORD_FILE,
            other: PASSWORD,
        });
    }
    direct.or(file)
}

fn directory(reader: &mut Reader<'_>, value: Value) -> Option<Store> {
    let path = PathBuf::from(&value.text);
    if !path.is_absolute() || !path.is_dir() {
        let expected = format!("an absolute path of a directory that exists, or {MEMORY}");
        reader.wrong(value.name, expected, quoted(&value.text));
        return None;
    }
    reader.report.set(value.name, value.text, value.origin);
    Some(Store::Directory(path))
}

/// The first of systemd's directories.
fn first(value: Value) -> Option<Value> {
    let text = value.text.split(':').next()?.to_owned();
    (!text.is_empty()).then_some(Value { text, ..value })
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Environment};
    use super::*;

    fn read(more: &[(&'static str, &str)]) -> (Result<Store, String>, String) {
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
        let (config, report) = Config::read(&env);
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
        let redis = [(STATE_DIR, "/tmp"), (REDIS, "redis://:secret@cache")];
        assert_eq!(
            place(&redis),
            "Redis(Address(redis://cache:6379/0, login hidden))"
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
            (REDIS, "never-logged"),
            (REDIS, "http://u:never-logged@h"),
            (PASSWORD_FILE, "/nowhere/at/all"),
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
        let (_, warnings) = read(&[(PASSWORD, "never-logged")]);
        assert!(warnings.contains("no effect without") && !warnings.contains("never-logged"));
    }
}
