//! The door for the SFU: what it tells us is written down at once, and worked later.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{debug, warn};

use crate::current::Current;
use crate::delegation::Delegation;
use crate::guests::Guests;
use crate::http::reply::Reply;
use crate::http::route::Call;
use crate::livekit::webhook::{Received, Receiver};
use crate::metrics::{self, Now};
use crate::readiness::Readiness;
use crate::tally::Tally;

/// When the SFU is to repeat what there was no room for; its own first pause.
const AGAIN: Duration = Duration::from_secs(1);

/// What is behind the door; a reload of the settings replaces it as a whole.
#[derive(Debug)]
pub struct Furniture {
    /// Knows the SFU's webhooks.
    pub receiver: Receiver,
    /// Knows whether clients had better come.
    pub readiness: Arc<Readiness>,
}

/// Those who want to know who comes and goes.
#[derive(Debug)]
pub struct SfuDoor {
    inside: Current<Furniture>,
    delegation: Delegation,
    guests: Option<Guests>,
    forged: Tally,
}

impl SfuDoor {
    /// Opens it. What the SFU tells is for `delegation`, and for `guests` if there are such.
    pub fn new(inside: Furniture, delegation: Delegation, guests: Option<Guests>) -> Self {
        Self {
            inside: Current::new(inside),
            delegation,
            guests,
            forged: Tally::default(),
        }
    }

    /// Serves with this from now on; what is under way ends with what it began with.
    pub fn refurnish(&self, inside: Furniture) {
        self.inside.replace(inside);
    }

    /// How many leaves and guests are kept.
    pub(super) fn kept(&self) -> Now {
        let guests = self.guests.as_ref();
        Now {
            leaves: self.delegation.kept(),
            guests: guests.map_or(0, Guests::kept),
            guests_lag: guests.map_or(0, |guests| guests.lag().as_secs()),
            ..Now::default()
        }
    }

    /// Whether clients had better come; the log has what is amiss.
    pub(super) fn ready(&self) -> Reply {
        Reply::ready(&self.inside.get().readiness.ailments())
    }

    /// Takes in a webhook.
    pub(super) fn webhook(&self, call: &Call<'_>) -> Reply {
        let inside = self.inside.get();
        let receiver = &inside.receiver;
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
                if let Some(guests) = &self.guests {
                    guests.heard(&webhook);
                }
                if self.delegation.heard(&webhook).is_err() {
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
