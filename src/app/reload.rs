//! Reload on SIGHUP: re-reads settings from their files and credentials, and replaces what has changed, while the service goes on.
//!
//! SIGHUP re-reads, each as a section that keeps its last good values if it has an error:
//! - `SFU URL`, `SFU keys`, `homeservers`, `network` (certificate authorities too) and `access tokens`;
//! - `application service`: the registration, but not the interval of membership checks;
//! - `caller keys`, `login` (JWT issuers), `policy` and `callers`, but not `CORS_ORIGINS`;
//! - `log`: the level, but not the format.
//!
//! `listening` and `delegated leaves` are read at start only. The table of settings ([`crate::config`]) is the authority:
//! `Setting::is_reloaded`; `--help` prints the exceptions.

use std::io::{self, Read};

use log::{error, info, warn};
use signal_hook::consts::SIGHUP;

use super::matrix::MatrixHandlers;
use super::token::TokenHandlers;
use crate::config::{Config, Environment, Mode, ReloadedConfig, join_errors};
use crate::livekit::access_token::SharedApiKeys;
use crate::util::logging;
use crate::util::signal::signal_pipe;
use crate::util::sync;
use crate::util::systemd::{ServiceState, SystemdNotifier};

/// What a reload reads and replaces.
pub(super) struct Reloader {
    pub(super) env: Environment,
    pub(super) mode: Mode,
    /// The settings in use.
    pub(super) config: Config,
    /// Warnings about them that the log has already.
    pub(super) warnings: Vec<String>,
    pub(super) keys: SharedApiKeys,
    pub(super) matrix: Option<MatrixHandlers>,
    pub(super) token: Option<TokenHandlers>,
}

impl Reloader {
    /// Reloads on each SIGHUP from now on. Begin and end of a reload go to `notifier`.
    ///
    /// # Errors
    ///
    /// If the signal cannot be caught or there is no thread.
    pub(super) fn start(mut self, notifier: SystemdNotifier) -> io::Result<()> {
        let mut signals = signal_pipe(&[SIGHUP])?;
        let run = move || {
            // signals during a reload are read at once, and cause one more
            let mut buffer = [0; 64];
            while signals.read(&mut buffer).is_ok_and(|count| count > 0) {
                notifier.notify(ServiceState::Reloading);
                self.reload();
                notifier.notify(ServiceState::Ready);
            }
        };
        sync::spawn("reload", run).map(drop)
    }

    fn reload(&mut self) {
        let reloaded = self.config.reload(&self.env, self.mode);
        let ReloadedConfig {
            config,
            outcomes,
            warnings,
        } = reloaded;
        self.apply(&config);
        let mut refused = 0;
        for outcome in outcomes {
            let section = outcome.section.as_str();
            if outcome.errors.is_empty() {
                info!(section; "settings section reloaded");
            } else {
                refused += 1;
                let cause = join_errors(&outcome.errors);
                error!(section, cause; "settings section rejected");
            }
        }
        for cause in warnings
            .iter()
            .filter(|warning| !self.warnings.contains(warning))
        {
            warn!(cause; "settings warning");
        }
        let token_endpoint = config.token_endpoint.as_ref();
        info!(
            refused,
            signing_key = config.sfu_keys.keys.signing().id(),
            full_access = config.homeservers.full_access_summary(),
            callers = token_endpoint.map(|endpoint| endpoint.callers.summary()),
            log_level:% = config.log.level;
            "settings reloaded"
        );
        (self.config, self.warnings) = (config, warnings);
    }

    fn apply(&mut self, new: &Config) {
        if new.sfu_keys != self.config.sfu_keys {
            self.keys.replace(new.sfu_keys.keys.clone());
        }
        if let Some(matrix) = &mut self.matrix {
            matrix.reload(&self.config, new);
        }
        if let Some(token) = &mut self.token
            && let Err(cause) = token.reload(&self.config, new)
        {
            error!(cause:%; "callers of /token not reloaded");
        }
        logging::set_level(new.log.level);
    }
}
