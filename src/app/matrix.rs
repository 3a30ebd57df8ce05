//! Composition of the endpoints for Matrix: for users of any homeserver, for the own homeserver, or both. They share the SFU's
//! client, its webhooks and the delegated leaves.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::api::appservice::AppServiceApi;
use crate::api::matrix::{MatrixApi, MatrixApiState};
use crate::api::readiness::Readiness;
use crate::api::router::Router;
use crate::api::webhook::WebhookApi;
use crate::config::{AppServiceConfig, Config, FetcherFactory, LeaveStoreConfig};
use crate::delegation::store::{FileStore, LeaveStore, MemoryStore, RedisStore};
use crate::delegation::{DelegationClients, DelegationService};
use crate::exchange::TokenIssuer;
use crate::exchange::appservice::{AppServiceAuthenticator, AppServiceExchange, AppServiceLimits};
use crate::exchange::standalone::{Exchange, ExchangeSettings};
use crate::livekit::access_token::SharedApiKeys;
use crate::livekit::room_service::RoomServiceClient;
use crate::livekit::webhook::WebhookReceiver;
use crate::matrix::appservice::HomeserverClient;
use crate::matrix::client_api::ClientApiDiscovery;
use crate::matrix::delayed_event::{AppServiceAccess, DelayedEventClient};
use crate::matrix::federation::FederationClient;
use crate::matrix::id::ServerName;
use crate::matrix::openid::OpenIdVerifier;
use crate::matrix::server_directory::ServerDirectory;
use crate::membership::{AttributeSealer, Membership, MembershipClients};
use crate::net::permits::PermitCounts;
use crate::net::tls::RootCertificates;
use crate::server::max_outbound_workers;

/// The handlers, and the clients that they use.
///
/// Clients have caches, circuit breakers, permits and connection pools. A reload replaces those whose settings have changed; the
/// handlers' state is made of clients and settings alone, and is replaced by every reload.
pub(super) struct MatrixHandlers {
    workers: usize,
    keys: SharedApiKeys,
    room_service: Arc<RoomServiceClient>,
    delayed_events: Arc<DelayedEventClient>,
    delegation: DelegationService,
    readiness: Arc<Readiness>,
    standalone: Option<StandaloneHandlers>,
    appservice: Option<AppServiceHandlers>,
}

struct StandaloneHandlers {
    api: Arc<MatrixApi>,
    verifier: Arc<OpenIdVerifier>,
}

struct AppServiceHandlers {
    api: Arc<AppServiceApi>,
    homeserver: Arc<HomeserverClient>,
    membership: Membership,
    limits: Arc<AppServiceLimits>,
}

impl MatrixHandlers {
    pub(super) fn build(config: &Config, workers: usize, keys: &SharedApiKeys) -> io::Result<Self> {
        let fetchers = config.network.fetchers(workers);
        let room_service = build_room_service(config, &fetchers, keys);
        let delayed_events = build_delayed_events(config, &fetchers);
        let delegation = DelegationService::start(
            open_leave_store(config.delegation.store.clone(), &config.network.roots),
            delegation_clients(config, &delayed_events, &room_service),
            config.delegation.presence_check_interval,
        )?;
        let mut handlers = Self {
            workers,
            keys: keys.clone(),
            readiness: Readiness::new(room_service.clone(), delegation.clone()),
            room_service,
            delayed_events,
            delegation,
            standalone: None,
            appservice: None,
        };
        handlers.standalone = config.endpoints.matrix.then(|| {
            let verifier = build_verifier(config, &fetchers, workers);
            let state = handlers.standalone_state(config, &verifier);
            let api = Arc::new(MatrixApi::new(state));
            StandaloneHandlers { api, verifier }
        });
        if let Some(appservice) = &config.appservice {
            let homeserver = build_homeserver(appservice, &fetchers);
            let membership = Membership::start(
                handlers.membership_clients(appservice, &homeserver),
                appservice.membership_check_interval,
                config.access_tokens.appservice_lifetime,
            )?;
            let permits = max_outbound_workers(workers);
            let limits = Arc::new(AppServiceLimits::new(match handlers.standalone {
                // the other endpoints need permits too
                Some(_) => permits * 3 / 4,
                None => permits,
            }));
            let exchange = handlers.exchange(config, appservice, &homeserver, &membership, &limits);
            handlers.appservice = Some(AppServiceHandlers {
                api: Arc::new(AppServiceApi::new(exchange, membership.clone())),
                homeserver,
                membership,
                limits,
            });
        }
        Ok(handlers)
    }

    /// Replaces what differs between two configurations with the same open endpoints.
    pub(super) fn reload(&mut self, old: &Config, new: &Config) {
        let fetchers = new.network.fetchers(self.workers);
        let network = new.network != old.network;
        let homeservers = network || new.homeservers != old.homeservers;
        let appservice = network || new.appservice != old.appservice;
        let openid_cache_ttl = |config: &Config| config.access_tokens.openid_cache_ttl;
        let verifier = homeservers || openid_cache_ttl(new) != openid_cache_ttl(old);
        if network || new.sfu.api_url != old.sfu.api_url {
            self.room_service = build_room_service(new, &fetchers, &self.keys);
        }
        if network || new.sfu != old.sfu || new.sfu_keys != old.sfu_keys {
            self.readiness.recheck_with(self.room_service.clone());
        }
        if homeservers || appservice {
            self.delayed_events = build_delayed_events(new, &fetchers);
        }
        if let (Some(handlers), true) = (&mut self.standalone, verifier) {
            handlers.verifier = build_verifier(new, &fetchers, self.workers);
        }
        let own = self.appservice.as_mut().zip(new.appservice.as_ref());
        if let (Some((handlers, config)), true) = (own, appservice) {
            handlers.homeserver = build_homeserver(config, &fetchers);
        }
        self.replace_state(new);
    }

    /// Has all handlers use the present clients, and these settings.
    fn replace_state(&self, config: &Config) {
        let clients = delegation_clients(config, &self.delayed_events, &self.room_service);
        self.delegation.replace_clients(clients);
        if let Some(StandaloneHandlers { api, verifier }) = &self.standalone {
            api.replace_state(self.standalone_state(config, verifier));
        }
        if let (Some(handlers), Some(appservice)) = (&self.appservice, &config.appservice) {
            let (homeserver, membership) = (&handlers.homeserver, &handlers.membership);
            membership.replace_clients(self.membership_clients(appservice, homeserver));
            let limits = &handlers.limits;
            let exchange = self.exchange(config, appservice, homeserver, membership, limits);
            handlers.api.replace_state(exchange);
        }
    }

    pub(super) fn add_routes(&self, router: &mut Router) {
        let standalone = self.standalone.as_ref();
        let appservice = self.appservice.as_ref();
        router.matrix = standalone.map(|handlers| handlers.api.clone());
        router.appservice = appservice.map(|handlers| handlers.api.clone());
        router.webhook = Some(Arc::new(WebhookApi::new(
            WebhookReceiver::new(self.keys.clone()),
            self.delegation.clone(),
            appservice.map(|handlers| handlers.membership.clone()),
        )));
        router.readiness = Some(self.readiness.clone());
    }

    pub(super) fn delegation(&self) -> &DelegationService {
        &self.delegation
    }

    fn issuer(&self, token_lifetime: Duration) -> TokenIssuer {
        TokenIssuer {
            room_service: self.room_service.clone(),
            delegation: self.delegation.clone(),
            api_keys: self.keys.clone(),
            token_lifetime,
        }
    }

    fn standalone_state(&self, config: &Config, verifier: &Arc<OpenIdVerifier>) -> MatrixApiState {
        let tokens = &config.access_tokens;
        let settings = ExchangeSettings {
            can_update_own_metadata: tokens.can_update_own_metadata,
            remote_users_may_publish: tokens.remote_users_may_publish,
        };
        let full_access = config.homeservers.full_access.clone();
        let issuer = self.issuer(tokens.lifetime);
        MatrixApiState {
            exchange: Exchange::new(verifier.clone(), full_access, issuer, settings),
            livekit_url: config.sfu.url.clone(),
        }
    }

    fn membership_clients(
        &self,
        config: &AppServiceConfig,
        homeserver: &Arc<HomeserverClient>,
    ) -> MembershipClients {
        let (keys, as_token) = (self.keys.get(), &config.registration.as_token);
        let sealer = AttributeSealer::new(keys.signing(), keys.all(), as_token);
        MembershipClients {
            sealer: Arc::new(sealer),
            homeserver: homeserver.clone(),
            room_service: self.room_service.clone(),
        }
    }

    fn exchange(
        &self,
        config: &Config,
        appservice: &AppServiceConfig,
        homeserver: &Arc<HomeserverClient>,
        membership: &Membership,
        limits: &Arc<AppServiceLimits>,
    ) -> AppServiceExchange {
        let hs_token = appservice.registration.hs_token.clone();
        AppServiceExchange::new(
            AppServiceAuthenticator::new(hs_token, appservice.server_name.clone()),
            homeserver.clone(),
            self.issuer(config.access_tokens.appservice_lifetime),
            membership.clone(),
            config.sfu.url.clone(),
            limits.clone(),
        )
    }
}

fn build_room_service(
    config: &Config,
    fetchers: &FetcherFactory,
    keys: &SharedApiKeys,
) -> Arc<RoomServiceClient> {
    let (fetcher, url) = (fetchers.direct(), config.sfu.api_url.clone());
    Arc::new(RoomServiceClient::new(fetcher, url, keys.clone()))
}

fn build_verifier(
    config: &Config,
    fetchers: &FetcherFactory,
    workers: usize,
) -> Arc<OpenIdVerifier> {
    let homeservers = &config.homeservers;
    let federation = FederationClient::new(
        fetchers.homeserver(),
        ServerDirectory::new(
            homeservers.federation_overrides.clone(),
            homeservers.full_access.names().cloned(),
        ),
        PermitCounts::split(max_outbound_workers(workers)),
    );
    let cache_ttl = config.access_tokens.openid_cache_ttl;
    Arc::new(OpenIdVerifier::new(federation, cache_ttl))
}

fn build_homeserver(config: &AppServiceConfig, fetchers: &FetcherFactory) -> Arc<HomeserverClient> {
    Arc::new(HomeserverClient::new(
        fetchers.own_homeserver(),
        config.server_name.clone(),
        config.client_api_url.clone(),
        config.registration.as_token.clone(),
    ))
}

fn build_delayed_events(config: &Config, fetchers: &FetcherFactory) -> Arc<DelayedEventClient> {
    let mut overrides = config.homeservers.client_api_overrides.clone();
    let access = config.appservice.as_ref().map(|appservice| {
        let server = appservice.server_name.clone();
        overrides.insert(server.clone(), appservice.client_api_url.clone());
        AppServiceAccess {
            server,
            as_token: appservice.registration.as_token.clone(),
            fetcher: fetchers.own_homeserver(),
        }
    });
    let directory = ServerDirectory::new(overrides, listed_servers(config));
    let client_api = ClientApiDiscovery::new(fetchers.homeserver(), directory);
    let fetcher = fetchers.homeserver();
    Arc::new(DelayedEventClient::new(fetcher, client_api, access))
}

/// Homeservers that the administrator names: those with full access, and the own homeserver.
fn listed_servers(config: &Config) -> impl Iterator<Item = ServerName> {
    let own = config.appservice.iter().map(|own| &own.server_name);
    config.homeservers.full_access.names().chain(own).cloned()
}

fn delegation_clients(
    config: &Config,
    delayed_events: &Arc<DelayedEventClient>,
    room_service: &Arc<RoomServiceClient>,
) -> DelegationClients {
    DelegationClients {
        delayed_events: delayed_events.clone(),
        room_service: room_service.clone(),
        listed_servers: listed_servers(config).collect(),
    }
}

fn open_leave_store(store: LeaveStoreConfig, roots: &RootCertificates) -> Arc<dyn LeaveStore> {
    match store {
        LeaveStoreConfig::Memory => Arc::new(MemoryStore::default()),
        LeaveStoreConfig::Directory(path) => Arc::new(FileStore::open(&path)),
        LeaveStoreConfig::Redis(address) => Arc::new(RedisStore::open(address, roots)),
    }
}
