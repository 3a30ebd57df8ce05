//! What the SFU tells us: written down at once, worked later.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{debug, warn};

use super::MatrixDoor;
use crate::http::reply::Reply;
use crate::http::route::Call;
use crate::livekit::webhook::Received;
use crate::metrics;

/// When the SFU is to repeat what there was no room for; its own first pause.
const AGAIN: Duration = Duration::from_secs(1);

impl MatrixDoor {
    /// Takes in a webhook.
    pub(in crate::http) fn webhook(&self, call: &Call<'_>) -> Reply {
        let inside = self.inside();
        let (receiver, delegation) = (&inside.receiver, inside.exchange.delegation());
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        match receiver.receive(call.authorization, call.body, now) {
            Ok(Received::New(webhook)) => {
                debug!(
                    "webhook id={:?} event={:?} room={:?}",
                    webhook.id,
                    webhook.kind,
                    webhook.room.as_str()
                );
                if delegation.heard(&webhook).is_err() {
                    receiver.forget(&webhook);
                    metrics::webhook("busy");
                    return Reply::busy(AGAIN);
                }
                receiver.done(&webhook);
                metrics::webhook("new");
                Reply::empty()
            }
            Ok(Received::UnderWay) => {
                metrics::webhook("busy");
                Reply::busy(AGAIN)
            }
            Ok(Received::Repeat) => {
                metrics::webhook("repeated");
                Reply::empty()
            }
            Ok(Received::Ignored) => {
                metrics::webhook("ignored");
                Reply::empty()
            }
            Err(error) => {
                metrics::webhook("refused");
                if let Some(count) = self.forged.count(Instant::now()) {
                    let client = call.client;
                    let cause = error.to_string();
                    warn!(
                        "refused client={client} endpoint=sfu_webhook status=401 count={count} cause={cause:?}"
                    );
                }
                Reply::not_the_sfu()
            }
        }
    }
}
