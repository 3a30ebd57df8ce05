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

use self::writer::Writer;
use super::ledger::Ledger;
use super::{Error, Fence, Hold, Journal, Key, fits};

/// How long a new leave waits for the disk; a healthy one takes milliseconds, a client some ten seconds of patience.
const PATIENCE: Duration = Duration::from_secs(5);

/// A journal in a directory of ours. There may be one process at a time; a second one waits for the first to end.
pub struct File {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl File {
    /// Opens the journal in `directory`, or begins one. This does not fail: what is amiss is logged, told by
    /// [`Journal::trouble`], and tried again every second; new leaves are refused meanwhile.
    pub fn open(directory: &Path) -> Self {
        let shared = Arc::new(Shared::default());
        let mut writer = Writer::new(directory.to_owned(), Arc::clone(&shared));
        // what was kept is there when the first adopt asks for it
        writer.reopen();
        let thread = thread::Builder::new().name("journal".into());
        let thread = match thread.spawn(move || writer.run()) {
            Ok(thread) => Some(thread),
            Err(reason) => {
                shared.note(Some(format!("no thread for the journal: {reason}")));
                shared.lock().closing = true;
                None
            }
        };
        Self {
            shared,
            writer: Mutex::new(thread),
        }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("File")
    }
}

impl Journal for File {
    fn put(&self, key: &Key, record: &str) -> Result<Fence, Error> {
        fits(record)?;
        // no buffer: whoever has stopped waiting is noticed
        let (done, stored) = sync_channel(0);
        let put = Put {
            key: key.clone(),
            record: record.into(),
            done,
        };
        {
            let mut state = self.shared.lock();
            if state.closing {
                return Err(Error("the journal is closed".into()));
            }
            state.puts.push(put);
            self.shared.work.notify_all();
        }
        stored
            .recv_timeout(PATIENCE)
            .unwrap_or_else(too_long)
            .map_err(Error)
    }

    fn update(&self, key: &Key, fence: Fence, record: &str) -> Result<Hold, Error> {
        fits(record)?;
        Ok(self.shared.change(key, fence, Some(record)))
    }

    fn remove(&self, key: &Key, fence: Fence) -> Result<Hold, Error> {
        Ok(self.shared.change(key, fence, None))
    }

    fn sync(&self) -> Result<(), Error> {
        let (done, stored) = sync_channel(1);
        {
            let mut state = self.shared.lock();
            if state.is_idle() {
                return Ok(());
            }
            state.syncs.push(done);
            self.shared.work.notify_all();
        }
        stored
            .recv_timeout(PATIENCE)
            .unwrap_or_else(too_long)
            .map_err(Error)
    }

    fn hold(&self, key: &Key, fence: Fence) -> Result<Hold, Error> {
        Ok(self.shared.lock().ledger.hold(key, fence))
    }

    fn take(&self, key: &Key) -> Result<Option<(Fence, String)>, Error> {
        let mut state = self.shared.lock();
        let record = state.unkept.remove(key);
        Ok(record.and_then(|record| state.adopt(key, record)))
    }

    fn adopt(&self, most: usize) -> Result<Vec<(Key, Fence, String)>, Error> {
        let mut state = self.shared.lock();
        let mut adopted = Vec::new();
        while adopted.len() < most {
            let Some((key, record)) = state.unkept.pop_first() else {
                break;
            };
            if let Some((fence, record)) = state.adopt(&key, record) {
                adopted.push((key, fence, record));
            }
        }
        Ok(adopted)
    }

    fn set_aside(&self, key: &Key, fence: Fence, why: &str) -> Result<Hold, Error> {
        let mut state = self.shared.lock();
        if let Some(record) = state.ledger.record(key, fence) {
            warn!("a record of the journal is set aside: {why}");
            state.aside.insert(key.to_json(), record);
        }
        Ok(self.shared.change_in(state, key, fence, None))
    }

    fn renew(&self) -> Result<(), Error> {
        Ok(())
    }

    fn trouble(&self) -> Option<String> {
        self.shared.lock().trouble.clone()
    }

    fn close(&self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        let writer = self.writer.lock().map(|mut writer| writer.take());
        if let Ok(Some(writer)) = writer {
            // it has nothing to say
            let _ = writer.join();
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.close();
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ledger: Ledger,
    last_fence: u64,
    puts: Vec<Put>,
    /// Those who wait until everything is written.
    syncs: Vec<SyncSender<Result<(), String>>>,
    /// Found in the file, and nobody's yet.
    unkept: BTreeMap<Key, String>,
    /// Broken records on their way to where they are kept aside.
    aside: BTreeMap<String, Arc<str>>,
    trouble: Option<String>,
    closing: bool,
}

#[derive(Debug)]
struct Put {
    key: Key,
    record: Arc<str>,
    done: SyncSender<Result<Fence, String>>,
}

impl State {
    fn next_fence(&mut self) -> Fence {
        // counts within this process: nobody else has the file meanwhile
        self.last_fence += 1;
        Fence(self.last_fence)
    }

    /// None if the leave has been replaced since it was found.
    fn adopt(&mut self, key: &Key, record: String) -> Option<(Fence, String)> {
        if self.ledger.has(key) {
            return None;
        }
        let fence = self.next_fence();
        self.ledger.keep(key.clone(), fence, record.as_str().into());
        Some((fence, record))
    }

    fn is_idle(&self) -> bool {
        self.puts.is_empty() && self.ledger.is_written() && self.aside.is_empty()
    }

    /// Whether somebody waits for the disk.
    fn is_urgent(&self) -> bool {
        !self.puts.is_empty() || !self.syncs.is_empty() || self.closing
    }
}

fn too_long<T>(_: RecvTimeoutError) -> Result<T, String> {
    Err("the disk took too long".into())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, key: &Key, fence: Fence, record: Option<&str>) -> Hold {
        self.change_in(self.lock(), key, fence, record)
    }

    fn change_in(
        &self,
        mut state: MutexGuard<'_, State>,
        key: &Key,
        fence: Fence,
        record: Option<&str>,
    ) -> Hold {
        let was_idle = state.is_idle();
        let held = state.ledger.change(key, fence, record);
        if was_idle {
            self.work.notify_all();
        }
        held
    }

    /// Notes what is amiss, and says so when it is news.
    fn note(&self, trouble: Option<String>) {
        let mut state = self.lock();
        match (&state.trouble, &trouble) {
            (_, Some(new)) if state.trouble.as_ref() != Some(new) => {
                error!(
                    "the journal of delegated leaves can't be used, no new ones are taken: {new}"
                );
            }
            (Some(_), None) => info!("the journal of delegated leaves can be used again"),
            _ => {}
        }
        state.trouble = trouble;
    }
}
