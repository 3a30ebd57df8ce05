//! What the SFU tells, about leaves that are ours and about others.

use std::sync::mpsc::SyncSender;

use super::{Keeper, MAX_TAKES};
use crate::delegation::pool::{Taken, Told};
use crate::journal::{self, Fence};
use crate::leave::{Event, Key, Time};
use crate::livekit::webhook::{Kind, Webhook};

impl Keeper {
    pub(super) fn heard(
        &mut self,
        webhook: Webhook,
        done: SyncSender<Option<(Key, Fence)>>,
        now: Time,
    ) {
        let reason = webhook.reason.unwrap_or_else(|| "webhook".into());
        let Some((identity, sid)) = webhook.participant else {
            if webhook.kind == Kind::RoomFinished {
                let serials = self.serials.iter();
                let of_room = serials.filter(|(key, _)| key.room == webhook.room);
                let of_room: Vec<u64> = of_room.map(|(_, serial)| *serial).collect();
                for serial in of_room {
                    self.step(serial, &Event::RoomFinished, &reason, now);
                }
            }
            let _ = done.send(None);
            return;
        };
        let event = match webhook.kind {
            Kind::Joined => Event::Connected(sid),
            Kind::Left => {
                let replaced = matches!(&*reason, "DUPLICATE_IDENTITY" | "MIGRATION");
                Event::Disconnected { sid, replaced }
            }
            Kind::Aborted => Event::Aborted(sid),
            Kind::RoomFinished => return,
        };
        let key = Key {
            room: webhook.room,
            identity,
        };
        let told = Told {
            event,
            reason,
            done,
        };
        let fence = self.fence(&key);
        if fence.is_some() && !self.shared.journal.is_shared() {
            self.tell(key, told, now);
        } else if self.takes.len() < MAX_TAKES {
            self.takes.push_back((key, fence, told));
        }
    }

    /// The journal has said whose a leave is that something has happened to.
    pub(super) fn took(
        &mut self,
        key: Key,
        fence: Option<Fence>,
        taken: Result<Taken, journal::Error>,
        told: Told,
        now: Time,
    ) {
        if !matches!(taken, Ok(Taken::Kept) | Err(_))
            && fence.is_some()
            && self.fence(&key) == fence
            && let Some(serial) = self.serials.get(&key)
        {
            self.lose(*serial);
        }
        match taken {
            Ok(Taken::Kept | Taken::Nothing) => self.tell(key, told, now),
            Ok(Taken::Over(fence, record)) => {
                self.restore(key.clone(), fence, &record, now);
                self.tell(key, told, now);
            }
            // to be told again
            Err(error) => self.journalled(Err(error)),
        }
    }

    fn tell(&mut self, key: Key, told: Told, now: Time) {
        let about = self.fence(&key);
        if let Some(serial) = self.serials.get(&key) {
            self.step(*serial, &told.event, &told.reason, now);
        }
        // whoever has stopped waiting is told again
        let _ = told.done.send(about.map(|fence| (key, fence)));
    }

    fn fence(&self, key: &Key) -> Option<Fence> {
        let serial = self.serials.get(key)?;
        self.kept.get(serial).map(|kept| kept.fence)
    }
}
