//! TODO module

pub mod appservice;
pub mod cors;
pub mod matrix;
pub mod path;
pub mod rate_limit;
pub mod readiness;
pub mod request_body;
pub mod response;
pub mod router;
pub mod token;
pub mod token_body;
pub mod transaction;
pub mod webhook;
