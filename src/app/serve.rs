//! Runs the service: settings, listeners, HTTP server, and the end.

use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use log::{LevelFilter, error, info, warn};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::App;
use crate::api::service::ApiService;
use crate::cli::{self, EXIT_CONFIG};
use crate::config::table::{LIVEKIT_JWT_BIND, LIVEKIT_METRICS_BIND, Setting};
use crate::config::{BindAddress, Config, Environment, ListenConfig, Mode};
use crate::server::{
    Listener, Server, ServerLimits, ServerStats, affordable_workers, inherited_listeners,
};
use crate::util::logging::{self, LogFormat};
use crate::util::signal::signal_pipe;
use crate::util::sync::exit_on_panic;
use crate::util::systemd::SystemdNotifier;

/// Most threads that answer requests, many of which may wait for other servers; fewer with a small descriptor limit.
const MAX_WORKERS: usize = 64;
/// Exit code after a failure that another start may overcome.
const EXIT_FAILURE: u8 = 1;

/// Runs until a signal ends the service. Returns the exit code.
pub(super) fn serve(env: Environment, mode: Mode) -> io::Result<u8> {
    let (config, report) = Config::read(&env, mode);
    let log = config
        .as_ref()
        .map(|config| (config.log.level, config.log.format));
    let (level, format) = log.unwrap_or((LevelFilter::Info, LogFormat::Logfmt));
    logging::start(level, format).map_err(io::Error::other)?;
    for cause in &report.warnings {
        warn!(cause; "settings warning");
    }
    let config = match config {
        Ok(config) => config,
        Err(errors) => {
            cli::print_errors(&errors, &mut io::stderr())?;
            return Ok(EXIT_CONFIG);
        }
    };
    Ok(match run(config, env, mode, report.warnings) {
        Ok(()) => 0,
        Err(exit_code) => exit_code,
    })
}

/// Runs the service with these settings; an error is logged, and its exit code returned.
fn run(config: Config, env: Environment, mode: Mode, warnings: Vec<String>) -> Result<(), u8> {
    let (listeners, metrics_listener) = bind(&config.listen, mode)?;
    let workers = affordable_workers(MAX_WORKERS).map_err(failure("cannot start"))?;
    let limits = client_limits(&config.listen);
    let startup = StartupReport::new(&config, &listeners, metrics_listener.as_ref(), mode);
    let app = App::build(config, env, mode, warnings, workers);
    let app = app.map_err(failure("cannot start a thread"))?;
    let (variable, process) = (|name: &str| std::env::var_os(name), std::process::id());
    let notifier = SystemdNotifier::from_environment(variable, process, Instant::now());
    let reloads = app.reloader.start(notifier.clone());
    reloads.map_err(failure("cannot start a thread or install a signal handler"))?;
    let shutdown = signal_pipe(&[SIGTERM, SIGINT]);
    let shutdown = shutdown.map_err(failure("cannot install a signal handler"))?;
    let stats = Arc::new(ServerStats::default());
    let server = Server {
        service: Arc::new(ApiService::new(
            app.router,
            listeners.len(),
            Arc::clone(&stats),
        )),
        listeners: listeners.into_iter().chain(metrics_listener).collect(),
        worker_count: workers,
        limits,
        stats,
        notifier,
        shutdown,
    };
    let served = exit_on_panic(|| server.run(|| startup.log()));
    if let Some(delegation) = app.delegation {
        delegation.stop();
    }
    served.map_err(failure("server failed"))
}

/// Logs an error. Returns an exit code.
fn failure<E: Display>(event: &'static str) -> impl FnOnce(E) -> u8 {
    move |cause| {
        error!(cause:%; "{event}");
        EXIT_FAILURE
    }
}

/// Listens for clients, on sockets that systemd passes or on the address of the settings, and for the metrics.
fn bind(config: &ListenConfig, mode: Mode) -> Result<(Vec<Listener>, Option<Listener>), u8> {
    let inherited = inherited_listeners().map_err(|cause| {
        error!(cause:%; "socket activation failed");
        EXIT_CONFIG
    })?;
    // --dev is for loopback only, and sockets of systemd may be elsewhere
    let listeners = match mode {
        Mode::Serve if !inherited.is_empty() => inherited,
        Mode::Serve | Mode::Dev => vec![listen(&LIVEKIT_JWT_BIND, &config.bind)?],
    };
    let metrics = config.metrics_bind.as_ref();
    let metrics = metrics.map(|bind| listen(&LIVEKIT_METRICS_BIND, bind));
    Ok((listeners, metrics.transpose()?))
}

fn listen(setting: &Setting, bind: &BindAddress) -> Result<Listener, u8> {
    let listener = match bind {
        BindAddress::Unix(path) => Listener::bind_unix(path),
        BindAddress::AllInterfaces(port) => Listener::bind_all_addresses(*port),
        BindAddress::Tcp { host, port } => {
            BindAddress::resolve(host, *port).and_then(|addresses| Listener::bind_tcp(&addresses))
        }
    };
    listener.map_err(|cause| {
        error!(setting = setting.name, address:% = bind, cause:%; "cannot listen");
        match cause.kind() {
            // a later start may find the port free
            io::ErrorKind::AddrInUse => EXIT_FAILURE,
            _ => EXIT_CONFIG,
        }
    })
}

fn client_limits(config: &ListenConfig) -> ServerLimits {
    let mut limits = ServerLimits {
        max_connections: config.max_connections,
        max_connections_per_address: config.max_connections_per_address,
        ..ServerLimits::default()
    };
    limits.trusted_proxies.extend(&config.trusted_proxies);
    limits
}

/// Fields of the log line `listening`.
struct StartupReport {
    config: Config,
    address: String,
    metrics_address: Option<String>,
    dev_hints: Vec<String>,
}

impl StartupReport {
    fn new(
        config: &Config,
        listeners: &[Listener],
        metrics_listener: Option<&Listener>,
        mode: Mode,
    ) -> Self {
        let addresses: Vec<_> = listeners.iter().map(Listener::to_string).collect();
        let bound = BindAddress::parse(&addresses[0]);
        let dev_hints = match mode {
            Mode::Serve => Vec::new(),
            // with the port that the system has chosen
            Mode::Dev => dev_hints(config, bound.as_ref().unwrap_or(&config.listen.bind)),
        };
        Self {
            config: config.clone(),
            address: addresses.join(" and "),
            metrics_address: metrics_listener.map(Listener::to_string),
            dev_hints,
        }
    }

    fn log(&self) {
        let (config, open) = (&self.config, self.config.endpoints);
        if let Some(address) = &self.metrics_address {
            info!(address; "serving metrics");
        }
        let appservice = config.appservice.as_ref();
        let token_endpoint = config.token_endpoint.as_ref();
        let proxy = config.network.proxy.as_ref();
        info!(
            address = self.address,
            version = env!("CARGO_PKG_VERSION"),
            sfu_url = config.sfu.url,
            sfu_api_url:% = config.sfu.api_url,
            signing_key = config.sfu_keys.keys.signing().id(),
            matrix = open.matrix,
            full_access = open.matrix.then(|| config.homeservers.full_access_summary()),
            appservice = open.appservice,
            homeserver = appservice.map(|appservice| appservice.server_name.as_str()),
            homeserver_url = appservice.map(|appservice| appservice.client_api_url.to_string()),
            token_endpoint = open.token,
            callers = token_endpoint.map(|endpoint| endpoint.callers.summary()),
            https_proxy = proxy.map(ToString::to_string);
            "listening"
        );
        for hint in &self.dev_hints {
            info!(hint; "development mode");
        }
    }
}

/// What `--dev` opens, and commands to try it. `address` has the real port.
fn dev_hints(config: &Config, address: &BindAddress) -> Vec<String> {
    let (curl, base) = match address {
        BindAddress::Unix(path) => (
            format!("curl --unix-socket {}", path.display()),
            "http://localhost".into(),
        ),
        BindAddress::AllInterfaces(port) => ("curl".into(), format!("http://localhost:{port}")),
        BindAddress::Tcp { host, port } => ("curl".into(), format!("http://{host}:{port}")),
    };
    let token =
        r#"-H 'Content-Type: application/json' -d '{"room_name":"test","participant_name":"me"}'"#;
    let body = r#"{"room_id":"!room:example.org","slot_id":"m.call#ROOM","openid_token":{"access_token":"FROM_YOUR_HOMESERVER","token_type":"Bearer","matrix_server_name":"example.org","expires_in":3600},"member":{"id":"me","claimed_user_id":"@you:example.org","claimed_device_id":"DEVICE"}}"#;
    let (url, key) = (&config.sfu.url, config.sfu_keys.keys.signing().id());
    let mut hints = vec!["not for a host that others reach".into()];
    if config.homeservers.full_access.is_all() {
        hints.push("users of all Matrix homeservers can have rooms created".into());
    }
    hints.extend([
        format!("access tokens are for {url}, signed with API key {key}"),
        format!("try it: {curl} -i {base}/healthz"),
        format!("with an OpenID token (POST /_matrix/client/v3/user/USER/openid/request_token): {curl} {base}/get_token -d '{body}'"),
        format!("without Matrix: {curl} {base}/token {token}"),
        "homeservers on this host or on the LAN need LIVEKIT_ALLOWED_NETWORKS=127.0.0.0/8,::1 or the like".into(),
    ]);
    hints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hints_of_dev_have_the_real_port() {
        let (config, _) = Config::read(&Environment::default(), Mode::Dev);
        let config = config.unwrap();
        let hints = |bind| dev_hints(&config, &BindAddress::parse(bind).unwrap()).join("\n");
        let text = hints("127.0.0.1:4711");
        assert!(text.contains("curl -i http://127.0.0.1:4711/healthz"));
        assert!(text.contains("http://127.0.0.1:4711/get_token -d '{"));
        assert!(text.contains("users of all Matrix homeservers"));
        assert!(!text.contains("secret"));
        assert!(hints("[::1]:1").contains("curl -i http://[::1]:1/healthz"));
        let unix = hints("unix:/run/s");
        assert!(unix.contains("curl --unix-socket /run/s -i http://localhost/healthz"));
        let (_, body) = text.split_once("-d '").unwrap();
        let (body, _) = body.split_once('\'').unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["slot_id"], "m.call#ROOM");
    }
}
