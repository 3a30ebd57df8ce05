//! What has been done, for whoever watches.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Leaves that clients have handed to us.
    pub delegations: AtomicU64,
    /// Leaves that were taken over from the journal.
    pub adopted: AtomicU64,
    /// Delayed events restarted.
    pub restarts: AtomicU64,
    /// Leaves sent.
    pub sends: AtomicU64,
    /// Calls to homeservers that have to be made again.
    pub retries: AtomicU64,
    /// Leaves that ended without having been sent, although they should have been.
    pub given_up: AtomicU64,
    /// Webhooks with news.
    pub webhooks_new: AtomicU64,
    /// Webhooks that had been heard before.
    pub webhooks_repeated: AtomicU64,
    /// Webhooks of no interest.
    pub webhooks_ignored: AtomicU64,
    /// Webhooks that are not the SFU's.
    pub webhooks_refused: AtomicU64,
    /// Webhooks that the SFU has to repeat, as there were too many.
    pub webhooks_busy: AtomicU64,
}

/// One more.
pub(crate) fn one(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}
