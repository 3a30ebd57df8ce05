//! TODO module

pub mod event_loop;
pub(crate) mod head;
pub(crate) mod listener;
