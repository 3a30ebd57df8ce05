//! How many places each of them may take, and whose is given to another when all are taken.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::livekit::id::ParticipantKey;
use crate::matrix::id::{ServerName, UserId};

/// Most guests in all, at some 2 KiB with what finds them.
pub(super) const MAX_PARTICIPANTS: usize = 20_000;
/// Most of other homeservers in all, so that these cannot take the places of our own users.
pub(super) const MAX_REMOTE: usize = MAX_PARTICIPANTS / 2;
/// Most of one other homeserver, which may make up as many users as it likes.
pub(super) const MAX_PER_REMOTE_SERVER: usize = 2_000;
/// Most of one user: one has few devices, but each time that one comes one may be another member.
pub(super) const MAX_PER_USER: usize = 64;

/// All places of a share are taken by those who are in calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParticipantQuotaExceeded {
    scope: QuotaScope,
    /// When it will be known of any of them that they have left, if they leave now.
    pub retry_after: Duration,
}

impl fmt::Display for ParticipantQuotaExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = self.scope.limit();
        match &self.scope {
            QuotaScope::User(user) => write!(f, "{user} is in calls {most} times"),
            QuotaScope::RemoteServer(server) => write!(f, "{most} users of {server} are in calls"),
            QuotaScope::AllRemote => write!(f, "{most} users of other homeservers are in calls"),
            QuotaScope::Total => write!(f, "{most} users are in calls"),
        }
    }
}

impl std::error::Error for ParticipantQuotaExceeded {}

/// Those who share places, from few to many: whoever is in one share is in all that come after it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum QuotaScope {
    User(UserId),
    RemoteServer(ServerName),
    AllRemote,
    Total,
}

impl QuotaScope {
    fn limit(&self) -> usize {
        match self {
            Self::User(_) => MAX_PER_USER,
            Self::RemoteServer(_) => MAX_PER_REMOTE_SERVER,
            Self::AllRemote => MAX_REMOTE,
            Self::Total => MAX_PARTICIPANTS,
        }
    }

    /// Whether it binds those too whom the SFU shows in a call: as many as it lets in have to be looked at.
    fn applies_to_present(&self) -> bool {
        matches!(self, Self::AllRemote | Self::Total)
    }
}

/// Somebody who is in no call, as far as one knows. Who goes first comes first: it is better to know those whom the SFU has shown,
/// and best to know those who were put out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EvictionCandidate {
    pub(super) removed: bool,
    pub(super) ever_connected: bool,
    pub(super) recorded_at: Instant,
    pub(super) key: Arc<ParticipantKey>,
}

#[derive(Debug, Default)]
struct QuotaUsage {
    count: usize,
    evictable: BTreeSet<EvictionCandidate>,
}

/// All shares.
#[derive(Debug, Default)]
pub(super) struct ParticipantQuota(HashMap<QuotaScope, QuotaUsage>);

impl ParticipantQuota {
    /// Whether one more of `user` finds a place: at once, or in that of another, who is to go. `present` are those whom the SFU shows
    /// in a call.
    pub(super) fn check_capacity(
        &self,
        user: &UserId,
        local: bool,
        present: bool,
        after: Duration,
    ) -> Result<Option<Arc<ParticipantKey>>, ParticipantQuotaExceeded> {
        for whose in quota_scopes(user, local) {
            if present && !whose.applies_to_present() {
                continue;
            }
            let full = |share: &&QuotaUsage| share.count >= whose.limit();
            if let Some(share) = self.0.get(&whose).filter(full) {
                // of all that are full this is the least, and whoever leaves it leaves the others
                return match share.evictable.first() {
                    Some(idle) => Ok(Some(idle.key.clone())),
                    None => Err(ParticipantQuotaExceeded {
                        scope: whose,
                        retry_after: after,
                    }),
                };
            }
        }
        Ok(None)
    }

    /// Somebody takes a place.
    pub(super) fn add(&mut self, user: &UserId, local: bool, idle: Option<&EvictionCandidate>) {
        for whose in quota_scopes(user, local) {
            let share = self.0.entry(whose).or_default();
            share.count += 1;
            share.evictable.extend(idle.cloned());
        }
    }

    /// Somebody comes, goes, or is put out.
    pub(super) fn update(
        &mut self,
        user: &UserId,
        local: bool,
        before: Option<&EvictionCandidate>,
        after: Option<&EvictionCandidate>,
    ) {
        for whose in quota_scopes(user, local) {
            if let Some(share) = self.0.get_mut(&whose) {
                if let Some(before) = before {
                    share.evictable.remove(before);
                }
                share.evictable.extend(after.cloned());
            }
        }
    }

    /// Somebody gives their place back.
    pub(super) fn remove(&mut self, user: &UserId, local: bool, idle: Option<&EvictionCandidate>) {
        self.update(user, local, idle, None);
        for whose in quota_scopes(user, local) {
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

fn quota_scopes(user: &UserId, local: bool) -> impl Iterator<Item = QuotaScope> {
    let server = (!local).then(|| QuotaScope::RemoteServer(user.server().clone()));
    let strangers = (!local).then_some(QuotaScope::AllRemote);
    [Some(QuotaScope::User(user.clone())), server, strangers]
        .into_iter()
        .flatten()
        .chain([QuotaScope::Total])
}
