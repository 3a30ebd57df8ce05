//! What this process keeps, in memory: how the journal has it, or is to have it soon.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{FencingToken, Ownership};
use crate::livekit::id::ParticipantKey;

/// The leaves that are ours. Memory is bounded by their number, which is the delegation's to bound.
#[derive(Debug, Default)]
pub(super) struct WriteBuffer {
    entries: HashMap<ParticipantKey, BufferedLeave>,
    /// What is to be written, in the order in which it changed.
    dirty: BTreeMap<u64, ParticipantKey>,
    last_sequence: u64,
}

#[derive(Debug)]
struct BufferedLeave {
    fence: FencingToken,
    /// None: it has ended, which is still to be written.
    record: Option<Arc<str>>,
    /// Its place in `unwritten`.
    dirty_sequence: Option<u64>,
}

/// What is to be written of one leave.
#[derive(Debug, Clone)]
pub(super) struct BufferedChange {
    pub(super) key: ParticipantKey,
    pub(super) fence: FencingToken,
    /// None: it has ended.
    pub(super) record: Option<Arc<str>>,
    sequence: Option<u64>,
}

impl WriteBuffer {
    /// Keeps a leave as the journal has it, in place of any other with its key.
    pub(super) fn insert(&mut self, key: ParticipantKey, fence: FencingToken, record: Arc<str>) {
        let entry = BufferedLeave {
            fence,
            record: Some(record),
            dirty_sequence: None,
        };
        if let Some(change) = self
            .entries
            .insert(key, entry)
            .and_then(|old| old.dirty_sequence)
        {
            self.dirty.remove(&change);
        }
    }

    /// Whether the leave is ours and goes on.
    pub(super) fn ownership(&self, key: &ParticipantKey, fence: FencingToken) -> Ownership {
        match self.entries.get(key) {
            Some(entry) if entry.fence == fence && entry.record.is_some() => Ownership::Owned,
            _ => Ownership::Lost,
        }
    }

    /// Whether a leave with this key is ours, be it one that has ended and is not gone from the journal yet.
    pub(super) fn contains(&self, key: &ParticipantKey) -> bool {
        self.entries.contains_key(key)
    }

    /// The fence under which we have a leave.
    pub(super) fn fence(&self, key: &ParticipantKey) -> Option<FencingToken> {
        self.entries.get(key).map(|entry| entry.fence)
    }

    /// The record of a leave that is ours and goes on.
    pub(super) fn record(&self, key: &ParticipantKey, fence: FencingToken) -> Option<Arc<str>> {
        let entry = self.entries.get(key).filter(|entry| entry.fence == fence)?;
        entry.record.clone()
    }

    /// Notes a new record, or that the leave has ended (`None`), to be written.
    pub(super) fn update(
        &mut self,
        key: &ParticipantKey,
        fence: FencingToken,
        record: Option<&str>,
    ) -> Ownership {
        let held = self.ownership(key, fence);
        if held == Ownership::Owned
            && let Some(entry) = self.entries.get_mut(key)
        {
            entry.record = record.map(Arc::from);
            Self::mark_dirty(&mut self.dirty, &mut self.last_sequence, key, entry);
        }
        held
    }

    /// Whether nothing is ours.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether nothing is to be written.
    pub(super) fn is_clean(&self) -> bool {
        self.dirty.is_empty()
    }

    /// What is to be written, the oldest first, at most `most`.
    pub(super) fn pending_changes(&self, most: usize) -> Vec<BufferedChange> {
        let keys = self.dirty.values().take(most);
        keys.filter_map(|key| self.change_for(key)).collect()
    }

    /// Everything, as it should stand in the journal.
    pub(super) fn all_changes(&self) -> Vec<BufferedChange> {
        let keys = self.entries.keys();
        keys.filter_map(|key| self.change_for(key)).collect()
    }

    /// A change has been written; a newer one of the same leave has not.
    pub(super) fn mark_written(&mut self, change: &BufferedChange) {
        let Some(entry) = self.entries.get_mut(&change.key) else {
            return;
        };
        if entry.fence != change.fence || entry.dirty_sequence != change.sequence {
            return;
        }
        if let Some(number) = entry.dirty_sequence.take() {
            self.dirty.remove(&number);
        }
        if entry.record.is_none() {
            self.entries.remove(&change.key);
        }
    }

    /// Somebody else has the leave now.
    pub(super) fn discard(&mut self, key: &ParticipantKey, fence: FencingToken) {
        if self.fence(key) == Some(fence)
            && let Some(entry) = self.entries.remove(key)
            && let Some(number) = entry.dirty_sequence
        {
            self.dirty.remove(&number);
        }
    }

    /// The journal has nothing of what we keep any more: all of it is to be written again.
    pub(super) fn mark_all_dirty(&mut self) {
        for (key, entry) in &mut self.entries {
            Self::mark_dirty(&mut self.dirty, &mut self.last_sequence, key, entry);
        }
    }

    fn change_for(&self, key: &ParticipantKey) -> Option<BufferedChange> {
        let entry = self.entries.get(key)?;
        Some(BufferedChange {
            key: key.clone(),
            fence: entry.fence,
            record: entry.record.clone(),
            sequence: entry.dirty_sequence,
        })
    }

    fn mark_dirty(
        unwritten: &mut BTreeMap<u64, ParticipantKey>,
        changes: &mut u64,
        key: &ParticipantKey,
        entry: &mut BufferedLeave,
    ) {
        if let Some(earlier) = entry.dirty_sequence {
            unwritten.remove(&earlier);
        }
        *changes += 1;
        entry.dirty_sequence = Some(*changes);
        unwritten.insert(*changes, key.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ParticipantKey {
        ParticipantKey::from_json(&format!(r#"["room","{name}"]"#)).unwrap()
    }

    fn ledger() -> WriteBuffer {
        let mut ledger = WriteBuffer::default();
        ledger.insert(key("a"), FencingToken(1), "old".into());
        ledger
    }

    #[test]
    fn a_change_is_written_once_and_only_as_it_was_last() {
        let mut ledger = ledger();
        assert!(ledger.is_clean());
        for record in ["new", "newer"] {
            assert_eq!(
                ledger.update(&key("a"), FencingToken(1), Some(record)),
                Ownership::Owned
            );
        }
        let changes = ledger.pending_changes(10);
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].record.as_deref(), Some("newer"));
        // it changes again while the change is being written
        ledger.update(&key("a"), FencingToken(1), Some("newest"));
        ledger.mark_written(&changes[0]);
        let changes = ledger.pending_changes(10);
        assert_eq!(changes[0].record.as_deref(), Some("newest"));
        ledger.mark_written(&changes[0]);
        assert!(ledger.is_clean() && ledger.contains(&key("a")));
    }

    #[test]
    fn what_has_ended_goes_when_that_is_written() {
        let mut ledger = ledger();
        assert_eq!(
            ledger.update(&key("a"), FencingToken(1), None),
            Ownership::Owned
        );
        assert_eq!(
            ledger.update(&key("a"), FencingToken(1), Some("x")),
            Ownership::Lost
        );
        assert_eq!(
            ledger.ownership(&key("a"), FencingToken(1)),
            Ownership::Lost
        );
        assert!(ledger.contains(&key("a")));
        ledger.mark_written(&ledger.pending_changes(10)[0]);
        assert!(ledger.is_clean() && !ledger.contains(&key("a")));
    }

    #[test]
    fn whoever_comes_with_an_old_fence_changes_nothing() {
        let mut ledger = ledger();
        ledger.update(&key("a"), FencingToken(1), Some("of the old one"));
        let old = ledger.pending_changes(10);
        ledger.insert(key("a"), FencingToken(2), "new".into());
        assert!(ledger.is_clean());
        assert_eq!(
            ledger.update(&key("a"), FencingToken(1), None),
            Ownership::Lost
        );
        ledger.mark_written(&old[0]);
        ledger.discard(&key("a"), FencingToken(1));
        assert_eq!(
            ledger.ownership(&key("a"), FencingToken(2)),
            Ownership::Owned
        );
        assert_eq!(
            ledger.record(&key("a"), FencingToken(2)).as_deref(),
            Some("new")
        );
        ledger.update(&key("a"), FencingToken(2), Some("newer"));
        ledger.discard(&key("a"), FencingToken(2));
        assert!(ledger.is_clean() && !ledger.contains(&key("a")));
    }

    #[test]
    fn everything_can_be_written_again() {
        let mut ledger = ledger();
        ledger.insert(key("b"), FencingToken(2), "b".into());
        ledger.update(&key("b"), FencingToken(2), None);
        ledger.mark_all_dirty();
        assert_eq!(ledger.pending_changes(1).len(), 1);
        for change in ledger.pending_changes(10) {
            ledger.mark_written(&change);
        }
        assert!(ledger.is_clean() && ledger.contains(&key("a")) && !ledger.contains(&key("b")));
        assert_eq!(ledger.all_changes().len(), 1);
    }
}
