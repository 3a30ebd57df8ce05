//! Whether clients had better come: the SFU answers and takes our key, and leaves can be written down.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::delegation::Delegation;
use crate::livekit::room_service::{self, RoomService};
use crate::metrics;

/// Between two questions to the SFU, however often we are asked ourselves.
const EVERY: Duration = Duration::from_secs(10);
/// For which the very first one that asks waits; everyone else hears what is known.
const FIRST: Duration = Duration::from_secs(3);

/// What is amiss, in words that anybody may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ailment {
    /// It was asked and has not answered yet, for the first time.
    SfuNotHeard,
    /// No connection, no answer, or another one than expected.
    SfuUnreachable,
    /// It does not know our key, or the secret is another.
    KeyRefused,
    /// The journal has trouble.
    JournalAiling,
}

impl fmt::Display for Ailment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SfuNotHeard => "the SFU has not answered yet",
            Self::SfuUnreachable => "the SFU does not answer as it should",
            Self::KeyRefused => "the SFU refuses the API key",
            Self::JournalAiling => "delegated leaves cannot be written down",
        })
    }
}

/// Looks after it.
#[derive(Debug)]
pub struct Readiness {
    rooms: Arc<RoomService>,
    delegation: Delegation,
    sfu: Mutex<Sfu>,
    heard: Condvar,
}

#[derive(Debug, Default)]
struct Sfu {
    asked: Option<Instant>,
    asking: bool,
    /// What the last answer meant.
    outcome: Option<Result<(), Ailment>>,
}

impl Readiness {
    /// Asks nobody yet.
    pub fn new(rooms: Arc<RoomService>, delegation: Delegation) -> Arc<Self> {
        Arc::new(Self {
            rooms,
            delegation,
            sfu: Mutex::default(),
            heard: Condvar::new(),
        })
    }

    /// All that is amiss, as far as is known; nothing is good.
    pub fn ailments(self: &Arc<Self>) -> Vec<Ailment> {
        let mut ailments: Vec<_> = self.sfu().err().into_iter().collect();
        if let Some(cause) = self.delegation.trouble() {
            log::debug!("not ready cause={cause:?}");
            ailments.push(Ailment::JournalAiling);
        }
        metrics::ready(ailments.is_empty());
        ailments
    }

    fn lock(&self) -> MutexGuard<'_, Sfu> {
        self.sfu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the SFU said last. It is asked again beside, so that nobody waits for it but the very first.
    fn sfu(self: &Arc<Self>) -> Result<(), Ailment> {
        let now = Instant::now();
        let mut sfu = self.lock();
        if !sfu.asking && sfu.asked.is_none_or(|asked| now >= asked + EVERY) {
            let this = Arc::clone(self);
            let asks = thread::Builder::new().name("readiness".into());
            // without a thread it stays at what is known
            sfu.asking = asks.spawn(move || this.ask()).is_ok();
            sfu.asked = Some(now);
        }
        let unheard = |sfu: &mut Sfu| sfu.outcome.is_none() && sfu.asking;
        let waited = self.heard.wait_timeout_while(sfu, FIRST, unheard);
        let (sfu, _) = waited.unwrap_or_else(PoisonError::into_inner);
        sfu.outcome.unwrap_or(Err(Ailment::SfuNotHeard))
    }

    fn ask(&self) {
        let result = self.rooms.check();
        let outcome = match &result {
            Ok(()) => Ok(()),
            Err(room_service::Error::KeyRefused(_)) => Err(Ailment::KeyRefused),
            Err(_) => Err(Ailment::SfuUnreachable),
        };
        let mut sfu = self.lock();
        if sfu.outcome.replace(outcome) != Some(outcome) {
            match result {
                Ok(()) => info!("the SFU answers, and takes the API key"),
                Err(error) => warn!("not ready cause={:?}", error.to_string()),
            }
        }
        sfu.asking = false;
        self.heard.notify_all();
    }
}
