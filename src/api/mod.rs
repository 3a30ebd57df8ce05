//! TODO module

pub(crate) mod appservice;
pub(crate) mod cors;
pub(crate) mod matrix;
mod metrics;
pub(crate) mod path;
pub(crate) mod rate_limit;
pub(crate) mod readiness;
pub(crate) mod request_body;
pub(crate) mod response;
pub(crate) mod router;
pub(crate) mod service;
pub(crate) mod token;
pub(crate) mod token_body;
pub(crate) mod transaction;
pub(crate) mod webhook;
