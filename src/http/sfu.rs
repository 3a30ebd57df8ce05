//! The door for the SFU: what it tells us is taken in at once, and worked later.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{debug, warn};

use crate::delegation::{Delegation, one};
use crate::guests::Guests;
use crate::http::reply::Reply;
use crate::http::route::Call;
use crate::http::tally::Tally;
use crate::livekit::webhook::{Received, Receiver};

/// When the SFU is to repeat what there was no room for; its own first pause.
const AGAIN: Duration = Duration::from_secs(1);

/// Those who want to know who comes and goes.
#[derive(Debug)]
pub struct SfuDoor {
    receiver: Receiver,
    delegation: Delegation,
    guests: Option<Guests>,
    forged: Tally,
}

impl SfuDoor {
    /// `receiver` knows the SFU's webhooks.
    pub fn new(receiver: Receiver, delegation: Delegation, guests: Option<Guests>) -> Self {
        Self {
            receiver,
            delegation,
            guests,
            forged: Tally::default(),
        }
    }

    /// Whether what clients are promised will be kept; the log has what is amiss.
    pub(super) fn ready(&self) -> Reply {
        match self.delegation.trouble() {
            None => Reply::empty(),
            Some(cause) => {
                debug!("not ready cause={cause:?}");
                Reply::not_ready()
            }
        }
    }

    /// Takes in a webhook.
    pub(super) fn webhook(&self, call: &Call<'_>) -> Reply {
        let delegation = &self.delegation;
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
                if delegation.heard(webhook.clone()).is_err() {
                    self.receiver.forget(&webhook);
                    one(&counts.webhooks_busy);
                    return Reply::busy(AGAIN);
                }
                if let Some(guests) = &self.guests {
                    guests.heard(&webhook);
                }
                one(&counts.webhooks_new);
                Reply::empty()
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
