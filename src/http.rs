//! The one door.

pub mod gate;
pub mod head;
pub mod listener;
pub mod reply;
pub mod request;
pub mod route;
pub mod tally;
