//! The vocabulary of LiveKit.

pub mod room_service;
pub mod sealed;
pub mod token;
pub mod webhook;
