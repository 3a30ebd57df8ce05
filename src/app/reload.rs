//! What is read again on SIGHUP, while the service goes on.

use std::fmt;
use std::io::{self, Read};
use std::thread;

use log::{error, info};
use signal_hook::consts::SIGHUP;

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
