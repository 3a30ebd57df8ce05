//! The thread that has the file: whatever has come together meanwhile is one transaction.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::disk::Disk;
use super::{Put, Shared, State};
use crate::journal::ledger::Change;

/// How long changes wait for others: ten transactions a second at the most, however many leaves there are.
const LINGER: Duration = Duration::from_millis(100);
/// How often a file that can't be opened or written is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Changes in one transaction, so that a new leave never waits behind more than some 10 MB.
const MOST_CHANGES: usize = 4096;

/// What goes into one transaction.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) changes: Vec<Change>,
    pub(super) puts: Vec<Put>,
    syncs: Vec<SyncSender<Result<(), String>>>,
    pub(super) aside: BTreeMap<String, Arc<str>>,
}

/// The thread's own.
pub(super) struct Writer {
    directory: PathBuf,
    disk: Option<Disk>,
    shared: Arc<Shared>,
}

impl Writer {
    pub(super) fn new(directory: PathBuf, shared: Arc<Shared>) -> Self {
        Self {
            directory,
            disk: None,
            shared,
        }
    }

    pub(super) fn run(mut self) {
        while let Some(batch) = self.next() {
            if self.disk.is_none() {
                self.reopen();
            }
            self.write(batch);
        }
    }

    /// Waits for work. None once the journal is closed and everything is written, or can't be.
    fn next(&self) -> Option<Batch> {
        let (shared, mut state) = (&self.shared, self.shared.lock());
        if self.disk.is_some() {
            let idle = |state: &mut State| state.is_idle() && !state.closing;
            state = wait(shared.work.wait_while(state, idle));
        }
        // changes wait for company, or for the disk to recover; whoever stands at the door does not
        let pause = if self.disk.is_some() { LINGER } else { RETRY };
        let early = |state: &mut State| !state.is_urgent();
        state = wait(shared.work.wait_timeout_while(state, pause, early)).0;
        if state.closing && (state.is_idle() || self.disk.is_none()) {
            state.puts.clear();
            state.syncs.clear();
            return None;
        }
        let changes = state.ledger.unwritten(MOST_CHANGES);
        // whoever waits for all of them may have to wait for another turn
        let syncs = match changes.len() {
            MOST_CHANGES.. => Vec::new(),
            _ => std::mem::take(&mut state.syncs),
        };
        Some(Batch {
            changes,
            puts: std::mem::take(&mut state.puts),
            syncs,
            aside: std::mem::take(&mut state.aside),
        })
    }

    pub(super) fn reopen(&mut self) {
        let directory = &self.directory;
        let opened = guarded(|| Disk::open(directory));
        let trouble = opened.and_then(|(disk, found)| {
            let mut state = self.shared.lock();
            let found = found.into_iter();
            let unkept: BTreeMap<_, _> = found.filter(|(key, _)| !state.ledger.has(key)).collect();
            state.unkept = unkept;
            // after trouble nobody knows what of it is on the disk
            state.ledger.rewrite();
            drop(state);
            // a first transaction shows whether it can be written
            guarded(|| disk.write(&Batch::default()))?;
            self.disk = Some(disk);
            Ok(())
        });
        self.shared.note(trouble.err());
    }

    fn write(&mut self, batch: Batch) {
        let written = match &self.disk {
            Some(disk) => guarded(|| disk.write(&batch)),
            None => Err(self.shared.lock().trouble.clone().unwrap_or_default()),
        };
        match written {
            Ok(()) => self.settle(batch),
            Err(reason) => {
                // after an error of its file the store has to be opened anew
                self.disk = None;
                self.shared.lock().aside.extend(batch.aside);
                self.shared.note(Some(reason.clone()));
                // whoever has stopped waiting knows already
                for sync in batch.syncs {
                    let _ = sync.send(Err(reason.clone()));
                }
                for put in batch.puts {
                    let _ = put.done.send(Err(reason.clone()));
                }
            }
        }
    }

    /// The batch is on the disk.
    fn settle(&self, batch: Batch) {
        let mut stored = Vec::new();
        let mut state = self.shared.lock();
        for change in &batch.changes {
            state.ledger.written(change);
        }
        for put in batch.puts {
            let fence = state.next_fence();
            state.unkept.remove(&put.key);
            let kept = Arc::clone(&put.record);
            state.ledger.keep(put.key.clone(), fence, kept);
            stored.push((put, fence));
        }
        drop(state);
        for sync in batch.syncs {
            let _ = sync.send(Ok(()));
        }
        for (put, fence) in stored {
            if put.done.send(Ok(fence)).is_err() {
                // nobody waits any more: it is stored, so it is worked
                let mut state = self.shared.lock();
                state.ledger.lose(&put.key, fence);
                state.unkept.insert(put.key, put.record.to_string());
            }
        }
    }
}

fn wait<T>(waited: std::sync::LockResult<T>) -> T {
    waited.unwrap_or_else(PoisonError::into_inner)
}

/// A damaged file may make the store panic, which must not end the thread.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let outcome = catch_unwind(AssertUnwindSafe(work));
    outcome.unwrap_or_else(|_| Err("the store failed on its own file".into()))
}
