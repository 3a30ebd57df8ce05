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

use super::writer::Batch;
use crate::journal::{Key, MAX_ASIDE};

/// The file's name in the directory of the journal.
const NAME: &str = "leaves.redb";
/// What a damaged file is called from then on, with a number.
const BROKEN: &str = "leaves.broken";
/// Damaged files that are kept; the next one takes the place of the last.
const MOST_BROKEN: u32 = 5;
/// Memory for pages of the file, in bytes: some thousand leaves, as those in use are in memory anyway.
const CACHE: usize = 4 * 1024 * 1024;

const LEAVES: TableDefinition<'_, &str, &str> = TableDefinition::new("leaves");
const ASIDE: TableDefinition<'_, &str, &str> = TableDefinition::new("aside");

/// A journal that is open, and locked against other processes.
pub(super) struct Disk {
    database: Database,
    path: PathBuf,
    inode: u64,
}

type Found = Vec<(Key, String)>;

enum Failure {
    /// The file makes no sense.
    Damaged(String),
    /// It may do tomorrow.
    Unusable(String),
}

impl<E: Into<redb::Error>> From<E> for Failure {
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
            error => Self::Unusable(error.to_string()),
        }
    }
}

impl Disk {
    /// Opens the file and reads all of it. A damaged one is set aside, and a new one begun.
    pub(super) fn open(directory: &Path) -> Result<(Self, Found), String> {
        let path = directory.join(NAME);
        let why = match Self::open_as_it_is(&path) {
            Ok(opened) => return Ok(opened),
            Err(Failure::Unusable(why)) => return Err(format!("{}: {why}", path.display())),
            Err(Failure::Damaged(why)) => why,
        };
        let free = |number: &u32| !directory.join(format!("{BROKEN}.{number}")).exists();
        let number = (1..MOST_BROKEN).find(free).unwrap_or(MOST_BROKEN);
        let aside = directory.join(format!("{BROKEN}.{number}"));
        fs::rename(&path, &aside).map_err(|e| format!("{} is damaged: {e}", path.display()))?;
        error!(
            "the journal {} is damaged and begins anew; delegated leaves in it are lost, the file is kept as {}: {why}",
            path.display(),
            aside.display()
        );
        Self::open_as_it_is(&path).map_err(|failure| match failure {
            Failure::Unusable(why) | Failure::Damaged(why) => format!("{}: {why}", path.display()),
        })
    }

    fn open_as_it_is(path: &Path) -> Result<(Self, Found), Failure> {
        let unusable = |error: io::Error| Failure::Unusable(error.to_string());
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
        let opened = catch_unwind(AssertUnwindSafe(|| Self::read(file)));
        let damaged = Failure::Damaged("the store can't make sense of it".into());
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

    fn read(file: fs::File) -> Result<(Database, Found), Failure> {
        let database = Builder::new()
            .set_cache_size(CACHE)
            // or a damaged page would be believed
            .set_check_integrity_on_open(true)
            .create_with_backend(FileBackend::new(file)?);
        let database = match database {
            Err(DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch) => {
                let why = "another process has it: there can be one, or several with Redis";
                return Err(Failure::Unusable(why.into()));
            }
            database => database?,
        };
        let found = read_all(&database)?;
        Ok((database, found))
    }

    /// Writes a batch, new leaves last. It is on the disk when this returns.
    pub(super) fn write(&self, batch: &Batch) -> Result<(), String> {
        let inode = fs::metadata(&self.path).map(|metadata| metadata.ino());
        if inode.ok() != Some(self.inode) {
            return Err(format!("{} has been taken away", self.path.display()));
        }
        self.write_all(batch)
            .map_err(|error| format!("{}: {error}", self.path.display()))
    }

    fn write_all(&self, batch: &Batch) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut leaves = transaction.open_table(LEAVES)?;
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
            let mut aside = transaction.open_table(ASIDE)?;
            let broken = batch.aside.iter();
            set_aside(&mut aside, broken.map(|(key, record)| (&**key, &**record)))?;
        }
        transaction.commit()?;
        Ok(())
    }
}

/// Keeps broken records aside under the time and their key: the newest of them.
fn set_aside<'a>(
    aside: &mut Table<'_, &str, &str>,
    broken: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<(), StorageError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    for (key, record) in broken {
        aside.insert(&*format!("{now:010} {key}"), record)?;
    }
    while aside.len()? > MAX_ASIDE as u64 {
        aside.pop_first()?;
    }
    Ok(())
}

/// All leaves. Those whose key makes no sense are set aside.
fn read_all(database: &Database) -> Result<Found, Failure> {
    let transaction = database.begin_read()?;
    let leaves = match transaction.open_table(LEAVES) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        leaves => leaves?,
    };
    let (mut found, mut broken) = (Vec::new(), Vec::new());
    for entry in leaves.iter()? {
        let (key, record) = entry?;
        match Key::from_json(key.value()) {
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
            let mut leaves = transaction.open_table(LEAVES)?;
            let mut aside = transaction.open_table(ASIDE)?;
            for (key, _) in &broken {
                leaves.remove(&**key)?;
            }
            let broken = broken.iter();
            set_aside(&mut aside, broken.map(|(key, record)| (&**key, &**record)))?;
        }
        transaction.commit()?;
    }
    Ok(found)
}
