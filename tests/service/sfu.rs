//! Fake SFU: LiveKit's RoomService, Twirp with protobuf bodies over HTTP.
//!
//! A fake, because tests examine each call (bytes, grants, order) and need an SFU that refuses, hangs or sends invalid data. It has its
//! own parsers for protobuf and JWTs. Its threads end with the test process.

mod call;
mod list;

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::Value;

pub(crate) use self::call::{Call, CreateRoom};
use crate::jwt;
use crate::listen::listen;
use crate::request::Request;
use crate::settings::SECRET;

/// Deadline for an expected call. Only a hang misses it, even on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How the SFU responds to calls.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SfuBehaviour {
    /// As LiveKit: 200 with the room if signature, grant and content type are right.
    Serves,
    /// As [`SfuBehaviour::Serves`], after [`FakeSfu::release`].
    Waits,
    /// As [`SfuBehaviour::Serves`], then closes the connection without a `Connection: close`.
    ClosesConnections,
    /// This status and body for every call.
    Responds(&'static str, &'static str),
    /// 200 with these header fields, each with its line break, and this body for every call.
    Succeeds(&'static str, &'static [u8]),
    /// No response while the connection is open.
    Hangs,
    /// Bytes that are not HTTP.
    Garbage,
}

/// A running fake SFU.
pub(crate) struct FakeSfu {
    address: SocketAddr,
    state: Arc<State>,
}

impl FakeSfu {
    pub(crate) fn start(behaviour: SfuBehaviour) -> Self {
        Self::with_secret(behaviour, SECRET)
    }

    /// An SFU with another API secret than the suite's.
    pub(crate) fn with_secret(behaviour: SfuBehaviour, secret: &'static str) -> Self {
        let state = Arc::new(State {
            behaviour,
            secret,
            released: Mutex::new(false),
            calls: Mutex::default(),
            presence_checks: Mutex::default(),
            removals: Mutex::default(),
            lists: Mutex::default(),
            connected: Mutex::default(),
            attributes: Mutex::default(),
            refuses_lists: AtomicBool::new(false),
            changed: Condvar::new(),
            connections: AtomicUsize::new(0),
            frozen: AtomicUsize::new(0),
        });
        let address = listen(&state, State::serve);
        Self { address, state }
    }

    /// `ws://127.0.0.1:PORT`, as administrators write it.
    pub(crate) fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The calls so far, without presence checks, removals and lists.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state.calls.lock().unwrap().clone()
    }

    /// The calls of `GetParticipant` so far.
    pub(crate) fn presence_checks(&self) -> Vec<Call> {
        self.state.presence_checks.lock().unwrap().clone()
    }

    /// Sets the connection of `identity` in `room`; `None`: not connected.
    pub(crate) fn set_connection(&self, room: &str, identity: &str, sid: Option<&str>) {
        let participant = (room.to_owned(), identity.to_owned());
        let mut connected = self.state.connected.lock().unwrap();
        match sid {
            Some(sid) => connected.insert(participant, sid.to_owned()),
            None => connected.remove(&participant),
        };
    }

    /// Waits for `more` presence checks after the first `from`.
    pub(crate) fn wait_for_presence_checks(&self, from: usize, more: usize) {
        self.state
            .wait_for_calls(&self.state.presence_checks, from + more);
    }

    /// Waits for `count` removals. Returns room and identity of each.
    pub(crate) fn wait_for_removals(&self, count: usize) -> Vec<[String; 2]> {
        let removals = self.state.wait_for_calls(&self.state.removals, count);
        removals.iter().map(Call::room_and_identity).collect()
    }

    /// Waits for the first call.
    pub(crate) fn wait_for_call(&self) {
        self.state.wait_for_calls(&self.state.calls, 1);
    }

    /// The number of connections that were opened.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Stops responding on the open connections; new ones are served.
    pub(crate) fn freeze(&self) {
        let frozen = self.connections();
        self.state.frozen.store(frozen, Ordering::SeqCst);
    }

    /// Responds to the calls that [`SfuBehaviour::Waits`] holds back.
    pub(crate) fn release(&self) {
        *self.state.released.lock().unwrap() = true;
        self.state.changed.notify_all();
    }
}

struct State {
    behaviour: SfuBehaviour,
    secret: &'static str,
    released: Mutex<bool>,
    calls: Mutex<Vec<Call>>,
    presence_checks: Mutex<Vec<Call>>,
    removals: Mutex<Vec<Call>>,
    lists: Mutex<Vec<Call>>,
    /// Room and identity of connected participants, and their connection.
    connected: Mutex<HashMap<(String, String), String>>,
    /// Room and identity of participants, and the attributes of their tokens.
    attributes: Mutex<HashMap<(String, String), Value>>,
    /// Whether lists are refused with 503.
    refuses_lists: AtomicBool,
    changed: Condvar,
    connections: AtomicUsize,
    /// The number of the first connection that is not frozen.
    frozen: AtomicUsize,
}

impl State {
    /// Waits for `count` calls in the list.
    fn wait_for_calls(&self, calls: &Mutex<Vec<Call>>, count: usize) -> Vec<Call> {
        let is_short = |calls: &mut Vec<Call>| calls.len() < count;
        let calls = calls.lock().unwrap();
        let waited = self.changed.wait_timeout_while(calls, TIMEOUT, is_short);
        let calls = waited.unwrap().0.clone();
        assert!(
            calls.len() >= count,
            "expected {count} calls, found {calls:?}"
        );
        calls
    }

    fn serve(&self, stream: TcpStream) {
        let number = self.connections.fetch_add(1, Ordering::SeqCst);
        let _ = stream.set_nodelay(true);
        let mut stream = BufReader::new(stream);
        while let Some(request) = Request::read(&mut stream) {
            let call = Call {
                claims: claims(&request, self.secret),
                request,
            };
            let (status, body) = self.record(call);
            if number < self.frozen.load(Ordering::SeqCst) {
                let _ = stream.read_to_end(&mut Vec::new());
                break;
            }
            if matches!(self.behaviour, SfuBehaviour::Waits) {
                let released = self.released.lock().unwrap();
                let is_held = |released: &mut bool| !*released;
                drop(self.changed.wait_timeout_while(released, TIMEOUT, is_held));
            }
            let sent = match self.behaviour {
                SfuBehaviour::Serves | SfuBehaviour::Waits | SfuBehaviour::ClosesConnections => {
                    respond(stream.get_mut(), status, &body)
                }
                SfuBehaviour::Responds(status, body) => {
                    respond(stream.get_mut(), status, body.as_bytes())
                }
                SfuBehaviour::Succeeds(fields, body) => {
                    respond_with(stream.get_mut(), "200 OK", fields, body)
                }
                SfuBehaviour::Hangs => stream.read_to_end(&mut Vec::new()).map(drop),
                SfuBehaviour::Garbage => stream.get_mut().write_all(b"\x16\x03\x01\r\n\r\n"),
            };
            let closes = matches!(
                self.behaviour,
                SfuBehaviour::ClosesConnections | SfuBehaviour::Garbage
            );
            if sent.is_err() || closes {
                break;
            }
        }
    }

    /// Records a call. Returns the response of a real SFU.
    fn record(&self, call: Call) -> (&'static str, Vec<u8>) {
        let target = &call.request.target;
        let (calls, response) = if target.ends_with("/GetParticipant") {
            (&self.presence_checks, self.participant(&call, false))
        } else if target.ends_with("/RemoveParticipant") {
            (&self.removals, self.participant(&call, true))
        } else if list::is_list(&call) {
            (&self.lists, self.list(&call))
        } else {
            (&self.calls, create_room(&call))
        };
        calls.lock().unwrap().push(call);
        self.changed.notify_all();
        response
    }

    /// The response to `GetParticipant`, or to `RemoveParticipant` if `removes` is set.
    fn participant(&self, call: &Call, removes: bool) -> (&'static str, Vec<u8>) {
        let [room, identity] = call.room_and_identity();
        let video = &call.claims["video"];
        if video["roomAdmin"] != true || video["room"] != room.as_str() {
            return unauthenticated();
        }
        let (participant, mut connected) = ((room, identity), self.connected.lock().unwrap());
        match connected.get(&participant) {
            Some(_) if removes => {
                connected.remove(&participant);
                ("200 OK", Vec::new())
            }
            Some(sid) => {
                let length = u8::try_from(sid.len()).unwrap();
                (
                    "200 OK",
                    [b"\n", &[length], sid.as_bytes(), b"\x18\x02"].concat(),
                )
            }
            None => {
                let body = r#"{"code":"not_found","msg":"participant does not exist"}"#;
                ("404 Not Found", body.into())
            }
        }
    }
}

fn unauthenticated() -> (&'static str, Vec<u8>) {
    let body = r#"{"code":"unauthenticated","msg":"permissions denied"}"#;
    ("401 Unauthorized", body.into())
}

/// Success is protobuf, and an error JSON (Twirp wire protocol).
fn respond(out: &mut impl Write, status: &str, body: &[u8]) -> std::io::Result<()> {
    let fields = match status.starts_with("200") {
        true => "Content-Type: application/protobuf\r\n",
        false => "Content-Type: application/json\r\n",
    };
    respond_with(out, status, fields, body)
}

fn respond_with(
    out: &mut impl Write,
    status: &str,
    fields: &str,
    body: &[u8],
) -> std::io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\n\r\n");
    out.write_all(&[head.as_bytes(), body].concat())
}

/// The claims of the call's access token; null without one. Panics if the signature is invalid.
fn claims(request: &Request, secret: &str) -> Value {
    match request
        .header("authorization")
        .map(|value| value.strip_prefix("Bearer "))
    {
        Some(Some(jwt)) => jwt::claims(jwt, secret),
        _ => Value::Null,
    }
}

/// The response to `CreateRoom`, or to `ListRooms` with a name.
fn create_room(call: &Call) -> (&'static str, Vec<u8>) {
    let lists = call.request.target.ends_with("/ListRooms");
    let grant = if lists { "roomList" } else { "roomCreate" };
    if call.claims["video"][grant] != true {
        return unauthenticated();
    }
    match call.request.header("content-type") {
        Some("application/protobuf") if lists => ("200 OK", Vec::new()),
        Some("application/protobuf") => ("200 OK", list::room(&call.create_room().name)),
        _ => {
            let body = r#"{"code":"bad_route","msg":"unexpected Content-Type"}"#;
            ("404 Not Found", body.into())
        }
    }
}
