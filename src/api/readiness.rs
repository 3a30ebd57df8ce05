//! Whether clients had better come: the SFU answers and takes our key, and leaves can be written down.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::delegation::DelegationService;
use crate::livekit::room_service::{self, RoomServiceClient};
use crate::util::metrics;

/// Between two questions to the SFU, however often we are asked ourselves.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// For which the very first one that asks waits; everyone else hears what is known.
const FIRST_CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// What is amiss, in words that anybody may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadinessProblem {
    /// It was asked and has not answered yet, for the first time.
    SfuNotChecked,
    /// No connection, no answer, or another one than expected.
    SfuUnreachable,
    /// It does not know our key, or the secret is another.
    ApiKeyRefused,
    /// The journal has trouble.
    LeaveStoreFailing,
}

impl fmt::Display for ReadinessProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SfuNotChecked => "the SFU has not answered yet",
            Self::SfuUnreachable => "the SFU does not answer as it should",
            Self::ApiKeyRefused => "the SFU refuses the API key",
            Self::LeaveStoreFailing => "delegated leaves cannot be written down",
        })
    }
}

/// Looks after it.
#[derive(Debug)]
pub(crate) struct Readiness {
    room_service: Arc<RoomServiceClient>,
    delegation: DelegationService,
    sfu_status: Mutex<SfuStatus>,
    sfu_checked: Condvar,
}

#[derive(Debug, Default)]
struct SfuStatus {
    last_check: Option<Instant>,
    check_running: bool,
    /// What the last answer meant.
    last_result: Option<Result<(), ReadinessProblem>>,
}

impl Readiness {
    /// Asks nobody yet.
    pub(crate) fn new(rooms: Arc<RoomServiceClient>, delegation: DelegationService) -> Arc<Self> {
        Arc::new(Self {
            room_service: rooms,
            delegation,
            sfu_status: Mutex::default(),
            sfu_checked: Condvar::new(),
        })
    }

    /// All that is amiss, as far as is known; nothing is good.
    pub(crate) fn problems(self: &Arc<Self>) -> Vec<ReadinessProblem> {
        let mut ailments: Vec<_> = self.sfu_result().err().into_iter().collect();
        if let Some(cause) = self.delegation.store_problem() {
            log::debug!("not ready cause={cause:?}");
            ailments.push(ReadinessProblem::LeaveStoreFailing);
        }
        metrics::set_ready(ailments.is_empty());
        ailments
    }

    fn lock(&self) -> MutexGuard<'_, SfuStatus> {
        self.sfu_status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What the SFU said last. It is asked again beside, so that nobody waits for it but the very first.
    fn sfu_result(self: &Arc<Self>) -> Result<(), ReadinessProblem> {
        let now = Instant::now();
        let mut sfu = self.lock();
        if !sfu.check_running
            && sfu
                .last_check
                .is_none_or(|asked| now >= asked + CHECK_INTERVAL)
        {
            let this = Arc::clone(self);
            let asks = thread::Builder::new().name("readiness".into());
            // without a thread it stays at what is known
            sfu.check_running = asks.spawn(move || this.check_sfu()).is_ok();
            sfu.last_check = Some(now);
        }
        let unheard = |sfu: &mut SfuStatus| sfu.last_result.is_none() && sfu.check_running;
        let waited = self
            .sfu_checked
            .wait_timeout_while(sfu, FIRST_CHECK_TIMEOUT, unheard);
        let (sfu, _) = waited.unwrap_or_else(PoisonError::into_inner);
        sfu.last_result
            .unwrap_or(Err(ReadinessProblem::SfuNotChecked))
    }

    fn check_sfu(&self) {
        let result = self.room_service.probe();
        let outcome = match &result {
            Ok(()) => Ok(()),
            Err(room_service::Error::KeyRefused(_)) => Err(ReadinessProblem::ApiKeyRefused),
            Err(_) => Err(ReadinessProblem::SfuUnreachable),
        };
        let mut sfu = self.lock();
        if sfu.last_result.replace(outcome) != Some(outcome) {
            match result {
                Ok(()) => info!("the SFU answers, and takes the API key"),
                Err(error) => warn!("not ready cause={:?}", error.to_string()),
            }
        }
        sfu.check_running = false;
        self.sfu_checked.notify_all();
    }
}
