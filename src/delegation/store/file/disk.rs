//! The file itself, and what can be wrong with it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use log::{error, warn};
use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    StorageError, Table, TableDefinition,
};

use super::writer::WriteBatch;
use crate::delegation::store::MAX_QUARANTINED;
use crate::livekit::id::ParticipantKey;

/// The file's name in the directory of the journal.
const FILE_NAME: &str = "leaves.redb";
/// What a damaged file is called from then on, with a number.
const DAMAGED_PREFIX: &str = "leaves.broken";
/// Damaged files that are kept; the next one takes the place of the last.
const MAX_DAMAGED_FILES: u32 = 5;
/// Memory for pages of the file, in bytes: some thousand leaves, as those in use are in memory anyway.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

const LEAVES_TABLE: TableDefinition<'_, &str, &str> = TableDefinition::new("leaves");
const QUARANTINE_TABLE: TableDefinition<'_, &str, &str> = TableDefinition::new("aside");

/// A journal that is open, and locked against other processes.
pub(super) struct LeaveDatabase {
    database: Database,
    path: PathBuf,
    inode: u64,
}

type StoredRecords = Vec<(ParticipantKey, String)>;

enum DatabaseOpenError {
    /// The file makes no sense.
    Damaged(String),
    /// It may do tomorrow.
    Unavailable(String),
}

impl<E: Into<redb::Error>> From<E> for DatabaseOpenError {
    fn from(error: E) -> Self {
        use redb::Error::{
            Corrupted, Io, TableIsMultimap, TableTypeMismatch, TypeDefinitionChanged,
            UpgradeRequired,
        };
        match error.into() {
            // not a journal at all, or one that ends too early
            Io(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData
                        | io::ErrorKind::InvalidInput
                        | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::Damaged(error.to_string())
            }
            error @ (Corrupted(_)
            | UpgradeRequired(_)
            | TableTypeMismatch { .. }
            | TableIsMultimap(_)
            | TypeDefinitionChanged { .. }) => Self::Damaged(error.to_string()),
            error => Self::Unavailable(error.to_string()),
        }
    }
}

impl LeaveDatabase {
    /// Opens the file and reads all of it. A damaged one is set aside, and a new one begun.
    pub(super) fn open(directory: &Path) -> Result<(Self, StoredRecords), String> {
        let path = directory.join(FILE_NAME);
        let why = match Self::open_or_create(&path) {
            Ok(opened) => return Ok(opened),
            Err(DatabaseOpenError::Unavailable(why)) => {
                return Err(format!("{}: {why}", path.display()));
            }
            Err(DatabaseOpenError::Damaged(why)) => why,
        };
        let free = |number: &u32| {
            !directory
                .join(format!("{DAMAGED_PREFIX}.{number}"))
                .exists()
        };
        let number = (1..MAX_DAMAGED_FILES)
            .find(free)
            .unwrap_or(MAX_DAMAGED_FILES);
        let aside = directory.join(format!("{DAMAGED_PREFIX}.{number}"));
        fs::rename(&path, &aside).map_err(|e| format!("{} is damaged: {e}", path.display()))?;
        error!(
            "the journal {} is damaged and begins anew; delegated leaves in it are lost, the file is kept as {}: {why}",
            path.display(),
            aside.display()
        );
        Self::open_or_create(&path).map_err(|failure| match failure {
            DatabaseOpenError::Unavailable(why) | DatabaseOpenError::Damaged(why) => {
                format!("{}: {why}", path.display())
            }
        })
    }

    fn open_or_create(path: &Path) -> Result<(Self, StoredRecords), DatabaseOpenError> {
        let unusable = |error: io::Error| DatabaseOpenError::Unavailable(error.to_string());
        // whoever knows the id of a delayed event may send it
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path);
        let file = file.map_err(unusable)?;
        let inode = file.metadata().map_err(unusable)?.ino();
        if let Some(directory) = path.parent() {
            // or a new file's name might not outlast a power cut
            let _ = fs::File::open(directory).and_then(|directory| directory.sync_all());
        }
        let opened = catch_unwind(AssertUnwindSafe(|| Self::load(file)));
        let damaged = DatabaseOpenError::Damaged("the store can't make sense of it".into());
        let (database, found) = opened.unwrap_or(Err(damaged))?;
        let path = path.to_owned();
        Ok((
            Self {
                database,
                path,
                inode,
            },
            found,
        ))
    }

    fn load(file: fs::File) -> Result<(Database, StoredRecords), DatabaseOpenError> {
        let database = Builder::new()
            .set_cache_size(CACHE_BYTES)
            // or a damaged page would be believed
            .set_check_integrity_on_open(true)
            .create_with_backend(FileBackend::new(file)?);
        let database = match database {
            Err(DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch) => {
                let why = "another process has it: there can be one, or several with Redis";
                return Err(DatabaseOpenError::Unavailable(why.into()));
            }
            database => database?,
        };
        let found = load_records(&database)?;
        Ok((database, found))
    }

    /// Writes a batch, new leaves last. It is on the disk when this returns.
    pub(super) fn write_batch(&self, batch: &WriteBatch) -> Result<(), String> {
        let inode = fs::metadata(&self.path).map(|metadata| metadata.ino());
        if inode.ok() != Some(self.inode) {
            return Err(format!("{} has been taken away", self.path.display()));
        }
        self.commit_batch(batch)
            .map_err(|error| format!("{}: {error}", self.path.display()))
    }

    fn commit_batch(&self, batch: &WriteBatch) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut leaves = transaction.open_table(LEAVES_TABLE)?;
            for change in &batch.changes {
                let key = change.key.to_json();
                match &change.record {
                    Some(record) => leaves.insert(&*key, &**record)?,
                    None => leaves.remove(&*key)?,
                };
            }
            for put in &batch.puts {
                leaves.insert(&*put.key.to_json(), &*put.record)?;
            }
            let mut aside = transaction.open_table(QUARANTINE_TABLE)?;
            let broken = batch.quarantined.iter();
            quarantine(&mut aside, broken.map(|(key, record)| (&**key, &**record)))?;
        }
        transaction.commit()?;
        Ok(())
    }
}

/// Keeps broken records aside under the time and their key: the newest of them.
fn quarantine<'a>(
    aside: &mut Table<'_, &str, &str>,
    broken: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<(), StorageError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    for (key, record) in broken {
        aside.insert(&*format!("{now:010} {key}"), record)?;
    }
    while aside.len()? > MAX_QUARANTINED as u64 {
        aside.pop_first()?;
    }
    Ok(())
}

/// All leaves. Those whose key makes no sense are set aside.
fn load_records(database: &Database) -> Result<StoredRecords, DatabaseOpenError> {
    let transaction = database.begin_read()?;
    let leaves = match transaction.open_table(LEAVES_TABLE) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        leaves => leaves?,
    };
    let (mut found, mut broken) = (Vec::new(), Vec::new());
    for entry in leaves.iter()? {
        let (key, record) = entry?;
        match ParticipantKey::from_json(key.value()) {
            Some(key) => found.push((key, record.value().to_owned())),
            None => broken.push((key.value().to_owned(), record.value().to_owned())),
        }
    }
    drop(transaction);
    if !broken.is_empty() {
        warn!(
            "{} records of the journal are under keys that make no sense, and are set aside",
            broken.len()
        );
        let transaction = database.begin_write()?;
        {
            let mut leaves = transaction.open_table(LEAVES_TABLE)?;
            let mut aside = transaction.open_table(QUARANTINE_TABLE)?;
            for (key, _) in &broken {
                leaves.remove(&**key)?;
            }
            let broken = broken.iter();
            quarantine(&mut aside, broken.map(|(key, record)| (&**key, &**record)))?;
        }
        transaction.commit()?;
    }
    Ok(found)
}
