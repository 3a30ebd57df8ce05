//! The rooms for users of homeservers: of any, of our own, or both. They share the SFU, its door and the leaves.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use livekit_token_service::appservice::{self, AppService};
use livekit_token_service::config::Config;
use livekit_token_service::config::appservice::AppService as Own;
use livekit_token_service::config::delegation::Store;
use livekit_token_service::delegation::{Delegation, Wires};
use livekit_token_service::exchange::{Exchange, Terms};
use livekit_token_service::guests::{self, Guests, Seals};
use livekit_token_service::http::appservice::AppServiceDoor;
use livekit_token_service::http::gate::limits::outbound_workers;
use livekit_token_service::http::matrix::{self, MatrixDoor};
use livekit_token_service::http::route::Routes;
use livekit_token_service::http::sfu::{self, SfuDoor};
use livekit_token_service::journal::{self, Journal};
use livekit_token_service::livekit::room_service::RoomService;
use livekit_token_service::livekit::webhook::Receiver;
use livekit_token_service::matrix::appservice::Homeserver;
use livekit_token_service::matrix::client_api::ClientApi;
use livekit_token_service::matrix::delayed_event::DelayedEvents;
use livekit_token_service::matrix::federation::Federation;
use livekit_token_service::matrix::openid::Verifier;
use livekit_token_service::net::bulkhead::Places;
use livekit_token_service::net::tls::Roots;
use livekit_token_service::readiness::Readiness;

use super::{to_homeservers, to_our_homeserver, to_the_named};

/// The doors, and what goes on behind them.
pub(super) struct Matrix {
    delegation: Delegation,
    sfu: Arc<SfuDoor>,
    any: Option<Arc<MatrixDoor>>,
    own: Option<(Arc<AppServiceDoor>, Guests)>,
}

impl Matrix {
    /// Furnishes them as the settings have them.
    pub(super) fn furnish(config: &Config, workers: usize) -> io::Result<Self> {
        let rooms = rooms(config, workers);
        let delegation = Delegation::start(
            journal(config.delegation.store.clone(), &config.roots),
            wires(config, workers, &rooms),
            config.delegation.check,
        )?;
        let own = match &config.appservice {
            None => None,
            Some(own) => {
                let wires = beside(own, config, workers, &rooms);
                let guests = Guests::start(wires.clone(), own.check, own.token_lifetime)?;
                let work = appservice(own, config, workers, wires, &delegation, &guests);
                Some((Arc::new(AppServiceDoor::new(work)), guests))
            }
        };
        let any = config
            .matrix
            .then(|| MatrixDoor::new(exchange(config, workers, &rooms, &delegation)));
        let hears = own.as_ref().map(|(_, guests)| guests.clone());
        let sfu = SfuDoor::new(
            hearing(config, rooms, &delegation),
            delegation.clone(),
            hears,
        );
        Ok(Self {
            delegation,
            sfu: Arc::new(sfu),
            any: any.map(Arc::new),
            own,
        })
    }

    /// Changes them to what the settings, and the files that they name, are now. The settings have opened the same doors.
    pub(super) fn refurnish(&self, config: &Config, workers: usize) {
        let (rooms, delegation) = (rooms(config, workers), &self.delegation);
        delegation.rewire(wires(config, workers, &rooms));
        if let (Some(own), Some((door, guests))) = (&config.appservice, &self.own) {
            let wires = beside(own, config, workers, &rooms);
            guests.rewire(wires.clone());
            door.refurnish(appservice(own, config, workers, wires, delegation, guests));
        }
        if let Some(door) = &self.any {
            door.refurnish(exchange(config, workers, &rooms, delegation));
        }
        self.sfu.refurnish(hearing(config, rooms, delegation));
    }

    /// Opens the doors.
    pub(super) fn open(&self, routes: Routes) -> Routes {
        let own = self.own.as_ref().map(|(door, _)| door.clone());
        let routes = routes.matrix(self.any.clone()).appservice(own);
        routes.sfu(self.sfu.clone())
    }

    pub(super) fn delegation(&self) -> &Delegation {
        &self.delegation
    }
}

fn rooms(config: &Config, workers: usize) -> Arc<RoomService> {
    // a configuration without a key was refused
    let (key, sfu) = (config.keys[0].clone(), to_the_named(config, workers));
    Arc::new(RoomService::new(sfu, config.api_url.clone(), key))
}

/// For the leaves. Our own homeserver is one that the administrator answers for.
fn wires(config: &Config, workers: usize, rooms: &Arc<RoomService>) -> Wires {
    let to_homeservers = to_homeservers(config, workers);
    let mut listed: BTreeSet<_> = config.full_access.names().cloned().collect();
    let mut overrides = config.delegation.client_api_overrides.clone();
    let own = config.appservice.as_ref().map(|own| {
        listed.insert(own.server.clone());
        overrides.insert(own.server.clone(), own.url.clone());
        let as_token = own.registration.as_token.clone();
        (
            own.server.clone(),
            as_token,
            to_our_homeserver(config, workers),
        )
    });
    let client_api = ClientApi::new(to_homeservers(), overrides, listed.clone());
    Wires {
        events: DelayedEvents::new(to_homeservers(), client_api).acting_as(own),
        rooms: rooms.clone(),
        listed,
    }
}

fn hearing(config: &Config, rooms: Arc<RoomService>, delegation: &Delegation) -> sfu::Furniture {
    sfu::Furniture {
        receiver: Receiver::new(config.keys.clone()),
        readiness: Readiness::new(rooms, delegation.clone()),
    }
}

fn exchange(
    config: &Config,
    workers: usize,
    rooms: &Arc<RoomService>,
    delegation: &Delegation,
) -> matrix::Furniture {
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
    let (access, rooms) = (config.full_access.clone(), rooms.clone());
    matrix::Furniture {
        exchange: Exchange::new(verifier, access, rooms, delegation.clone(), terms),
        url: config.url.clone(),
    }
}

/// The ways to the homeserver beside us, and to the SFU.
fn beside(own: &Own, config: &Config, workers: usize, rooms: &Arc<RoomService>) -> guests::Wires {
    let (server, url) = (own.server.clone(), own.url.clone());
    let as_token = own.registration.as_token.clone();
    let fetcher = to_our_homeserver(config, workers);
    // a configuration without a key was refused
    let seals = Seals::new(&config.keys[0], &config.keys, &as_token);
    guests::Wires {
        seals: Arc::new(seals),
        homeserver: Arc::new(Homeserver::new(fetcher, server, url, as_token)),
        rooms: rooms.clone(),
    }
}

fn appservice(
    own: &Own,
    config: &Config,
    workers: usize,
    wires: guests::Wires,
    delegation: &Delegation,
    guests: &Guests,
) -> AppService {
    let outbound = outbound_workers(workers);
    let terms = appservice::Terms {
        key: config.keys[0].clone(),
        lifetime: own.token_lifetime,
        url: config.url.clone(),
        // with two doors, neither takes all places
        places: if config.matrix {
            outbound * 3 / 4
        } else {
            outbound
        },
    };
    AppService::new(
        wires.homeserver,
        own.registration.hs_token.clone(),
        wires.rooms,
        delegation.clone(),
        guests.clone(),
        terms,
    )
}

fn journal(store: Store, roots: &Roots) -> Arc<dyn Journal> {
    match store {
        Store::Memory => Arc::new(journal::Memory::default()),
        Store::Directory(path) => Arc::new(journal::File::open(&path)),
        Store::Redis(address) => Arc::new(journal::Redis::open(address, roots)),
    }
}
