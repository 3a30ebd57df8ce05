//! Limits on the number of delegated leaves: in all, per user, and per homeserver that is not listed.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;

use super::Error;
use crate::livekit::id::ParticipantKey;
use crate::matrix::id::{ServerName, UserId};
use crate::util::sync::lock;

/// Leaves of one user: several devices and rooms, and up to an hour of leaves that page reloads left behind.
pub(super) const MAX_PER_USER: usize = 100;
/// Leaves of all users of one homeserver, unless the administrator lists it: it can have any number of users.
pub(super) const MAX_PER_UNLISTED_SERVER: usize = MAX_LEAVES / 10;
/// Leaves in all, of about 1 KiB each.
pub(super) const MAX_LEAVES: usize = 50_000;

#[derive(Debug, Default)]
struct QuotaCounts {
    users_by_leave: HashMap<ParticipantKey, UserId>,
    per_user: HashMap<UserId, usize>,
    per_server: HashMap<ServerName, usize>,
}

impl QuotaCounts {
    /// Counts a leave, and returns whether it was not counted before.
    fn insert(&mut self, key: &ParticipantKey, user: &UserId) -> bool {
        if self.users_by_leave.contains_key(key) {
            return false;
        }
        self.users_by_leave.insert(key.clone(), user.clone());
        *self.per_user.entry(user.clone()).or_default() += 1;
        *self.per_server.entry(user.server().clone()).or_default() += 1;
        true
    }

    fn remove(&mut self, key: &ParticipantKey) {
        let Some(user) = self.users_by_leave.remove(key) else {
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

/// Counts of all leaves, reserved ones included.
#[derive(Debug, Default)]
pub(super) struct LeaveQuota(Mutex<QuotaCounts>);

impl LeaveQuota {
    /// Reserves one leave for a user of a homeserver that is `listed` or not. A leave that replaces an earlier one counts once.
    pub(super) fn reserve(
        &self,
        key: &ParticipantKey,
        user: &UserId,
        listed: bool,
    ) -> Result<QuotaReservation<'_>, Error> {
        let mut counts = lock(&self.0);
        match counts.users_by_leave.get(key) {
            // clients of `/sfu/get` choose their device id, and so a part of their identity
            Some(other) if other != user => return Err(Error::OwnedByOtherUser),
            Some(_) => {}
            None => {
                let count = |n: Option<&usize>| n.copied().unwrap_or_default();
                if counts.users_by_leave.len() >= MAX_LEAVES {
                    return Err(Error::CapacityExceeded);
                }
                let of_server = count(counts.per_server.get(user.server()));
                if !listed && of_server >= MAX_PER_UNLISTED_SERVER {
                    return Err(Error::ServerQuotaExceeded);
                }
                if count(counts.per_user.get(user)) >= MAX_PER_USER {
                    return Err(Error::UserQuotaExceeded);
                }
            }
        }
        let is_new = counts.insert(key, user);
        Ok(QuotaReservation {
            quota: self,
            release: is_new.then(|| key.clone()),
        })
    }

    pub(super) fn count(&self) -> u64 {
        u64::try_from(lock(&self.0).users_by_leave.len()).unwrap_or(u64::MAX)
    }

    /// Counts a leave that exists already, beyond all limits.
    pub(super) fn insert(&self, key: &ParticipantKey, user: &UserId) {
        lock(&self.0).insert(key, user);
    }

    pub(super) fn remove(&self, key: &ParticipantKey) {
        lock(&self.0).remove(key);
    }
}

/// A counted leave that does not exist yet; dropping the reservation releases it.
#[derive(Debug)]
#[must_use]
pub(super) struct QuotaReservation<'a> {
    quota: &'a LeaveQuota,
    release: Option<ParticipantKey>,
}

impl QuotaReservation<'_> {
    /// Leaves the count as it is, for the leave exists now.
    pub(super) fn keep(mut self) {
        self.release = None;
    }
}

impl Drop for QuotaReservation<'_> {
    fn drop(&mut self) {
        if let Some(key) = &self.release {
            self.quota.remove(key);
        }
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
    fn a_user_has_a_limited_number_of_leaves_and_a_replaced_one_counts_once() {
        let (quota, alice) = (LeaveQuota::default(), user("alice", "hs"));
        let reserve = |n| quota.reserve(&key(n), &alice, true);
        for n in 0..MAX_PER_USER {
            reserve(n).unwrap().keep();
        }
        assert!(matches!(
            reserve(MAX_PER_USER),
            Err(Error::UserQuotaExceeded)
        ));
        drop(reserve(0).unwrap());
        assert!(matches!(
            reserve(MAX_PER_USER),
            Err(Error::UserQuotaExceeded)
        ));
        quota.remove(&key(0));
        quota.remove(&key(0));
        drop(reserve(MAX_PER_USER).unwrap());
        reserve(0).unwrap().keep();
        assert_eq!(quota.count(), MAX_PER_USER as u64);
    }

    #[test]
    fn a_leave_of_another_user_is_not_replaced() {
        let quota = LeaveQuota::default();
        quota
            .reserve(&key(0), &user("alice", "hs"), true)
            .unwrap()
            .keep();
        let other = quota.reserve(&key(0), &user("alice", "hs:8448"), true);
        assert!(matches!(other, Err(Error::OwnedByOtherUser)));
    }

    #[test]
    fn leaves_are_limited_in_all_and_for_each_unlisted_server() {
        let quota = LeaveQuota::default();
        let reserve = |n: usize, server: &str, listed| {
            quota.reserve(&key(n), &user(&format!("u{n}"), server), listed)
        };
        for n in 0..MAX_PER_UNLISTED_SERVER {
            reserve(n, "evil", false).unwrap().keep();
        }
        assert!(matches!(
            reserve(MAX_LEAVES, "evil", false),
            Err(Error::ServerQuotaExceeded)
        ));
        for n in MAX_PER_UNLISTED_SERVER..MAX_LEAVES {
            reserve(n, "hs", true).unwrap().keep();
        }
        assert!(matches!(
            reserve(MAX_LEAVES, "other", true),
            Err(Error::CapacityExceeded)
        ));
        for n in 0..MAX_LEAVES {
            quota.remove(&key(n));
        }
        let counts = lock(&quota.0);
        assert!(counts.per_user.is_empty() && counts.per_server.is_empty());
    }
}
