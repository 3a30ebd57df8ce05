//! How Redis learns what has become of leaves.

use std::sync::Arc;

use log::warn;

use super::connection::{Connection, Failure};
use super::script::{self, Found, Touch};
use super::shared::Shared;
use crate::journal::ledger::{Change, Ledger};

/// Commands that go out together.
const PIPELINE: usize = 256;

impl Shared {
    /// Gives Redis back what it may have lost.
    pub(super) fn restore(&self, connection: &mut Connection) -> Result<(), Failure> {
        for former in [true, false] {
            let Some((me, changes)) = self.of(former, Ledger::everything) else {
                continue;
            };
            let going_on = |change: &Change| change.record.is_some();
            let changes: Vec<_> = changes.into_iter().filter(going_on).collect();
            if !changes.is_empty() {
                warn!(
                    "Redis may have lost leaves, it is given {} of ours again",
                    changes.len()
                );
            }
            for part in changes.chunks(PIPELINE) {
                let commands = part.iter().map(|change| {
                    let record = change.record.as_deref().unwrap_or_default();
                    script::restore(&change.key, &me, change.fence, record)
                });
                self.carry_out(connection, former, part, commands.collect())?;
            }
        }
        Ok(())
    }

    /// Writes what has changed; first of what was kept under our former name, which is settled with that. False if
    /// Redis has lost what it had: then it is to be restored first.
    pub(super) fn write(&self, connection: &mut Connection) -> Result<bool, Failure> {
        for former in [true, false] {
            loop {
                let unwritten = |ledger: &Ledger| ledger.unwritten(PIPELINE);
                let Some((me, part)) = self.of(former, unwritten) else {
                    break;
                };
                if part.is_empty() {
                    break;
                }
                let commands = part.iter().map(|change| {
                    let touch = change.record.as_deref().map_or(Touch::Delete, Touch::Set);
                    script::touch(&change.key, &me, change.fence, touch)
                });
                if !self.carry_out(connection, former, &part, commands.collect())? {
                    return Ok(false);
                }
            }
        }
        self.lock().former = None;
        Ok(true)
    }

    fn of(
        &self,
        former: bool,
        what: impl FnOnce(&Ledger) -> Vec<Change>,
    ) -> Option<(Arc<str>, Vec<Change>)> {
        let state = self.lock();
        match (&state.former, former) {
            (Some((me, ledger)), true) => Some((me.clone(), what(ledger))),
            (None, true) => None,
            (_, false) => Some((state.me.clone(), what(&state.ledger))),
        }
    }

    /// False if Redis has lost what it had, which the next renewal looks into.
    fn carry_out(
        &self,
        connection: &mut Connection,
        former: bool,
        changes: &[Change],
        commands: Vec<redis::Cmd>,
    ) -> Result<bool, Failure> {
        let answers = connection.ask_all(&commands)?;
        let mut state = self.lock();
        let state = &mut *state;
        let mut known = true;
        let ledger = match (&mut state.former, former) {
            (Some((_, ledger)), true) => ledger,
            _ => &mut state.ledger,
        };
        for (change, answer) in changes.iter().zip(answers) {
            match Found::of(&answer?) {
                Some(Found::Lost) => ledger.lose(&change.key, change.fence),
                Some(Found::Absent) if change.record.is_some() => {
                    ledger.lose(&change.key, change.fence)
                }
                Some(Found::Forgotten) if change.record.is_some() => known = false,
                Some(_) => ledger.written(change),
                None => return Err(Failure::Refused("its answer makes no sense".into())),
            }
        }
        state.renew_now |= !known;
        Ok(known)
    }
}
