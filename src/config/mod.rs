//! Settings: from the environment and the files that it names to a [`Config`], or to everything that is wrong with them.

pub(crate) mod appservice;
mod bind;
pub(crate) mod delegation;
pub(crate) mod egress;
mod environment;
mod keys;
mod reader;
mod report;
mod settings;
pub(crate) mod table;
#[cfg(test)]
mod tests;
mod token_endpoint;
mod values;

use std::collections::BTreeMap;
use std::time::Duration;
use std::{fmt, io};

use log::LevelFilter;

pub(crate) use self::bind::BindAddress;
pub use self::environment::Environment;
use self::reader::{SettingsReader, quote_redacted};
pub(crate) use self::report::{ConfigReport, SettingOrigin};
pub(crate) use self::token_endpoint::{OpenEndpoints, TokenEndpointConfig};
use crate::exchange::access::FullAccessHomeservers;
use crate::livekit::access_token::ApiKey;
use crate::matrix::id::ServerName;
use crate::net::address::{AddressPolicy, Network};
use crate::net::base_url::BaseUrl;
use crate::net::tls::RootCertificates;
use crate::util::logging::LogFormat;

/// Everything that an administrator decides.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub bind: BindAddress,
    /// Where to show metrics.
    pub metrics_bind: Option<BindAddress>,
    /// Whether Matrix's endpoints are open.
    pub matrix_enabled: bool,
    /// The homeserver that has this service for an application service, if one has.
    pub appservice: Option<appservice::AppServiceConfig>,
    /// The general endpoint, if that is open.
    pub token_endpoint: Option<TokenEndpointConfig>,
    /// Requests for tokens of one public address in a minute; zero is without limit.
    pub rate_per_address: u32,
    /// The most talkative level that is logged.
    pub log_level: LevelFilter,
    /// What log lines look like.
    pub log_format: LogFormat,
    /// `LIVEKIT_URL`, checked and unchanged: clients are told exactly this.
    pub sfu_url: String,
    /// Where this service reaches the SFU.
    pub sfu_api_url: BaseUrl,
    /// The SFU's API keys, never empty; the first signs.
    pub api_keys: Vec<ApiKey>,
    /// Whose users get rooms created.
    pub full_access: FullAccessHomeservers,
    /// Homeservers that are not looked up but asked at this URL.
    pub federation_overrides: BTreeMap<ServerName, BaseUrl>,
    /// Networks where any homeserver may be.
    pub allowed_networks: Vec<Network>,
    /// Networks where no homeserver may be, unless allowed.
    pub denied_networks: Vec<Network>,
    /// The way to homeservers and logins.
    pub egress: egress::EgressConfig,
    /// Proxies, beside loopback, that are believed about whom a request is from.
    pub trusted_proxies: Vec<Network>,
    /// Connections of clients in all.
    pub max_connections: usize,
    /// Connections of one public address.
    pub max_connections_per_address: usize,
    /// The certificate authorities that are believed.
    pub roots: RootCertificates,
    /// Whether certificates of homeservers go unchecked.
    pub insecure_skip_verify_tls: bool,
    /// For how long a token can be used to join.
    pub token_lifetime: Duration,
    /// Whether participants may change their own name, metadata and attributes.
    pub can_update_own_metadata: bool,
    /// Whether users without full access may publish.
    pub remote_users_may_publish: bool,
    /// For how long a verified OpenID token is remembered; zero is not at all.
    pub openid_cache_ttl: Duration,
    /// Delegated leaves.
    pub delegation: delegation::DelegationConfig,
}

/// A setting that cannot be used. Never holds a secret.
#[derive(Debug)]
pub enum Error {
    /// A value other than those that the setting takes.
    Invalid {
        /// The variable.
        name: &'static str,
        /// What it takes.
        expected: String,
        /// What it holds; of a secret only the length.
        found: String,
    },
    /// A setting without which nothing works.
    Missing {
        /// The variable.
        name: &'static str,
        /// What it takes.
        expected: String,
    },
    /// Two variables that mean the same and differ.
    Conflict {
        /// The variable.
        name: &'static str,
        /// The one before it.
        other: &'static str,
    },
    /// A file that cannot be read.
    Unreadable {
        /// The variable that names it.
        name: &'static str,
        /// The file.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid {
                name,
                expected,
                found,
            } => write!(f, "{name}: expected {expected}, found {found}"),
            Self::Missing { name, expected } => {
                write!(f, "{name}: expected {expected}, found nothing")
            }
            Self::Conflict { name, other } => {
                write!(
                    f,
                    "{name}: expected the same as in {other}, found another value"
                )
            }
            Self::Unreadable { name, path, source } => {
                write!(
                    f,
                    "{name}: expected a readable file, found {path}: {source}"
                )
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// What holds where nothing is set.
struct DefaultSettings {
    sfu_url: Option<&'static str>,
    bind: &'static str,
    full_access: &'static str,
    dev: bool,
}

impl DefaultSettings {
    const SERVE: Self = Self {
        sfu_url: None,
        bind: ":8080",
        full_access: "",
        dev: false,
    };
    const DEV: Self = Self {
        sfu_url: Some("ws://localhost:7880"),
        bind: "127.0.0.1:8080",
        full_access: "*",
        dev: true,
    };

    fn origin(&self) -> SettingOrigin {
        if self.dev {
            SettingOrigin::DevDefault
        } else {
            SettingOrigin::Default
        }
    }
}

impl Config {
    /// Reads all settings. The report holds warnings whether they can be used or not; errors come all at once.
    pub fn read_with_defaults(env: &Environment) -> (Result<Self, Vec<Error>>, ConfigReport) {
        read(env, &DefaultSettings::SERVE)
    }

    /// Where a service with these settings listens; no other setting is looked at.
    pub fn read_bind(env: &Environment) -> Result<BindAddress, Vec<Error>> {
        let mut reader = SettingsReader::new(env);
        let defaults = DefaultSettings::SERVE;
        match bind::read(&mut reader, defaults.bind, defaults.origin()) {
            Some((bind, _)) => Ok(bind),
            None => Err(reader.errors),
        }
    }

    /// As [`Config::read`], for `--dev`: an SFU in its own `--dev` mode on this host, full access for everyone, loopback only.
    pub fn read_dev(env: &Environment) -> (Result<Self, Vec<Error>>, ConfigReport) {
        read(env, &DefaultSettings::DEV)
    }
}

fn read(
    env: &Environment,
    defaults: &DefaultSettings,
) -> (Result<Config, Vec<Error>>, ConfigReport) {
    let mut reader = SettingsReader::new(env);
    let config = read_settings(&mut reader, defaults);
    table::warn_unknown_names(env, &mut reader.report);
    let result = match config {
        Some(config) if reader.errors.is_empty() => Ok(config),
        _ => Err(reader.errors),
    };
    (result, reader.report)
}

/// Reads every setting before it gives up on one.
fn read_settings(reader: &mut SettingsReader<'_>, defaults: &DefaultSettings) -> Option<Config> {
    let url = settings::read_sfu_url(reader, defaults);
    let api_url = settings::read_sfu_api_url(reader, url.as_ref());
    let keys = keys::read(reader, defaults.dev);
    let bind = bind::read(reader, defaults.bind, defaults.origin());
    if let (Some((bind, name)), Some(keys)) = (&bind, &keys)
        && defaults.dev
        && keys.includes_dev_key_pair
        && !bind.is_local()
    {
        let expected = "a loopback address or a unix socket while --dev signs with a secret that everybody knows";
        reader.push_invalid(name, expected, quote_redacted(&bind.to_string()));
    }
    let metrics_bind = bind::read_metrics_bind(reader);
    let doors = token_endpoint::find_open_endpoints(reader, defaults);
    let full_access = settings::read_full_access(reader, defaults, doors);
    let federation_overrides = reader.parse_or_default(
        "LIVEKIT_FEDERATION_URL_OVERRIDES",
        "",
        values::URL_OVERRIDES_EXPECTED,
        values::parse_url_overrides,
    );
    let mut networks =
        |name| reader.parse_or_default(name, "", values::NETWORKS_EXPECTED, values::parse_networks);
    let allowed_networks = networks("LIVEKIT_ALLOWED_NETWORKS");
    let denied_networks = networks("LIVEKIT_DENIED_NETWORKS");
    let trusted_proxies = networks("LIVEKIT_TRUSTED_PROXIES");
    let egress = egress::read(reader);
    let max_connections = reader.parse_or_default(
        "LIVEKIT_MAX_CONNECTIONS",
        "16384",
        "16 to 1000000",
        |text| values::parse_number(text, 16..=1_000_000),
    );
    let max_connections_per_address = reader.parse_or_default(
        "LIVEKIT_MAX_CONNECTIONS_PER_ADDRESS",
        "256",
        "1 to 1000000",
        |text| values::parse_number(text, 1..=1_000_000),
    );
    let rate_per_address = reader.parse_or_default(
        "LIVEKIT_RATE_PER_ADDRESS",
        "300",
        "0 to 1000000 requests a minute",
        |text| values::parse_number(text, 0..=1_000_000),
    );
    let local = bind.as_ref().is_some_and(|(bind, _)| bind.is_local());
    let token_server = doors.token.then(|| {
        let networks = [&allowed_networks, &denied_networks].map(|n| n.clone().unwrap_or_default());
        let [allowed, denied] = networks;
        let networks = AddressPolicy::new(allowed, denied);
        token_endpoint::read(reader, defaults.dev && local, &networks)
    });
    let roots = settings::read_certificate_authorities(reader);
    let insecure_skip_verify_tls = settings::read_insecure_skip_verify_tls(reader);
    let token_lifetime = reader.parse_or_default(
        "LIVEKIT_TOKEN_LIFETIME_SECONDS",
        "3600",
        "60 to 86400 seconds",
        |text| values::parse_seconds(text, 60..=86_400),
    );
    let openid_cache = reader.parse_or_default(
        "LIVEKIT_OPENID_CACHE_SECONDS",
        "30",
        "0 to 300 seconds",
        |text| values::parse_seconds(text, 0..=300),
    );
    let anybody = full_access.as_ref().is_some_and(|full| !full.is_empty());
    let anybody = anybody && doors.matrix || doors.appservice;
    let delegation = delegation::read(reader, anybody && !defaults.dev);
    let appservice = doors.appservice.then(|| {
        let overrides = delegation.as_ref().map(|d| &d.client_api_overrides);
        appservice::read(reader, token_lifetime, overrides)
    });
    if doors.appservice && doors.matrix {
        reader.report.add_warning(appservice::BOTH_MODES_WARNING);
    }
    let mut boolean = |name, default| {
        reader.parse_or_default(
            name,
            default,
            values::BOOLEAN_EXPECTED,
            values::parse_boolean,
        )
    };
    let can_update_own_metadata = boolean("LIVEKIT_CAN_UPDATE_OWN_METADATA", "false");
    let remote_users_may_publish = boolean("LIVEKIT_REMOTE_USERS_MAY_PUBLISH", "true");
    let log_level = reader.parse_or_default(
        "LIVEKIT_LOG_LEVEL",
        "info",
        values::LOG_LEVEL_EXPECTED,
        values::parse_log_level,
    );
    let log_format = reader.parse_or_default(
        "LIVEKIT_LOG_FORMAT",
        "logfmt",
        values::LOG_FORMAT_EXPECTED,
        values::parse_log_format,
    );
    Some(Config {
        bind: bind?.0,
        metrics_bind: metrics_bind?,
        matrix_enabled: doors.matrix,
        appservice: match appservice {
            Some(read) => Some(read?),
            None => None,
        },
        token_endpoint: match token_server {
            Some(read) => Some(read?),
            None => None,
        },
        rate_per_address: u32::try_from(rate_per_address?).ok()?,
        log_level: log_level?,
        log_format: log_format?,
        sfu_url: url?.0,
        sfu_api_url: api_url?,
        api_keys: keys?.keys,
        full_access: full_access?,
        federation_overrides: federation_overrides?,
        allowed_networks: allowed_networks?,
        denied_networks: denied_networks?,
        egress: egress?,
        trusted_proxies: trusted_proxies?,
        max_connections: max_connections?,
        max_connections_per_address: max_connections_per_address?,
        roots,
        insecure_skip_verify_tls,
        token_lifetime: token_lifetime?,
        can_update_own_metadata: can_update_own_metadata?,
        remote_users_may_publish: remote_users_may_publish?,
        openid_cache_ttl: openid_cache?,
        delegation: delegation?,
    })
}
