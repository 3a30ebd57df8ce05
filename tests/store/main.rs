//! Leave stores that need only this host: memory and file. `redis.rs` runs the same tests on a real Redis.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod conformance;
mod file;

mod memory {
    use livekit_token_service::internal::{LeaveStore, MemoryStore};

    use crate::conformance::{TestStore, conformance_tests};

    impl TestStore for MemoryStore {
        fn start() -> Self {
            Self::default()
        }

        fn store(&self) -> &dyn LeaveStore {
            self
        }
    }

    conformance_tests!(MemoryStore);
}
