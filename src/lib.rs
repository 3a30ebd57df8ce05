//! A service that authorises callers and signs LiveKit access tokens.
//!
//! For Matrix it verifies a user's OpenID token with the user's homeserver, or trusts its own homeserver in application-service
//! mode, derives the LiveKit room name and identity (MSC4195), creates the room and answers with a signed token. For other
//! applications `POST /token` authenticates the caller and signs what the caller's policy allows. Delegated leave events (MSC4140)
//! are kept alive while their participant is connected, and sent when the participant has disconnected.
//!
//! Imports go down this list only:
//!
//! - `app`: builds the service from its settings; start, reload, shutdown.
//! - `cli`: arguments, help, `check-config`, `doctor`, `healthcheck`, `keygen`, `generate-registration`.
//! - `config`: settings from the environment and from files.
//! - `api`: HTTP endpoints: router, request bodies, responses, CORS, rate limits.
//! - `server`: HTTP/1.1 server: listeners, event loop, parser, limits, worker pool.
//! - `exchange`: from a Matrix OpenID token, or a request of our homeserver, to a LiveKit access token.
//! - `membership`: participants of application-service mode: membership checks and removal.
//! - `delegation`: delegated leaves: state machine, scheduler, store.
//! - `token`: general token endpoint: API keys, JWTs, JWKS, policy.
//! - `matrix`: clients and types of Matrix.
//! - `livekit`: access tokens, RoomService, webhooks.
//! - `net`: HTTP client, DNS, address policy, TLS, proxy, permits. `util`: caches, rate limits, clock, JSON, log, metrics.

mod api;
mod app;
mod cli;
mod config;
mod delegation;
mod exchange;
mod livekit;
mod matrix;
mod membership;
mod net;
mod server;
mod token;
mod util;

/// What `tests`, `tests/bench` and `contrib/fuzz` use of this crate; not a stable interface.
pub mod internal {
    pub use crate::api::request_body::{
        parse_delegate_delayed_leave, parse_get_token, parse_sfu_get,
    };
    pub use crate::api::token_body::parse_token_body;
    pub use crate::api::transaction::parse_departures;
    pub use crate::config::{Config, Environment, Mode};
    pub use crate::delegation::leave::{Leave, LeaveAction, LeaveEvent, UnixMillis};
    pub use crate::delegation::store::{
        FencingToken, FileStore, LeaveStore, MAX_RECORD_BYTES, MemoryStore, Ownership,
        RedisAddress, RedisStore,
    };
    pub use crate::exchange::standalone::RequestedParticipant;
    pub use crate::livekit::access_token::{
        ApiKey, ApiKeys, Claims, JoinPermissions, SharedApiKeys, verify,
    };
    pub use crate::livekit::id::{ParticipantIdentity, ParticipantKey, RoomName};
    pub use crate::livekit::webhook::{
        ConnectionChange, WebhookDelivery, WebhookEvent, WebhookReceiver,
    };
    pub use crate::matrix::client_api::{DelayedEventPath, DelayedEventSupport};
    pub use crate::matrix::id::{DelayId, ServerName, UserId};
    pub use crate::matrix::registration::AppServiceRegistration;
    pub use crate::net::tls::RootCertificates;
    pub use crate::server::{
        BodyFraming, ChunkDecoder, ClientAddress, HttpRequest, HttpResponse, Listener,
        MAX_BODY_BYTES, MAX_HEAD_BYTES, RequestClass, RequestHead, RequestOrigin, RequestRefusal,
        Server, ServerLimits, ServerStats, Service, find_head_end, set_content_length,
    };
    pub use crate::token::CallerName;
    pub use crate::token::jwt::{JwtIssuer, KeySource, needs_key_fetch, verify_jwt};
    pub use crate::token::keys::{JwsAlgorithm, KeySet};
    pub use crate::token::policy::{CallerPolicy, MAX_LIFETIME, MIN_LIFETIME, ParticipantRequest};
    pub use crate::token::policy_file::parse as read_policy_file;
    pub use crate::util::systemd::SystemdNotifier;
}

/// Entries for `contrib/fuzz` into parsers that are private otherwise.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::api::request_body::fuzzing::{ProxiedMember, proxied_members};
    pub use crate::livekit::room_service::fuzzing::{participant_sid, participants, room_names};
    pub use crate::livekit::webhook::fuzzing::webhook_event;
    pub use crate::matrix::appservice::fuzzing::{is_joined_response, relayed_token};
    pub use crate::matrix::client_api::fuzzing::{client_base, support};
    pub use crate::matrix::delayed_event::fuzzing::{restart_target, retry_after};
    pub use crate::matrix::discovery::fuzzing::{delegation, redirect};
    pub use crate::net::dns::fuzzing::srv_answer;
    pub use crate::net::http_client::proxy::fuzzing::connect_answer;

    use crate::matrix::id::{ServerName, UserId};

    /// The user in a userinfo that `server` gave, if it is one of its own.
    pub fn userinfo(server: &ServerName, body: &[u8]) -> Option<UserId> {
        let verdict = crate::matrix::openid::parse_userinfo(server, body).ok()?;
        Some(verdict.ok()?.id().clone())
    }
}

pub use app::run;
