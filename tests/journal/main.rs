//! The journals that need nothing but this host: none at all, and the file.
//!
//! `redis.rs` tries the same sentences on a real Redis.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod conformance;
mod file;

mod memory {
    use livekit_token_service::internal::{LeaveStore, MemoryStore};

    use crate::conformance::{Stand, conforms};

    impl Stand for MemoryStore {
        fn start() -> Self {
            Self::default()
        }

        fn journal(&self) -> &dyn LeaveStore {
            self
        }
    }

    conforms!(MemoryStore);
}
