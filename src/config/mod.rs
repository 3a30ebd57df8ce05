//! Settings: from the environment, and the files that it names, to a [`Config`] or to all errors in them.

mod appservice;
mod endpoints;
mod listen;
mod matrix;
mod network;
mod reader;
mod sfu;
mod suggest;
pub(crate) mod table;
#[cfg(test)]
mod tests;
mod token_endpoint;
mod values;

use log::LevelFilter;

pub(crate) use self::appservice::AppServiceConfig;
pub(crate) use self::endpoints::OpenEndpoints;
pub(crate) use self::listen::{BindAddress, ListenConfig};
pub(crate) use self::matrix::{
    AccessTokensConfig, DelegationConfig, HomeserversConfig, LeaveStoreConfig,
};
pub(crate) use self::network::{FetcherFactory, NetworkConfig};
pub use self::reader::Environment;
pub(crate) use self::reader::{ConfigReport, Error, SectionOutcome, join_errors};
use self::reader::{SettingsReader, quote_redacted};
pub(crate) use self::sfu::{SfuConfig, SfuKeysConfig};
use self::table::{LIVEKIT_LOG_FORMAT, LIVEKIT_LOG_LEVEL, Section};
pub(crate) use self::token_endpoint::TokenEndpointConfig;
use crate::util::logging::LogFormat;

/// All settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which endpoints are open.
    pub(crate) endpoints: OpenEndpoints,
    pub(crate) sfu: SfuConfig,
    /// The SFU's API keys.
    pub sfu_keys: SfuKeysConfig,
    pub(crate) listen: ListenConfig,
    pub(crate) homeservers: HomeserversConfig,
    pub(crate) network: NetworkConfig,
    pub(crate) access_tokens: AccessTokensConfig,
    pub(crate) delegation: DelegationConfig,
    /// Application-service mode, if its endpoints are open.
    pub(crate) appservice: Option<AppServiceConfig>,
    /// The token endpoint, if it is open.
    pub(crate) token_endpoint: Option<TokenEndpointConfig>,
    pub(crate) log: LogConfig,
}

#[derive(Debug, Clone)]
pub(crate) struct LogConfig {
    pub level: LevelFilter,
    pub format: LogFormat,
}

/// Which defaults hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Those of a service.
    Serve,
    /// `--dev`: an SFU in its own `--dev` mode on this host, full access for everyone, loopback only.
    Dev,
}

/// The settings after a reload.
pub(crate) struct ReloadedConfig {
    pub config: Config,
    /// What was read, or why it was not.
    pub outcomes: Vec<SectionOutcome>,
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads all settings. The report is complete whether they can be used or not, and so are the errors.
    pub fn read(env: &Environment, mode: Mode) -> (Result<Self, Vec<Error>>, ConfigReport) {
        let mut reader = SettingsReader::new(env, mode);
        let endpoints = endpoints::find_open_endpoints(&mut reader);
        let config = read_sections(&mut reader, endpoints, None);
        endpoints::warn_unread_settings(&mut reader, endpoints);
        suggest::warn_unknown_names(env, &mut reader.report);
        let outcomes = reader.outcomes.into_iter();
        let errors: Vec<_> = outcomes.flat_map(|outcome| outcome.errors).collect();
        let usable = errors.is_empty();
        (config.filter(|_| usable).ok_or(errors), reader.report)
    }

    /// Reads again what may change while the service runs. A section that is wrong stays as it is, on its own.
    pub(crate) fn reload(&self, env: &Environment, mode: Mode) -> ReloadedConfig {
        let mut reader = SettingsReader::new(env, mode);
        let config = read_sections(&mut reader, self.endpoints, Some(self));
        ReloadedConfig {
            config: config.unwrap_or_else(|| self.clone()),
            outcomes: reader.outcomes,
            warnings: reader.report.warnings,
        }
    }

    /// Reads the address that a service with these settings listens on, and nothing else.
    pub(crate) fn read_bind(env: &Environment) -> Result<BindAddress, Vec<Error>> {
        let mut reader = SettingsReader::new(env, Mode::Serve);
        let bind = listen::read_bind(&mut reader);
        bind.map(|(bind, _)| bind).map_err(|_| reader.errors)
    }
}

/// Reads all sections; for those that are wrong, or that a reload does not read, `current` stands in. None if a section is wrong and
/// there is no `current`.
fn read_sections(
    reader: &mut SettingsReader<'_>,
    endpoints: OpenEndpoints,
    current: Option<&Config>,
) -> Option<Config> {
    let sfu = reader.section(Section::SfuUrl, current.map(|c| &c.sfu), sfu::read_urls);
    let listen = match current {
        Some(current) => Some(current.listen.clone()),
        None => reader.section(Section::Listen, None, listen::read),
    };
    let sfu_keys = reader.section(Section::SfuKeys, current.map(|c| &c.sfu_keys), |reader| {
        let keys = sfu::read_keys(reader)?;
        match &listen {
            Some(listen)
                if keys.includes_dev_key_pair
                    && reader.mode == Mode::Dev
                    && !listen.bind.is_local() =>
            {
                let expected =
                    "a loopback address or a unix socket while --dev signs with a public secret";
                let found = quote_redacted(&listen.bind.to_string());
                Err(reader.invalid(listen.bind_setting, expected, found))
            }
            _ => Ok(keys),
        }
    });
    let homeservers = reader.section(
        Section::Homeservers,
        current.map(|c| &c.homeservers),
        |reader| matrix::read_homeservers(reader, endpoints),
    );
    let network = reader.section(Section::Network, current.map(|c| &c.network), network::read);
    let access_tokens = reader.section(
        Section::AccessTokens,
        current.map(|c| &c.access_tokens),
        matrix::read_access_tokens,
    );
    let delegation = match current {
        Some(current) => Some(current.delegation.clone()),
        None => reader.section(Section::DelegatedLeaves, None, |reader| {
            let full_access = homeservers
                .as_ref()
                .map(|homeservers| &homeservers.full_access);
            let has_full_access = full_access.is_some_and(|full| !full.is_empty());
            let may_delegate = endpoints.appservice || endpoints.matrix && has_full_access;
            matrix::read_delegation(reader, may_delegate && reader.mode != Mode::Dev)
        }),
    };
    let appservice = endpoints.appservice.then(|| {
        let current = current.and_then(|current| current.appservice.as_ref());
        let overrides = homeservers
            .as_ref()
            .map(|homeservers| &homeservers.client_api_overrides);
        reader.section(Section::AppService, current, |reader| {
            appservice::read(reader, overrides)
        })
    });
    if endpoints.appservice && endpoints.matrix {
        reader.warn(appservice::BOTH_MODES_WARNING);
    }
    let token_endpoint = endpoints.token.then(|| {
        let current = current.and_then(|current| current.token_endpoint.as_ref());
        let is_local = listen.as_ref().is_some_and(|listen| listen.bind.is_local());
        let dev_on_loopback = is_local && reader.mode == Mode::Dev;
        let policy = network.as_ref().map(NetworkConfig::address_policy);
        token_endpoint::read(
            reader,
            current,
            dev_on_loopback,
            &policy.unwrap_or_default(),
        )
    });
    let log = reader.section(Section::Log, current.map(|c| &c.log), |reader| {
        let level = reader.parse(&LIVEKIT_LOG_LEVEL, values::parse_log_level);
        let format = reader.parse(&LIVEKIT_LOG_FORMAT, values::parse_log_format);
        Ok(LogConfig {
            level: level?,
            format: format?,
        })
    });
    Some(Config {
        endpoints,
        sfu: sfu?,
        sfu_keys: sfu_keys?,
        listen: listen?,
        homeservers: homeservers?,
        network: network?,
        access_tokens: access_tokens?,
        delegation: delegation?,
        appservice: match appservice {
            Some(appservice) => Some(appservice?),
            None => None,
        },
        token_endpoint: match token_endpoint {
            Some(token_endpoint) => Some(token_endpoint?),
            None => None,
        },
        log: log?,
    })
}
