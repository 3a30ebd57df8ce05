//! Puts the house together: each room gets its own values, and what it stands on.

use std::io;
use std::sync::Arc;

use livekit_token_service::config::delegation::Store;
use livekit_token_service::config::{Config, Environment, TokenServer};
use livekit_token_service::delegation::Delegation;
use livekit_token_service::exchange::{Exchange, Terms};
use livekit_token_service::http::gate::limits::{Limits, outbound_workers};
use livekit_token_service::http::limit::Turnstile;
use livekit_token_service::http::matrix::MatrixDoor;
use livekit_token_service::http::route::Routes;
use livekit_token_service::http::token::TokenDoor;
use livekit_token_service::journal::{self, Journal};
use livekit_token_service::livekit::room_service::RoomService;
use livekit_token_service::livekit::webhook::Receiver;
use livekit_token_service::matrix::client_api::ClientApi;
use livekit_token_service::matrix::delayed_event::DelayedEvents;
use livekit_token_service::matrix::federation::Federation;
use livekit_token_service::matrix::openid::Verifier;
use livekit_token_service::net::address::AddressPolicy;
use livekit_token_service::net::bulkhead::Places;
use livekit_token_service::net::fetch::Fetcher;
use livekit_token_service::net::tls::{Roots, Verification, client_config};
use livekit_token_service::readiness::Readiness;
use livekit_token_service::reload::{self, Reloads};
use livekit_token_service::token_source::{Book, TokenSource};

/// What answers requests, and what goes on between them.
pub(crate) struct House {
    pub(crate) routes: Routes,
    /// Keeps leaves, if the Matrix door is open.
    pub(crate) delegation: Option<Delegation>,
}

impl House {
    /// Furnishes what the settings open. SIGHUP is heard from here on.
    pub(crate) fn furnish(
        mut config: Config,
        env: Environment,
        workers: usize,
        limits: &Limits,
    ) -> io::Result<Self> {
        let turnstile = Turnstile::new(config.rate_per_address, limits.clone());
        let mut reloads = Reloads::default();
        let token = match config.token_server.take() {
            None => None,
            Some(settings) => Some(token(settings, &config, env, &mut reloads)?),
        };
        let (matrix, delegation) = match config.matrix {
            true => {
                let (door, delegation) = matrix(config, workers)?;
                (Some(door), Some(delegation))
            }
            false => (None, None),
        };
        reloads.start()?;
        Ok(Self {
            routes: Routes::new(matrix, token, turnstile),
            delegation,
        })
    }
}

fn token(
    settings: TokenServer,
    config: &Config,
    env: Environment,
    reloads: &mut Reloads,
) -> io::Result<TokenDoor> {
    let tls = client_config(&config.roots, Verification::On);
    let policy = policy(config);
    let fetcher = move || Fetcher::new(Arc::clone(&tls), policy.clone(), 0);
    // a configuration without a key was refused
    let key = config.keys[0].clone();
    let book = reload::book(&settings.callers, &Book::default(), &fetcher)?;
    let source = Arc::new(TokenSource::new(key, book));
    let origins = settings.origins.clone();
    let door = TokenDoor::new(Arc::clone(&source), config.url.clone(), origins);
    reloads.add("TOKEN_SERVER_POLICY_FILE and callers", move || {
        let callers = settings.read_again(&env).map_err(reload::reasons)?;
        let book = reload::book(&callers, &source.book(), &fetcher);
        source.replace(book.map_err(|error| error.to_string())?);
        Ok(format!("callers={}", callers.summary()))
    });
    Ok(door)
}

fn matrix(config: Config, workers: usize) -> io::Result<(MatrixDoor, Delegation)> {
    let to_homeservers = to_homeservers(&config, workers);
    let sfu = to_the_named(&config, workers);
    let listed: std::collections::BTreeSet<_> = config.full_access.names().cloned().collect();
    let federation = Federation::new(
        to_homeservers(),
        config.federation_overrides,
        listed.clone(),
        Places::of(outbound_workers(workers)),
    );
    // a configuration without a key was refused
    let key = config.keys[0].clone();
    let rooms = Arc::new(RoomService::new(sfu, config.api_url, key.clone()));
    let overrides = config.delegation.client_api_overrides;
    let client_api = ClientApi::new(to_homeservers(), overrides, listed.clone());
    let delegation = Delegation::start(
        journal(config.delegation.store, &config.roots),
        DelayedEvents::new(to_homeservers(), client_api),
        rooms.clone(),
        listed,
        config.delegation.check,
    )?;
    let terms = Terms {
        key,
        lifetime: config.token_lifetime,
        can_update_own_metadata: config.can_update_own_metadata,
        remote_users_may_publish: config.remote_users_may_publish,
    };
    let verifier = Verifier::new(federation, config.openid_cache);
    let access = config.full_access;
    let readiness = Readiness::new(rooms.clone(), delegation.clone());
    let exchange = Exchange::new(verifier, access, rooms, delegation.clone(), terms);
    let receiver = Receiver::new(config.keys);
    Ok((
        MatrixDoor::new(exchange, receiver, readiness, config.url),
        delegation,
    ))
}

/// Fetchers for whoever users name.
pub(crate) fn to_homeservers(config: &Config, most_idle: usize) -> impl Fn() -> Fetcher + use<> {
    let homeservers = match config.insecure_skip_verify_tls {
        true => Verification::Off,
        false => Verification::On,
    };
    let tls = client_config(&config.roots, homeservers);
    let policy = policy(config);
    move || Fetcher::new(Arc::clone(&tls), policy.clone(), most_idle)
}

/// A fetcher for what the administrator has named.
pub(crate) fn to_the_named(config: &Config, most_idle: usize) -> Fetcher {
    let tls = client_config(&config.roots, Verification::On);
    Fetcher::new(tls, AddressPolicy::default(), most_idle)
}

fn policy(config: &Config) -> AddressPolicy {
    let (allowed, denied) = (&config.allowed_networks, &config.denied_networks);
    AddressPolicy::new(allowed.clone(), denied.clone())
}

fn journal(store: Store, roots: &Roots) -> Arc<dyn Journal> {
    match store {
        Store::Memory => Arc::new(journal::Memory::default()),
        Store::Directory(path) => Arc::new(journal::File::open(&path)),
        Store::Redis(address) => Arc::new(journal::Redis::open(address, roots)),
    }
}
