//! An SFU's RoomService: plain HTTP, Twirp with protobuf bodies.
//!
//! A fake because a test has to see the very call (bytes, grants, order) and to make the SFU refuse, hang or talk rubbish.
//! It reads protobuf and JWTs with code of its own. Its threads end with the test process.

mod call;
mod list;

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

pub(crate) use self::call::{Call, CreateRoom};
use crate::jwt;
use crate::request::Request;
use crate::settings::SECRET;

/// Longer than a look-up at a hostile homeserver can last.
const PATIENCE: Duration = Duration::from_secs(30);

/// How it treats a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Conduct {
    /// As LiveKit does: 200 with the room if signature, grant and content type are right.
    Serves,
    /// As [`Conduct::Serves`], once [`Sfu::release`] is called.
    Waits,
    /// Serves, but closes the connection after each answer without a word about it.
    ForgetsConnections,
    /// Always this status, with this body.
    Says(&'static str, &'static str),
    /// Nothing, while the connection stands.
    Hangs,
    /// Bytes that are not HTTP.
    Garbage,
}

/// A running fake SFU.
pub(crate) struct Sfu {
    address: SocketAddr,
    state: Arc<State>,
}

impl Sfu {
    pub(crate) fn start(conduct: Conduct) -> Self {
        Self::with_secret(conduct, SECRET)
    }

    /// One whose API secret is not the suite's.
    pub(crate) fn with_secret(conduct: Conduct, secret: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            conduct,
            secret,
            released: Mutex::new(false),
            calls: Mutex::default(),
            looks: Mutex::default(),
            removals: Mutex::default(),
            lists: Mutex::default(),
            present: Mutex::default(),
            carried: Mutex::default(),
            keeps_lists: AtomicBool::new(false),
            changed: Condvar::new(),
            connections: AtomicUsize::new(0),
            frozen: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let number = shared.connections.fetch_add(1, Ordering::SeqCst);
                let state = Arc::clone(&shared);
                thread::spawn(move || state.serve(number, stream));
            }
        });
        Self { address, state }
    }

    /// `ws://127.0.0.1:PORT`, as administrators write it.
    pub(crate) fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The calls so far, but for look-ups, removals and lists.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state.calls.lock().unwrap().clone()
    }

    /// The look-ups of participants so far.
    pub(crate) fn looks(&self) -> Vec<Call> {
        self.state.looks.lock().unwrap().clone()
    }

    /// From now on `identity` is in `room` on this connection, or on none.
    pub(crate) fn connect(&self, room: &str, identity: &str, sid: Option<&str>) {
        let who = (room.to_owned(), identity.to_owned());
        let mut present = self.state.present.lock().unwrap();
        match sid {
            Some(sid) => present.insert(who, sid.to_owned()),
            None => present.remove(&who),
        };
    }

    /// Waits for `more` look-ups after the first `from`.
    pub(crate) fn wait_for_looks(&self, from: usize, more: usize) {
        let looks = self.state.looks.lock().unwrap();
        let few = |looks: &mut Vec<Call>| looks.len() < from + more;
        let waited = self
            .state
            .changed
            .wait_timeout_while(looks, PATIENCE, few)
            .unwrap();
        let looks = waited.0.len();
        assert!(looks >= from + more, "only {looks} look-ups");
    }

    /// Waits for so many removals, and gives whom each was to remove: room and identity.
    pub(crate) fn wait_for_removals(&self, count: usize) -> Vec<[String; 2]> {
        let removals = self.state.removals.lock().unwrap();
        let few = |removals: &mut Vec<Call>| removals.len() < count;
        let waited = self
            .state
            .changed
            .wait_timeout_while(removals, PATIENCE, few)
            .unwrap();
        let removals = waited.0.iter().map(Call::room_and_identity);
        let removals: Vec<_> = removals.collect();
        assert!(removals.len() >= count, "only {removals:?}");
        removals
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Nothing more is said on the connections that stand; new ones are served.
    pub(crate) fn freeze(&self) {
        let frozen = self.connections();
        self.state.frozen.store(frozen, Ordering::SeqCst);
    }

    /// Waits until it has been called once.
    pub(crate) fn wait_for_call(&self) {
        let calls = self.state.calls.lock().unwrap();
        let (calls, _) = self
            .state
            .changed
            .wait_timeout_while(calls, PATIENCE, |calls| calls.is_empty())
            .unwrap();
        assert!(!calls.is_empty(), "nobody called the SFU");
    }

    /// Lets the calls through that [`Conduct::Waits`] holds.
    pub(crate) fn release(&self) {
        *self.state.released.lock().unwrap() = true;
        self.state.changed.notify_all();
    }
}

struct State {
    conduct: Conduct,
    secret: &'static str,
    released: Mutex<bool>,
    calls: Mutex<Vec<Call>>,
    looks: Mutex<Vec<Call>>,
    removals: Mutex<Vec<Call>>,
    lists: Mutex<Vec<Call>>,
    /// Who is connected, and on which connection.
    present: Mutex<HashMap<(String, String), String>>,
    /// What their tokens brought with them: room and identity, and their attributes.
    carried: Mutex<HashMap<(String, String), Value>>,
    /// Whether it answers 503 when it is asked for a list.
    keeps_lists: AtomicBool,
    changed: Condvar,
    connections: AtomicUsize,
    /// The number of the first connection that is not frozen.
    frozen: AtomicUsize,
}

impl State {
    fn serve(&self, number: usize, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let mut stream = BufReader::new(stream);
        while let Some(request) = Request::read(&mut stream) {
            let call = Call {
                claims: claims(&request, self.secret),
                request,
            };
            let looks = call.request.target.ends_with("/GetParticipant");
            let removes = call.request.target.ends_with("/RemoveParticipant");
            let lists = list::is_list(&call);
            let verdict = if looks || removes {
                let (status, body) = self.participant(&call, removes);
                (status, body.into_bytes())
            } else if lists {
                self.list(&call)
            } else {
                let (status, body) = verdict(&call);
                (status, body.as_bytes().to_vec())
            };
            let calls = match (looks, removes, lists) {
                (true, _, _) => &self.looks,
                (_, true, _) => &self.removals,
                (_, _, true) => &self.lists,
                _ => &self.calls,
            };
            calls.lock().unwrap().push(call);
            self.changed.notify_all();
            if number < self.frozen.load(Ordering::SeqCst) {
                let _ = stream.read_to_end(&mut Vec::new());
                break;
            }
            let answered = match self.conduct {
                Conduct::Serves | Conduct::ForgetsConnections => {
                    respond(stream.get_mut(), verdict.0, &verdict.1)
                }
                Conduct::Waits => {
                    let released = self.released.lock().unwrap();
                    let wait = self
                        .changed
                        .wait_timeout_while(released, PATIENCE, |free| !*free);
                    drop(wait);
                    respond(stream.get_mut(), verdict.0, &verdict.1)
                }
                Conduct::Says(status, body) => respond(stream.get_mut(), status, body.as_bytes()),
                Conduct::Hangs => stream.read_to_end(&mut Vec::new()).map(drop),
                Conduct::Garbage => stream.get_mut().write_all(b"\x16\x03\x01\r\n\r\n"),
            };
            let once = matches!(self.conduct, Conduct::ForgetsConnections | Conduct::Garbage);
            if answered.is_err() || once {
                break;
            }
        }
    }
}

impl State {
    /// What the real one says of a participant, or when it is to remove one.
    fn participant(&self, call: &Call, removes: bool) -> (&'static str, String) {
        let [room, identity] = call.room_and_identity();
        let video = &call.claims["video"];
        if video["roomAdmin"] != true || video["room"] != room.as_str() {
            let body = r#"{"code":"unauthenticated","msg":"permissions denied"}"#;
            return ("401 Unauthorized", body.to_owned());
        }
        let (who, mut present) = ((room, identity), self.present.lock().unwrap());
        match present.get(&who) {
            Some(_) if removes => {
                present.remove(&who);
                ("200 OK", String::new())
            }
            Some(sid) => {
                let length = char::from(u8::try_from(sid.len()).unwrap());
                ("200 OK", format!("\n{length}{sid}\u{18}\u{2}"))
            }
            None => {
                let body = r#"{"code":"not_found","msg":"participant does not exist"}"#;
                ("404 Not Found", body.to_owned())
            }
        }
    }
}

fn respond(out: &mut impl Write, status: &str, body: &[u8]) -> std::io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/protobuf\r\nContent-Length: {length}\r\n\r\n"
    );
    out.write_all(&[head.as_bytes(), body].concat())
}

/// The claims of the call's token, or null if none stands there. Panics at a wrong signature.
fn claims(request: &Request, secret: &str) -> Value {
    match request
        .header("authorization")
        .map(|value| value.strip_prefix("Bearer "))
    {
        Some(Some(jwt)) => jwt::claims(jwt, secret),
        _ => Value::Null,
    }
}

/// What the real one would say.
fn verdict(call: &Call) -> (&'static str, &'static str) {
    let lists = call.request.target.ends_with("/ListRooms");
    let grant = if lists { "roomList" } else { "roomCreate" };
    if call.claims["video"][grant] != true {
        return (
            "401 Unauthorized",
            r#"{"code":"unauthenticated","msg":"permissions denied"}"#,
        );
    }
    match call.request.header("content-type") {
        Some("application/protobuf") if lists => ("200 OK", ""),
        Some("application/protobuf") => ("200 OK", "\n\u{3}RM_"),
        _ => (
            "404 Not Found",
            r#"{"code":"bad_route","msg":"unexpected Content-Type"}"#,
        ),
    }
}
