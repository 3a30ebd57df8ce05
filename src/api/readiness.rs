//! Readiness (`/readyz`): the SFU answers and accepts the API key, and delegated leaves can be stored.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use serde_json::json;

use crate::delegation::DelegationService;
use crate::livekit::room_service::{self, RoomServiceClient};
use crate::server::HttpResponse;
use crate::util::metrics;
use crate::util::sync::{lock, spawn, wait_timeout_while};

/// Between two calls to the SFU, however often `/readyz` is requested.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Longest wait for the very first result; later requests get the last result at once.
const FIRST_CHECK_TIMEOUT: Duration = Duration::from_secs(3);

// Reasons not to send clients here; fit for the public.
const SFU_NOT_CHECKED: &str = "the SFU has not been checked yet";
const SFU_UNREACHABLE: &str = "the SFU is unreachable or fails";
const NOT_SFU: &str = "the server at LIVEKIT_API_URL is not an SFU";
const API_KEY_REFUSED: &str = "the SFU refuses the API key";
const LEAVE_STORE_FAILING: &str = "delegated leaves cannot be stored";

/// The response to a readiness probe: 200, or 503 with the problems.
pub(super) fn readiness_response(problems: &[&str]) -> HttpResponse {
    match problems {
        [] => HttpResponse::json(200, &json!({ "status": "ready" })),
        reasons => HttpResponse::json(503, &json!({ "status": "not ready", "reasons": reasons })),
    }
}

/// Checks the SFU in the background when readiness is requested, and remembers the result.
#[derive(Debug)]
pub(crate) struct Readiness {
    delegation: DelegationService,
    sfu_status: Mutex<SfuStatus>,
    sfu_checked: Condvar,
}

#[derive(Debug)]
struct SfuStatus {
    room_service: Arc<RoomServiceClient>,
    last_check: Option<Instant>,
    check_running: bool,
    last_result: Option<Result<(), &'static str>>,
}

impl Readiness {
    /// Checks nothing until readiness is requested.
    pub(crate) fn new(
        room_service: Arc<RoomServiceClient>,
        delegation: DelegationService,
    ) -> Arc<Self> {
        Arc::new(Self {
            delegation,
            sfu_status: Mutex::new(SfuStatus {
                room_service,
                last_check: None,
                check_running: false,
                last_result: None,
            }),
            sfu_checked: Condvar::new(),
        })
    }

    /// Has the next request check the SFU with this client; until then the last result stands.
    pub(crate) fn recheck_with(&self, room_service: Arc<RoomServiceClient>) {
        let mut sfu = lock(&self.sfu_status);
        sfu.room_service = room_service;
        sfu.last_check = None;
    }

    /// Problems found by the last check; empty if the service is ready.
    pub(crate) fn problems(self: &Arc<Self>) -> Vec<&'static str> {
        let mut problems: Vec<_> = self.sfu_result().err().into_iter().collect();
        if let Some(cause) = self.delegation.store_problem() {
            debug!(cause:%; "leave store failing");
            problems.push(LEAVE_STORE_FAILING);
        }
        metrics::set_ready(problems.is_empty());
        problems
    }

    /// The last result. Starts another check if that is due; only the very first one is waited for.
    fn sfu_result(self: &Arc<Self>) -> Result<(), &'static str> {
        let now = Instant::now();
        let mut sfu = lock(&self.sfu_status);
        let due = |last: Instant| now >= last + CHECK_INTERVAL;
        if !sfu.check_running && sfu.last_check.is_none_or(due) {
            let (this, room_service) = (Arc::clone(self), Arc::clone(&sfu.room_service));
            let thread = spawn("readiness", move || this.check_sfu(&room_service));
            // without a thread the last result stands
            sfu.check_running = thread.is_ok();
            sfu.last_check = Some(now);
        }
        let first = |sfu: &mut SfuStatus| sfu.last_result.is_none() && sfu.check_running;
        let sfu = wait_timeout_while(&self.sfu_checked, sfu, FIRST_CHECK_TIMEOUT, first);
        sfu.last_result.unwrap_or(Err(SFU_NOT_CHECKED))
    }

    fn check_sfu(&self, room_service: &RoomServiceClient) {
        let response = room_service.probe();
        let result = match &response {
            Ok(()) => Ok(()),
            Err(room_service::Error::KeyRefused(_)) => Err(API_KEY_REFUSED),
            Err(room_service::Error::NotSfu(..)) => Err(NOT_SFU),
            Err(_) => Err(SFU_UNREACHABLE),
        };
        let mut sfu = lock(&self.sfu_status);
        if sfu.last_result.replace(result) != Some(result) {
            match response {
                Ok(()) => info!("SFU ready"),
                Err(cause) => warn!(cause:%; "SFU not ready"),
            }
        }
        sfu.check_running = false;
        self.sfu_checked.notify_all();
    }
}
