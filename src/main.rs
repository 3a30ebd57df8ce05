//! From arguments and settings to a service that runs.

mod doctor;
mod house;

use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Instant;

use livekit_token_service::cli::{self, Command};
use livekit_token_service::config::{Bind, Config, Environment};
use livekit_token_service::http::gate;
use livekit_token_service::http::gate::limits::Limits;
use livekit_token_service::http::listener::{self, Doors, Listener};
use livekit_token_service::logger::{self, Format};
use livekit_token_service::net::address::Host;
use livekit_token_service::notify::Supervisor;
use log::{error, info, warn};

use self::house::House;

/// Threads that answer requests; most of them may wait for other servers. A small descriptor limit makes them fewer.
const WORKERS: usize = 64;

fn main() -> ExitCode {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let code = match Command::parse(std::env::args_os()) {
        Ok(Command::Help) => cli::help(&mut out).map(|()| 0),
        Ok(Command::Version) => cli::version(&mut out).map(|()| 0),
        Ok(Command::CheckConfig) => {
            cli::check_config(&Environment::of_process(), &mut out, &mut err)
        }
        Ok(Command::Doctor(url)) => doctor::examine(&Environment::of_process(), url, &mut out),
        Ok(Command::Healthcheck) => {
            cli::healthcheck::healthcheck(&Environment::of_process(), &mut err)
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
    let env = Environment::of_process();
    let (config, report) = if dev {
        Config::dev(&env)
    } else {
        Config::read(&env)
    };
    let (level, format) = config
        .as_ref()
        .map_or((log::LevelFilter::Info, Format::Logfmt), |config| {
            (config.log_level, config.log_format)
        });
    logger::start(level, format).map_err(io::Error::other)?;
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
    let inherited = match listener::inherited() {
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
        Err(reason) => return Ok(cannot_listen("LIVEKIT_JWT_BIND", &config.bind, &reason)),
    };
    let metrics = match config
        .metrics_bind
        .as_ref()
        .map(|bind| (bind, listen(bind)))
    {
        Some((bind, Err(reason))) => {
            return Ok(cannot_listen("LIVEKIT_METRICS_BIND", bind, &reason));
        }
        Some((_, Ok(listener))) => Some(listener),
        None => None,
    };
    let workers = match gate::workers(WORKERS) {
        Ok(workers) => workers,
        Err(reason) => {
            error!("{reason}");
            return Ok(1);
        }
    };
    let limits = limits(&config);
    let opening = opening(&config, &clients, metrics.as_ref(), dev);
    let pid = std::process::id();
    let supervisor = Supervisor::find(|name| std::env::var_os(name), pid, Instant::now());
    let house = match House::furnish(config, env, workers, &limits, supervisor.clone()) {
        Ok(house) => house,
        Err(reason) => {
            error!("a thread or signal cannot be had: {reason}");
            return Ok(1);
        }
    };
    let opened = || opening.iter().for_each(|line| info!("{line}"));
    let doors = Doors { clients, metrics };
    let served = listener::serve(doors, workers, limits, house.routes, supervisor, opened);
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

fn cannot_listen(name: &str, bind: &Bind, reason: &io::Error) -> u8 {
    error!("{name}: expected an address to listen on, found {bind}: {reason}");
    // somebody else's port may become free: worth another start
    let in_use = reason.kind() == io::ErrorKind::AddrInUse;
    if in_use { 1 } else { cli::EXIT_CONFIG }
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
fn opening(
    config: &Config,
    listeners: &[Listener],
    metrics: Option<&Listener>,
    dev: bool,
) -> Vec<String> {
    let mut doors = String::new();
    if config.matrix {
        let full_access = match &config.full_access {
            everyone if everyone.is_everyone() => "everyone".to_owned(),
            nobody if nobody.is_nobody() => "nobody".to_owned(),
            some => some
                .names()
                .map(|name| name.as_str())
                .collect::<Vec<_>>()
                .join(","),
        };
        doors += &format!(" matrix=open full_access={full_access}");
    }
    if let Some(own) = &config.appservice {
        doors += &format!(" appservice=open homeserver={} at={}", own.server, own.url);
    }
    if let Some(token_server) = &config.token_server {
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
        config.url,
        config.api_url,
        config.keys.first().map_or("", |key| key.id()),
    ));
    if dev {
        let real = Bind::parse(&places[0]);
        lines.extend(cli::dev_hints(
            config,
            real.as_ref().unwrap_or(&config.bind),
        ));
    }
    lines
}
