//! In-memory copy of the leaves that this replica owns, with the changes that are not written yet.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{FencingToken, Ownership};
use crate::livekit::id::ParticipantKey;

/// Owned leaves; as many as the delegation quota allows.
#[derive(Debug, Default)]
pub(super) struct WriteBuffer {
    leaves: HashMap<ParticipantKey, BufferedLeave>,
    /// Leaves with unwritten changes, by their [`BufferedLeave::dirty_sequence`].
    dirty: BTreeMap<u64, ParticipantKey>,
    last_sequence: u64,
}

#[derive(Debug)]
struct BufferedLeave {
    fence: FencingToken,
    /// `None` for an ended leave whose removal is not written yet.
    record: Option<Arc<str>>,
    /// Position of the unwritten change among all.
    dirty_sequence: Option<u64>,
}

/// The newest state of one leave, to be written.
#[derive(Debug, Clone)]
pub(super) struct BufferedChange {
    pub(super) key: ParticipantKey,
    pub(super) fence: FencingToken,
    /// `None` removes the leave.
    pub(super) record: Option<Arc<str>>,
    sequence: Option<u64>,
}

impl WriteBuffer {
    /// Adds a leave that is stored already, in place of an earlier one of the same participant.
    pub(super) fn insert(&mut self, key: ParticipantKey, fence: FencingToken, record: Arc<str>) {
        let leave = BufferedLeave {
            fence,
            record: Some(record),
            dirty_sequence: None,
        };
        let replaced = self.leaves.insert(key, leave);
        if let Some(sequence) = replaced.and_then(|old| old.dirty_sequence) {
            self.dirty.remove(&sequence);
        }
    }

    /// Whether the leave is owned and has not ended.
    pub(super) fn ownership(&self, key: &ParticipantKey, fence: FencingToken) -> Ownership {
        Ownership::owned_if(self.record(key, fence).is_some())
    }

    /// Whether the participant's leave is owned; true also for an ended one whose removal is not written yet.
    pub(super) fn contains(&self, key: &ParticipantKey) -> bool {
        self.leaves.contains_key(key)
    }

    /// Whether the participant's leave has ended and its removal is not written yet.
    pub(super) fn has_unwritten_removal(&self, key: &ParticipantKey) -> bool {
        self.leaves
            .get(key)
            .is_some_and(|leave| leave.record.is_none())
    }

    pub(super) fn fence(&self, key: &ParticipantKey) -> Option<FencingToken> {
        self.leaves.get(key).map(|leave| leave.fence)
    }

    /// The record of an owned leave that has not ended.
    pub(super) fn record(&self, key: &ParticipantKey, fence: FencingToken) -> Option<Arc<str>> {
        let leave = self.leaves.get(key).filter(|leave| leave.fence == fence)?;
        leave.record.clone()
    }

    /// Buffers a new record, or the removal of an ended leave (`None`), if the leave is owned.
    pub(super) fn update(
        &mut self,
        key: &ParticipantKey,
        fence: FencingToken,
        record: Option<&str>,
    ) -> Ownership {
        let ownership = self.ownership(key, fence);
        if ownership == Ownership::Owned
            && let Some(leave) = self.leaves.get_mut(key)
        {
            leave.record = record.map(Arc::from);
            Self::mark_dirty(&mut self.dirty, &mut self.last_sequence, key, leave);
        }
        ownership
    }

    pub(super) fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    /// Whether all changes are written.
    pub(super) fn is_clean(&self) -> bool {
        self.dirty.is_empty()
    }

    /// At most `max` unwritten changes, oldest first.
    pub(super) fn pending_changes(&self, max: usize) -> Vec<BufferedChange> {
        let keys = self.dirty.values().take(max);
        keys.filter_map(|key| self.change_for(key)).collect()
    }

    /// All leaves, as a store without any of them has to be written.
    pub(super) fn all_changes(&self) -> Vec<BufferedChange> {
        let keys = self.leaves.keys();
        keys.filter_map(|key| self.change_for(key)).collect()
    }

    /// Marks a change as written; a newer change of the same leave stays unwritten.
    pub(super) fn mark_written(&mut self, change: &BufferedChange) {
        let Some(leave) = self.leaves.get_mut(&change.key) else {
            return;
        };
        if leave.fence != change.fence || leave.dirty_sequence != change.sequence {
            return;
        }
        if let Some(sequence) = leave.dirty_sequence.take() {
            self.dirty.remove(&sequence);
        }
        if leave.record.is_none() {
            self.leaves.remove(&change.key);
        }
    }

    /// Forgets a leave that this replica has lost.
    pub(super) fn discard(&mut self, key: &ParticipantKey, fence: FencingToken) {
        if self.fence(key) == Some(fence)
            && let Some(leave) = self.leaves.remove(key)
            && let Some(sequence) = leave.dirty_sequence
        {
            self.dirty.remove(&sequence);
        }
    }

    /// Has all leaves written again, as the store may have lost them.
    pub(super) fn mark_all_dirty(&mut self) {
        for (key, leave) in &mut self.leaves {
            Self::mark_dirty(&mut self.dirty, &mut self.last_sequence, key, leave);
        }
    }

    fn change_for(&self, key: &ParticipantKey) -> Option<BufferedChange> {
        let leave = self.leaves.get(key)?;
        Some(BufferedChange {
            key: key.clone(),
            fence: leave.fence,
            record: leave.record.clone(),
            sequence: leave.dirty_sequence,
        })
    }

    fn mark_dirty(
        dirty: &mut BTreeMap<u64, ParticipantKey>,
        last_sequence: &mut u64,
        key: &ParticipantKey,
        leave: &mut BufferedLeave,
    ) {
        if let Some(earlier) = leave.dirty_sequence {
            dirty.remove(&earlier);
        }
        *last_sequence += 1;
        leave.dirty_sequence = Some(*last_sequence);
        dirty.insert(*last_sequence, key.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ParticipantKey {
        ParticipantKey::from_json(&format!(r#"["room","{name}"]"#)).unwrap()
    }

    fn buffer_with_one_leave() -> WriteBuffer {
        let mut buffer = WriteBuffer::default();
        buffer.insert(key("a"), FencingToken(1), "old".into());
        buffer
    }

    #[test]
    fn only_the_last_change_of_a_leave_is_written() {
        let mut buffer = buffer_with_one_leave();
        assert!(buffer.is_clean());
        for record in ["new", "newer"] {
            assert_eq!(
                buffer.update(&key("a"), FencingToken(1), Some(record)),
                Ownership::Owned
            );
        }
        let changes = buffer.pending_changes(10);
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].record.as_deref(), Some("newer"));
        // another change while this one is being written
        buffer.update(&key("a"), FencingToken(1), Some("newest"));
        buffer.mark_written(&changes[0]);
        let changes = buffer.pending_changes(10);
        assert_eq!(changes[0].record.as_deref(), Some("newest"));
        buffer.mark_written(&changes[0]);
        assert!(buffer.is_clean() && buffer.contains(&key("a")));
    }

    #[test]
    fn an_ended_leave_is_removed_when_that_is_written() {
        let mut buffer = buffer_with_one_leave();
        assert_eq!(
            buffer.update(&key("a"), FencingToken(1), None),
            Ownership::Owned
        );
        assert_eq!(
            buffer.update(&key("a"), FencingToken(1), Some("x")),
            Ownership::Lost
        );
        assert_eq!(
            buffer.ownership(&key("a"), FencingToken(1)),
            Ownership::Lost
        );
        assert!(buffer.contains(&key("a")));
        buffer.mark_written(&buffer.pending_changes(10)[0]);
        assert!(buffer.is_clean() && !buffer.contains(&key("a")));
    }

    #[test]
    fn an_old_fencing_token_changes_nothing() {
        let mut buffer = buffer_with_one_leave();
        buffer.update(&key("a"), FencingToken(1), Some("old owner"));
        let old = buffer.pending_changes(10);
        buffer.insert(key("a"), FencingToken(2), "new".into());
        assert!(buffer.is_clean());
        assert_eq!(
            buffer.update(&key("a"), FencingToken(1), None),
            Ownership::Lost
        );
        buffer.mark_written(&old[0]);
        buffer.discard(&key("a"), FencingToken(1));
        assert_eq!(
            buffer.ownership(&key("a"), FencingToken(2)),
            Ownership::Owned
        );
        assert_eq!(
            buffer.record(&key("a"), FencingToken(2)).as_deref(),
            Some("new")
        );
        buffer.update(&key("a"), FencingToken(2), Some("newer"));
        buffer.discard(&key("a"), FencingToken(2));
        assert!(buffer.is_clean() && !buffer.contains(&key("a")));
    }

    #[test]
    fn all_leaves_can_be_written_again() {
        let mut buffer = buffer_with_one_leave();
        buffer.insert(key("b"), FencingToken(2), "b".into());
        buffer.update(&key("b"), FencingToken(2), None);
        buffer.mark_all_dirty();
        assert_eq!(buffer.pending_changes(1).len(), 1);
        for change in buffer.pending_changes(10) {
            buffer.mark_written(&change);
        }
        assert!(buffer.is_clean() && buffer.contains(&key("a")) && !buffer.contains(&key("b")));
        assert_eq!(buffer.all_changes().len(), 1);
    }
}
