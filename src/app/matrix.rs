//! The rooms for users of homeservers: of any, of our own, or both. They share the SFU, its door and the leaves.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use crate::api::appservice::AppServiceApi;
use crate::api::matrix;
use crate::api::matrix::MatrixApi;
use crate::api::readiness::Readiness;
use crate::api::router::Router;
use crate::api::webhook::WebhookApi;
use crate::config::Config;
use crate::config::appservice::AppServiceConfig as Own;
use crate::config::delegation::LeaveStoreConfig;
use crate::delegation::store;
use crate::delegation::store::LeaveStore;
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
use crate::matrix::openid::OpenIdVerifier;
use crate::matrix::server_directory::ServerDirectory;
use crate::membership;
use crate::membership::{AttributeSealer, Membership};
use crate::net::permits::PermitCounts;
use crate::net::tls::RootCertificates;
use crate::server::max_outbound_workers;

use super::{configured_server_fetcher, homeserver_fetcher_factory, own_homeserver_fetcher};

/// The doors, and what goes on behind them.
pub(super) struct MatrixHandlers {
    delegation: DelegationService,
    sfu: Arc<WebhookApi>,
    standalone: Option<Arc<MatrixApi>>,
    appservice: Option<AppServiceHandlers>,
    keys: SharedApiKeys,
    readiness: Arc<Readiness>,
}

struct AppServiceHandlers {
    api: Arc<AppServiceApi>,
    membership: Membership,
    limits: Arc<AppServiceLimits>,
}

impl MatrixHandlers {
    /// Furnishes them as the settings have them.
    pub(super) fn build(config: &Config, workers: usize, keys: &SharedApiKeys) -> io::Result<Self> {
        let rooms = build_room_service(config, workers, keys);
        let delegation = DelegationService::start(
            open_leave_store(config.delegation.store.clone(), &config.roots),
            build_delegation_clients(config, workers, &rooms),
            config.delegation.presence_check_interval,
        )?;
        let own = match &config.appservice {
            None => None,
            Some(own) => {
                let wires = build_membership_clients(own, config, workers, &rooms);
                let guests = Membership::start(
                    wires.clone(),
                    own.membership_check_interval,
                    own.token_lifetime,
                )?;
                let outbound = max_outbound_workers(workers);
                let limits = Arc::new(AppServiceLimits::new(match config.matrix_enabled {
                    // the endpoints of standalone mode need permits too
                    true => outbound * 3 / 4,
                    false => outbound,
                }));
                let work =
                    build_appservice(own, config, wires, &delegation, &guests, &limits, keys);
                Some(AppServiceHandlers {
                    api: Arc::new(AppServiceApi::new(work, guests.clone())),
                    membership: guests,
                    limits,
                })
            }
        };
        let any = config.matrix_enabled.then(|| {
            MatrixApi::new(build_exchange_state(
                config,
                workers,
                &rooms,
                &delegation,
                keys,
            ))
        });
        let hears = own.as_ref().map(|own| own.membership.clone());
        let readiness = Readiness::new(rooms, delegation.clone());
        let sfu = WebhookApi::new(
            WebhookReceiver::new(keys.clone()),
            delegation.clone(),
            hears,
        );
        Ok(Self {
            delegation,
            sfu: Arc::new(sfu),
            standalone: any.map(Arc::new),
            appservice: own,
            keys: keys.clone(),
            readiness,
        })
    }

    /// Changes them to what the settings, and the files that they name, are now. The settings have opened the same doors.
    pub(super) fn reload(&self, config: &Config, workers: usize) {
        let (rooms, delegation) = (
            build_room_service(config, workers, &self.keys),
            &self.delegation,
        );
        delegation.replace_clients(build_delegation_clients(config, workers, &rooms));
        if let (Some(own), Some(handlers)) = (&config.appservice, &self.appservice) {
            let wires = build_membership_clients(own, config, workers, &rooms);
            let (guests, limits) = (&handlers.membership, &handlers.limits);
            guests.replace_clients(wires.clone());
            let exchange =
                build_appservice(own, config, wires, delegation, guests, limits, &self.keys);
            handlers.api.replace_state(exchange);
        }
        if let Some(door) = &self.standalone {
            door.replace_state(build_exchange_state(
                config, workers, &rooms, delegation, &self.keys,
            ));
        }
        self.readiness.recheck_with(rooms);
    }

    /// Opens the doors.
    pub(super) fn add_routes(&self, mut routes: Router) -> Router {
        routes.matrix = self.standalone.clone();
        routes.appservice = self.appservice.as_ref().map(|own| own.api.clone());
        routes.webhook = Some(self.sfu.clone());
        routes.readiness = Some(self.readiness.clone());
        routes
    }

    pub(super) fn delegation(&self) -> &DelegationService {
        &self.delegation
    }
}

fn build_room_service(
    config: &Config,
    workers: usize,
    keys: &SharedApiKeys,
) -> Arc<RoomServiceClient> {
    let sfu = configured_server_fetcher(config, workers);
    Arc::new(RoomServiceClient::new(
        sfu,
        config.sfu_api_url.clone(),
        keys.clone(),
    ))
}

/// For the leaves. Our own homeserver is one that the administrator answers for.
fn build_delegation_clients(
    config: &Config,
    workers: usize,
    rooms: &Arc<RoomServiceClient>,
) -> DelegationClients {
    let to_homeservers = homeserver_fetcher_factory(config, workers);
    let mut listed: BTreeSet<_> = config.full_access.names().cloned().collect();
    let mut overrides = config.delegation.client_api_overrides.clone();
    let own = config.appservice.as_ref().map(|own| {
        listed.insert(own.server_name.clone());
        overrides.insert(own.server_name.clone(), own.client_api_url.clone());
        let as_token = own.registration.as_token.clone();
        AppServiceAccess {
            server: own.server_name.clone(),
            as_token,
            fetcher: own_homeserver_fetcher(config, workers),
        }
    });
    let client_api = ClientApiDiscovery::new(
        to_homeservers(),
        ServerDirectory::new(overrides, listed.clone()),
    );
    DelegationClients {
        delayed_events: Arc::new(DelayedEventClient::new(to_homeservers(), client_api, own)),
        room_service: rooms.clone(),
        listed_servers: listed,
    }
}

fn build_exchange_state(
    config: &Config,
    workers: usize,
    rooms: &Arc<RoomServiceClient>,
    delegation: &DelegationService,
    keys: &SharedApiKeys,
) -> matrix::MatrixApiState {
    let federation = FederationClient::new(
        homeserver_fetcher_factory(config, workers)(),
        ServerDirectory::new(
            config.federation_overrides.clone(),
            config.full_access.names().cloned(),
        ),
        PermitCounts::split(max_outbound_workers(workers)),
    );
    let issuer = TokenIssuer {
        room_service: rooms.clone(),
        delegation: delegation.clone(),
        api_keys: keys.clone(),
        token_lifetime: config.token_lifetime,
    };
    let settings = ExchangeSettings {
        can_update_own_metadata: config.can_update_own_metadata,
        remote_users_may_publish: config.remote_users_may_publish,
    };
    let verifier = Arc::new(OpenIdVerifier::new(federation, config.openid_cache_ttl));
    matrix::MatrixApiState {
        exchange: Exchange::new(verifier, config.full_access.clone(), issuer, settings),
        livekit_url: config.sfu_url.clone(),
    }
}

/// The ways to the homeserver beside us, and to the SFU.
fn build_membership_clients(
    own: &Own,
    config: &Config,
    workers: usize,
    rooms: &Arc<RoomServiceClient>,
) -> membership::MembershipClients {
    let (server, url) = (own.server_name.clone(), own.client_api_url.clone());
    let as_token = own.registration.as_token.clone();
    let fetcher = own_homeserver_fetcher(config, workers);
    // a configuration without a key was refused
    let seals = AttributeSealer::new(&config.api_keys[0], &config.api_keys, &as_token);
    membership::MembershipClients {
        sealer: Arc::new(seals),
        homeserver: Arc::new(HomeserverClient::new(fetcher, server, url, as_token)),
        room_service: rooms.clone(),
    }
}

fn build_appservice(
    own: &Own,
    config: &Config,
    clients: membership::MembershipClients,
    delegation: &DelegationService,
    membership: &Membership,
    limits: &Arc<AppServiceLimits>,
    keys: &SharedApiKeys,
) -> AppServiceExchange {
    let hs_token = own.registration.hs_token.clone();
    let issuer = TokenIssuer {
        room_service: clients.room_service,
        delegation: delegation.clone(),
        api_keys: keys.clone(),
        token_lifetime: own.token_lifetime,
    };
    AppServiceExchange::new(
        AppServiceAuthenticator::new(hs_token, own.server_name.clone()),
        clients.homeserver,
        issuer,
        membership.clone(),
        config.sfu_url.clone(),
        limits.clone(),
    )
}

fn open_leave_store(store: LeaveStoreConfig, roots: &RootCertificates) -> Arc<dyn LeaveStore> {
    match store {
        LeaveStoreConfig::Memory => Arc::new(store::MemoryStore::default()),
        LeaveStoreConfig::Directory(path) => Arc::new(store::FileStore::open(&path)),
        LeaveStoreConfig::Redis(address) => Arc::new(store::RedisStore::open(address, roots)),
    }
}
