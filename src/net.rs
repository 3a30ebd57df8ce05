//! The network, as a service may use it whose callers choose the addresses.

pub mod address;
pub mod bulkhead;
pub mod dns;
pub mod fetch;
pub mod tls;
