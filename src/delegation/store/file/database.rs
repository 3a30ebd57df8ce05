//! The redb file of a [`super::FileStore`], and what to do with a damaged one.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::error;
use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    TableDefinition,
};

use super::{WriteBatch, WriteResult};
use crate::delegation::store::MAX_QUARANTINED;
use crate::livekit::id::ParticipantKey;
use crate::util::clock::unix_seconds_now;

/// Name of the file in the store's directory.
const FILE_NAME: &str = "leaves.redb";
/// Name of a damaged file, before its number.
const DAMAGED_PREFIX: &str = "leaves.broken";
/// Damaged files that are kept; a further one overwrites the last.
const MAX_DAMAGED_FILES: u32 = 5;
/// Page cache in bytes; small, as the leaves are in memory anyway.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

const LEAVES_TABLE: TableDefinition<'_, &str, &str> = TableDefinition::new("leaves");
const QUARANTINE_TABLE: TableDefinition<'_, &str, &str> = TableDefinition::new("aside");

/// An open file, locked against other processes.
pub(super) struct LeaveDatabase {
    database: Database,
    path: PathBuf,
    inode: u64,
}

/// All records in the file.
#[derive(Default)]
pub(super) struct StoredRecords {
    pub(super) valid: BTreeMap<ParticipantKey, String>,
    /// Records whose key is invalid.
    pub(super) invalid: BTreeMap<String, Arc<str>>,
}

enum DatabaseOpenError {
    /// The file is not a valid database.
    Damaged(String),
    /// The file cannot be used now, but perhaps later.
    Unavailable(String),
}

impl<E: Into<redb::Error>> From<E> for DatabaseOpenError {
    fn from(error: E) -> Self {
        use redb::Error::{
            Corrupted, Io, TableIsMultimap, TableTypeMismatch, TypeDefinitionChanged,
            UpgradeRequired,
        };
        match error.into() {
            // another kind of file, or a truncated one
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
    /// Opens the file and reads all records. A damaged file is renamed and replaced by an empty one.
    pub(super) fn open(directory: &Path) -> WriteResult<(Self, StoredRecords)> {
        let path = directory.join(FILE_NAME);
        let reason = match Self::open_or_create(&path) {
            Ok(opened) => return Ok(opened),
            Err(DatabaseOpenError::Unavailable(reason)) => {
                return Err(format!("{}: {reason}", path.display()));
            }
            Err(DatabaseOpenError::Damaged(reason)) => reason,
        };
        let renamed_path = |number| directory.join(format!("{DAMAGED_PREFIX}.{number}"));
        let free = (1..MAX_DAMAGED_FILES).find(|number| !renamed_path(*number).exists());
        let renamed = renamed_path(free.unwrap_or(MAX_DAMAGED_FILES));
        fs::rename(&path, &renamed).map_err(|error| {
            format!(
                "{} is damaged and cannot be renamed: {error}",
                path.display()
            )
        })?;
        error!(
            path:% = path.display(),
            renamed_to:% = renamed.display(),
            cause = reason;
            "leave store damaged"
        );
        Self::open_or_create(&path).map_err(|error| match error {
            DatabaseOpenError::Unavailable(reason) | DatabaseOpenError::Damaged(reason) => {
                format!("{}: {reason}", path.display())
            }
        })
    }

    fn open_or_create(path: &Path) -> Result<(Self, StoredRecords), DatabaseOpenError> {
        let unusable = |error: io::Error| DatabaseOpenError::Unavailable(error.to_string());
        // not readable for others: with its id alone, anyone may send a delayed event
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
            // the new file's name has to survive a power cut
            let _ = fs::File::open(directory).and_then(|directory| directory.sync_all());
        }
        let opened = catch_unwind(AssertUnwindSafe(|| Self::load(file)));
        let damaged = DatabaseOpenError::Damaged("redb failed on it".into());
        let (database, records) = opened.unwrap_or(Err(damaged))?;
        let path = path.to_owned();
        Ok((
            Self {
                database,
                path,
                inode,
            },
            records,
        ))
    }

    fn load(file: fs::File) -> Result<(Database, StoredRecords), DatabaseOpenError> {
        let database = Builder::new()
            .set_cache_size(CACHE_BYTES)
            // finds damaged pages
            .set_check_integrity_on_open(true)
            .create_with_backend(FileBackend::new(file)?);
        let database = match database {
            Err(DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch) => {
                let reason =
                    "another process uses it (several processes can share a Redis instead)";
                return Err(DatabaseOpenError::Unavailable(reason.into()));
            }
            database => database?,
        };
        let records = read_records(&database)?;
        Ok((database, records))
    }

    /// Writes a batch in one durable transaction, new leaves last. Of the quarantined records, the newest are kept.
    pub(super) fn write_batch(&self, batch: &WriteBatch) -> WriteResult<()> {
        let inode = fs::metadata(&self.path).map(|metadata| metadata.ino());
        if inode.ok() != Some(self.inode) {
            return Err(format!("{} was removed", self.path.display()));
        }
        self.commit_batch(batch)
            .map_err(|error| format!("{}: {error}", self.path.display()))
    }

    fn commit_batch(&self, batch: &WriteBatch) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut leaves = transaction.open_table(LEAVES_TABLE)?;
            let mut quarantine = transaction.open_table(QUARANTINE_TABLE)?;
            let now = unix_seconds_now();
            for (key, record) in &batch.quarantined {
                leaves.remove(&**key)?;
                quarantine.insert(&*format!("{now:010} {key}"), &**record)?;
            }
            while quarantine.len()? > MAX_QUARANTINED as u64 {
                quarantine.pop_first()?;
            }
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
        }
        transaction.commit()?;
        Ok(())
    }
}

fn read_records(database: &Database) -> Result<StoredRecords, DatabaseOpenError> {
    let transaction = database.begin_read()?;
    let mut records = StoredRecords::default();
    let leaves = match transaction.open_table(LEAVES_TABLE) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(records),
        leaves => leaves?,
    };
    for entry in leaves.iter()? {
        let (key, record) = entry?;
        match ParticipantKey::from_json(key.value()) {
            Some(key) => {
                records.valid.insert(key, record.value().to_owned());
            }
            None => {
                let key = key.value().to_owned();
                records.invalid.insert(key, record.value().into());
            }
        }
    }
    Ok(records)
}
