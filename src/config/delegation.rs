//! Delegated leaves: where homeservers are told about them, and where leaves survive a crash.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::reader::{Reader, Value, quoted};
use super::values;
use crate::matrix::id::ServerName;
use crate::net::base_url::BaseUrl;

const STATE_DIR: &str = "LIVEKIT_STATE_DIR";
/// systemd's, of `StateDirectory=`: colon separated if there are several.
const STATE_DIRECTORY: &str = "STATE_DIRECTORY";
/// The value of `LIVEKIT_STATE_DIR` that is no directory.
const MEMORY: &str = "memory";

/// Where leaves are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// Nowhere: they end with the process.
    Memory,
    /// In a file in this directory.
    Directory(PathBuf),
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

pub(super) fn read(reader: &mut Reader<'_>) -> Option<Delegation> {
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
    let store = store(reader);
    Some(Delegation {
        client_api_overrides: client_api_overrides?,
        check: check.map(|every| (!every.is_zero()).then_some(every))?,
        store: store?,
    })
}

fn store(reader: &mut Reader<'_>) -> Option<Store> {
    let before = reader.errors.len();
    let given = reader.value(STATE_DIR);
    if reader.errors.len() > before {
        return None;
    }
    if given.as_ref().is_some_and(|value| value.text == MEMORY) {
        let value = given?;
        reader.report.set(value.name, value.text, value.origin);
        return Some(Store::Memory);
    }
    let Some(value) = given.or_else(|| first(reader.value(STATE_DIRECTORY)?)) else {
        reader.report.warn(format!(
            "delegated leaves are kept in memory, and a restart forgets who is in a call: {STATE_DIR} names a directory for them"
        ));
        return Some(Store::Memory);
    };
    let path = PathBuf::from(&value.text);
    if !path.is_absolute() || !Path::new(&path).is_dir() {
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
