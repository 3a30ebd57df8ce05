//! The journal in a file, and everything that can happen to a file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use livekit_token_service::internal::{FileStore, LeaveStore, Ownership};

use crate::conformance::{Durable, Stand, conforms, key, outlives, records};

/// Far longer than it takes to write or to try again.
const PATIENCE: Duration = Duration::from_secs(60);

struct OnDisk {
    directory: Directory,
    file: FileStore,
}

/// A directory of its own, gone after the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("lts-journal-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("leaves.redb")
    }

    fn open(self) -> OnDisk {
        let file = FileStore::open(&self.0);
        OnDisk {
            directory: self,
            file,
        }
    }

    /// Names of files, in order.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Stand for OnDisk {
    fn start() -> Self {
        let stand = Directory::new().open();
        assert_eq!(stand.file.problem(), None);
        stand
    }

    fn journal(&self) -> &dyn LeaveStore {
        &self.file
    }
}

impl Durable for OnDisk {
    fn after_a_crash(self) -> Self {
        // what the disk has at this moment, while the file is open
        let next = Directory::new();
        fs::copy(self.directory.file(), next.file()).unwrap();
        next.open()
    }

    fn after_the_end(self) -> Self {
        self.file.close();
        let Self { directory, file } = self;
        drop(file);
        directory.open()
    }
}

conforms!(OnDisk);
outlives!(OnDisk);

fn wait_until(what: &str, happened: impl Fn() -> bool) {
    let begin = Instant::now();
    while !happened() {
        assert!(begin.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The file of a journal with 50 leaves, as it is after a good end.
fn good_file() -> Vec<u8> {
    let stand = OnDisk::start();
    for number in 0..50 {
        let name = number.to_string();
        stand.file.put(&key(&name), &"x".repeat(500)).unwrap();
    }
    stand.file.close();
    fs::read(stand.directory.file()).unwrap()
}

/// A journal that finds these bytes in its file.
fn opened_on(bytes: &[u8]) -> OnDisk {
    let directory = Directory::new();
    fs::write(directory.file(), bytes).unwrap();
    directory.open()
}

fn assert_works(stand: &OnDisk) {
    assert_eq!(stand.file.problem(), None);
    let fence = stand.file.put(&key("after all"), "new").unwrap();
    assert_eq!(
        stand
            .file
            .check_ownership(&key("after all"), fence)
            .unwrap(),
        Ownership::Owned
    );
}

#[test]
fn a_damaged_file_is_kept_aside_and_a_new_one_begun() {
    let good = good_file();
    let mut swapped = good.clone();
    swapped.rotate_left(4096);
    let garbage: Vec<u8> = (0..100_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    for bytes in [
        &b"not a journal"[..],
        &good[..64],
        &good[..4096],
        &good[..good.len() / 2],
        &garbage,
        &swapped,
        &[0; 50_000],
    ] {
        let stand = opened_on(bytes);
        assert_eq!(records(&stand.file), [], "{} bytes", bytes.len());
        assert_works(&stand);
        assert_eq!(stand.directory.names(), ["leaves.broken.1", "leaves.redb"]);
        assert_eq!(
            fs::read(stand.directory.0.join("leaves.broken.1")).unwrap(),
            bytes
        );
    }
}

#[test]
fn no_damage_to_the_file_ends_the_service_or_makes_leaves_up() {
    let good = good_file();
    let sound = opened_on(&good);
    assert_eq!(records(&sound.file).len(), 50);
    let mut random = 1_u64;
    for round in 0..40 {
        let mut bytes = good.clone();
        for _ in 0..=round {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let at = (random >> 20) as usize % bytes.len();
            bytes[at] ^= 1 << (random >> 60 & 7);
        }
        let stand = opened_on(&bytes);
        for (_, record) in records(&stand.file) {
            assert_eq!(record, "x".repeat(500), "round {round}");
        }
        assert_works(&stand);
    }
}

#[test]
fn only_a_few_damaged_files_are_kept() {
    let mut directory = Directory::new();
    for _ in 0..8 {
        fs::write(directory.file(), "nonsense").unwrap();
        let stand = directory.open();
        assert_works(&stand);
        directory = {
            stand.file.close();
            stand
        }
        .directory;
    }
    assert_eq!(directory.names().len(), 6);
}

#[test]
fn a_directory_that_is_not_there_is_used_as_soon_as_it_is() {
    let directory = Directory::new();
    let missing = directory.0.join("later");
    let file = FileStore::open(&missing);
    assert!(file.problem().unwrap().contains("leaves.redb"));
    assert!(file.put(&key("a"), "refused").is_err());
    fs::create_dir(&missing).unwrap();
    wait_until("the journal recovers", || file.problem().is_none());
    file.put(&key("a"), "taken").unwrap();
}

#[test]
fn a_place_that_cannot_be_written_is_trouble_and_no_end() {
    // even root makes no files there
    let file = FileStore::open(Path::new("/proc"));
    let trouble = file.problem().unwrap();
    assert!(trouble.starts_with("/proc/leaves.redb: "), "{trouble}");
    let error = file.put(&key("a"), "refused").unwrap_err().to_string();
    assert!(error.starts_with("/proc/leaves.redb: "), "{error}");
    assert_eq!(records(&file), []);
}

#[test]
fn a_second_process_waits_for_the_first_one_to_end() {
    let first = OnDisk::start();
    let fence = first.file.put(&key("a"), "old").unwrap();
    let second = FileStore::open(&first.directory.0);
    assert!(second.problem().unwrap().contains("another process"));
    assert!(second.put(&key("b"), "refused").is_err());
    assert_eq!(records(&second), []);
    first.file.update(&key("a"), fence, "newest").unwrap();
    first.file.close();
    wait_until("the second one has the file", || second.problem().is_none());
    assert_eq!(records(&second), [(key("a"), "newest".to_owned())]);
}

#[test]
fn a_file_that_is_taken_away_is_written_anew_with_all_that_was_in_it() {
    let stand = OnDisk::start();
    let fence = stand.file.put(&key("a"), "old").unwrap();
    fs::remove_file(stand.directory.file()).unwrap();
    stand.file.update(&key("a"), fence, "new").unwrap();
    let copy = || {
        let copy = Directory::new();
        fs::copy(stand.directory.file(), copy.file())
            .is_ok()
            .then(|| records(&copy.open().file))
    };
    wait_until("it is written again", || {
        copy() == Some(vec![(key("a"), "new".to_owned())])
    });
    assert_works(&stand);
    assert_eq!(
        stand.file.check_ownership(&key("a"), fence).unwrap(),
        Ownership::Owned
    );
}

#[test]
fn nobody_else_may_read_the_file() {
    let stand = OnDisk::start();
    let mode = fs::metadata(stand.directory.file())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn progress_is_on_the_disk_soon() {
    let stand = OnDisk::start();
    let fence = stand.file.put(&key("a"), "old").unwrap();
    let gone = stand.file.put(&key("b"), "old").unwrap();
    stand.file.update(&key("a"), fence, "new").unwrap();
    stand.file.remove(&key("b"), gone).unwrap();
    let copy = || {
        let copy = Directory::new();
        fs::copy(stand.directory.file(), copy.file()).unwrap();
        records(&copy.open().file)
    };
    wait_until("it is written", || copy() == [(key("a"), "new".to_owned())]);
}
