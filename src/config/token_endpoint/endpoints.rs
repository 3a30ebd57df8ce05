//! Which endpoints the settings open.

use super::super::reader::SettingsReader;
use super::super::{DefaultSettings, appservice};

/// Settings that are for standalone Matrix alone: any of them opens its door.
const STANDALONE_SETTINGS: [&str; 6] = [
    "LIVEKIT_FULL_ACCESS_HOMESERVERS",
    "LIVEKIT_LOCAL_HOMESERVERS",
    "LIVEKIT_FEDERATION_URL_OVERRIDES",
    "LIVEKIT_CAN_UPDATE_OWN_METADATA",
    "LIVEKIT_REMOTE_USERS_MAY_PUBLISH",
    "LIVEKIT_OPENID_CACHE_SECONDS",
];
/// Settings that both ways of serving Matrix have: any of them opens that door, unless they are there for the homeserver that has
/// this service for an application service.
const SHARED_MATRIX_SETTINGS: [&str; 10] = [
    "LIVEKIT_KEY",
    "LIVEKIT_KEY_FROM_FILE",
    "LIVEKIT_KEY_FILE",
    "LIVEKIT_KEYS",
    "LIVEKIT_INSECURE_SKIP_VERIFY_TLS",
    "LIVEKIT_TOKEN_LIFETIME_SECONDS",
    "LIVEKIT_CS_API_URL_OVERRIDES",
    "LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS",
    "LIVEKIT_REDIS_URL",
    "LIVEKIT_REDIS_PASSWORD",
];
/// Settings that are for the general endpoint: any of them opens its door.
const TOKEN_ENDPOINT_SETTINGS: [&str; 13] = [
    "TOKEN_SERVER_AUTH",
    "TOKEN_SERVER_API_KEYS",
    "TOKEN_SERVER_API_KEYS_FILE",
    "TOKEN_SERVER_POLICY_FILE",
    "TOKEN_SERVER_JWT_ISSUER",
    "TOKEN_SERVER_JWT_AUDIENCE",
    "TOKEN_SERVER_JWT_KEYS",
    "TOKEN_SERVER_JWT_SECRET",
    "TOKEN_SERVER_JWT_SECRET_FILE",
    "TOKEN_SERVER_JWT_IDENTITY_CLAIM",
    "TOKEN_SERVER_MIN_NAME_LENGTH",
    "TOKEN_SERVER_RATE_PER_CALLER",
    "TOKEN_SERVER_PORT",
];
/// LiveKit's own name of the key opens it as well, where an application service does not need the key itself.
const API_KEY: &str = "LIVEKIT_API_KEY";

/// Which doors are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenEndpoints {
    /// `/get_token` and `/sfu/get`.
    pub matrix: bool,
    /// `/token`.
    pub token: bool,
    /// What our homeserver passes on to us.
    pub appservice: bool,
}

/// Which doors the settings open. Without any that says so, it is Matrix's.
pub(in crate::config) fn find_open_endpoints(
    reader: &SettingsReader<'_>,
    defaults: &DefaultSettings,
) -> OpenEndpoints {
    let any = |names: &[&'static str]| names.iter().any(|name| reader.is_set(name));
    let appservice = any(&appservice::ENABLING_SETTINGS);
    let general = defaults.dev || any(&TOKEN_ENDPOINT_SETTINGS) || !appservice && any(&[API_KEY]);
    let either = || any(&SHARED_MATRIX_SETTINGS) || !general;
    OpenEndpoints {
        matrix: defaults.dev || any(&STANDALONE_SETTINGS) || !appservice && either(),
        token: general,
        appservice,
    }
}
