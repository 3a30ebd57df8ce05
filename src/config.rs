//! Settings: from the environment and the files that it names to a [`Config`], or to everything that is wrong with them.

pub mod appservice;
mod bind;
pub mod delegation;
pub mod egress;
mod environment;
mod keys;
pub(crate) mod known;
mod reader;
mod report;
mod settings;
mod token_server;
mod values;

use std::collections::BTreeMap;
use std::time::Duration;
use std::{fmt, io};

use log::LevelFilter;

pub use self::bind::Bind;
pub use self::environment::Environment;
use self::reader::{Reader, quoted};
pub use self::report::{Origin, Report, Setting};
pub use self::token_server::{Callers, Doors, Login, LoginKeys, TokenServer};
use crate::access::FullAccess;
use crate::livekit::token::ApiKey;
use crate::logger::Format;
use crate::matrix::id::ServerName;
use crate::net::address::{AddressPolicy, Network};
use crate::net::base_url::BaseUrl;
use crate::net::tls::Roots;

/// Everything that an administrator decides.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub bind: Bind,
    /// Where to show metrics.
    pub metrics_bind: Option<Bind>,
    /// Whether Matrix's endpoints are open.
    pub matrix: bool,
    /// The homeserver that has this service for an application service, if one has.
    pub appservice: Option<appservice::AppService>,
    /// The general endpoint, if that is open.
    pub token_server: Option<TokenServer>,
    /// Requests for tokens of one public address in a minute; zero is without limit.
    pub rate_per_address: u32,
    /// The most talkative level that is logged.
    pub log_level: LevelFilter,
    /// What log lines look like.
    pub log_format: Format,
    /// `LIVEKIT_URL`, checked and unchanged: clients are told exactly this.
    pub url: String,
    /// Where this service reaches the SFU.
    pub api_url: BaseUrl,
    /// The SFU's API keys, never empty; the first signs.
    pub keys: Vec<ApiKey>,
    /// Whose users get rooms created.
    pub full_access: FullAccess,
    /// Homeservers that are not looked up but asked at this URL.
    pub federation_overrides: BTreeMap<ServerName, BaseUrl>,
    /// Networks where any homeserver may be.
    pub allowed_networks: Vec<Network>,
    /// Networks where no homeserver may be, unless allowed.
    pub denied_networks: Vec<Network>,
    /// The way to homeservers and logins.
    pub egress: egress::Egress,
    /// Proxies, beside loopback, that are believed about whom a request is from.
    pub trusted_proxies: Vec<Network>,
    /// Connections of clients in all.
    pub max_connections: usize,
    /// Connections of one public address.
    pub max_connections_per_address: usize,
    /// The certificate authorities that are believed.
    pub roots: Roots,
    /// Whether certificates of homeservers go unchecked.
    pub insecure_skip_verify_tls: bool,
    /// For how long a token can be used to join.
    pub token_lifetime: Duration,
    /// Whether participants may change their own name, metadata and attributes.
    pub can_update_own_metadata: bool,
    /// Whether users without full access may publish.
    pub remote_users_may_publish: bool,
    /// For how long a verified OpenID token is remembered; zero is not at all.
    pub openid_cache: Duration,
    /// Delegated leaves.
    pub delegation: delegation::Delegation,
}

/// A setting that cannot be used. Never holds a secret.
#[derive(Debug)]
pub enum Error {
    /// A value other than those that the setting takes.
    Wrong {
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
            Self::Wrong {
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
struct Defaults {
    url: Option<&'static str>,
    bind: &'static str,
    full_access: &'static str,
    dev: bool,
}

impl Defaults {
    const SERVE: Self = Self {
        url: None,
        bind: ":8080",
        full_access: "",
        dev: false,
    };
    const DEV: Self = Self {
        url: Some("ws://localhost:7880"),
        bind: "127.0.0.1:8080",
        full_access: "*",
        dev: true,
    };

    fn origin(&self) -> Origin {
        if self.dev {
            Origin::Dev
        } else {
            Origin::Default
        }
    }
}

impl Config {
    /// Reads all settings. The report holds warnings whether they can be used or not; errors come all at once.
    pub fn read(env: &Environment) -> (Result<Self, Vec<Error>>, Report) {
        read(env, &Defaults::SERVE)
    }

    /// Where a service with these settings listens; no other setting is looked at.
    pub fn bind(env: &Environment) -> Result<Bind, Vec<Error>> {
        let mut reader = Reader::new(env);
        let defaults = Defaults::SERVE;
        match bind::read(&mut reader, defaults.bind, defaults.origin()) {
            Some((bind, _)) => Ok(bind),
            None => Err(reader.errors),
        }
    }

    /// As [`Config::read`], for `--dev`: an SFU in its own `--dev` mode on this host, full access for everyone, loopback only.
    pub fn dev(env: &Environment) -> (Result<Self, Vec<Error>>, Report) {
        read(env, &Defaults::DEV)
    }
}

fn read(env: &Environment, defaults: &Defaults) -> (Result<Config, Vec<Error>>, Report) {
    let mut reader = Reader::new(env);
    let config = config(&mut reader, defaults);
    known::warn_of_names(env, &mut reader.report);
    let result = match config {
        Some(config) if reader.errors.is_empty() => Ok(config),
        _ => Err(reader.errors),
    };
    (result, reader.report)
}

/// Reads every setting before it gives up on one.
fn config(reader: &mut Reader<'_>, defaults: &Defaults) -> Option<Config> {
    let url = settings::sfu_url(reader, defaults);
    let api_url = settings::api_url(reader, url.as_ref());
    let keys = keys::read(reader, defaults.dev);
    let bind = bind::read(reader, defaults.bind, defaults.origin());
    if let (Some((bind, name)), Some(keys)) = (&bind, &keys)
        && defaults.dev
        && keys.known_to_everybody
        && !bind.is_local()
    {
        let expected = "a loopback address or a unix socket while --dev signs with a secret that everybody knows";
        reader.wrong(name, expected, quoted(&bind.to_string()));
    }
    let metrics_bind = bind::metrics(reader);
    let doors = token_server::doors(reader, defaults);
    let full_access = settings::full_access(reader, defaults, doors);
    let federation_overrides = reader.parsed(
        "LIVEKIT_FEDERATION_URL_OVERRIDES",
        "",
        values::OVERRIDES,
        values::overrides,
    );
    let mut networks = |name| reader.parsed(name, "", values::NETWORKS, values::networks);
    let allowed_networks = networks("LIVEKIT_ALLOWED_NETWORKS");
    let denied_networks = networks("LIVEKIT_DENIED_NETWORKS");
    let trusted_proxies = networks("LIVEKIT_TRUSTED_PROXIES");
    let egress = egress::read(reader);
    let max_connections = reader.parsed(
        "LIVEKIT_MAX_CONNECTIONS",
        "16384",
        "16 to 1000000",
        |text| values::number(text, 16..=1_000_000),
    );
    let max_connections_per_address = reader.parsed(
        "LIVEKIT_MAX_CONNECTIONS_PER_ADDRESS",
        "256",
        "1 to 1000000",
        |text| values::number(text, 1..=1_000_000),
    );
    let rate_per_address = reader.parsed(
        "LIVEKIT_RATE_PER_ADDRESS",
        "300",
        "0 to 1000000 requests a minute",
        |text| values::number(text, 0..=1_000_000),
    );
    let local = bind.as_ref().is_some_and(|(bind, _)| bind.is_local());
    let token_server = doors.general.then(|| {
        let networks = [&allowed_networks, &denied_networks].map(|n| n.clone().unwrap_or_default());
        let [allowed, denied] = networks;
        let networks = AddressPolicy::new(allowed, denied);
        token_server::read(reader, defaults.dev && local, &networks)
    });
    let roots = settings::authorities(reader);
    let insecure_skip_verify_tls = settings::insecure(reader);
    let token_lifetime = reader.parsed(
        "LIVEKIT_TOKEN_LIFETIME_SECONDS",
        "3600",
        "60 to 86400 seconds",
        |text| values::seconds(text, 60..=86_400),
    );
    let openid_cache = reader.parsed(
        "LIVEKIT_OPENID_CACHE_SECONDS",
        "30",
        "0 to 300 seconds",
        |text| values::seconds(text, 0..=300),
    );
    let anybody = full_access.as_ref().is_some_and(|full| !full.is_nobody());
    let anybody = anybody && doors.matrix || doors.appservice;
    let delegation = delegation::read(reader, anybody && !defaults.dev);
    let appservice = doors.appservice.then(|| {
        let overrides = delegation.as_ref().map(|d| &d.client_api_overrides);
        appservice::read(reader, token_lifetime, overrides)
    });
    if doors.appservice && doors.matrix {
        reader.report.warn(appservice::BOTH_DOORS);
    }
    let mut boolean =
        |name, default| reader.parsed(name, default, values::BOOLEAN, values::boolean);
    let can_update_own_metadata = boolean("LIVEKIT_CAN_UPDATE_OWN_METADATA", "false");
    let remote_users_may_publish = boolean("LIVEKIT_REMOTE_USERS_MAY_PUBLISH", "true");
    let log_level = reader.parsed("LIVEKIT_LOG_LEVEL", "info", values::LEVEL, values::level);
    let log_format = reader.parsed(
        "LIVEKIT_LOG_FORMAT",
        "logfmt",
        values::FORMAT,
        values::format,
    );
    Some(Config {
        bind: bind?.0,
        metrics_bind: metrics_bind?,
        matrix: doors.matrix,
        appservice: match appservice {
            Some(read) => Some(read?),
            None => None,
        },
        token_server: match token_server {
            Some(read) => Some(read?),
            None => None,
        },
        rate_per_address: u32::try_from(rate_per_address?).ok()?,
        log_level: log_level?,
        log_format: log_format?,
        url: url?.0,
        api_url: api_url?,
        keys: keys?.keys,
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
        openid_cache: openid_cache?,
        delegation: delegation?,
    })
}

#[cfg(test)]
mod tests;
