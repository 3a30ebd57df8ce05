//! Handlers of all three servers: `GET /healthz`, and `POST /sign`, which costs what a token request costs without calls to
//! other servers.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use livekit_token_service::internal::{ApiKey, Claims, ParticipantIdentity, JoinPermissions, RoomName};
use serde::{Deserialize, Serialize};

/// Worker threads: as many as the service has.
pub const WORKERS: usize = 64;

const LIFETIME: Duration = Duration::from_secs(3600);
/// With a host name and a path.
const SERVER_URL: &str = "wss://livekit.example.org/livekit/sfu";

/// Body of `POST /sign`; `run` sends about 300 bytes.
#[derive(Deserialize)]
struct SignRequest {
    room_name: String,
    participant_identity: String,
    participant_name: String,
    can_publish: bool,
}

/// About 500 bytes.
#[derive(Serialize)]
struct SignResponse<'a> {
    server_url: &'a str,
    participant_token: &'a str,
    participant_name: &'a str,
}

/// Handlers without shared mutable state.
pub struct Handlers {
    key: ApiKey,
}

impl Default for Handlers {
    fn default() -> Self {
        let key = ApiKey::new(
            "bench",
            "a secret of more than 32 characters, for this bench",
        );
        Self { key }
    }
}

impl Handlers {
    /// Status and body of a response.
    pub fn respond(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        match (method, path) {
            ("GET", "/healthz") => (200, Vec::new()),
            ("POST", "/sign") => match self.sign(body) {
                Some(body) => (200, body),
                None => (400, Vec::new()),
            },
            _ => (404, Vec::new()),
        }
    }

    fn sign(&self, body: &[u8]) -> Option<Vec<u8>> {
        let request: SignRequest = serde_json::from_slice(body).ok()?;
        let (identity, room) = (request.participant_identity, request.room_name);
        let permissions = JoinPermissions {
            can_publish: request.can_publish,
            can_subscribe: true,
            can_update_own_metadata: false,
        };
        let claims = Claims::join(
            ParticipantIdentity::new(identity).ok()?,
            &RoomName::new(room).ok()?,
            permissions,
        );
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let token = claims.sign(&self.key, now.as_secs(), LIFETIME);
        let response = SignResponse {
            server_url: SERVER_URL,
            participant_token: token.expose(),
            participant_name: &request.participant_name,
        };
        serde_json::to_vec(&response).ok()
    }
}

/// Listens on a free port of loopback, and prints its address for `run`.
///
/// # Errors
/// No port is free.
pub fn listen() -> io::Result<TcpListener> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    println!("listening on {}", listener.local_addr()?);
    Ok(listener)
}
