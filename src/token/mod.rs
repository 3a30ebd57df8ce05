//! TODO module

pub mod api_key;
pub mod caller;
pub mod jwt;
pub mod keys;
pub mod policy;
pub mod source;
