//! Decides who may enter a LiveKit room, and signs the token that lets them in.

pub mod access;
pub mod alias;
pub mod cli;
pub mod config;
pub mod exchange;
pub mod livekit;
pub mod logger;
pub mod matrix;
pub mod net;
pub mod random;
