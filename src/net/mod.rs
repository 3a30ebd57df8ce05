//! The network, as a service may use it whose callers choose the addresses.

pub mod address;
pub mod base_url;
pub mod circuit_breaker;
pub mod dns;
pub mod fair_queue;
#[cfg(test)]
pub(crate) mod fake_server;
pub mod http_client;
pub mod permits;
pub mod proxy;
pub mod tls;
