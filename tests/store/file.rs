//! The store in a file, and failures of the file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use livekit_token_service::internal::{FileStore, LeaveStore, Ownership};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};

use crate::conformance::{
    DurableStore, TestStore, adopt_records, conformance_tests, durability_tests, key,
};

/// Deadline that only a hang misses.
const DEADLINE: Duration = Duration::from_secs(60);

struct TestFileStore {
    directory: TestDirectory,
    file: FileStore,
}

/// A directory that is removed after the test.
struct TestDirectory(PathBuf);

impl TestDirectory {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("lts-store-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("leaves.redb")
    }

    fn open(self) -> TestFileStore {
        let file = FileStore::open(&self.0);
        TestFileStore {
            directory: self,
            file,
        }
    }

    /// Names of the files, sorted.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl TestStore for TestFileStore {
    fn start() -> Self {
        let test = TestDirectory::new().open();
        assert_eq!(test.file.problem(), None);
        test
    }

    fn store(&self) -> &dyn LeaveStore {
        &self.file
    }
}

impl DurableStore for TestFileStore {
    fn after_crash(self) -> Self {
        // a copy of the file as it is on the disk now
        let next = TestDirectory::new();
        fs::copy(self.directory.file(), next.file()).unwrap();
        next.open()
    }

    fn after_stop(self) -> Self {
        self.file.close();
        let Self { directory, file } = self;
        drop(file);
        directory.open()
    }
}

conformance_tests!(TestFileStore);
durability_tests!(TestFileStore);

fn wait_until(condition: &str, is_met: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_met() {
        assert!(start.elapsed() < DEADLINE, "waited in vain: {condition}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The file of a closed store with 50 leaves.
fn valid_file() -> Vec<u8> {
    let test = TestFileStore::start();
    for number in 0..50 {
        let name = number.to_string();
        test.file.put(&key(&name), &"x".repeat(500)).unwrap();
    }
    test.file.close();
    fs::read(test.directory.file()).unwrap()
}

/// Opens a store with these bytes in its file.
fn open_bytes(bytes: &[u8]) -> TestFileStore {
    let directory = TestDirectory::new();
    fs::write(directory.file(), bytes).unwrap();
    directory.open()
}

fn assert_works(test: &TestFileStore) {
    assert_eq!(test.file.problem(), None);
    let fence = test.file.put(&key("after all"), "new").unwrap();
    assert_eq!(
        test.file.check_ownership(&key("after all"), fence).unwrap(),
        Ownership::Owned
    );
}

#[test]
fn a_damaged_file_is_renamed_and_replaced() {
    let valid = valid_file();
    let mut swapped = valid.clone();
    swapped.rotate_left(4096);
    let garbage: Vec<u8> = (0..100_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    for bytes in [
        &b"not a database"[..],
        &valid[..64],
        &valid[..4096],
        &valid[..valid.len() / 2],
        &garbage,
        &swapped,
        &[0; 50_000],
    ] {
        let test = open_bytes(bytes);
        assert_eq!(adopt_records(&test.file), [], "{} bytes", bytes.len());
        assert_works(&test);
        assert_eq!(test.directory.names(), ["leaves.broken.1", "leaves.redb"]);
        assert_eq!(
            fs::read(test.directory.0.join("leaves.broken.1")).unwrap(),
            bytes
        );
    }
}

#[test]
fn random_damage_neither_panics_nor_invents_leaves() {
    let valid = valid_file();
    let undamaged = open_bytes(&valid);
    assert_eq!(adopt_records(&undamaged.file).len(), 50);
    let mut random = 1_u64;
    for round in 0..40 {
        let mut bytes = valid.clone();
        for _ in 0..=round {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let at = (random >> 20) as usize % bytes.len();
            bytes[at] ^= 1 << (random >> 60 & 7);
        }
        let test = open_bytes(&bytes);
        for (_, record) in adopt_records(&test.file) {
            assert_eq!(record, "x".repeat(500), "round {round}");
        }
        assert_works(&test);
    }
}

#[test]
fn the_number_of_damaged_files_is_bounded() {
    let mut directory = TestDirectory::new();
    for _ in 0..8 {
        fs::write(directory.file(), "nonsense").unwrap();
        let test = directory.open();
        assert_works(&test);
        directory = {
            test.file.close();
            test
        }
        .directory;
    }
    assert_eq!(directory.names().len(), 6);
}

#[test]
fn a_missing_directory_is_used_once_it_exists() {
    let directory = TestDirectory::new();
    let missing = directory.0.join("later");
    let file = FileStore::open(&missing);
    assert!(file.problem().unwrap().contains("leaves.redb"));
    assert!(file.put(&key("a"), "refused").is_err());
    fs::create_dir(&missing).unwrap();
    wait_until("the store recovers", || file.problem().is_none());
    file.put(&key("a"), "taken").unwrap();
}

#[test]
fn a_directory_without_write_access_is_a_problem() {
    // not even root can create files there
    let file = FileStore::open(Path::new("/proc"));
    let problem = file.problem().unwrap();
    assert!(problem.starts_with("/proc/leaves.redb: "), "{problem}");
    let error = file.put(&key("a"), "refused").unwrap_err().to_string();
    assert!(error.starts_with("/proc/leaves.redb: "), "{error}");
    assert_eq!(adopt_records(&file), []);
}

#[test]
fn a_second_process_waits_for_the_first() {
    let first = TestFileStore::start();
    let fence = first.file.put(&key("a"), "old").unwrap();
    let second = FileStore::open(&first.directory.0);
    assert!(second.problem().unwrap().contains("another process"));
    assert!(second.put(&key("b"), "refused").is_err());
    assert_eq!(adopt_records(&second), []);
    first.file.update(&key("a"), fence, "newest").unwrap();
    first.file.close();
    wait_until("the second store opens the file", || {
        second.problem().is_none()
    });
    assert_eq!(adopt_records(&second), [(key("a"), "newest".to_owned())]);
}

#[test]
fn a_removed_file_is_written_again_with_all_leaves() {
    let test = TestFileStore::start();
    let fence = test.file.put(&key("a"), "old").unwrap();
    fs::remove_file(test.directory.file()).unwrap();
    test.file.update(&key("a"), fence, "new").unwrap();
    let copy = || {
        let copy = TestDirectory::new();
        fs::copy(test.directory.file(), copy.file())
            .is_ok()
            .then(|| adopt_records(&copy.open().file))
    };
    wait_until("the file is written again", || {
        copy() == Some(vec![(key("a"), "new".to_owned())])
    });
    assert_works(&test);
    assert_eq!(
        test.file.check_ownership(&key("a"), fence).unwrap(),
        Ownership::Owned
    );
}

#[test]
fn the_file_is_readable_by_its_owner_only() {
    let test = TestFileStore::start();
    let mode = fs::metadata(test.directory.file())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn changes_are_written_soon() {
    let test = TestFileStore::start();
    let fence = test.file.put(&key("a"), "old").unwrap();
    let removed = test.file.put(&key("b"), "old").unwrap();
    test.file.update(&key("a"), fence, "new").unwrap();
    test.file.remove(&key("b"), removed);
    let copy = || {
        let copy = TestDirectory::new();
        fs::copy(test.directory.file(), copy.file()).unwrap();
        adopt_records(&copy.open().file)
    };
    wait_until("the changes are written", || {
        copy() == [(key("a"), "new".to_owned())]
    });
}

#[test]
fn a_record_with_an_invalid_key_is_quarantined() {
    const LEAVES: TableDefinition<'_, &str, &str> = TableDefinition::new("leaves");
    const QUARANTINE: TableDefinition<'_, &str, &str> = TableDefinition::new("aside");
    let directory = TestDirectory::new();
    let database = Database::create(directory.file()).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut leaves = transaction.open_table(LEAVES).unwrap();
        leaves.insert("no key", "a record").unwrap();
        leaves.insert(&*key("a").to_json(), "valid").unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    let test = directory.open();
    assert_eq!(adopt_records(&test.file), [(key("a"), "valid".to_owned())]);
    test.file.close();
    let database = Database::open(test.directory.file()).unwrap();
    let transaction = database.begin_read().unwrap();
    let leaves = transaction.open_table(LEAVES).unwrap();
    assert_eq!(leaves.len().unwrap(), 1);
    let quarantine = transaction.open_table(QUARANTINE).unwrap();
    let (name, record) = quarantine.first().unwrap().unwrap();
    assert!(name.value().ends_with(" no key"), "{}", name.value());
    assert_eq!(record.value(), "a record");
}
