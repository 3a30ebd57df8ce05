//! How many leaves there are, and whose.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Error;
use crate::leave::Key;
use crate::matrix::id::{ServerName, UserId};

/// Leaves of one user: some devices, some rooms, and what is left for up to an hour of those who reload a page again and again.
pub(super) const PER_USER: usize = 100;
/// Leaves of one server's users, unless the administrator has listed it: it may have as many users as it likes.
pub(super) const PER_STRANGER: usize = TOTAL / 10;
/// Leaves in all, of some 1 KiB each.
pub(super) const TOTAL: usize = 50_000;

/// Whether a place was taken, or the key had one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken(bool);

#[derive(Debug, Default)]
struct Pages {
    users: HashMap<Key, UserId>,
    of_user: HashMap<UserId, usize>,
    of_server: HashMap<ServerName, usize>,
}

impl Pages {
    fn enter(&mut self, key: &Key, user: &UserId) -> bool {
        if self.users.contains_key(key) {
            return false;
        }
        self.users.insert(key.clone(), user.clone());
        *self.of_user.entry(user.clone()).or_default() += 1;
        *self.of_server.entry(user.server().clone()).or_default() += 1;
        true
    }

    fn strike(&mut self, key: &Key) {
        let Some(user) = self.users.remove(key) else {
            return;
        };
        one_less(&mut self.of_user, &user);
        one_less(&mut self.of_server, user.server());
    }
}

fn one_less<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// All leaves, those that are about to be included.
#[derive(Debug, Default)]
pub(super) struct Book(Mutex<Pages>);

impl Book {
    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more leave of a user, whose server is `listed` or a stranger's; one that replaces another needs none.
    pub(super) fn reserve(&self, key: &Key, user: &UserId, listed: bool) -> Result<Taken, Error> {
        let mut pages = self.lock();
        match pages.users.get(key) {
            // clients of `/sfu/get` choose their device, and so a part of their identity
            Some(other) if other != user => return Err(Error::NotTheirs),
            Some(_) => {}
            None => {
                let of_server = pages.of_server.get(user.server()).copied();
                let crowd = !listed && of_server.is_some_and(|n| n >= PER_STRANGER);
                if crowd || pages.users.len() >= TOTAL {
                    return Err(Error::Full);
                }
                if pages.of_user.get(user).is_some_and(|n| *n >= PER_USER) {
                    return Err(Error::TooMany);
                }
            }
        }
        Ok(Taken(pages.enter(key, user)))
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.lock().users.len()).unwrap_or(u64::MAX)
    }

    /// What was reserved is not needed.
    pub(super) fn give_back(&self, key: &Key, taken: Taken) {
        if taken.0 {
            self.lock().strike(key);
        }
    }

    /// There is such a leave, whatever the bounds say.
    pub(super) fn enter(&self, key: &Key, user: &UserId) {
        self.lock().enter(key, user);
    }

    /// There is none any more.
    pub(super) fn strike(&self, key: &Key) {
        self.lock().strike(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::livekit::token::{Identity, RoomName};

    fn key(n: usize) -> Key {
        Key {
            room: RoomName::new("room".into()).unwrap(),
            identity: Identity::new(format!("i{n}")).unwrap(),
        }
    }

    fn user(localpart: &str, server: &str) -> UserId {
        UserId::parse(&format!("@{localpart}:{server}")).unwrap()
    }

    #[test]
    fn a_user_has_so_many_leaves_and_a_replaced_one_counts_once() {
        let (book, alice) = (Book::default(), user("alice", "hs"));
        let reserve = |n| book.reserve(&key(n), &alice, true);
        for n in 0..PER_USER {
            reserve(n).unwrap();
        }
        assert!(matches!(reserve(PER_USER), Err(Error::TooMany)));
        book.give_back(&key(0), reserve(0).unwrap());
        assert!(matches!(reserve(PER_USER), Err(Error::TooMany)));
        book.strike(&key(0));
        book.strike(&key(0));
        book.give_back(&key(PER_USER), reserve(PER_USER).unwrap());
        reserve(0).unwrap();
    }

    #[test]
    fn nobody_replaces_the_leave_of_another() {
        let book = Book::default();
        book.reserve(&key(0), &user("alice", "hs"), true).unwrap();
        let other = book.reserve(&key(0), &user("alice", "hs:8448"), true);
        assert!(matches!(other, Err(Error::NotTheirs)));
    }

    #[test]
    fn all_users_have_so_many_leaves_and_those_of_a_stranger_fewer() {
        let book = Book::default();
        let reserve = |n: usize, server: &str, listed| {
            book.reserve(&key(n), &user(&format!("u{n}"), server), listed)
        };
        for n in 0..PER_STRANGER {
            reserve(n, "evil", false).unwrap();
        }
        assert!(matches!(reserve(TOTAL, "evil", false), Err(Error::Full)));
        for n in PER_STRANGER..TOTAL {
            reserve(n, "hs", true).unwrap();
        }
        assert!(matches!(reserve(TOTAL, "other", true), Err(Error::Full)));
        for n in 0..TOTAL {
            book.strike(&key(n));
        }
        let pages = book.lock();
        assert!(pages.of_user.is_empty() && pages.of_server.is_empty());
    }
}
