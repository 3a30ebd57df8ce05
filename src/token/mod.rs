//! TODO module

pub(crate) mod api_key;
pub(crate) mod caller;
pub(crate) mod jwt;
pub(crate) mod keys;
pub(crate) mod policy;
pub(crate) mod source;
