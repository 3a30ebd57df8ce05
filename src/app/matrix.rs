//! Composition of the endpoints for Matrix: for users of any homeserver, for the own homeserver, or both. They share the SFU's
//! client, its webhooks and the delegated leaves.

use std::io;
use std::sync::Arc;

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
    webhook: Arc<WebhookApi>,
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
        let issuer = |lifetime| TokenIssuer {
            room_service: room_service.clone(),
            delegation: delegation.clone(),
            api_keys: keys.clone(),
            token_lifetime: lifetime,
        };
        let standalone = config.endpoints.matrix.then(|| {
            let verifier = build_verifier(config, &fetchers, workers);
            let issuer = issuer(config.access_tokens.lifetime);
            let api = Arc::new(MatrixApi::new(matrix_state(config, &verifier, issuer)));
            StandaloneHandlers { api, verifier }
        });
        let appservice = match &config.appservice {
            Some(appservice) => {
                let homeserver = build_homeserver(appservice, &fetchers);
                let clients = membership_clients(appservice, &homeserver, &room_service, keys);
                let lifetime = config.access_tokens.appservice_lifetime;
                let membership =
                    Membership::start(clients, appservice.membership_check_interval, lifetime)?;
                let permits = max_outbound_workers(workers);
                let limits = Arc::new(AppServiceLimits::new(match standalone {
                    // the other endpoints need permits too
                    Some(_) => permits * 3 / 4,
                    None => permits,
                }));
                let exchange = appservice_exchange(
                    config,
                    appservice,
                    &homeserver,
                    &membership,
                    &limits,
                    issuer(lifetime),
                );
                Some(AppServiceHandlers {
                    api: Arc::new(AppServiceApi::new(exchange, membership.clone())),
                    homeserver,
                    membership,
                    limits,
                })
            }
            None => None,
        };
        let readiness = Readiness::new(room_service.clone(), delegation.clone());
        let webhook = Arc::new(WebhookApi::new(
            WebhookReceiver::new(keys.clone()),
            delegation.clone(),
            appservice
                .as_ref()
                .map(|handlers| handlers.membership.clone()),
        ));
        Ok(Self {
            workers,
            keys: keys.clone(),
            room_service,
            delayed_events,
            delegation,
            readiness,
            webhook,
            standalone,
            appservice,
        })
    }

    /// Replaces what differs between two configurations with the same open endpoints.
    pub(super) fn reload(&mut self, old: &Config, new: &Config) {
        let fetchers = new.network.fetchers(self.workers);
        let network = new.network != old.network;
        let homeservers = network || new.homeservers != old.homeservers;
        let appservice = network || new.appservice != old.appservice;
        if network || new.sfu.api_url != old.sfu.api_url {
            self.room_service = build_room_service(new, &fetchers, &self.keys);
        }
        if homeservers || appservice {
            self.delayed_events = build_delayed_events(new, &fetchers);
        }
        if let Some(handlers) = &mut self.standalone
            && (homeservers
                || new.access_tokens.openid_cache_ttl != old.access_tokens.openid_cache_ttl)
        {
            handlers.verifier = build_verifier(new, &fetchers, self.workers);
        }
        if let (Some(handlers), Some(config), true) =
            (&mut self.appservice, &new.appservice, appservice)
        {
            handlers.homeserver = build_homeserver(config, &fetchers);
        }
        self.replace_state(new);
        if network || new.sfu != old.sfu || new.sfu_keys != old.sfu_keys {
            self.readiness.recheck_with(self.room_service.clone());
        }
    }

    /// Has all handlers use the present clients, and these settings.
    fn replace_state(&self, config: &Config) {
        let (delegation, room_service) = (&self.delegation, &self.room_service);
        delegation.replace_clients(delegation_clients(
            config,
            &self.delayed_events,
            room_service,
        ));
        let issuer = |lifetime| TokenIssuer {
            room_service: room_service.clone(),
            delegation: delegation.clone(),
            api_keys: self.keys.clone(),
            token_lifetime: lifetime,
        };
        if let Some(StandaloneHandlers { api, verifier }) = &self.standalone {
            let issuer = issuer(config.access_tokens.lifetime);
            api.replace_state(matrix_state(config, verifier, issuer));
        }
        if let (Some(handlers), Some(appservice)) = (&self.appservice, &config.appservice) {
            let AppServiceHandlers {
                api,
                homeserver,
                membership,
                limits,
            } = handlers;
            let clients = membership_clients(appservice, homeserver, room_service, &self.keys);
            membership.replace_clients(clients);
            let issuer = issuer(config.access_tokens.appservice_lifetime);
            let exchange =
                appservice_exchange(config, appservice, homeserver, membership, limits, issuer);
            api.replace_state(exchange);
        }
    }

    pub(super) fn add_routes(&self, router: &mut Router) {
        let standalone = self.standalone.as_ref();
        let appservice = self.appservice.as_ref();
        router.matrix = standalone.map(|handlers| handlers.api.clone());
        router.appservice = appservice.map(|handlers| handlers.api.clone());
        router.webhook = Some(self.webhook.clone());
        router.readiness = Some(self.readiness.clone());
    }

    pub(super) fn delegation(&self) -> &DelegationService {
        &self.delegation
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

fn membership_clients(
    config: &AppServiceConfig,
    homeserver: &Arc<HomeserverClient>,
    room_service: &Arc<RoomServiceClient>,
    keys: &SharedApiKeys,
) -> MembershipClients {
    let (keys, as_token) = (keys.get(), &config.registration.as_token);
    let sealer = AttributeSealer::new(keys.signing(), keys.all(), as_token);
    MembershipClients {
        sealer: Arc::new(sealer),
        homeserver: homeserver.clone(),
        room_service: room_service.clone(),
    }
}

fn matrix_state(
    config: &Config,
    verifier: &Arc<OpenIdVerifier>,
    issuer: TokenIssuer,
) -> MatrixApiState {
    let settings = ExchangeSettings {
        can_update_own_metadata: config.access_tokens.can_update_own_metadata,
        remote_users_may_publish: config.access_tokens.remote_users_may_publish,
    };
    let full_access = config.homeservers.full_access.clone();
    MatrixApiState {
        exchange: Exchange::new(verifier.clone(), full_access, issuer, settings),
        livekit_url: config.sfu.url.clone(),
    }
}

fn appservice_exchange(
    config: &Config,
    appservice: &AppServiceConfig,
    homeserver: &Arc<HomeserverClient>,
    membership: &Membership,
    limits: &Arc<AppServiceLimits>,
    issuer: TokenIssuer,
) -> AppServiceExchange {
    let hs_token = appservice.registration.hs_token.clone();
    AppServiceExchange::new(
        AppServiceAuthenticator::new(hs_token, appservice.server_name.clone()),
        homeserver.clone(),
        issuer,
        membership.clone(),
        config.sfu.url.clone(),
        limits.clone(),
    )
}

fn open_leave_store(store: LeaveStoreConfig, roots: &RootCertificates) -> Arc<dyn LeaveStore> {
    match store {
        LeaveStoreConfig::Memory => Arc::new(MemoryStore::default()),
        LeaveStoreConfig::Directory(path) => Arc::new(FileStore::open(&path)),
        LeaveStoreConfig::Redis(address) => Arc::new(RedisStore::open(address, roots)),
    }
}
