//! The vocabulary of Matrix.

pub mod appservice;
mod cache;
pub mod client_api;
pub mod delayed_event;
pub mod discovery;
pub mod federation;
pub mod id;
pub mod openid;
pub mod registration;
mod well_known;
