//! Quotas of tracked participants: in all, for other homeservers, and for a user; and which entry a new one evicts.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::livekit::id::ParticipantKey;
use crate::matrix::id::{ServerName, UserId};

/// Most participants in all, each with about 2 KiB including the indexes.
pub(super) const MAX_PARTICIPANTS: usize = 20_000;
/// Most participants of other homeservers in all, so that local users keep a share.
pub(super) const MAX_REMOTE: usize = MAX_PARTICIPANTS / 2;
/// Most participants of one other homeserver, which can invent any number of users.
pub(super) const MAX_PER_REMOTE_SERVER: usize = 2_000;
/// Most participants of one user. A user has few devices, but a client may use a new identity each time it joins.
pub(super) const MAX_PER_USER: usize = 64;

/// A quota is used up by connected participants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParticipantQuotaExceeded {
    pub(super) scope: QuotaScope,
    /// When to try again: by then every participant was checked, and one who has left is evicted.
    pub retry_after: Duration,
}

impl fmt::Display for ParticipantQuotaExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = self.scope.limit();
        match &self.scope {
            QuotaScope::User(user) => write!(f, "{limit} participants of {user} are connected"),
            QuotaScope::RemoteServer(server) => {
                write!(f, "{limit} participants of {server} are connected")
            }
            QuotaScope::AllRemote => {
                write!(f, "{limit} participants of other homeservers are connected")
            }
            QuotaScope::Total => write!(f, "{limit} participants are connected"),
        }
    }
}

impl std::error::Error for ParticipantQuotaExceeded {}

/// Participants that share a quota.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum QuotaScope {
    User(UserId),
    RemoteServer(ServerName),
    AllRemote,
    Total,
}

impl QuotaScope {
    /// The scopes of a user's participants. Each scope includes those before it.
    pub(super) fn all_of(user: &UserId, local: bool) -> Vec<Self> {
        let user_scope = Self::User(user.clone());
        if local {
            return vec![user_scope, Self::Total];
        }
        let server_scope = Self::RemoteServer(user.server().clone());
        vec![user_scope, server_scope, Self::AllRemote, Self::Total]
    }

    fn limit(&self) -> usize {
        match self {
            Self::User(_) => MAX_PER_USER,
            Self::RemoteServer(_) => MAX_PER_REMOTE_SERVER,
            Self::AllRemote => MAX_REMOTE,
            Self::Total => MAX_PARTICIPANTS,
        }
    }

    /// Whether the limit applies to connected participants: those of a user or a server have to be checked however many the SFU has
    /// let in.
    fn applies_to_connected(&self) -> bool {
        matches!(self, Self::AllRemote | Self::Total)
    }
}

/// A participant who is not known to be connected. The derived order is the order of eviction: participants who were never connected
/// first, those who were removed last.
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

#[derive(Debug, Default)]
pub(super) struct ParticipantQuota(HashMap<QuotaScope, QuotaUsage>);

impl ParticipantQuota {
    /// The entry to evict for a new one with these scopes, if any scope is full.
    ///
    /// # Errors
    /// The full scope, if all of its participants are connected.
    pub(super) fn make_room(
        &self,
        scopes: &[QuotaScope],
        connected: bool,
    ) -> Result<Option<Arc<ParticipantKey>>, QuotaScope> {
        // an eviction from the smallest full scope makes room in the others, which include it
        let full = scopes
            .iter()
            .filter(|scope| !connected || scope.applies_to_connected())
            .filter_map(|scope| Some((scope, self.0.get(scope)?)))
            .find(|(scope, usage)| usage.count >= scope.limit());
        let Some((scope, usage)) = full else {
            return Ok(None);
        };
        let evicted = usage.evictable.first().ok_or_else(|| scope.clone())?;
        Ok(Some(Arc::clone(&evicted.key)))
    }

    pub(super) fn add(&mut self, scopes: &[QuotaScope], candidate: Option<EvictionCandidate>) {
        for scope in scopes {
            let usage = self.0.entry(scope.clone()).or_default();
            usage.count += 1;
            usage.evictable.extend(candidate.clone());
        }
    }

    pub(super) fn update(
        &mut self,
        scopes: &[QuotaScope],
        before: Option<&EvictionCandidate>,
        after: Option<EvictionCandidate>,
    ) {
        for scope in scopes {
            if let Some(usage) = self.0.get_mut(scope) {
                if let Some(before) = before {
                    usage.evictable.remove(before);
                }
                usage.evictable.extend(after.clone());
            }
        }
    }

    pub(super) fn remove(&mut self, scopes: &[QuotaScope], candidate: Option<&EvictionCandidate>) {
        self.update(scopes, candidate, None);
        for scope in scopes {
            if let Some(usage) = self.0.get_mut(scope) {
                usage.count -= 1;
                if usage.count == 0 {
                    self.0.remove(scope);
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
