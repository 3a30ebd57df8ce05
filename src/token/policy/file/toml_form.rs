//! The policy file as it is written, with the place of each value.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::JwtIssuerSettings;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyFileToml {
    pub(super) default: Option<Spanned<PolicyFileTomlEntry>>,
    #[serde(default)]
    pub(super) callers: BTreeMap<Spanned<String>, Spanned<PolicyFileTomlEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyFileTomlEntry {
    pub(super) keys: Option<Vec<Spanned<String>>>,
    pub(super) jwt: Option<Spanned<JwtIssuerSettings>>,
    pub(super) rooms: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) identities: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) grants: Option<Vec<Spanned<String>>>,
    pub(super) grants_on_request: Option<Vec<Spanned<String>>>,
    pub(super) sources: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) agents: Option<Vec<Spanned<String>>>,
    pub(super) max_metadata_bytes: Option<Spanned<u64>>,
    pub(super) max_attributes_bytes: Option<Spanned<u64>>,
    pub(super) lifetime_seconds: Option<Spanned<u64>>,
    pub(super) max_lifetime_seconds: Option<Spanned<u64>>,
    pub(super) random_room: Option<bool>,
    pub(super) random_identity: Option<bool>,
    pub(super) min_name_length: Option<Spanned<u64>>,
    pub(super) requests_per_minute: Option<Spanned<u64>>,
}
