//! What this process keeps, in memory: how the journal has it, or is to have it soon.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Fence, Hold, Key};

/// The leaves that are ours. Memory is bounded by their number, which is the delegation's to bound.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: HashMap<Key, Entry>,
    /// What is to be written, in the order in which it changed.
    unwritten: BTreeMap<u64, Key>,
    changes: u64,
}

#[derive(Debug)]
struct Entry {
    fence: Fence,
    /// None: it has ended, which is still to be written.
    record: Option<Arc<str>>,
    /// Its place in `unwritten`.
    change: Option<u64>,
}

/// What is to be written of one leave.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) key: Key,
    pub(super) fence: Fence,
    /// None: it has ended.
    pub(super) record: Option<Arc<str>>,
    number: Option<u64>,
}

impl Ledger {
    /// Keeps a leave as the journal has it, in place of any other with its key.
    pub(super) fn keep(&mut self, key: Key, fence: Fence, record: Arc<str>) {
        let entry = Entry {
            fence,
            record: Some(record),
            change: None,
        };
        if let Some(change) = self.entries.insert(key, entry).and_then(|old| old.change) {
            self.unwritten.remove(&change);
        }
    }

    /// Whether the leave is ours and goes on.
    pub(super) fn hold(&self, key: &Key, fence: Fence) -> Hold {
        match self.entries.get(key) {
            Some(entry) if entry.fence == fence && entry.record.is_some() => Hold::Ours,
            _ => Hold::Lost,
        }
    }

    /// Whether a leave with this key is ours, be it one that has ended and is not gone from the journal yet.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    /// The fence under which we have a leave.
    pub(super) fn fence(&self, key: &Key) -> Option<Fence> {
        self.entries.get(key).map(|entry| entry.fence)
    }

    /// The record of a leave that is ours and goes on.
    pub(super) fn record(&self, key: &Key, fence: Fence) -> Option<Arc<str>> {
        let entry = self.entries.get(key).filter(|entry| entry.fence == fence)?;
        entry.record.clone()
    }

    /// Notes a new record, or that the leave has ended (`None`), to be written.
    pub(super) fn change(&mut self, key: &Key, fence: Fence, record: Option<&str>) -> Hold {
        let held = self.hold(key, fence);
        if held == Hold::Ours
            && let Some(entry) = self.entries.get_mut(key)
        {
            entry.record = record.map(Arc::from);
            Self::mark(&mut self.unwritten, &mut self.changes, key, entry);
        }
        held
    }

    /// Whether nothing is ours.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether nothing is to be written.
    pub(super) fn is_written(&self) -> bool {
        self.unwritten.is_empty()
    }

    /// What is to be written, the oldest first, at most `most`.
    pub(super) fn unwritten(&self, most: usize) -> Vec<Change> {
        let keys = self.unwritten.values().take(most);
        keys.filter_map(|key| self.current(key)).collect()
    }

    /// Everything, as it should stand in the journal.
    pub(super) fn everything(&self) -> Vec<Change> {
        let keys = self.entries.keys();
        keys.filter_map(|key| self.current(key)).collect()
    }

    /// A change has been written; a newer one of the same leave has not.
    pub(super) fn written(&mut self, change: &Change) {
        let Some(entry) = self.entries.get_mut(&change.key) else {
            return;
        };
        if entry.fence != change.fence || entry.change != change.number {
            return;
        }
        if let Some(number) = entry.change.take() {
            self.unwritten.remove(&number);
        }
        if entry.record.is_none() {
            self.entries.remove(&change.key);
        }
    }

    /// Somebody else has the leave now.
    pub(super) fn lose(&mut self, key: &Key, fence: Fence) {
        if self.fence(key) == Some(fence)
            && let Some(entry) = self.entries.remove(key)
            && let Some(number) = entry.change
        {
            self.unwritten.remove(&number);
        }
    }

    /// The journal has nothing of what we keep any more: all of it is to be written again.
    pub(super) fn rewrite(&mut self) {
        for (key, entry) in &mut self.entries {
            Self::mark(&mut self.unwritten, &mut self.changes, key, entry);
        }
    }

    fn current(&self, key: &Key) -> Option<Change> {
        let entry = self.entries.get(key)?;
        Some(Change {
            key: key.clone(),
            fence: entry.fence,
            record: entry.record.clone(),
            number: entry.change,
        })
    }

    fn mark(unwritten: &mut BTreeMap<u64, Key>, changes: &mut u64, key: &Key, entry: &mut Entry) {
        if let Some(earlier) = entry.change {
            unwritten.remove(&earlier);
        }
        *changes += 1;
        entry.change = Some(*changes);
        unwritten.insert(*changes, key.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::from_json(&format!(r#"["room","{name}"]"#)).unwrap()
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.keep(key("a"), Fence(1), "old".into());
        ledger
    }

    #[test]
    fn a_change_is_written_once_and_only_as_it_was_last() {
        let mut ledger = ledger();
        assert!(ledger.is_written());
        for record in ["new", "newer"] {
            assert_eq!(ledger.change(&key("a"), Fence(1), Some(record)), Hold::Ours);
        }
        let changes = ledger.unwritten(10);
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].record.as_deref(), Some("newer"));
        // it changes again while the change is being written
        ledger.change(&key("a"), Fence(1), Some("newest"));
        ledger.written(&changes[0]);
        let changes = ledger.unwritten(10);
        assert_eq!(changes[0].record.as_deref(), Some("newest"));
        ledger.written(&changes[0]);
        assert!(ledger.is_written() && ledger.has(&key("a")));
    }

    #[test]
    fn what_has_ended_goes_when_that_is_written() {
        let mut ledger = ledger();
        assert_eq!(ledger.change(&key("a"), Fence(1), None), Hold::Ours);
        assert_eq!(ledger.change(&key("a"), Fence(1), Some("x")), Hold::Lost);
        assert_eq!(ledger.hold(&key("a"), Fence(1)), Hold::Lost);
        assert!(ledger.has(&key("a")));
        ledger.written(&ledger.unwritten(10)[0]);
        assert!(ledger.is_written() && !ledger.has(&key("a")));
    }

    #[test]
    fn whoever_comes_with_an_old_fence_changes_nothing() {
        let mut ledger = ledger();
        ledger.change(&key("a"), Fence(1), Some("of the old one"));
        let old = ledger.unwritten(10);
        ledger.keep(key("a"), Fence(2), "new".into());
        assert!(ledger.is_written());
        assert_eq!(ledger.change(&key("a"), Fence(1), None), Hold::Lost);
        ledger.written(&old[0]);
        ledger.lose(&key("a"), Fence(1));
        assert_eq!(ledger.hold(&key("a"), Fence(2)), Hold::Ours);
        assert_eq!(ledger.record(&key("a"), Fence(2)).as_deref(), Some("new"));
        ledger.change(&key("a"), Fence(2), Some("newer"));
        ledger.lose(&key("a"), Fence(2));
        assert!(ledger.is_written() && !ledger.has(&key("a")));
    }

    #[test]
    fn everything_can_be_written_again() {
        let mut ledger = ledger();
        ledger.keep(key("b"), Fence(2), "b".into());
        ledger.change(&key("b"), Fence(2), None);
        ledger.rewrite();
        assert_eq!(ledger.unwritten(1).len(), 1);
        for change in ledger.unwritten(10) {
            ledger.written(&change);
        }
        assert!(ledger.is_written() && ledger.has(&key("a")) && !ledger.has(&key("b")));
        assert_eq!(ledger.everything().len(), 1);
    }
}
