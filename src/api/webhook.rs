//! `POST /sfu_webhook`: events of the SFU about participants and rooms.

use log::debug;

use super::refusal::Refusal;
use super::request::RequestContext;
use super::response::BUSY_RETRY_AFTER;
use crate::delegation::DelegationService;
use crate::livekit::webhook::{WebhookDelivery, WebhookEvent, WebhookReceiver};
use crate::membership::Membership;
use crate::server::HttpResponse;
use crate::util::clock::unix_seconds_now;
use crate::util::metrics::{self, MetricsSnapshot};

/// Verifies webhooks, and passes events on to delegation and membership.
#[derive(Debug)]
pub(crate) struct WebhookApi {
    receiver: WebhookReceiver,
    delegation: DelegationService,
    membership: Option<Membership>,
}

impl WebhookApi {
    pub(crate) fn new(
        receiver: WebhookReceiver,
        delegation: DelegationService,
        membership: Option<Membership>,
    ) -> Self {
        Self {
            receiver,
            delegation,
            membership,
        }
    }

    /// Gauges of delegation and membership.
    pub(super) fn gauge_values(&self) -> MetricsSnapshot {
        let membership = self.membership.as_ref();
        MetricsSnapshot {
            delegated_leaves: self.delegation.leave_count(),
            tracked_participants: membership.map_or(0, Membership::tracked_count),
            participant_check_lag_seconds: membership.map_or(0, |it| it.lag().as_secs()),
            ..MetricsSnapshot::default()
        }
    }

    /// Receives a webhook. The SFU repeats it after any response but 200 and 401.
    pub(super) fn receive(&self, context: &RequestContext<'_>) -> Result<HttpResponse, Refusal> {
        let now = unix_seconds_now();
        let delivery = self
            .receiver
            .receive(
                context.single_header("Authorization"),
                context.request.body,
                now,
            )
            .inspect_err(|_| metrics::count_webhook("unauthenticated"))?;
        let outcome = match delivery {
            WebhookDelivery::New { id, event } => self.handle(&id, &event),
            WebhookDelivery::InProgress => "busy",
            WebhookDelivery::Duplicate => "duplicate",
            WebhookDelivery::Ignored => "ignored",
        };
        metrics::count_webhook(outcome);
        Ok(match outcome {
            "busy" => HttpResponse::matrix_busy(BUSY_RETRY_AFTER),
            _ => HttpResponse::empty(),
        })
    }

    /// Returns the label of the outcome.
    fn handle(&self, id: &str, event: &WebhookEvent) -> &'static str {
        debug!(id, event:?; "webhook received");
        if let Some(membership) = &self.membership {
            membership.handle_webhook(event);
        }
        if self.delegation.handle_webhook(event).is_err() {
            self.receiver.mark_failed(id);
            return "busy";
        }
        self.receiver.mark_processed(id);
        "accepted"
    }
}
