//! Store in a file. One thread writes it; other threads wait only for a new leave or a sync.

mod database;

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use log::warn;

use self::database::LeaveDatabase;
use super::write_buffer::{BufferedChange, WriteBuffer};
use super::{
    AdoptedLeave, Error, FencingToken, LeaveStore, Ownership, StoreProblem, StoreResult,
    check_record_size,
};
use crate::livekit::id::ParticipantKey;
use crate::util::sync::{lock, spawn, wait_timeout_while, wait_while};

/// Time to write a new leave. A working disk takes milliseconds; clients wait for about ten seconds.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long changes wait to be written together: at most ten transactions a second.
const BATCH_DELAY: Duration = Duration::from_millis(100);
/// Time between two attempts at a file that cannot be opened or written.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);
/// Changes in one transaction, about 10 MB at most, so that a new leave does not wait long.
const MAX_BATCH_CHANGES: usize = 4096;

/// Store in a directory that one process uses at a time; a second process waits for the first to end.
pub struct FileStore {
    shared: Arc<FileStoreShared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl FileStore {
    /// Opens or creates the store in `directory`. If that fails, it is tried again every second, and new leaves are refused.
    pub fn open(directory: &Path) -> Self {
        let shared = Arc::new(FileStoreShared::default());
        let mut writer = FileWriter {
            directory: directory.to_owned(),
            database: None,
            shared: Arc::clone(&shared),
        };
        // on this thread, so that the first adopt finds the stored leaves
        writer.reopen();
        let thread = spawn("leave-store", move || writer.run()).map_err(|error| {
            let mut state = shared.lock();
            state.closing = true;
            let problem = format!("cannot start a thread: {error}");
            state.problem.set(Some(problem));
        });
        Self {
            shared,
            thread: Mutex::new(thread.ok()),
        }
    }
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileStore")
    }
}

impl LeaveStore for FileStore {
    fn put(&self, key: &ParticipantKey, record: &str) -> StoreResult<FencingToken> {
        check_record_size(record)?;
        // without a buffer, the writer notices that this call has timed out
        let (reply, stored) = sync_channel(0);
        {
            let mut state = self.shared.lock();
            if state.closing {
                return Err(Error("the store is closed".into()));
            }
            state.pending_puts.push(PendingPut {
                key: key.clone(),
                record: record.into(),
                reply,
            });
            self.shared.work_available.notify_all();
        }
        wait_for_disk(&stored)
    }

    fn update(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
        record: &str,
    ) -> StoreResult<Ownership> {
        check_record_size(record)?;
        let state = self.shared.lock();
        Ok(self.shared.buffer_change(state, key, fence, Some(record)))
    }

    fn remove(&self, key: &ParticipantKey, fence: FencingToken) {
        let state = self.shared.lock();
        self.shared.buffer_change(state, key, fence, None);
    }

    fn sync(&self) -> StoreResult<()> {
        let (reply, stored) = sync_channel(1);
        {
            let mut state = self.shared.lock();
            if state.is_idle() {
                return Ok(());
            }
            state.sync_waiters.push(reply);
            self.shared.work_available.notify_all();
        }
        wait_for_disk(&stored)
    }

    fn check_ownership(&self, key: &ParticipantKey, fence: FencingToken) -> StoreResult<Ownership> {
        Ok(self.shared.lock().buffer.ownership(key, fence))
    }

    fn claim(&self, key: &ParticipantKey) -> StoreResult<Option<(FencingToken, String)>> {
        let mut state = self.shared.lock();
        let record = state.orphans.remove(key);
        let adopted = record.and_then(|record| state.adopt(key.clone(), record));
        Ok(adopted.map(|(_, fence, record)| (fence, record)))
    }

    fn adopt(&self, max: usize) -> StoreResult<Vec<AdoptedLeave>> {
        let mut state = self.shared.lock();
        let mut adopted = Vec::new();
        while adopted.len() < max
            && let Some((key, record)) = state.orphans.pop_first()
        {
            adopted.extend(state.adopt(key, record));
        }
        Ok(adopted)
    }

    fn quarantine(&self, key: &ParticipantKey, fence: FencingToken, reason: &str) {
        let mut state = self.shared.lock();
        if let Some(record) = state.buffer.record(key, fence) {
            warn!(room:% = key.room, identity:% = key.identity, cause = reason; "leave record quarantined");
            state.quarantined.insert(key.to_json(), record);
        }
        self.shared.buffer_change(state, key, fence, None);
    }

    fn problem(&self) -> Option<String> {
        self.shared.lock().problem.get()
    }

    fn close(&self) {
        self.shared.lock().closing = true;
        self.shared.work_available.notify_all();
        let thread = lock(&self.thread).take();
        thread.map(JoinHandle::join);
    }
}

impl Drop for FileStore {
    fn drop(&mut self) {
        self.close();
    }
}

type WriteResult<T> = Result<T, String>;

fn wait_for_disk<T>(result: &Receiver<WriteResult<T>>) -> StoreResult<T> {
    let result = result.recv_timeout(WRITE_TIMEOUT);
    result
        .unwrap_or_else(|_| Err("the disk takes too long".into()))
        .map_err(Error)
}

#[derive(Debug, Default)]
struct FileStoreShared {
    state: Mutex<FileStoreState>,
    work_available: Condvar,
}

#[derive(Debug, Default)]
struct FileStoreState {
    buffer: WriteBuffer,
    last_fence: u64,
    pending_puts: Vec<PendingPut>,
    /// Calls that wait until everything is written.
    sync_waiters: Vec<SyncSender<WriteResult<()>>>,
    /// Records found in the file and not adopted yet.
    orphans: BTreeMap<ParticipantKey, String>,
    /// Invalid records to be moved to their own table, by their key there.
    quarantined: BTreeMap<String, Arc<str>>,
    problem: StoreProblem,
    closing: bool,
}

#[derive(Debug)]
struct PendingPut {
    key: ParticipantKey,
    record: Arc<str>,
    reply: SyncSender<WriteResult<FencingToken>>,
}

impl FileStoreState {
    /// Counts within this process, which has the file to itself.
    fn next_fence(&mut self) -> FencingToken {
        self.last_fence += 1;
        FencingToken(self.last_fence)
    }

    /// `None` if the leave has been replaced since it was found.
    fn adopt(&mut self, key: ParticipantKey, record: String) -> Option<AdoptedLeave> {
        if self.buffer.contains(&key) {
            return None;
        }
        let fence = self.next_fence();
        self.buffer
            .insert(key.clone(), fence, record.as_str().into());
        Some((key, fence, record))
    }

    fn is_idle(&self) -> bool {
        self.pending_puts.is_empty() && self.buffer.is_clean() && self.quarantined.is_empty()
    }

    fn is_urgent(&self) -> bool {
        !self.pending_puts.is_empty() || !self.sync_waiters.is_empty() || self.closing
    }
}

impl FileStoreShared {
    fn lock(&self) -> MutexGuard<'_, FileStoreState> {
        lock(&self.state)
    }

    fn buffer_change(
        &self,
        mut state: MutexGuard<'_, FileStoreState>,
        key: &ParticipantKey,
        fence: FencingToken,
        record: Option<&str>,
    ) -> Ownership {
        let was_idle = state.is_idle();
        let ownership = state.buffer.update(key, fence, record);
        if was_idle {
            self.work_available.notify_all();
        }
        ownership
    }
}

/// Content of one transaction, and the calls that wait for it.
#[derive(Debug, Default)]
struct WriteBatch {
    changes: Vec<BufferedChange>,
    puts: Vec<PendingPut>,
    sync_waiters: Vec<SyncSender<WriteResult<()>>>,
    quarantined: BTreeMap<String, Arc<str>>,
}

/// State of the writer thread.
struct FileWriter {
    directory: PathBuf,
    database: Option<LeaveDatabase>,
    shared: Arc<FileStoreShared>,
}

impl FileWriter {
    fn run(mut self) {
        while let Some(batch) = self.next_batch() {
            if self.database.is_none() {
                self.reopen();
            }
            self.write_batch(batch);
        }
    }

    /// Waits for work. `None` once the store is closed and everything is written or cannot be.
    fn next_batch(&self) -> Option<WriteBatch> {
        let (shared, mut state) = (&self.shared, self.shared.lock());
        let mut delay = REOPEN_INTERVAL;
        if self.database.is_some() {
            state = wait_while(&shared.work_available, state, |state| {
                state.is_idle() && !state.closing
            });
            delay = BATCH_DELAY;
        }
        // more changes may come meanwhile, or the disk may recover; puts and syncs do not wait
        state = wait_timeout_while(&shared.work_available, state, delay, |state| {
            !state.is_urgent()
        });
        if state.closing && (state.is_idle() || self.database.is_none()) {
            state.pending_puts.clear();
            state.sync_waiters.clear();
            return None;
        }
        let changes = state.buffer.pending_changes(MAX_BATCH_CHANGES);
        let sync_waiters = match changes.len() {
            // there may be more changes, which the syncs have to wait for
            MAX_BATCH_CHANGES.. => Vec::new(),
            _ => std::mem::take(&mut state.sync_waiters),
        };
        Some(WriteBatch {
            changes,
            puts: std::mem::take(&mut state.pending_puts),
            sync_waiters,
            quarantined: std::mem::take(&mut state.quarantined),
        })
    }

    fn reopen(&mut self) {
        let directory = &self.directory;
        let opened = catch_panic(|| LeaveDatabase::open(directory));
        let result = opened.and_then(|(database, records)| {
            if !records.invalid.is_empty() {
                warn!(count = records.invalid.len(), cause = "invalid key"; "leave records quarantined");
            }
            let mut state = self.shared.lock();
            state.quarantined.extend(records.invalid);
            state.orphans = records.valid;
            let FileStoreState { orphans, buffer, .. } = &mut *state;
            orphans.retain(|key, _| !buffer.contains(key));
            // after a failure it is not known which leaves the file has
            state.buffer.mark_all_dirty();
            drop(state);
            // an empty transaction shows whether the file can be written
            catch_panic(|| database.write_batch(&WriteBatch::default()))?;
            self.database = Some(database);
            Ok(())
        });
        self.shared.lock().problem.set(result.err());
    }

    fn write_batch(&mut self, batch: WriteBatch) {
        let written = match &self.database {
            Some(database) => catch_panic(|| database.write_batch(&batch)),
            None => Err(self.shared.lock().problem.get().unwrap_or_default()),
        };
        match written {
            Ok(()) => self.complete_batch(batch),
            Err(reason) => {
                // redb has to open the file again after an I/O error
                self.database = None;
                let mut state = self.shared.lock();
                state.quarantined.extend(batch.quarantined);
                state.problem.set(Some(reason.clone()));
                drop(state);
                // calls that have timed out take no reply
                for waiter in batch.sync_waiters {
                    let _ = waiter.send(Err(reason.clone()));
                }
                for put in batch.puts {
                    let _ = put.reply.send(Err(reason.clone()));
                }
            }
        }
    }

    /// Records a batch as written, and answers the calls that wait for it.
    fn complete_batch(&self, batch: WriteBatch) {
        let mut stored = Vec::new();
        let mut state = self.shared.lock();
        for change in &batch.changes {
            state.buffer.mark_written(change);
        }
        for put in batch.puts {
            let fence = state.next_fence();
            state.orphans.remove(&put.key);
            let record = Arc::clone(&put.record);
            state.buffer.insert(put.key.clone(), fence, record);
            stored.push((put, fence));
        }
        drop(state);
        for waiter in batch.sync_waiters {
            let _ = waiter.send(Ok(()));
        }
        for (put, fence) in stored {
            if put.reply.send(Ok(fence)).is_err() {
                // the call has timed out, but the leave is stored: it has to be adopted
                let mut state = self.shared.lock();
                state.buffer.discard(&put.key, fence);
                state.orphans.insert(put.key, put.record.to_string());
            }
        }
    }
}

/// Catches a panic of redb, which a damaged file can cause.
fn catch_panic<T>(work: impl FnOnce() -> WriteResult<T>) -> WriteResult<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("redb failed on a damaged file".into()))
}
