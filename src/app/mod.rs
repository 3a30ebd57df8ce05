//! Puts the house together: each room gets its own values, and what it stands on.

mod matrix;
pub(crate) mod reload;
pub(crate) mod serve;

use std::io;
use std::sync::Arc;

use self::reload::ReloadSteps;
use crate::api::rate_limit::AddressRateLimiter;
use crate::api::router::Router;
use crate::api::token::TokenApi;
use crate::config::{Config, Environment, TokenEndpointConfig};
use crate::delegation::DelegationService;
use crate::livekit::access_token::{ApiKeys, SharedApiKeys};
use crate::net::address::AddressPolicy;
use crate::net::http_client::Fetcher;
use crate::net::tls::{CertificateVerification, client_config};
use crate::token::TokenSource;
use crate::token::jwks::JwksRefresher;
use crate::util::logging;
use crate::util::systemd::SystemdNotifier;

use self::matrix::MatrixHandlers;

/// What answers requests, and what goes on between them.
pub(crate) struct App {
    pub(crate) routes: Router,
    /// Keeps leaves, if there is a door for Matrix.
    pub(crate) delegation: Option<DelegationService>,
}

impl App {
    /// Furnishes what the settings open. SIGHUP is heard from here on, and `supervisor` told of it.
    pub(crate) fn build(
        config: Config,
        env: Environment,
        workers: usize,
        supervisor: SystemdNotifier,
    ) -> io::Result<Self> {
        let turnstile = AddressRateLimiter::new(config.rate_per_address);
        let mut reloads = ReloadSteps::default();
        let mut routes = Router::new(turnstile);
        let keys = &config.api_keys;
        // a configuration without a key was refused
        let keys = SharedApiKeys::new(ApiKeys::new(keys[0].clone(), keys[1..].to_vec()));
        if let Some(settings) = config.token_endpoint.clone() {
            let door = build_token_endpoint(settings, &config, env.clone(), &mut reloads, &keys)?;
            routes.token = Some(door);
        }
        let mut matrix = None;
        if config.matrix_enabled || config.appservice.is_some() {
            let rooms = MatrixHandlers::build(&config, workers, &keys)?;
            (routes, matrix) = (rooms.add_routes(routes), Some(rooms));
        }
        let delegation = matrix.as_ref().map(|matrix| matrix.delegation().clone());
        let name = "keys, homeservers, registration, authorities and level";
        reloads.add(name, move || {
            let (config, _) = Config::read_with_defaults(&env);
            let config = config.map_err(reload::join_errors)?;
            let read = &config.api_keys;
            keys.replace(ApiKeys::new(read[0].clone(), read[1..].to_vec()));
            if let Some(matrix) = &matrix {
                matrix.reload(&config, workers);
            }
            logging::set_level(config.log_level);
            let (key, named) = (config.api_keys[0].id(), config.full_access.names().count());
            Ok(format!(
                "key={key} homeservers={named} log_level={}",
                config.log_level
            ))
        });
        reloads.start(supervisor)?;
        Ok(Self { routes, delegation })
    }
}

fn build_token_endpoint(
    settings: TokenEndpointConfig,
    config: &Config,
    env: Environment,
    reloads: &mut ReloadSteps,
    keys: &SharedApiKeys,
) -> io::Result<TokenApi> {
    let tls = client_config(&config.roots, CertificateVerification::On);
    let policy = address_policy(config);
    let proxy = config.egress.proxy.clone();
    let mut jwks = JwksRefresher::new(move || {
        Fetcher::new(Arc::clone(&tls), policy.clone(), 0).with_proxy(proxy.clone())
    });
    let callers = settings.callers.start(&mut jwks)?;
    let source = Arc::new(TokenSource::new(keys.clone(), callers));
    let origins = settings.allowed_origins.clone();
    let door = TokenApi::new(Arc::clone(&source), config.sfu_url.clone(), origins);
    reloads.add("TOKEN_SERVER_POLICY_FILE and callers", move || {
        let callers = settings.reload_callers(&env).map_err(reload::join_errors)?;
        let started = callers
            .start(&mut jwks)
            .map_err(|error| error.to_string())?;
        source.replace_registry(started);
        Ok(format!("callers={}", callers.summary()))
    });
    Ok(door)
}

/// Fetchers for whoever users name, through the proxy if there is one.
pub(crate) fn homeserver_fetcher_factory(
    config: &Config,
    most_idle: usize,
) -> impl Fn() -> Fetcher + use<> {
    let homeservers = match config.insecure_skip_verify_tls {
        true => CertificateVerification::Off,
        false => CertificateVerification::On,
    };
    let tls = client_config(&config.roots, homeservers);
    let policy = address_policy(config);
    let proxy = config.egress.proxy.clone();
    move || Fetcher::new(Arc::clone(&tls), policy.clone(), most_idle).with_proxy(proxy.clone())
}

/// A fetcher for what the administrator has named, which this host reaches by itself. It may carry a token that opens more than a
/// user's does, so certificates are checked in any case.
pub(crate) fn configured_server_fetcher(config: &Config, most_idle: usize) -> Fetcher {
    let tls = client_config(&config.roots, CertificateVerification::On);
    Fetcher::new(tls, AddressPolicy::default(), most_idle)
}

/// A fetcher for the homeserver that we are an application service of, which may be anywhere.
pub(crate) fn own_homeserver_fetcher(config: &Config, most_idle: usize) -> Fetcher {
    configured_server_fetcher(config, most_idle).with_proxy(config.egress.proxy.clone())
}

fn address_policy(config: &Config) -> AddressPolicy {
    let (allowed, denied) = (&config.allowed_networks, &config.denied_networks);
    AddressPolicy::new(allowed.clone(), denied.clone())
}
