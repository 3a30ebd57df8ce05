//! How Redis learns what has become of leaves.

use std::sync::Arc;

use log::warn;

use super::connection::{RedisCommandError, RedisConnection};
use super::script::{self, FencedOp, FencedOpReply};
use super::shared::RedisStoreShared;
use crate::delegation::store::write_buffer::{BufferedChange, WriteBuffer};

/// Commands that go out together.
const PIPELINE_SIZE: usize = 256;

impl RedisStoreShared {
    /// Gives Redis back what it may have lost.
    pub(super) fn restore_lost(
        &self,
        connection: &mut RedisConnection,
    ) -> Result<(), RedisCommandError> {
        for former in [true, false] {
            let Some((me, changes)) = self.select_changes(former, WriteBuffer::all_changes) else {
                continue;
            };
            let going_on = |change: &BufferedChange| change.record.is_some();
            let changes: Vec<_> = changes.into_iter().filter(going_on).collect();
            if !changes.is_empty() {
                warn!(
                    "Redis may have lost leaves, it is given {} of ours again",
                    changes.len()
                );
            }
            for part in changes.chunks(PIPELINE_SIZE) {
                let commands = part.iter().map(|change| {
                    let record = change.record.as_deref().unwrap_or_default();
                    script::restore(&change.key, &me, change.fence, record)
                });
                self.execute_changes(connection, former, part, commands.collect())?;
            }
        }
        Ok(())
    }

    /// Writes what has changed; first of what was kept under our former name, which is settled with that. False if
    /// Redis has lost what it had: then it is to be restored first.
    pub(super) fn write_pending(
        &self,
        connection: &mut RedisConnection,
    ) -> Result<bool, RedisCommandError> {
        for former in [true, false] {
            loop {
                let unwritten = |ledger: &WriteBuffer| ledger.pending_changes(PIPELINE_SIZE);
                let Some((me, part)) = self.select_changes(former, unwritten) else {
                    break;
                };
                if part.is_empty() {
                    break;
                }
                let commands = part.iter().map(|change| {
                    let touch = change
                        .record
                        .as_deref()
                        .map_or(FencedOp::Delete, FencedOp::Set);
                    script::fenced_op(&change.key, &me, change.fence, touch)
                });
                if !self.execute_changes(connection, former, &part, commands.collect())? {
                    return Ok(false);
                }
            }
        }
        self.lock().previous_lease = None;
        Ok(true)
    }

    fn select_changes(
        &self,
        former: bool,
        what: impl FnOnce(&WriteBuffer) -> Vec<BufferedChange>,
    ) -> Option<(Arc<str>, Vec<BufferedChange>)> {
        let state = self.lock();
        match (&state.previous_lease, former) {
            (Some((me, ledger)), true) => Some((me.clone(), what(ledger))),
            (None, true) => None,
            (_, false) => Some((state.replica_id.clone(), what(&state.buffer))),
        }
    }

    /// False if Redis has lost what it had, which the next renewal looks into.
    fn execute_changes(
        &self,
        connection: &mut RedisConnection,
        former: bool,
        changes: &[BufferedChange],
        commands: Vec<redis::Cmd>,
    ) -> Result<bool, RedisCommandError> {
        let answers = connection.execute_pipeline(&commands)?;
        let mut state = self.lock();
        let state = &mut *state;
        let mut known = true;
        let ledger = match (&mut state.previous_lease, former) {
            (Some((_, ledger)), true) => ledger,
            _ => &mut state.buffer,
        };
        for (change, answer) in changes.iter().zip(answers) {
            match FencedOpReply::parse(&answer?) {
                Some(FencedOpReply::Lost) => ledger.discard(&change.key, change.fence),
                Some(FencedOpReply::Absent) if change.record.is_some() => {
                    ledger.discard(&change.key, change.fence)
                }
                Some(FencedOpReply::DataLost) if change.record.is_some() => known = false,
                Some(_) => ledger.mark_written(change),
                None => {
                    return Err(RedisCommandError::Rejected(
                        "its answer makes no sense".into(),
                    ));
                }
            }
        }
        state.renewal_requested |= !known;
        Ok(known)
    }
}
