//! The HTTP server under load: thousands of connections, and behind nginx. Not part of plain `cargo test`:
//!
//!     cargo test --test server_load -- --test-threads=1
//!
//! Needs nginx (Debian: nginx-light) for `nginx`. The number of connections follows the descriptor limit.

#![allow(
    clippy::print_stderr,
    reason = "tests say what they have measured; cargo shows it for failed tests"
)]

#[path = "../attack.rs"]
mod attack;
#[path = "../client.rs"]
mod client;
#[path = "../echo.rs"]
#[allow(dead_code, reason = "of use to `server`")]
mod echo;
mod floods;
#[path = "../malformed_requests.rs"]
#[allow(dead_code, reason = "of use to `server`")]
mod malformed_requests;
mod nginx;
#[path = "../process.rs"]
#[allow(dead_code, reason = "of use to `server`")]
mod process;
