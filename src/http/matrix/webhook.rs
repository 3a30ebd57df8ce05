//! What the SFU tells us: written down at once, worked later.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{debug, warn};

use super::MatrixDoor;
use crate::delegation::one;
use crate::http::reply::Reply;
use crate::http::route::Call;
use crate::livekit::webhook::Received;

/// When the SFU is to repeat what there was no room for; its own first pause.
const AGAIN: Duration = Duration::from_secs(1);

impl MatrixDoor {
    /// Takes in a webhook.
    pub(in crate::http) fn webhook(&self, call: &Call<'_>) -> Reply {
        let delegation = self.exchange.delegation();
        let counts = delegation.counts();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        match self.receiver.receive(call.authorization, call.body, now) {
            Ok(Received::New(webhook)) => {
                debug!(
                    "webhook id={:?} event={:?} room={:?}",
                    webhook.id,
                    webhook.kind,
                    webhook.room.as_str()
                );
                if delegation.heard(&webhook).is_err() {
                    self.receiver.forget(&webhook);
                    one(&counts.webhooks_busy);
                    return Reply::busy(AGAIN);
                }
                self.receiver.done(&webhook);
                one(&counts.webhooks_new);
                Reply::empty()
            }
            Ok(Received::UnderWay) => {
                one(&counts.webhooks_busy);
                Reply::busy(AGAIN)
            }
            Ok(Received::Repeat) => {
                one(&counts.webhooks_repeated);
                Reply::empty()
            }
            Ok(Received::Ignored) => {
                one(&counts.webhooks_ignored);
                Reply::empty()
            }
            Err(error) => {
                one(&counts.webhooks_refused);
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
