//! Puts the house together: each room gets its own values, and what it stands on.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use livekit_token_service::appservice::{self, AppService};
use livekit_token_service::config::appservice as config_appservice;
use livekit_token_service::config::delegation::Store;
use livekit_token_service::config::{Config, Environment, TokenServer};
use livekit_token_service::delegation::Delegation;
use livekit_token_service::exchange::{Exchange, Terms};
use livekit_token_service::guests::Guests;
use livekit_token_service::http::appservice::AppServiceDoor;
use livekit_token_service::http::gate::limits::{Limits, outbound_workers};
use livekit_token_service::http::limit::Turnstile;
use livekit_token_service::http::matrix::MatrixDoor;
use livekit_token_service::http::route::Routes;
use livekit_token_service::http::sfu::SfuDoor;
use livekit_token_service::http::token::TokenDoor;
use livekit_token_service::journal::{self, Journal};
use livekit_token_service::livekit::room_service::RoomService;
use livekit_token_service::livekit::token::ApiKey;
use livekit_token_service::livekit::webhook::Receiver;
use livekit_token_service::matrix::appservice::Homeserver;
use livekit_token_service::matrix::client_api::ClientApi;
use livekit_token_service::matrix::delayed_event::DelayedEvents;
use livekit_token_service::matrix::federation::Federation;
use livekit_token_service::matrix::openid::Verifier;
use livekit_token_service::matrix::registration::Registration;
use livekit_token_service::net::address::AddressPolicy;
use livekit_token_service::net::bulkhead::Places;
use livekit_token_service::net::fetch::Fetcher;
use livekit_token_service::net::tls::{Roots, Verification, client_config};
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
        let routes = Routes::new(turnstile).token(token);
        let (routes, delegation) = if config.matrix || config.appservice.is_some() {
            let (routes, delegation) = homeservers(routes, config, workers)?;
            (routes, Some(delegation))
        } else {
            (routes, None)
        };
        reloads.start()?;
        Ok(Self { routes, delegation })
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
    let key = key(config);
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

/// Opens the doors for users of homeservers: of any, of our own, or both. They share the SFU and the leaves.
fn homeservers(
    routes: Routes,
    mut config: Config,
    workers: usize,
) -> io::Result<(Routes, Delegation)> {
    let verification = match config.insecure_skip_verify_tls {
        true => Verification::Off,
        false => Verification::On,
    };
    let tls = client_config(&config.roots, verification);
    let policy = policy(&config);
    let fetcher = || Fetcher::new(tls.clone(), policy.clone(), workers);
    let mut listed: BTreeSet<_> = config.full_access.names().cloned().collect();
    let sfu = Fetcher::new(
        client_config(&config.roots, Verification::On),
        AddressPolicy::default(),
        workers,
    );
    let (key, api_url) = (key(&config), config.api_url.clone());
    let rooms = Arc::new(RoomService::new(sfu, api_url, key));
    let store = journal(config.delegation.store.clone(), &config.roots);
    let mut overrides = std::mem::take(&mut config.delegation.client_api_overrides);
    let mut events_as = None;
    if let Some(own) = &config.appservice {
        listed.insert(own.server.clone());
        overrides.insert(own.server.clone(), own.url.clone());
        events_as = Some((own.server.clone(), own.registration.as_token.clone()));
    }
    let client_api = ClientApi::new(fetcher(), overrides, listed.clone());
    let delegation = Delegation::start(
        store,
        DelayedEvents::new(fetcher(), client_api).acting_as(events_as),
        rooms.clone(),
        listed,
        config.delegation.check,
    )?;
    let receiver = Receiver::new(config.keys.clone());
    // with two doors, neither takes all places
    let outbound = outbound_workers(workers);
    let places = if config.matrix {
        outbound / 2
    } else {
        outbound
    };
    let (own, guests) = match config.appservice.take() {
        None => (None, None),
        Some(own) => {
            let (door, guests) = appservice(own, &config, fetcher(), &rooms, &delegation, places)?;
            (Some(door), Some(guests))
        }
    };
    let sfu = SfuDoor::new(receiver, delegation.clone(), guests);
    let any = config
        .matrix
        .then(|| matrix(config, fetcher(), outbound, rooms, delegation.clone()));
    let routes = routes.sfu(Some(sfu)).appservice(own).matrix(any);
    Ok((routes, delegation))
}

fn appservice(
    own: config_appservice::AppService,
    config: &Config,
    fetcher: Fetcher,
    rooms: &Arc<RoomService>,
    delegation: &Delegation,
    places: usize,
) -> io::Result<(AppServiceDoor, Guests)> {
    let Registration { as_token, hs_token } = own.registration;
    let homeserver = Arc::new(Homeserver::new(fetcher, own.server, own.url, as_token));
    let (lifetime, url) = (own.token_lifetime, config.url.clone());
    let guests = Guests::start(homeserver.clone(), rooms.clone(), own.check, lifetime)?;
    let terms = appservice::Terms {
        key: key(config),
        lifetime,
        url,
        places,
    };
    let (rooms, delegation) = (rooms.clone(), delegation.clone());
    let work = AppService::new(
        homeserver,
        hs_token,
        rooms,
        delegation,
        guests.clone(),
        terms,
    );
    Ok((AppServiceDoor::new(work), guests))
}

fn matrix(
    config: Config,
    fetcher: Fetcher,
    outbound: usize,
    rooms: Arc<RoomService>,
    delegation: Delegation,
) -> MatrixDoor {
    let terms = Terms {
        key: key(&config),
        lifetime: config.token_lifetime,
        can_update_own_metadata: config.can_update_own_metadata,
        remote_users_may_publish: config.remote_users_may_publish,
    };
    let listed = config.full_access.names().cloned().collect();
    let places = Places::of(outbound);
    let federation = Federation::new(fetcher, config.federation_overrides, listed, places);
    let verifier = Verifier::new(federation, config.openid_cache);
    let exchange = Exchange::new(verifier, config.full_access, rooms, delegation, terms);
    MatrixDoor::new(exchange, config.url)
}

/// The one that signs.
fn key(config: &Config) -> ApiKey {
    // a configuration without a key was refused
    config.keys[0].clone()
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
