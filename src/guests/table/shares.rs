//! How many places each of them may take, and whose is given to another when all are taken.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::journal::Key;
use crate::matrix::id::{ServerName, UserId};

/// Most guests in all, at some 2 KiB with what finds them.
pub(super) const TOTAL: usize = 20_000;
/// Most of other homeservers in all, so that these cannot take the places of our own users.
pub(super) const OF_STRANGERS: usize = TOTAL / 2;
/// Most of one other homeserver, which may make up as many users as it likes.
pub(super) const PER_STRANGER: usize = 2_000;
/// Most of one user: one has few devices, but each time that one comes one may be another member.
pub(super) const PER_USER: usize = 64;

/// All places of a share are taken by those who are in calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooMany {
    whose: Whose,
    /// When it will be known of any of them that they have left, if they leave now.
    pub after: Duration,
}

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = self.whose.most();
        match &self.whose {
            Whose::User(user) => write!(f, "{user} is in calls {most} times"),
            Whose::Server(server) => write!(f, "{most} users of {server} are in calls"),
            Whose::Strangers => write!(f, "{most} users of other homeservers are in calls"),
            Whose::Everybody => write!(f, "{most} users are in calls"),
        }
    }
}

impl std::error::Error for TooMany {}

/// Those who share places, from few to many: whoever is in one share is in all that come after it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Whose {
    User(UserId),
    Server(ServerName),
    Strangers,
    Everybody,
}

impl Whose {
    fn most(&self) -> usize {
        match self {
            Self::User(_) => PER_USER,
            Self::Server(_) => PER_STRANGER,
            Self::Strangers => OF_STRANGERS,
            Self::Everybody => TOTAL,
        }
    }

    /// Whether it binds those too whom the SFU shows in a call: as many as it lets in have to be looked at.
    fn binds_the_present(&self) -> bool {
        matches!(self, Self::Strangers | Self::Everybody)
    }
}

/// Somebody who is in no call, as far as one knows. Who goes first comes first: it is better to know those whom the SFU has shown,
/// and best to know those who were put out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Idle {
    pub(super) out: bool,
    pub(super) seen: bool,
    pub(super) admitted: Instant,
    pub(super) key: Arc<Key>,
}

#[derive(Debug, Default)]
struct Share {
    count: usize,
    idle: BTreeSet<Idle>,
}

/// All shares.
#[derive(Debug, Default)]
pub(super) struct Shares(HashMap<Whose, Share>);

impl Shares {
    /// Whether one more of `user` finds a place: at once, or in that of another, who is to go. `present` are those whom the SFU shows
    /// in a call.
    pub(super) fn place(
        &self,
        user: &UserId,
        local: bool,
        present: bool,
        after: Duration,
    ) -> Result<Option<Arc<Key>>, TooMany> {
        for whose in shares_of(user, local) {
            if present && !whose.binds_the_present() {
                continue;
            }
            let full = |share: &&Share| share.count >= whose.most();
            if let Some(share) = self.0.get(&whose).filter(full) {
                // of all that are full this is the least, and whoever leaves it leaves the others
                return match share.idle.first() {
                    Some(idle) => Ok(Some(idle.key.clone())),
                    None => Err(TooMany { whose, after }),
                };
            }
        }
        Ok(None)
    }

    /// Somebody takes a place.
    pub(super) fn enter(&mut self, user: &UserId, local: bool, idle: Option<&Idle>) {
        for whose in shares_of(user, local) {
            let share = self.0.entry(whose).or_default();
            share.count += 1;
            share.idle.extend(idle.cloned());
        }
    }

    /// Somebody comes, goes, or is put out.
    pub(super) fn change(
        &mut self,
        user: &UserId,
        local: bool,
        before: Option<&Idle>,
        after: Option<&Idle>,
    ) {
        for whose in shares_of(user, local) {
            if let Some(share) = self.0.get_mut(&whose) {
                if let Some(before) = before {
                    share.idle.remove(before);
                }
                share.idle.extend(after.cloned());
            }
        }
    }

    /// Somebody gives their place back.
    pub(super) fn leave(&mut self, user: &UserId, local: bool, idle: Option<&Idle>) {
        self.change(user, local, idle, None);
        for whose in shares_of(user, local) {
            if let Some(share) = self.0.get_mut(&whose) {
                share.count -= 1;
                if share.count == 0 {
                    self.0.remove(&whose);
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn shares_of(user: &UserId, local: bool) -> impl Iterator<Item = Whose> {
    let server = (!local).then(|| Whose::Server(user.server().clone()));
    let strangers = (!local).then_some(Whose::Strangers);
    [Some(Whose::User(user.clone())), server, strangers]
        .into_iter()
        .flatten()
        .chain([Whose::Everybody])
}
