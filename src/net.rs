//! The network, as a service may use it whose callers choose the addresses.

pub mod address;
pub mod base_url;
pub mod breaker;
pub mod bulkhead;
pub mod dns;
#[cfg(test)]
pub(crate) mod fake;
pub mod fetch;
pub mod lines;
pub mod proxy;
pub mod rate;
pub mod tls;
