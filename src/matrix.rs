//! The vocabulary of Matrix.

pub mod client_api;
pub mod delayed_event;
pub mod discovery;
pub mod federation;
pub mod id;
pub mod openid;
