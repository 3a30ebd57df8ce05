//! One small binary that decides who may enter a LiveKit room, and signs the token that lets them in.
//!
//! The map, from the roof down. Rooms import downwards only.
//!
//! - [`cli`], [`config`], [`logger`], [`reload`]: what `main` needs to put the house together; nothing else imports them.
//! - [`http`]: the one door. `gate` owns every client's socket, `head` reads what they send, and only complete, unambiguous requests
//!   reach tiny_http behind it; `listener` turns them into ours, `route` knows the paths, `request` and `reply` the two directions.
//! - [`exchange`]: the main loop of it all: a Matrix user's OpenID token becomes a LiveKit token. [`token_source`]: so does the wish
//!   of any other application, by its API key or the JWTs of its own login.
//! - [`appservice`]: the same for users whom our own homeserver has authenticated, and who are in the Matrix room; [`guests`] sees to
//!   it that whoever leaves that room leaves the call as well.
//! - [`delegation`]: the thread that keeps the leaves which clients have handed to us, and carries out what they call for.
//!   [`readiness`]: whether clients had better come.
//! - Rules, without I/O: [`access`] says who may have rooms created, [`alias`] puts Matrix names into LiveKit's vocabulary,
//!   [`policy`] says what the caller of the token source may ask for, [`leave`] is one delegated leave.
//! - Wires. Matrix: [`matrix::openid`] asks a homeserver who its user is, through [`matrix::federation`] (who may be asked, and by
//!   how many at once), which finds it by [`matrix::discovery`]; [`matrix::delayed_event`] restarts and sends leaves at the address that
//!   [`matrix::client_api`] finds. LiveKit: [`livekit::room_service`], [`livekit::webhook`]. [`journal`]: where leaves survive us.
//!   [`matrix::appservice`] is the homeserver beside us. Logins of applications: [`caller::jwt`] and [`caller::jwks`].
//! - [`net`]: the network, as a service may use it whose callers choose the addresses. [`notify`]: what systemd hears from us.
//! - Words: [`matrix::id`], [`livekit::token`], [`livekit::sealed`], [`caller`]; [`matrix::registration`], [`json`], [`clock`], [`random`], [`memo`], [`flights`], [`current`], [`tally`] and [`metrics`].

pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod delegation;
pub mod exchange;
pub mod livekit;
pub mod matrix;
pub mod membership;
pub mod net;
pub mod server;
pub mod token;
pub mod util;

/// Doors for `contrib/fuzz` into the parsers of strangers' bytes that are private otherwise.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::livekit::room_service::fuzzing::{participant_sid, participants, room_names};
    pub use crate::livekit::webhook::fuzzing::event;
    pub use crate::matrix::appservice::fuzzing::{joined, relayed};
    pub use crate::matrix::client_api::fuzzing::{client_base, support};
    pub use crate::matrix::delayed_event::fuzzing::{restart_target, retry_after};
    pub use crate::matrix::discovery::fuzzing::{delegation, redirect};
    pub use crate::net::dns::fuzzing::srv_answer;
    pub use crate::net::http_client::fuzzing::connect_answer;

    use crate::matrix::id::{ServerName, UserId};

    /// The user in a userinfo that `server` gave, if it is one of its own.
    pub fn userinfo(server: &ServerName, body: &[u8]) -> Option<UserId> {
        let verdict = crate::matrix::openid::parse_userinfo(server, body).ok()?;
        Some(verdict.ok()?.id().clone())
    }
}

pub use app::serve::main as run;
