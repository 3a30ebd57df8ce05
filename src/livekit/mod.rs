//! The vocabulary of LiveKit.

pub mod access_token;
pub mod room_service;
pub mod sealed_attribute;
pub mod webhook;
