//! From arguments and settings to a service that runs.

use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use crate::api::service::ApiService;
use crate::cli;
use crate::cli::Command;
use crate::config::{BindAddress, Config, Environment};
use crate::net::address::Host;
use crate::server::{
    Listener, Server, ServerLimits, ServerStats, affordable_workers, inherited_listeners,
};
use crate::util::logging;
use crate::util::logging::LogFormat;
use crate::util::signal::signal_pipe;
use crate::util::sync::exit_on_panic;
use crate::util::systemd::SystemdNotifier;
use log::{error, info, warn};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::App;

/// Threads that answer requests; most of them may wait for other servers. A small descriptor limit makes them fewer.
const MAX_WORKERS: usize = 64;

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let code = match Command::parse(std::env::args_os()) {
        Ok(Command::Help) => cli::print_help(&mut out).map(|()| 0),
        Ok(Command::Version) => cli::print_version(&mut out).map(|()| 0),
        Ok(Command::CheckConfig) => {
            cli::check_config(&Environment::from_process(), &mut out, &mut err)
        }
        Ok(Command::Doctor(url)) => {
            cli::doctor::run_doctor(&Environment::from_process(), url, &mut out)
        }
        Ok(Command::Healthcheck) => {
            cli::healthcheck::run_healthcheck(&Environment::from_process(), &mut err)
        }
        Ok(Command::Keygen(name)) => cli::keygen(&name, &mut out, &mut err).map(|()| 0),
        Ok(Command::GenerateRegistration(server, url)) => {
            cli::generate_registration(&server, &url, &mut out, &mut err).map(|()| 0)
        }
        Ok(Command::Serve) => serve(false),
        Ok(Command::Dev) => serve(true),
        Err(usage) => writeln!(err, "{usage}").map(|()| cli::EXIT_USAGE),
    };
    // a closed stdout leaves nobody to tell
    ExitCode::from(code.unwrap_or(1))
}

/// Runs until it is told to stop. Gives the exit code.
fn serve(dev: bool) -> io::Result<u8> {
    let env = Environment::from_process();
    let (config, report) = if dev {
        Config::read_dev(&env)
    } else {
        Config::read_with_defaults(&env)
    };
    let (level, format) = config
        .as_ref()
        .map_or((log::LevelFilter::Info, LogFormat::Logfmt), |config| {
            (config.log_level, config.log_format)
        });
    logging::start(level, format).map_err(io::Error::other)?;
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
    let inherited = match inherited_listeners() {
        // whether they are on loopback only was not looked at
        Ok(inherited) if !dev => inherited,
        Ok(_) => Vec::new(),
        Err(reason) => {
            error!("{reason}");
            return Ok(cli::EXIT_CONFIG);
        }
    };
    let listening = match inherited.len() {
        0 => listen(&config.bind).map(|listener| vec![listener]),
        _ => Ok(inherited),
    };
    let clients = match listening {
        Ok(listeners) => listeners,
        Err(reason) => return Ok(log_listen_error("LIVEKIT_JWT_BIND", &config.bind, &reason)),
    };
    let metrics = match config
        .metrics_bind
        .as_ref()
        .map(|bind| (bind, listen(bind)))
    {
        Some((bind, Err(reason))) => {
            return Ok(log_listen_error("LIVEKIT_METRICS_BIND", bind, &reason));
        }
        Some((_, Ok(listener))) => Some(listener),
        None => None,
    };
    let workers = match affordable_workers(MAX_WORKERS) {
        Ok(workers) => workers,
        Err(reason) => {
            error!("{reason}");
            return Ok(1);
        }
    };
    let limits = client_limits(&config);
    let opening = startup_messages(&config, &clients, metrics.as_ref(), dev);
    let pid = std::process::id();
    let supervisor =
        SystemdNotifier::from_environment(|name| std::env::var_os(name), pid, Instant::now());
    let house = match App::build(config, env, workers, supervisor.clone()) {
        Ok(house) => house,
        Err(reason) => {
            error!("a thread or signal cannot be had: {reason}");
            return Ok(1);
        }
    };
    let opened = || opening.iter().for_each(|line| info!("{line}"));
    let shutdown = match signal_pipe(&[SIGTERM, SIGINT]) {
        Ok(shutdown) => shutdown,
        Err(reason) => {
            error!("cannot install a signal handler: {reason}");
            return Ok(1);
        }
    };
    let stats = Arc::new(ServerStats::default());
    let service = ApiService::new(house.routes, clients.len(), Arc::clone(&stats));
    let server = Server {
        listeners: clients.into_iter().chain(metrics).collect(),
        service: Arc::new(service),
        worker_count: workers,
        limits,
        stats,
        notifier: supervisor,
        shutdown,
    };
    let served = exit_on_panic(|| server.run(opened));
    if let Some(delegation) = house.delegation {
        delegation.stop();
    }
    match served {
        Ok(()) => Ok(0),
        Err(reason) => {
            error!("{reason}");
            Ok(1)
        }
    }
}

fn log_listen_error(name: &str, bind: &BindAddress, reason: &io::Error) -> u8 {
    error!("{name}: expected an address to listen on, found {bind}: {reason}");
    // somebody else's port may become free: worth another start
    let in_use = reason.kind() == io::ErrorKind::AddrInUse;
    if in_use { 1 } else { cli::EXIT_CONFIG }
}

fn listen(bind: &BindAddress) -> io::Result<Listener> {
    match bind {
        BindAddress::Unix(path) => Listener::bind_unix(path),
        BindAddress::AllInterfaces(port) => Listener::bind_all_addresses(*port),
        BindAddress::Tcp {
            host: Host::Ip(ip),
            port,
        } => Listener::bind_tcp(&[SocketAddr::new(*ip, *port)]),
        BindAddress::Tcp {
            host: Host::Dns(name),
            port,
        } => Listener::bind_tcp(&(&**name, *port).to_socket_addrs()?.collect::<Vec<_>>()),
    }
}

fn client_limits(config: &Config) -> ServerLimits {
    let mut limits = ServerLimits {
        max_connections: config.max_connections,
        max_connections_per_address: config.max_connections_per_address,
        ..ServerLimits::default()
    };
    limits.trusted_proxies.extend(&config.trusted_proxies);
    limits
}

/// What is said once clients are let in.
fn startup_messages(
    config: &Config,
    listeners: &[Listener],
    metrics: Option<&Listener>,
    dev: bool,
) -> Vec<String> {
    let mut doors = String::new();
    if config.matrix_enabled {
        let full_access = match &config.full_access {
            everyone if everyone.is_all() => "everyone".to_owned(),
            nobody if nobody.is_empty() => "nobody".to_owned(),
            some => some
                .names()
                .map(|name| name.as_str())
                .collect::<Vec<_>>()
                .join(","),
        };
        doors += &format!(" matrix=open full_access={full_access}");
    }
    if let Some(own) = &config.appservice {
        doors += &format!(
            " appservice=open homeserver={} at={}",
            own.server_name, own.client_api_url
        );
    }
    if let Some(token_server) = &config.token_endpoint {
        doors += &format!(" token=open callers={}", token_server.callers.summary());
    }
    if let Some(proxy) = &config.egress.proxy {
        doors += &format!(" https_proxy={proxy}");
    }
    let places: Vec<_> = listeners.iter().map(Listener::to_string).collect();
    let metrics = metrics.map(|listener| format!("metrics at {listener}"));
    let mut lines: Vec<_> = metrics.into_iter().collect();
    lines.push(format!(
        "listening on {} version={} sfu={} api={} key={}{doors}",
        places.join(" and "),
        env!("CARGO_PKG_VERSION"),
        config.sfu_url,
        config.sfu_api_url,
        config.api_keys.first().map_or("", |key| key.id()),
    ));
    if dev {
        let real = BindAddress::parse(&places[0]);
        lines.extend(cli::dev_hints(
            config,
            real.as_ref().unwrap_or(&config.bind),
        ));
    }
    lines
}
