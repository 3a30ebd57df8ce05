//! The one door.

pub mod appservice;
pub mod ask;
pub mod cors;
pub mod gate;
pub mod head;
pub mod limit;
pub mod listener;
pub mod matrix;
pub mod reply;
pub mod request;
pub mod route;
pub mod sfu;
pub mod token;
