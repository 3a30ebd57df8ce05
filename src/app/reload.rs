//! What is read again on SIGHUP, while the service goes on.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::thread;

use log::{error, info};
use signal_hook::consts::SIGHUP;

use crate::config::{CallersConfig, JwtIssuerConfig, JwtKeysConfig};
use crate::net::http_client::Fetcher;
use crate::token::jwt::{JwtIssuer, JwtIssuers, KeySource};
use crate::token::keys::RemoteJwks;
use crate::token::source::CallerRegistry;
use crate::util::signal::signal_pipe;
use crate::util::systemd::{ServiceState, SystemdNotifier};

/// Reads something again: what it is now, or why it stays as it was.
type ReloadStep = Box<dyn FnMut() -> Result<String, String> + Send>;

/// All that can be read again.
#[derive(Default)]
pub(crate) struct ReloadSteps(Vec<(&'static str, ReloadStep)>);

impl fmt::Debug for ReloadSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

impl ReloadSteps {
    /// Adds one; `read` either replaces what it reads as a whole, or leaves it as it was and tells why.
    pub(crate) fn add(
        &mut self,
        name: &'static str,
        read: impl FnMut() -> Result<String, String> + Send + 'static,
    ) {
        self.0.push((name, Box::new(read)));
    }

    /// Catches SIGHUP from here on, even if there is nothing to read: unheard, it would end the service. `supervisor` hears of
    /// the beginning and the end.
    ///
    /// # Errors
    /// Signals cannot be caught, or no thread started.
    pub(crate) fn start(mut self, supervisor: SystemdNotifier) -> io::Result<()> {
        let mut heard = signal_pipe(&[SIGHUP])?;
        let hear = move || {
            // several signals that have come meanwhile are one
            let mut signals = [0; 64];
            while heard.read(&mut signals).is_ok_and(|count| count > 0) {
                supervisor.notify(ServiceState::Reloading);
                self.run();
                supervisor.notify(ServiceState::Ready);
            }
        };
        thread::Builder::new().name("reload".into()).spawn(hear)?;
        Ok(())
    }

    fn run(&mut self) {
        for (name, read) in &mut self.0 {
            match read() {
                Ok(now) => info!("re-read {name}: {now}"),
                Err(reasons) => error!("not re-read, {name} stay as they were: {reasons}"),
            }
        }
    }
}

/// Several errors in one line.
pub(crate) fn join_errors(errors: Vec<impl fmt::Display>) -> String {
    let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
    all.join("; ")
}

/// Makes the book of these callers. Published keys that an older book has are kept: their server may be down just now.
///
/// # Errors
/// No thread can be started to fetch keys.
pub(crate) fn build_caller_registry(
    callers: &CallersConfig,
    old: &CallerRegistry,
    fetcher: &dyn Fn() -> Fetcher,
) -> io::Result<CallerRegistry> {
    let mut issuers = Vec::new();
    for login in &callers.jwt_issuers {
        let made = build_issuer(login, old.issuers.iter().chain(&issuers), fetcher)?;
        issuers.push(made);
    }
    let policies = &callers.policies;
    let entry = |(name, entry): (&_, &crate::token::policy::file::PolicyFileCaller)| {
        let policy = Arc::new(entry.policy.clone());
        (crate::token::caller::CallerName::clone(name), policy)
    };
    Ok(CallerRegistry {
        api_keys: callers.api_keys.clone(),
        issuers: JwtIssuers::new(issuers),
        anonymous: callers.anonymous_caller.clone(),
        policies: policies.callers.iter().map(entry).collect(),
        default_policy: Arc::new(policies.default.clone()),
    })
}

fn build_issuer<'a>(
    login: &JwtIssuerConfig,
    mut known: impl Iterator<Item = &'a JwtIssuer>,
    fetcher: &dyn Fn() -> Fetcher,
) -> io::Result<JwtIssuer> {
    let keys = match &login.keys {
        JwtKeysConfig::Static(keys) => KeySource::Fixed(keys.clone()),
        JwtKeysConfig::JwksUrl(url) => {
            let known = known.find_map(|issuer| match issuer.key_source() {
                KeySource::Remote(jwks) if jwks.url() == url => Some(RemoteJwks::clone(jwks)),
                _ => None,
            });
            KeySource::Remote(match known {
                Some(known) => known,
                None => RemoteJwks::start(url.clone(), fetcher())?,
            })
        }
    };
    let (issuer, audience) = (login.issuer.clone(), login.audience.clone());
    let issuer = JwtIssuer::new(login.name.clone(), issuer, audience, keys);
    Ok(match &login.identity_claim {
        Some(claim) => issuer.with_identity_claim(claim.clone()),
        None => issuer,
    })
}
