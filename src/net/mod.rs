//! Access to other servers, whose names may be chosen by callers.

pub(crate) mod address;
pub(crate) mod base_url;
pub(crate) mod circuit_breaker;
pub(crate) mod dns;
#[cfg(test)]
pub(crate) mod fake_server;
pub(crate) mod http_client;
pub(crate) mod permits;
pub(crate) mod tls;
