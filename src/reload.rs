//! What is read again on SIGHUP, while the service goes on.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use log::{error, info};
use signal_hook::consts::SIGHUP;

use crate::caller::jwks::Jwks;
use crate::caller::jwt::{Issuer, Issuers, KeySource};
use crate::config::{Callers, Login, LoginKeys};
use crate::net::fetch::Fetcher;
use crate::notify::{State, Supervisor};
use crate::token_source::Book;

/// Reads something again: what it is now, or why it stays as it was.
type Reload = Box<dyn FnMut() -> Result<String, String> + Send>;

/// All that can be read again.
#[derive(Default)]
pub struct Reloads(Vec<(&'static str, Reload)>);

impl fmt::Debug for Reloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

impl Reloads {
    /// Adds one; `read` either replaces what it reads as a whole, or leaves it as it was and tells why.
    pub fn add(
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
    pub fn start(mut self, supervisor: Supervisor) -> io::Result<()> {
        let (mut heard, sender) = UnixStream::pair()?;
        signal_hook::low_level::pipe::register(SIGHUP, sender)?;
        let hear = move || {
            // several signals that have come meanwhile are one
            let mut signals = [0; 64];
            while heard.read(&mut signals).is_ok_and(|count| count > 0) {
                supervisor.tell(State::Reloading);
                self.run();
                supervisor.tell(State::Ready);
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
pub fn reasons(errors: Vec<impl fmt::Display>) -> String {
    let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
    all.join("; ")
}

/// Makes the book of these callers. Published keys that an older book has are kept: their server may be down just now.
///
/// # Errors
/// No thread can be started to fetch keys.
pub fn book(callers: &Callers, old: &Book, fetcher: &dyn Fn() -> Fetcher) -> io::Result<Book> {
    let mut issuers = Vec::new();
    for login in &callers.logins {
        let made = issuer(login, old.issuers.iter().chain(&issuers), fetcher)?;
        issuers.push(made);
    }
    let policies = &callers.policies;
    let entry = |(name, entry): (&_, &crate::policy::file::Entry)| {
        let policy = Arc::new(entry.policy.clone());
        (crate::caller::Name::clone(name), policy)
    };
    Ok(Book {
        keys: callers.keys.clone(),
        issuers: Issuers::new(issuers),
        anyone: callers.anyone.clone(),
        policies: policies.callers.iter().map(entry).collect(),
        default: Arc::new(policies.default.clone()),
    })
}

fn issuer<'a>(
    login: &Login,
    mut known: impl Iterator<Item = &'a Issuer>,
    fetcher: &dyn Fn() -> Fetcher,
) -> io::Result<Issuer> {
    let keys = match &login.keys {
        LoginKeys::Fixed(keys) => KeySource::Fixed(keys.clone()),
        LoginKeys::Url(url) => {
            let known = known.find_map(|issuer| match issuer.keys() {
                KeySource::Url(jwks) if jwks.url() == url => Some(Jwks::clone(jwks)),
                _ => None,
            });
            KeySource::Url(match known {
                Some(known) => known,
                None => Jwks::start(url.clone(), fetcher())?,
            })
        }
    };
    let (issuer, audience) = (login.issuer.clone(), login.audience.clone());
    let issuer = Issuer::new(login.name.clone(), issuer, audience, keys);
    Ok(match &login.identity_claim {
        Some(claim) => issuer.identity_claim(claim.clone()),
        None => issuer,
    })
}
