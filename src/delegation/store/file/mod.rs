//! Leaves in a file. One thread writes it; the others never wait, but for new leaves.

mod disk;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use log::{error, info, warn};

use self::writer::FileWriter;
use super::write_buffer::WriteBuffer;
use super::{Error, FencingToken, LeaveStore, Ownership, check_record_size};
use crate::livekit::id::ParticipantKey;

/// How long a new leave waits for the disk; a healthy one takes milliseconds, a client some ten seconds of patience.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// A journal in a directory of ours. There may be one process at a time; a second one waits for the first to end.
pub struct FileStore {
    shared: Arc<FileStoreShared>,
    writer_thread: Mutex<Option<JoinHandle<()>>>,
}

impl FileStore {
    /// Opens the journal in `directory`, or begins one. This does not fail: what is amiss is logged, told by
    /// [`Journal::trouble`], and tried again every second; new leaves are refused meanwhile.
    pub fn open(directory: &Path) -> Self {
        let shared = Arc::new(FileStoreShared::default());
        let mut writer = FileWriter::new(directory.to_owned(), Arc::clone(&shared));
        // what was kept is there when the first adopt asks for it
        writer.reopen();
        let thread = thread::Builder::new().name("journal".into());
        let thread = match thread.spawn(move || writer.run()) {
            Ok(thread) => Some(thread),
            Err(reason) => {
                shared.set_problem(Some(format!("no thread for the journal: {reason}")));
                shared.lock().closing = true;
                None
            }
        };
        Self {
            shared,
            writer_thread: Mutex::new(thread),
        }
    }
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("File")
    }
}

impl LeaveStore for FileStore {
    fn put(&self, key: &ParticipantKey, record: &str) -> Result<FencingToken, Error> {
        check_record_size(record)?;
        // no buffer: whoever has stopped waiting is noticed
        let (done, stored) = sync_channel(0);
        let put = PendingPut {
            key: key.clone(),
            record: record.into(),
            reply: done,
        };
        {
            let mut state = self.shared.lock();
            if state.closing {
                return Err(Error("the journal is closed".into()));
            }
            state.pending_puts.push(put);
            self.shared.work_available.notify_all();
        }
        stored
            .recv_timeout(WRITE_TIMEOUT)
            .unwrap_or_else(timeout_error)
            .map_err(Error)
    }

    fn update(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
        record: &str,
    ) -> Result<Ownership, Error> {
        check_record_size(record)?;
        Ok(self.shared.buffer_change(key, fence, Some(record)))
    }

    fn remove(&self, key: &ParticipantKey, fence: FencingToken) -> Result<Ownership, Error> {
        Ok(self.shared.buffer_change(key, fence, None))
    }

    fn sync(&self) -> Result<(), Error> {
        let (done, stored) = sync_channel(1);
        {
            let mut state = self.shared.lock();
            if state.is_idle() {
                return Ok(());
            }
            state.sync_waiters.push(done);
            self.shared.work_available.notify_all();
        }
        stored
            .recv_timeout(WRITE_TIMEOUT)
            .unwrap_or_else(timeout_error)
            .map_err(Error)
    }

    fn check_ownership(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
    ) -> Result<Ownership, Error> {
        Ok(self.shared.lock().buffer.ownership(key, fence))
    }

    fn claim(&self, key: &ParticipantKey) -> Result<Option<(FencingToken, String)>, Error> {
        let mut state = self.shared.lock();
        let record = state.orphans.remove(key);
        Ok(record.and_then(|record| state.adopt(key, record)))
    }

    fn adopt(&self, most: usize) -> Result<Vec<(ParticipantKey, FencingToken, String)>, Error> {
        let mut state = self.shared.lock();
        let mut adopted = Vec::new();
        while adopted.len() < most {
            let Some((key, record)) = state.orphans.pop_first() else {
                break;
            };
            if let Some((fence, record)) = state.adopt(&key, record) {
                adopted.push((key, fence, record));
            }
        }
        Ok(adopted)
    }

    fn quarantine(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
        why: &str,
    ) -> Result<Ownership, Error> {
        let mut state = self.shared.lock();
        if let Some(record) = state.buffer.record(key, fence) {
            warn!("a record of the journal is set aside: {why}");
            state.quarantined.insert(key.to_json(), record);
        }
        Ok(self.shared.buffer_change_locked(state, key, fence, None))
    }

    fn check_lease(&self) -> Result<(), Error> {
        Ok(())
    }

    fn problem(&self) -> Option<String> {
        self.shared.lock().problem.clone()
    }

    fn close(&self) {
        self.shared.lock().closing = true;
        self.shared.work_available.notify_all();
        let writer = self.writer_thread.lock().map(|mut writer| writer.take());
        if let Ok(Some(writer)) = writer {
            // it has nothing to say
            let _ = writer.join();
        }
    }
}

impl Drop for FileStore {
    fn drop(&mut self) {
        self.close();
    }
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
    /// Those who wait until everything is written.
    sync_waiters: Vec<SyncSender<Result<(), String>>>,
    /// Found in the file, and nobody's yet.
    orphans: BTreeMap<ParticipantKey, String>,
    /// Broken records on their way to where they are kept aside.
    quarantined: BTreeMap<String, Arc<str>>,
    problem: Option<String>,
    closing: bool,
}

#[derive(Debug)]
struct PendingPut {
    key: ParticipantKey,
    record: Arc<str>,
    reply: SyncSender<Result<FencingToken, String>>,
}

impl FileStoreState {
    fn next_fence(&mut self) -> FencingToken {
        // counts within this process: nobody else has the file meanwhile
        self.last_fence += 1;
        FencingToken(self.last_fence)
    }

    /// None if the leave has been replaced since it was found.
    fn adopt(&mut self, key: &ParticipantKey, record: String) -> Option<(FencingToken, String)> {
        if self.buffer.contains(key) {
            return None;
        }
        let fence = self.next_fence();
        self.buffer
            .insert(key.clone(), fence, record.as_str().into());
        Some((fence, record))
    }

    fn is_idle(&self) -> bool {
        self.pending_puts.is_empty() && self.buffer.is_clean() && self.quarantined.is_empty()
    }

    /// Whether somebody waits for the disk.
    fn is_urgent(&self) -> bool {
        !self.pending_puts.is_empty() || !self.sync_waiters.is_empty() || self.closing
    }
}

fn timeout_error<T>(_: RecvTimeoutError) -> Result<T, String> {
    Err("the disk took too long".into())
}

impl FileStoreShared {
    fn lock(&self) -> MutexGuard<'_, FileStoreState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn buffer_change(
        &self,
        key: &ParticipantKey,
        fence: FencingToken,
        record: Option<&str>,
    ) -> Ownership {
        self.buffer_change_locked(self.lock(), key, fence, record)
    }

    fn buffer_change_locked(
        &self,
        mut state: MutexGuard<'_, FileStoreState>,
        key: &ParticipantKey,
        fence: FencingToken,
        record: Option<&str>,
    ) -> Ownership {
        let was_idle = state.is_idle();
        let held = state.buffer.update(key, fence, record);
        if was_idle {
            self.work_available.notify_all();
        }
        held
    }

    /// Notes what is amiss, and says so when it is news.
    fn set_problem(&self, trouble: Option<String>) {
        let mut state = self.lock();
        match (&state.problem, &trouble) {
            (_, Some(new)) if state.problem.as_ref() != Some(new) => {
                error!(
                    "the journal of delegated leaves can't be used, no new ones are taken: {new}"
                );
            }
            (Some(_), None) => info!("the journal of delegated leaves can be used again"),
            _ => {}
        }
        state.problem = trouble;
    }
}
