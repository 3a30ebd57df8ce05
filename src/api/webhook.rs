//! The door for the SFU: what it tells us is written down at once, and worked later.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{debug, warn};

use super::readiness::Readiness;
use super::response::Response;
use super::router::ApiRequest;
use crate::delegation::DelegationService;
use crate::livekit::webhook::{WebhookDelivery, WebhookReceiver};
use crate::membership::Membership;
use crate::util::log_throttle::LogThrottle;
use crate::util::metrics;
use crate::util::metrics::MetricsSnapshot;

/// When the SFU is to repeat what there was no room for; its own first pause.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Those who want to know who comes and goes.
#[derive(Debug)]
pub(crate) struct WebhookApi {
    receiver: WebhookReceiver,
    readiness: Arc<Readiness>,
    delegation: DelegationService,
    participants: Option<Membership>,
    unverified_throttle: LogThrottle,
}

impl WebhookApi {
    /// Opens it. What the SFU tells is for `delegation`, and for `guests` if there are such.
    pub(crate) fn new(
        receiver: WebhookReceiver,
        readiness: Arc<Readiness>,
        delegation: DelegationService,
        guests: Option<Membership>,
    ) -> Self {
        Self {
            receiver,
            readiness,
            delegation,
            participants: guests,
            unverified_throttle: LogThrottle::default(),
        }
    }

    /// How many leaves and guests are kept.
    pub(super) fn gauge_values(&self) -> MetricsSnapshot {
        let guests = self.participants.as_ref();
        MetricsSnapshot {
            delegated_leaves: self.delegation.leave_count(),
            tracked_participants: guests.map_or(0, Membership::tracked_count),
            participant_check_lag_seconds: guests.map_or(0, |guests| guests.lag().as_secs()),
            ..MetricsSnapshot::default()
        }
    }

    /// Whether clients had better come; the log has what is amiss.
    pub(super) fn handle_readiness(&self) -> Response {
        Response::readiness(&self.readiness.problems())
    }

    /// Takes in a webhook.
    pub(super) fn handle_webhook(&self, call: &ApiRequest<'_>) -> Response {
        let receiver = &self.receiver;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        match receiver.receive(call.authorization, call.body, now) {
            Ok(WebhookDelivery::New { id, event: webhook }) => {
                debug!(id:% = id, event:? = webhook; "webhook received");
                if let Some(guests) = &self.participants {
                    guests.handle_webhook(&webhook);
                }
                if self.delegation.handle_webhook(&webhook).is_err() {
                    receiver.mark_failed(&id);
                    metrics::count_webhook("busy");
                    return Response::busy(BUSY_RETRY_AFTER);
                }
                receiver.mark_processed(&id);
                metrics::count_webhook("accepted");
                Response::empty()
            }
            Ok(WebhookDelivery::InProgress) => {
                metrics::count_webhook("busy");
                Response::busy(BUSY_RETRY_AFTER)
            }
            Ok(WebhookDelivery::Duplicate) => {
                metrics::count_webhook("duplicate");
                Response::empty()
            }
            Ok(WebhookDelivery::Ignored) => {
                metrics::count_webhook("ignored");
                Response::empty()
            }
            Err(error) => {
                metrics::count_webhook("unauthenticated");
                if let Some(count) = self.unverified_throttle.count(Instant::now()) {
                    let client = call.client;
                    let cause = error.to_string();
                    warn!(
                        "refused client={client} endpoint=sfu_webhook status=401 count={count} cause={cause:?}"
                    );
                }
                Response::webhook_unverified()
            }
        }
    }
}
