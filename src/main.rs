//! Puts the house together.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::Arc;

use livekit_token_service::cli::{self, Command};
use livekit_token_service::config::delegation::Store;
use livekit_token_service::config::{self, Bind, Config, Environment, Report};
use livekit_token_service::delegation::Delegation;
use livekit_token_service::exchange::{Exchange, Terms};
use livekit_token_service::http::gate;
use livekit_token_service::http::gate::limits::{Limits, outbound_workers};
use livekit_token_service::http::listener::{self, Listener};
use livekit_token_service::http::route::Routes;
use livekit_token_service::journal::{self, Journal};
use livekit_token_service::livekit::room_service::RoomService;
use livekit_token_service::livekit::webhook::Receiver;
use livekit_token_service::logger;
use livekit_token_service::matrix::client_api::ClientApi;
use livekit_token_service::matrix::delayed_event::DelayedEvents;
use livekit_token_service::matrix::federation::Federation;
use livekit_token_service::matrix::openid::Verifier;
use livekit_token_service::net::address::{AddressPolicy, Host};
use livekit_token_service::net::bulkhead::Places;
use livekit_token_service::net::fetch::Fetcher;
use livekit_token_service::net::tls::{Roots, Verification, client_config};
use log::{error, info, warn};

/// Threads that answer requests; most of them may wait for other servers. A small descriptor limit makes them fewer.
const WORKERS: usize = 64;

fn main() -> ExitCode {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let code = match Command::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => cli::help(&mut out).map(|()| 0),
        Ok(Command::Version) => cli::version(&mut out).map(|()| 0),
        Ok(Command::CheckConfig) => {
            cli::check_config(&Environment::of_process(), &mut out, &mut err)
        }
        Ok(Command::Serve) => serve(Config::read(&Environment::of_process()), false),
        Ok(Command::Dev) => serve(Config::dev(&Environment::of_process()), true),
        Err(usage) => writeln!(err, "{usage}").map(|()| cli::EXIT_USAGE),
    };
    // a closed stdout leaves nobody to tell
    ExitCode::from(code.unwrap_or(1))
}

/// Runs until it is told to stop. Gives the exit code.
fn serve(
    (config, report): (Result<Config, Vec<config::Error>>, Report),
    dev: bool,
) -> io::Result<u8> {
    let level = config
        .as_ref()
        .map_or(log::LevelFilter::Info, |config| config.log_level);
    logger::start(level).map_err(io::Error::other)?;
    for warning in report.warnings() {
        warn!("{warning}");
    }
    let config = match config {
        Ok(config) => config,
        Err(errors) => {
            cli::print_errors(&errors, &mut io::stderr())?;
            return Ok(cli::EXIT_CONFIG);
        }
    };
    let listener = match listen(&config.bind) {
        Ok(listener) => listener,
        Err(reason) => {
            error!(
                "LIVEKIT_JWT_BIND: expected an address to listen on, found {}: {reason}",
                config.bind
            );
            // somebody else's port may become free: worth another start
            let in_use = reason.kind() == io::ErrorKind::AddrInUse;
            return Ok(if in_use { 1 } else { cli::EXIT_CONFIG });
        }
    };
    let workers = match gate::workers(WORKERS) {
        Ok(workers) => workers,
        Err(reason) => {
            error!("{reason}");
            return Ok(1);
        }
    };
    let limits = limits(&config);
    let opening = opening(&config, &listener, dev);
    let house = match House::build(config, workers) {
        Ok(house) => house,
        Err(reason) => {
            error!("no thread for delegated leaves: {reason}");
            return Ok(1);
        }
    };
    let opened = || opening.iter().for_each(|line| info!("{line}"));
    let served = listener::serve(listener, workers, limits, house.routes, opened);
    house.delegation.stop();
    match served {
        Ok(()) => Ok(0),
        Err(reason) => {
            error!("{reason}");
            Ok(1)
        }
    }
}

fn listen(bind: &Bind) -> io::Result<Listener> {
    match bind {
        Bind::Unix(path) => Listener::unix(path),
        Bind::Everywhere(port) => Listener::everywhere(*port),
        Bind::Tcp {
            host: Host::Ip(ip),
            port,
        } => Listener::tcp(&[SocketAddr::new(*ip, *port)]),
        Bind::Tcp {
            host: Host::Dns(name),
            port,
        } => Listener::tcp(&(&**name, *port).to_socket_addrs()?.collect::<Vec<_>>()),
    }
}

fn limits(config: &Config) -> Limits {
    let mut limits = Limits {
        connections: config.max_connections,
        connections_per_address: config.max_connections_per_address,
        ..Limits::default()
    };
    limits.trusted.extend(&config.trusted_proxies);
    limits
}

/// What is said once clients are let in.
fn opening(config: &Config, listener: &Listener, dev: bool) -> Vec<String> {
    let full_access = match &config.full_access {
        everyone if everyone.is_everyone() => "everyone".to_owned(),
        nobody if nobody.is_nobody() => "nobody".to_owned(),
        some => some
            .names()
            .map(|name| name.as_str())
            .collect::<Vec<_>>()
            .join(","),
    };
    let mut lines = vec![format!(
        "listening on {listener} version={} sfu={} api={} key={} full_access={full_access}",
        env!("CARGO_PKG_VERSION"),
        config.url,
        config.api_url,
        config.keys.first().map_or("", |key| key.id()),
    )];
    if dev {
        let real = Bind::parse(&listener.to_string());
        lines.extend(cli::dev_hints(
            config,
            real.as_ref().unwrap_or(&config.bind),
        ));
    }
    lines
}

/// What answers requests, and what goes on between them.
struct House {
    routes: Routes,
    delegation: Delegation,
}

impl House {
    fn build(config: Config, workers: usize) -> io::Result<Self> {
        let homeservers = if config.insecure_skip_verify_tls {
            Verification::Off
        } else {
            Verification::On
        };
        let homeservers = client_config(&config.roots, homeservers);
        let policy = AddressPolicy::new(config.allowed_networks, config.denied_networks);
        let to_homeservers = || Fetcher::new(homeservers.clone(), policy.clone(), workers);
        let listed: BTreeSet<_> = config.full_access.names().cloned().collect();
        let federation = Federation::new(
            to_homeservers(),
            config.federation_overrides,
            listed.clone(),
            Places::of(outbound_workers(workers)),
        );
        let sfu = Fetcher::new(
            client_config(&config.roots, Verification::On),
            AddressPolicy::default(),
            workers,
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
        let exchange = Exchange::new(verifier, access, rooms, delegation.clone(), terms);
        Ok(Self {
            routes: Routes::new(exchange, Receiver::new(config.keys), config.url),
            delegation,
        })
    }
}

fn journal(store: Store, roots: &Roots) -> Arc<dyn Journal> {
    match store {
        Store::Memory => Arc::new(journal::Memory::default()),
        Store::Directory(path) => Arc::new(journal::File::open(&path)),
        Store::Redis(address) => Arc::new(journal::Redis::open(address, roots)),
    }
}
