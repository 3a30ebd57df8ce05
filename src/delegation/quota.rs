//! How many leaves there are, and whose.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Error;
use crate::livekit::id::ParticipantKey;
use crate::matrix::id::{ServerName, UserId};

/// Leaves of one user: some devices, some rooms, and what is left for up to an hour of those who reload a page again and again.
pub(super) const MAX_PER_USER: usize = 100;
/// Leaves of one server's users, unless the administrator has listed it: it may have as many users as it likes.
pub(super) const MAX_PER_UNLISTED_SERVER: usize = MAX_LEAVES / 10;
/// Leaves in all, of some 1 KiB each.
pub(super) const MAX_LEAVES: usize = 50_000;

/// Whether a place was taken, or the key had one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QuotaReservation(bool);

#[derive(Debug, Default)]
struct QuotaCounts {
    owners: HashMap<ParticipantKey, UserId>,
    per_user: HashMap<UserId, usize>,
    per_server: HashMap<ServerName, usize>,
}

impl QuotaCounts {
    fn insert(&mut self, key: &ParticipantKey, user: &UserId) -> bool {
        if self.owners.contains_key(key) {
            return false;
        }
        self.owners.insert(key.clone(), user.clone());
        *self.per_user.entry(user.clone()).or_default() += 1;
        *self.per_server.entry(user.server().clone()).or_default() += 1;
        true
    }

    fn remove(&mut self, key: &ParticipantKey) {
        let Some(user) = self.owners.remove(key) else {
            return;
        };
        decrement(&mut self.per_user, &user);
        decrement(&mut self.per_server, user.server());
    }
}

fn decrement<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// All leaves, those that are about to be included.
#[derive(Debug, Default)]
pub(super) struct LeaveQuota(Mutex<QuotaCounts>);

impl LeaveQuota {
    fn lock(&self) -> MutexGuard<'_, QuotaCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more leave of a user, whose server is `listed` or a stranger's; one that replaces another needs none.
    pub(super) fn reserve(
        &self,
        key: &ParticipantKey,
        user: &UserId,
        listed: bool,
    ) -> Result<QuotaReservation, Error> {
        let mut pages = self.lock();
        match pages.owners.get(key) {
            // clients of `/sfu/get` choose their device, and so a part of their identity
            Some(other) if other != user => return Err(Error::OwnedByOtherUser),
            Some(_) => {}
            None => {
                let of_server = pages.per_server.get(user.server()).copied();
                let crowd = !listed && of_server.is_some_and(|n| n >= MAX_PER_UNLISTED_SERVER);
                if crowd || pages.owners.len() >= MAX_LEAVES {
                    return Err(Error::CapacityExceeded);
                }
                if pages.per_user.get(user).is_some_and(|n| *n >= MAX_PER_USER) {
                    return Err(Error::UserQuotaExceeded);
                }
            }
        }
        Ok(QuotaReservation(pages.insert(key, user)))
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.lock().owners.len()).unwrap_or(u64::MAX)
    }

    /// What was reserved is not needed.
    pub(super) fn release(&self, key: &ParticipantKey, taken: QuotaReservation) {
        if taken.0 {
            self.lock().remove(key);
        }
    }

    /// There is such a leave, whatever the bounds say.
    pub(super) fn insert(&self, key: &ParticipantKey, user: &UserId) {
        self.lock().insert(key, user);
    }

    /// There is none any more.
    pub(super) fn remove(&self, key: &ParticipantKey) {
        self.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::livekit::id::{ParticipantIdentity, RoomName};

    fn key(n: usize) -> ParticipantKey {
        ParticipantKey {
            room: RoomName::new("room".into()).unwrap(),
            identity: ParticipantIdentity::new(format!("i{n}")).unwrap(),
        }
    }

    fn user(localpart: &str, server: &str) -> UserId {
        UserId::parse(&format!("@{localpart}:{server}")).unwrap()
    }

    #[test]
    fn a_user_has_so_many_leaves_and_a_replaced_one_counts_once() {
        let (book, alice) = (LeaveQuota::default(), user("alice", "hs"));
        let reserve = |n| book.reserve(&key(n), &alice, true);
        for n in 0..MAX_PER_USER {
            reserve(n).unwrap();
        }
        assert!(matches!(
            reserve(MAX_PER_USER),
            Err(Error::UserQuotaExceeded)
        ));
        book.release(&key(0), reserve(0).unwrap());
        assert!(matches!(
            reserve(MAX_PER_USER),
            Err(Error::UserQuotaExceeded)
        ));
        book.remove(&key(0));
        book.remove(&key(0));
        book.release(&key(MAX_PER_USER), reserve(MAX_PER_USER).unwrap());
        reserve(0).unwrap();
    }

    #[test]
    fn nobody_replaces_the_leave_of_another() {
        let book = LeaveQuota::default();
        book.reserve(&key(0), &user("alice", "hs"), true).unwrap();
        let other = book.reserve(&key(0), &user("alice", "hs:8448"), true);
        assert!(matches!(other, Err(Error::OwnedByOtherUser)));
    }

    #[test]
    fn all_users_have_so_many_leaves_and_those_of_a_stranger_fewer() {
        let book = LeaveQuota::default();
        let reserve = |n: usize, server: &str, listed| {
            book.reserve(&key(n), &user(&format!("u{n}"), server), listed)
        };
        for n in 0..MAX_PER_UNLISTED_SERVER {
            reserve(n, "evil", false).unwrap();
        }
        assert!(matches!(
            reserve(MAX_LEAVES, "evil", false),
            Err(Error::CapacityExceeded)
        ));
        for n in MAX_PER_UNLISTED_SERVER..MAX_LEAVES {
            reserve(n, "hs", true).unwrap();
        }
        assert!(matches!(
            reserve(MAX_LEAVES, "other", true),
            Err(Error::CapacityExceeded)
        ));
        for n in 0..MAX_LEAVES {
            book.remove(&key(n));
        }
        let pages = book.lock();
        assert!(pages.per_user.is_empty() && pages.per_server.is_empty());
    }
}
