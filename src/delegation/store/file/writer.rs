//! The thread that has the file: whatever has come together meanwhile is one transaction.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::disk::LeaveDatabase;
use super::{FileStoreShared, FileStoreState, PendingPut};
use crate::delegation::store::write_buffer::BufferedChange;

/// How long changes wait for others: ten transactions a second at the most, however many leaves there are.
const BATCH_DELAY: Duration = Duration::from_millis(100);
/// How often a file that can't be opened or written is tried again.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);
/// Changes in one transaction, so that a new leave never waits behind more than some 10 MB.
const MAX_BATCH_CHANGES: usize = 4096;

/// What goes into one transaction.
#[derive(Debug, Default)]
pub(super) struct WriteBatch {
    pub(super) changes: Vec<BufferedChange>,
    pub(super) puts: Vec<PendingPut>,
    sync_waiters: Vec<SyncSender<Result<(), String>>>,
    pub(super) quarantined: BTreeMap<String, Arc<str>>,
}

/// The thread's own.
pub(super) struct FileWriter {
    directory: PathBuf,
    database: Option<LeaveDatabase>,
    shared: Arc<FileStoreShared>,
}

impl FileWriter {
    pub(super) fn new(directory: PathBuf, shared: Arc<FileStoreShared>) -> Self {
        Self {
            directory,
            database: None,
            shared,
        }
    }

    pub(super) fn run(mut self) {
        while let Some(batch) = self.next_batch() {
            if self.database.is_none() {
                self.reopen();
            }
            self.write_batch(batch);
        }
    }

    /// Waits for work. None once the journal is closed and everything is written, or can't be.
    fn next_batch(&self) -> Option<WriteBatch> {
        let (shared, mut state) = (&self.shared, self.shared.lock());
        if self.database.is_some() {
            let idle = |state: &mut FileStoreState| state.is_idle() && !state.closing;
            state = ignore_poison(shared.work_available.wait_while(state, idle));
        }
        // changes wait for company, or for the disk to recover; whoever stands at the door does not
        let pause = if self.database.is_some() {
            BATCH_DELAY
        } else {
            REOPEN_INTERVAL
        };
        let early = |state: &mut FileStoreState| !state.is_urgent();
        state = ignore_poison(
            shared
                .work_available
                .wait_timeout_while(state, pause, early),
        )
        .0;
        if state.closing && (state.is_idle() || self.database.is_none()) {
            state.pending_puts.clear();
            state.sync_waiters.clear();
            return None;
        }
        let changes = state.buffer.pending_changes(MAX_BATCH_CHANGES);
        // whoever waits for all of them may have to wait for another turn
        let syncs = match changes.len() {
            MAX_BATCH_CHANGES.. => Vec::new(),
            _ => std::mem::take(&mut state.sync_waiters),
        };
        Some(WriteBatch {
            changes,
            puts: std::mem::take(&mut state.pending_puts),
            sync_waiters: syncs,
            quarantined: std::mem::take(&mut state.quarantined),
        })
    }

    pub(super) fn reopen(&mut self) {
        let directory = &self.directory;
        let opened = catch_panic(|| LeaveDatabase::open(directory));
        let trouble = opened.and_then(|(disk, found)| {
            let mut state = self.shared.lock();
            let found = found.into_iter();
            let unkept: BTreeMap<_, _> = found
                .filter(|(key, _)| !state.buffer.contains(key))
                .collect();
            state.orphans = unkept;
            // after trouble nobody knows what of it is on the disk
            state.buffer.mark_all_dirty();
            drop(state);
            // a first transaction shows whether it can be written
            catch_panic(|| disk.write_batch(&WriteBatch::default()))?;
            self.database = Some(disk);
            Ok(())
        });
        self.shared.set_problem(trouble.err());
    }

    fn write_batch(&mut self, batch: WriteBatch) {
        let written = match &self.database {
            Some(disk) => catch_panic(|| disk.write_batch(&batch)),
            None => Err(self.shared.lock().problem.clone().unwrap_or_default()),
        };
        match written {
            Ok(()) => self.complete_batch(batch),
            Err(reason) => {
                // after an error of its file the store has to be opened anew
                self.database = None;
                self.shared.lock().quarantined.extend(batch.quarantined);
                self.shared.set_problem(Some(reason.clone()));
                // whoever has stopped waiting knows already
                for sync in batch.sync_waiters {
                    let _ = sync.send(Err(reason.clone()));
                }
                for put in batch.puts {
                    let _ = put.reply.send(Err(reason.clone()));
                }
            }
        }
    }

    /// The batch is on the disk.
    fn complete_batch(&self, batch: WriteBatch) {
        let mut stored = Vec::new();
        let mut state = self.shared.lock();
        for change in &batch.changes {
            state.buffer.mark_written(change);
        }
        for put in batch.puts {
            let fence = state.next_fence();
            state.orphans.remove(&put.key);
            let kept = Arc::clone(&put.record);
            state.buffer.insert(put.key.clone(), fence, kept);
            stored.push((put, fence));
        }
        drop(state);
        for sync in batch.sync_waiters {
            let _ = sync.send(Ok(()));
        }
        for (put, fence) in stored {
            if put.reply.send(Ok(fence)).is_err() {
                // nobody waits any more: it is stored, so it is worked
                let mut state = self.shared.lock();
                state.buffer.discard(&put.key, fence);
                state.orphans.insert(put.key, put.record.to_string());
            }
        }
    }
}

fn ignore_poison<T>(waited: std::sync::LockResult<T>) -> T {
    waited.unwrap_or_else(PoisonError::into_inner)
}

/// A damaged file may make the store panic, which must not end the thread.
fn catch_panic<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let outcome = catch_unwind(AssertUnwindSafe(work));
    outcome.unwrap_or_else(|_| Err("the store failed on its own file".into()))
}
