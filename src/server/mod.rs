//! TODO module

pub mod event_loop;
pub mod head;
pub mod listener;
