//! Decides who may enter a LiveKit room, and signs the token that lets them in.

pub mod access;
pub mod alias;
pub mod exchange;
pub mod livekit;
pub mod matrix;
pub mod net;
pub mod random;
