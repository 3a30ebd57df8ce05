//! One small binary that decides who may enter a LiveKit room, and signs the token that lets them in.
//!
//! The map, from the roof down. Rooms import downwards only.
//!
//! - [`cli`], [`config`], [`logger`]: what `main` needs to put the house together; nothing else imports them.
//! - [`http`]: the one door. `gate` owns every client's socket, `head` reads what they send, and only complete, unambiguous requests
//!   reach tiny_http behind it; `listener` turns them into ours, `route` knows the paths, `request` and `reply` the two directions.
//! - [`exchange`]: the main loop of it all: a Matrix user's OpenID token becomes a LiveKit token.
//! - [`delegation`]: the thread that keeps the leaves which clients have handed to us, and carries out what they call for.
//! - Rules, without I/O: [`access`] says who may have rooms created, [`alias`] puts Matrix names into LiveKit's vocabulary, [`leave`] is
//!   one delegated leave.
//! - Wires. Matrix: [`matrix::openid`] asks a homeserver who its user is, through [`matrix::federation`] (who may be asked, and by
//!   how many at once), which finds it by [`matrix::discovery`]; [`matrix::delayed_event`] restarts and sends leaves at the address that
//!   [`matrix::client_api`] finds. LiveKit: [`livekit::room_service`], [`livekit::webhook`]. [`journal`]: where leaves survive us.
//! - [`net`]: the network, as a service may use it whose callers choose the addresses.
//! - Words: [`matrix::id`], [`livekit::token`]; [`json`], [`random`] and [`memo`].

pub mod access;
pub mod alias;
pub mod cli;
pub mod config;
pub mod delegation;
pub mod exchange;
pub mod http;
pub mod journal;
pub mod json;
pub mod leave;
pub mod livekit;
pub mod logger;
pub mod matrix;
pub mod memo;
pub mod net;
pub mod random;

/// Doors for `contrib/fuzz` into the parsers of strangers' bytes that are private otherwise.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::livekit::room_service::fuzzing::{participant_sid, room_names};
    pub use crate::livekit::webhook::fuzzing::event;
    pub use crate::matrix::client_api::fuzzing::{client_base, support};
    pub use crate::matrix::delayed_event::fuzzing::{restart_target, retry_after};
    pub use crate::matrix::discovery::fuzzing::{delegation, redirect};
    pub use crate::net::dns::fuzzing::srv_answer;

    use crate::matrix::id::{ServerName, UserId};

    /// The user in a userinfo that `server` gave, if it is one of its own.
    pub fn userinfo(server: &ServerName, body: &[u8]) -> Option<UserId> {
        let verdict = crate::matrix::openid::read(server, body).ok()?;
        Some(verdict.ok()?.id().clone())
    }
}
