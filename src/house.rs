//! Puts the house together: each room gets its own values, and what it stands on.

mod matrix;

use std::io;
use std::sync::Arc;

use livekit_token_service::config::{Config, Environment, TokenServer};
use livekit_token_service::delegation::Delegation;
use livekit_token_service::http::gate::limits::Limits;
use livekit_token_service::http::limit::Turnstile;
use livekit_token_service::http::route::Routes;
use livekit_token_service::http::token::TokenDoor;
use livekit_token_service::logger;
use livekit_token_service::net::address::AddressPolicy;
use livekit_token_service::net::fetch::Fetcher;
use livekit_token_service::net::tls::{Verification, client_config};
use livekit_token_service::notify::Supervisor;
use livekit_token_service::reload::{self, Reloads};
use livekit_token_service::token_source::{Book, TokenSource};

use self::matrix::Matrix;

/// What answers requests, and what goes on between them.
pub(crate) struct House {
    pub(crate) routes: Routes,
    /// Keeps leaves, if there is a door for Matrix.
    pub(crate) delegation: Option<Delegation>,
}

impl House {
    /// Furnishes what the settings open. SIGHUP is heard from here on, and `supervisor` told of it.
    pub(crate) fn furnish(
        config: Config,
        env: Environment,
        workers: usize,
        limits: &Limits,
        supervisor: Supervisor,
    ) -> io::Result<Self> {
        let turnstile = Turnstile::new(config.rate_per_address, limits.clone());
        let mut reloads = Reloads::default();
        let mut routes = Routes::new(turnstile);
        let mut source = None;
        if let Some(settings) = config.token_server.clone() {
            let (door, signs) = token(settings, &config, env.clone(), &mut reloads)?;
            (routes, source) = (routes.token(door), Some(signs));
        }
        let mut matrix = None;
        if config.matrix || config.appservice.is_some() {
            let rooms = Matrix::furnish(&config, workers)?;
            (routes, matrix) = (rooms.open(routes), Some(rooms));
        }
        let delegation = matrix.as_ref().map(|matrix| matrix.delegation().clone());
        let name = "keys, homeservers, registration, authorities and level";
        reloads.add(name, move || {
            let (config, _) = Config::read(&env);
            let config = config.map_err(reload::reasons)?;
            if let Some(matrix) = &matrix {
                matrix.refurnish(&config, workers);
            }
            if let Some(source) = &source {
                source.sign_with(config.keys[0].clone());
            }
            logger::set_level(config.log_level);
            let (key, named) = (config.keys[0].id(), config.full_access.names().count());
            Ok(format!(
                "key={key} homeservers={named} level={}",
                config.log_level
            ))
        });
        reloads.start(supervisor)?;
        Ok(Self { routes, delegation })
    }
}

fn token(
    settings: TokenServer,
    config: &Config,
    env: Environment,
    reloads: &mut Reloads,
) -> io::Result<(TokenDoor, Arc<TokenSource>)> {
    let tls = client_config(&config.roots, Verification::On);
    let policy = policy(config);
    let proxy = config.egress.proxy.clone();
    let fetcher = move || Fetcher::new(Arc::clone(&tls), policy.clone(), 0).through(proxy.clone());
    // a configuration without a key was refused
    let key = config.keys[0].clone();
    let book = reload::book(&settings.callers, &Book::default(), &fetcher)?;
    let source = Arc::new(TokenSource::new(key, book));
    let origins = settings.origins.clone();
    let door = TokenDoor::new(Arc::clone(&source), config.url.clone(), origins);
    let signs = Arc::clone(&source);
    reloads.add("TOKEN_SERVER_POLICY_FILE and callers", move || {
        let callers = settings.read_again(&env).map_err(reload::reasons)?;
        let book = reload::book(&callers, &source.book(), &fetcher);
        source.replace(book.map_err(|error| error.to_string())?);
        Ok(format!("callers={}", callers.summary()))
    });
    Ok((door, signs))
}

/// Fetchers for whoever users name, through the proxy if there is one.
pub(crate) fn to_homeservers(config: &Config, most_idle: usize) -> impl Fn() -> Fetcher + use<> {
    let homeservers = match config.insecure_skip_verify_tls {
        true => Verification::Off,
        false => Verification::On,
    };
    let tls = client_config(&config.roots, homeservers);
    let policy = policy(config);
    let proxy = config.egress.proxy.clone();
    move || Fetcher::new(Arc::clone(&tls), policy.clone(), most_idle).through(proxy.clone())
}

/// A fetcher for what the administrator has named, which this host reaches by itself. It may carry a token that opens more than a
/// user's does, so certificates are checked in any case.
pub(crate) fn to_the_named(config: &Config, most_idle: usize) -> Fetcher {
    let tls = client_config(&config.roots, Verification::On);
    Fetcher::new(tls, AddressPolicy::default(), most_idle)
}

/// A fetcher for the homeserver that we are an application service of, which may be anywhere.
pub(crate) fn to_our_homeserver(config: &Config, most_idle: usize) -> Fetcher {
    to_the_named(config, most_idle).through(config.egress.proxy.clone())
}

fn policy(config: &Config) -> AddressPolicy {
    let (allowed, denied) = (&config.allowed_networks, &config.denied_networks);
    AddressPolicy::new(allowed.clone(), denied.clone())
}
