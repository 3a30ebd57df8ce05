//! How many leaves there are, and whose.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Error;
use crate::leave::Key;
use crate::matrix::id::UserId;

/// Leaves of one user: some devices, some rooms, and what is left for up to an hour of those who reload a page again and again.
pub(super) const PER_USER: usize = 100;
/// Leaves in all, of some 1 KiB each.
pub(super) const TOTAL: usize = 50_000;

/// Whether a place was taken, or the key had one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken(bool);

#[derive(Debug, Default)]
struct Pages {
    users: HashMap<Key, UserId>,
    of_user: HashMap<UserId, usize>,
}

impl Pages {
    fn enter(&mut self, key: &Key, user: &UserId) -> bool {
        if self.users.contains_key(key) {
            return false;
        }
        self.users.insert(key.clone(), user.clone());
        *self.of_user.entry(user.clone()).or_default() += 1;
        true
    }

    fn strike(&mut self, key: &Key) {
        let Some(user) = self.users.remove(key) else {
            return;
        };
        if let Some(count) = self.of_user.get_mut(&user) {
            *count -= 1;
            if *count == 0 {
                self.of_user.remove(&user);
            }
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

    /// A place for one more leave of a user; one that replaces another needs none.
    pub(super) fn reserve(&self, key: &Key, user: &UserId) -> Result<Taken, Error> {
        let mut pages = self.lock();
        if !pages.users.contains_key(key) {
            if pages.users.len() >= TOTAL {
                return Err(Error::Full);
            }
            if pages.of_user.get(user).is_some_and(|n| *n >= PER_USER) {
                return Err(Error::TooMany);
            }
        }
        Ok(Taken(pages.enter(key, user)))
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

    #[test]
    fn a_user_has_so_many_leaves_and_a_replaced_one_counts_once() {
        let book = Book::default();
        let alice = UserId::parse("@alice:hs").unwrap();
        for n in 0..PER_USER {
            book.reserve(&key(n), &alice).unwrap();
        }
        assert!(matches!(
            book.reserve(&key(PER_USER), &alice),
            Err(Error::TooMany)
        ));
        let again = book.reserve(&key(0), &alice).unwrap();
        book.give_back(&key(0), again);
        assert!(matches!(
            book.reserve(&key(PER_USER), &alice),
            Err(Error::TooMany)
        ));
        book.strike(&key(0));
        book.strike(&key(0));
        let taken = book.reserve(&key(PER_USER), &alice).unwrap();
        book.give_back(&key(PER_USER), taken);
        book.reserve(&key(0), &alice).unwrap();
    }

    #[test]
    fn all_users_have_so_many_leaves() {
        let book = Book::default();
        for n in 0..TOTAL {
            let user = UserId::parse(&format!("@u{n}:hs")).unwrap();
            book.reserve(&key(n), &user).unwrap();
        }
        let late = UserId::parse("@late:hs").unwrap();
        assert!(matches!(book.reserve(&key(TOTAL), &late), Err(Error::Full)));
        for n in 0..TOTAL {
            book.strike(&key(n));
        }
        assert!(book.lock().of_user.is_empty());
    }
}
