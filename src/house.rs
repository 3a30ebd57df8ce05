//! Puts the house together: each room gets its own values, and what it stands on.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use livekit_token_service::config::delegation::Store;
use livekit_token_service::config::{Config, Environment, TokenServer};
use livekit_token_service::delegation::{Delegation, Wires};
use livekit_token_service::exchange::{Exchange, Terms};
use livekit_token_service::http::gate::limits::{Limits, outbound_workers};
use livekit_token_service::http::limit::Turnstile;
use livekit_token_service::http::matrix::{Furniture, MatrixDoor};
use livekit_token_service::http::route::Routes;
use livekit_token_service::http::token::TokenDoor;
use livekit_token_service::journal::{self, Journal};
use livekit_token_service::livekit::room_service::RoomService;
use livekit_token_service::livekit::webhook::Receiver;
use livekit_token_service::logger;
use livekit_token_service::matrix::client_api::ClientApi;
use livekit_token_service::matrix::delayed_event::DelayedEvents;
use livekit_token_service::matrix::federation::Federation;
use livekit_token_service::matrix::openid::Verifier;
use livekit_token_service::net::address::AddressPolicy;
use livekit_token_service::net::bulkhead::Places;
use livekit_token_service::net::fetch::Fetcher;
use livekit_token_service::net::tls::{Roots, Verification, client_config};
use livekit_token_service::notify::Supervisor;
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
        let (mut token_door, mut source) = (None, None);
        if let Some(settings) = config.token_server.clone() {
            let (door, signs) = token(settings, &config, env.clone(), &mut reloads)?;
            (token_door, source) = (Some(door), Some(signs));
        }
        let (mut matrix_door, mut delegation) = (None, None);
        if config.matrix {
            let keeps = Delegation::start(
                journal(config.delegation.store.clone(), &config.roots),
                wires(&config, workers),
                config.delegation.check,
            )?;
            let door = MatrixDoor::new(furniture(&config, workers, keeps.clone()));
            (matrix_door, delegation) = (Some(Arc::new(door)), Some(keeps));
        }
        let (door, keeps) = (matrix_door.clone(), delegation.clone());
        reloads.add("keys, homeservers, authorities and level", move || {
            let (config, _) = Config::read(&env);
            let config = config.map_err(reload::reasons)?;
            if let (Some(door), Some(keeps)) = (&door, &keeps) {
                keeps.rewire(wires(&config, workers));
                door.refurnish(furniture(&config, workers, keeps.clone()));
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
        Ok(Self {
            routes: Routes::new(matrix_door, token_door, turnstile),
            delegation,
        })
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

fn wires(config: &Config, workers: usize) -> Wires {
    let to_homeservers = to_homeservers(config, workers);
    let listed: BTreeSet<_> = config.full_access.names().cloned().collect();
    let overrides = config.delegation.client_api_overrides.clone();
    let client_api = ClientApi::new(to_homeservers(), overrides, listed.clone());
    Wires {
        events: DelayedEvents::new(to_homeservers(), client_api),
        rooms: rooms(config, workers),
        listed,
    }
}

fn rooms(config: &Config, workers: usize) -> Arc<RoomService> {
    // a configuration without a key was refused
    let (key, sfu) = (config.keys[0].clone(), to_the_named(config, workers));
    Arc::new(RoomService::new(sfu, config.api_url.clone(), key))
}

fn furniture(config: &Config, workers: usize, delegation: Delegation) -> Furniture {
    let federation = Federation::new(
        to_homeservers(config, workers)(),
        config.federation_overrides.clone(),
        config.full_access.names().cloned().collect(),
        Places::of(outbound_workers(workers)),
    );
    let terms = Terms {
        key: config.keys[0].clone(),
        lifetime: config.token_lifetime,
        can_update_own_metadata: config.can_update_own_metadata,
        remote_users_may_publish: config.remote_users_may_publish,
    };
    let verifier = Verifier::new(federation, config.openid_cache);
    let (access, rooms) = (config.full_access.clone(), rooms(config, workers));
    Furniture {
        readiness: Readiness::new(rooms.clone(), delegation.clone()),
        exchange: Exchange::new(verifier, access, rooms, delegation, terms),
        receiver: Receiver::new(config.keys.clone()),
        url: config.url.clone(),
    }
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

/// A fetcher for what the administrator has named, and so for what this host reaches by itself: the SFU.
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
