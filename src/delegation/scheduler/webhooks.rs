//! What the SFU tells, about leaves that are ours and about others.

use std::sync::mpsc::SyncSender;

use super::{MAX_QUEUED_CLAIMS, Scheduler};
use crate::delegation::leave::{LeaveEvent, UnixMillis};
use crate::delegation::store;
use crate::delegation::store::FencingToken;
use crate::delegation::workers::{ClaimOutcome, PendingEvent};
use crate::livekit::id::ParticipantKey;
use crate::livekit::webhook::{ConnectionChange, WebhookEvent};

impl Scheduler {
    pub(super) fn handle_webhook(
        &mut self,
        webhook: WebhookEvent,
        done: SyncSender<Option<(ParticipantKey, FencingToken)>>,
        now: UnixMillis,
    ) {
        let (change, key, sid, reason) = match webhook {
            WebhookEvent::Participant {
                change,
                key,
                sid,
                disconnect_reason,
                ..
            } => (
                change,
                key,
                sid,
                disconnect_reason.unwrap_or_else(|| "webhook".into()),
            ),
            WebhookEvent::RoomFinished(room) => {
                let serials = self.serials_by_key.iter();
                let of_room = serials.filter(|(key, _)| key.room == room);
                let of_room: Vec<u64> = of_room.map(|(_, serial)| *serial).collect();
                for serial in of_room {
                    self.step(serial, &LeaveEvent::RoomFinished, "webhook", now);
                }
                let _ = done.send(None);
                return;
            }
        };
        let event = match change {
            ConnectionChange::Joined => LeaveEvent::Connected(sid),
            ConnectionChange::Left => {
                let replaced = matches!(&*reason, "DUPLICATE_IDENTITY" | "MIGRATION");
                LeaveEvent::Disconnected { sid, replaced }
            }
            ConnectionChange::Aborted => LeaveEvent::ConnectionAborted(sid),
        };
        let told = PendingEvent {
            event,
            reason,
            reply: done,
        };
        let fence = self.fence_of(&key);
        if fence.is_some() && !self.context.store.is_shared() {
            self.apply_pending_event(key, told, now);
        } else if self.claim_queue.len() < MAX_QUEUED_CLAIMS {
            self.claim_queue.push_back((key, fence, told));
        }
    }

    /// The journal has said whose a leave is that something has happened to.
    pub(super) fn handle_claim(
        &mut self,
        key: ParticipantKey,
        fence: Option<FencingToken>,
        taken: Result<ClaimOutcome, store::Error>,
        told: PendingEvent,
        now: UnixMillis,
    ) {
        if !matches!(taken, Ok(ClaimOutcome::AlreadyOwned) | Err(_))
            && fence.is_some()
            && self.fence_of(&key) == fence
            && let Some(serial) = self.serials_by_key.get(&key)
        {
            self.drop_lost(*serial);
        }
        match taken {
            Ok(ClaimOutcome::AlreadyOwned | ClaimOutcome::NotFound) => {
                self.apply_pending_event(key, told, now)
            }
            Ok(ClaimOutcome::Claimed(fence, record)) => {
                self.restore(key.clone(), fence, &record, now);
                self.apply_pending_event(key, told, now);
            }
            // to be told again
            Err(error) => self.log_store_result(Err(error)),
        }
    }

    fn apply_pending_event(&mut self, key: ParticipantKey, told: PendingEvent, now: UnixMillis) {
        let about = self.fence_of(&key);
        if let Some(serial) = self.serials_by_key.get(&key) {
            self.step(*serial, &told.event, &told.reason, now);
        }
        // whoever has stopped waiting is told again
        let _ = told.reply.send(about.map(|fence| (key, fence)));
    }

    fn fence_of(&self, key: &ParticipantKey) -> Option<FencingToken> {
        let serial = self.serials_by_key.get(key)?;
        self.leaves.get(serial).map(|kept| kept.fence)
    }
}
