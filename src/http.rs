//! The one door.

pub mod listener;
pub mod reply;
pub mod request;
pub mod route;
