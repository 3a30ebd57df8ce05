//! The HTTP server at work and under attack, over raw sockets: behind it is either the real service, in a process of its own,
//! or [`echo::EchoServer`], whose responses say what arrived and wait as long as a test needs.
//!
//! Floods, and what needs nginx, are in `load`.

#![allow(
    clippy::print_stderr,
    reason = "tests say what they have measured; cargo shows it for failed tests"
)]

mod attack;
mod attacks;
mod behaviour;
mod client;
mod echo;
mod fairness;
mod malformed;
mod malformed_requests;
mod process;
mod shutdown;
