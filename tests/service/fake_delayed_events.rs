//! A fake client-server API with delayed events (MSC4140), on plain HTTP. The service finds it by `LIVEKIT_CS_API_URL_OVERRIDES`.
//!
//! It records every call, and replies with failures on request. Like a homeserver it sends each event once; `tests/e2e` tests a real one.

use std::collections::{HashSet, VecDeque};
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::listen::listen;
use crate::request::Request;

/// Deadline that only a hang misses.
const DEADLINE: Duration = Duration::from_secs(60);
const EVENTS_PATH: &str = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/";

/// A call about a delayed event.
#[derive(Clone, Debug)]
pub(crate) struct DelayedEventCall {
    /// `restart` or `send`.
    pub(crate) action: String,
    /// The event's id, as it is in the path.
    pub(crate) id: String,
    pub(crate) received_at: Instant,
    /// The status line of the reply; empty if there is none.
    pub(crate) status: &'static str,
}

#[derive(Clone, Debug)]
pub(crate) enum DelayedReply {
    /// Status, header lines and body.
    Send(&'static str, &'static str, Value),
    /// The connection is closed without a reply.
    Close,
    /// The connection stays open without a reply.
    Hang,
}

pub(crate) struct FakeDelayedEvents {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    versions: DelayedReply,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    calls: Vec<DelayedEventCall>,
    sent: HashSet<String>,
    next_replies: VecDeque<DelayedReply>,
    every_reply: Option<DelayedReply>,
}

impl FakeDelayedEvents {
    /// A homeserver that announces its support for delayed events.
    pub(crate) fn start() -> Self {
        let features = json!({"org.matrix.msc4140": true});
        let versions = json!({"versions": ["v1.11"], "unstable_features": features});
        Self::with_versions(DelayedReply::Send("200 OK", "", versions))
    }

    /// A homeserver with this reply to `GET /_matrix/client/versions`.
    pub(crate) fn with_versions(versions: DelayedReply) -> Self {
        let shared = Arc::new(Shared {
            versions,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let address = listen(&shared, Shared::serve);
        Self { address, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Replies this to the next call.
    pub(crate) fn reply_next(&self, reply: DelayedReply) {
        let mut state = self.shared.state.lock().unwrap();
        state.next_replies.push_back(reply);
    }

    /// Replies this to all calls, or again as a homeserver does (`None`).
    pub(crate) fn reply_always(&self, reply: Option<DelayedReply>) {
        self.shared.state.lock().unwrap().every_reply = reply;
    }

    pub(crate) fn calls(&self) -> Vec<DelayedEventCall> {
        self.shared.state.lock().unwrap().calls.clone()
    }

    /// The actions about one event, in order.
    pub(crate) fn actions(&self, id: &str) -> Vec<String> {
        let calls = self.calls().into_iter();
        let of_event = calls.filter(|call| call.id == id);
        of_event.map(|call| call.action).collect()
    }

    /// Number of calls by which this event was sent.
    pub(crate) fn times_sent(&self, id: &str) -> usize {
        let state = self.shared.state.lock().unwrap();
        let calls = state.calls.iter().filter(|call| call.id == id);
        calls
            .filter(|call| call.action == "send" && call.status.starts_with("200"))
            .count()
    }

    /// Waits for the `number`th call (from 1) of this action and event.
    pub(crate) fn wait_for(&self, number: usize, action: &str, id: &str) -> DelayedEventCall {
        let find = |state: &State| {
            let calls = state.calls.iter();
            let mut matching = calls.filter(|call| call.action == action && call.id == id);
            matching.nth(number - 1).cloned()
        };
        let state = self.shared.state.lock().unwrap();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, DEADLINE, |state| find(state).is_none())
            .unwrap();
        find(&state)
            .unwrap_or_else(|| panic!("no call {number} to {action} {id}: {:?}", state.calls))
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let mut stream = BufReader::new(stream);
        while let Some(request) = Request::read(&mut stream) {
            let written = match self.reply(&request) {
                DelayedReply::Send(status, fields, body) => {
                    let body = body.to_string();
                    let length = body.len();
                    let head = format!(
                        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{fields}Content-Length: {length}\r\n\r\n"
                    );
                    stream.get_mut().write_all((head + &body).as_bytes())
                }
                DelayedReply::Close => return,
                DelayedReply::Hang => stream.read_to_end(&mut Vec::new()).map(drop),
            };
            if written.is_err() {
                return;
            }
        }
    }

    fn reply(&self, request: &Request) -> DelayedReply {
        if request.path() == "/_matrix/client/versions" {
            return self.versions.clone();
        }
        let error =
            |errcode| DelayedReply::Send("404 Not Found", "", json!({ "errcode": errcode }));
        let event = request.path().strip_prefix(EVENTS_PATH);
        let Some((id, action)) = event.and_then(|rest| rest.split_once('/')) else {
            return error("M_UNRECOGNIZED");
        };
        if request.method != "POST" || !["restart", "send"].contains(&action) {
            return error("M_UNRECOGNIZED");
        }
        let mut state = self.state.lock().unwrap();
        let scripted = state.next_replies.pop_front();
        let scripted = scripted.or_else(|| state.every_reply.clone());
        let reply = scripted.unwrap_or_else(|| {
            if state.sent.contains(id) {
                return error("M_NOT_FOUND");
            }
            if action == "send" {
                state.sent.insert(id.to_owned());
            }
            DelayedReply::Send("200 OK", "", json!({}))
        });
        let status = match reply {
            DelayedReply::Send(status, ..) => status,
            DelayedReply::Close | DelayedReply::Hang => "",
        };
        state.calls.push(DelayedEventCall {
            action: action.to_owned(),
            id: id.to_owned(),
            received_at: Instant::now(),
            status,
        });
        drop(state);
        self.changed.notify_all();
        reply
    }
}
