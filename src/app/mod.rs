//! Composition: runs the command of the arguments, and builds the service from its settings.

mod matrix;
mod reload;
mod serve;
mod token;

use std::io::{self, Write};
use std::process::ExitCode;

use self::matrix::MatrixHandlers;
use self::reload::Reloader;
use self::token::TokenHandlers;
use crate::api::rate_limit::AddressRateLimiter;
use crate::api::router::Router;
use crate::cli::{self, Command};
use crate::config::{Config, Environment, Mode};
use crate::delegation::DelegationService;
use crate::livekit::access_token::SharedApiKeys;

/// Runs the command of this process's arguments.
pub fn run() -> ExitCode {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let env = Environment::from_process();
    let code = match Command::parse(std::env::args_os()) {
        Ok(Command::Serve) => serve::serve(env, Mode::Serve),
        Ok(Command::Dev) => serve::serve(env, Mode::Dev),
        Ok(Command::CheckConfig) => cli::check_config::run(&env, &mut out, &mut err),
        Ok(Command::Doctor(url)) => cli::doctor::run(&env, url, &mut out),
        Ok(Command::Healthcheck) => cli::healthcheck::run(&env, &mut err),
        Ok(Command::Keygen(name)) => cli::generate::keygen(&name, &mut out, &mut err).map(|()| 0),
        Ok(Command::GenerateRegistration(server, url)) => {
            cli::generate::generate_registration(&server, &url, &mut out, &mut err).map(|()| 0)
        }
        Ok(Command::Help) => cli::print_help(&mut out).map(|()| 0),
        Ok(Command::Version) => cli::print_version(&mut out).map(|()| 0),
        Err(usage) => writeln!(err, "{usage}").map(|()| cli::EXIT_USAGE),
    };
    // an error of stdout or stderr cannot be printed
    ExitCode::from(code.unwrap_or(1))
}

/// The parts of a running service, apart from its HTTP server.
struct App {
    router: Router,
    /// Delegated leaves, if an endpoint takes them.
    delegation: Option<DelegationService>,
    reloader: Reloader,
}

impl App {
    /// Builds the endpoints that are open, and starts their threads. `warnings` are those of the settings.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    fn build(
        config: Config,
        env: Environment,
        mode: Mode,
        warnings: Vec<String>,
        workers: usize,
    ) -> io::Result<Self> {
        let keys = SharedApiKeys::new(config.sfu_keys.keys.clone());
        let mut router = Router::new(AddressRateLimiter::new(config.listen.rate_per_address));
        let (mut token, mut matrix) = (None, None);
        if let Some(endpoint) = &config.token_endpoint {
            let handlers = TokenHandlers::build(&config, endpoint, &keys)?;
            router.token = Some(handlers.api());
            token = Some(handlers);
        }
        if config.endpoints.matrix || config.endpoints.appservice {
            let handlers = MatrixHandlers::build(&config, workers, &keys)?;
            handlers.add_routes(&mut router);
            matrix = Some(handlers);
        }
        Ok(Self {
            router,
            delegation: matrix.as_ref().map(|matrix| matrix.delegation().clone()),
            reloader: Reloader {
                env,
                mode,
                config,
                warnings,
                keys,
                matrix,
                token,
            },
        })
    }
}
