//! The HTTP endpoints.
//!
//! `service` connects them to the HTTP server and `router` finds the endpoint of a request. Each endpoint works in the same order:
//! authenticate, limit, parse, act. It returns a response or a `refusal`, the one place where errors are mapped to status, body, log
//! level and metric.

// requests and responses
pub(crate) mod cors;
pub(crate) mod rate_limit;
mod refusal;
mod request;
mod response;
pub(crate) mod router;
pub(crate) mod service;

// request bodies
pub(crate) mod request_body;
pub(crate) mod token_body;
pub(crate) mod transaction;

// endpoints
pub(crate) mod appservice;
pub(crate) mod matrix;
mod metrics;
pub(crate) mod readiness;
pub(crate) mod token;
pub(crate) mod webhook;
