//! The work that all three doors have behind them: `GET /healthz`, and `POST /sign`, which is what a token request costs once
//! nobody else has to be asked.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use livekit_token_service::internal::{ApiKey, Claims, ParticipantIdentity, JoinPermissions, RoomName};
use serde::{Deserialize, Serialize};
use tiny_http::{Header, Request, Response, ResponseBox};

/// Threads that answer requests where threads do: as many as the service has.
pub const WORKERS: usize = 64;

const LIFETIME: Duration = Duration::from_secs(3600);
/// As long as an address with a name and a path is.
const SERVER_URL: &str = "wss://livekit.example.org/livekit/sfu";

/// What a client asks for; `run` sends about 300 bytes.
#[derive(Deserialize)]
struct Wish {
    room_name: String,
    participant_identity: String,
    participant_name: String,
    can_publish: bool,
}

/// About 500 bytes.
#[derive(Serialize)]
struct Grant<'a> {
    server_url: &'a str,
    participant_token: &'a str,
    participant_name: &'a str,
}

/// An API key, and nothing that needs a lock.
pub struct Work {
    key: ApiKey,
}

impl Default for Work {
    fn default() -> Self {
        let key = ApiKey::new(
            "bench",
            "a secret of more than 32 characters, for this bench",
        );
        Self { key }
    }
}

impl Work {
    /// Answers a request: the status and the body. Nothing but `/healthz` and `/sign` is known.
    pub fn answer(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        match (method, path) {
            ("GET" | "OPTIONS", "/healthz" | "*") => (200, Vec::new()),
            ("POST", "/sign") => match self.sign(body) {
                Some(grant) => (200, grant),
                None => (400, Vec::new()),
            },
            _ => (404, Vec::new()),
        }
    }

    /// The same for both of tiny_http's servers.
    pub fn answer_tiny(&self, request: &mut Request) -> ResponseBox {
        let mut body = Vec::with_capacity(request.body_length().unwrap_or(0));
        let (status, reply) = match request.as_reader().read_to_end(&mut body) {
            Ok(_) => self.answer(request.method().as_str(), request.url(), &body),
            Err(_) => (400, Vec::new()),
        };
        let mut response = Response::from_data(reply).with_status_code(status);
        if let Ok(json) = Header::from_bytes("Content-Type", "application/json") {
            response.add_header(json);
        }
        response.boxed()
    }

    fn sign(&self, body: &[u8]) -> Option<Vec<u8>> {
        let wish: Wish = serde_json::from_slice(body).ok()?;
        let (identity, room) = (wish.participant_identity, wish.room_name);
        let may = JoinPermissions {
            can_publish: wish.can_publish,
            can_subscribe: true,
            can_update_own_metadata: false,
        };
        let claims = Claims::join(
            ParticipantIdentity::new(identity).ok()?,
            &RoomName::new(room).ok()?,
            may,
        );
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let token = claims.sign(&self.key, now.as_secs(), LIFETIME);
        let grant = Grant {
            server_url: SERVER_URL,
            participant_token: token.expose(),
            participant_name: &wish.participant_name,
        };
        serde_json::to_vec(&grant).ok()
    }
}

/// Listens on a free port of loopback and says which: `run` reads it.
///
/// # Errors
/// There is no free port.
pub fn listen() -> io::Result<TcpListener> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    println!("listening on {}", listener.local_addr()?);
    Ok(listener)
}
