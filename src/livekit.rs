//! The vocabulary of LiveKit.

pub mod token;
