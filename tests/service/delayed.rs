//! A homeserver's client-server side, as far as delayed events go: plain HTTP, found through an override.
//!
//! A fake because a test has to see the very calls and to have them fail on command. It sends each event once, as a homeserver
//! does; a real one is asked in `tests/e2e`. Its threads end with the test process.

use std::collections::{HashSet, VecDeque};
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::listen::listen;
use crate::request::Request;

/// Longer than any call that a test waits for takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const EVENTS: &str = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/";

/// One call about a delayed event.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// `restart` or `send`.
    pub(crate) action: String,
    /// The event, as it stood in the path.
    pub(crate) id: String,
    pub(crate) at: Instant,
    /// What it was answered.
    pub(crate) status: &'static str,
}

/// How the next call is answered.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// With this status, these header lines and this body.
    Says(&'static str, &'static str, Value),
    /// With nothing: the connection is closed.
    Closes,
    /// With nothing, while the connection stands.
    Hangs,
}

/// A running fake homeserver.
pub(crate) struct Delayed {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    versions: Mutex<Answer>,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    calls: Vec<Call>,
    sent: HashSet<String>,
    /// What was scheduled, if only that exists.
    next: VecDeque<Answer>,
    always: Option<Answer>,
}

impl Delayed {
    /// One that says that it has delayed events.
    pub(crate) fn start() -> Self {
        let features = json!({"org.matrix.msc4140": true});
        let versions = json!({"versions": ["v1.11"], "unstable_features": features});
        Self::saying(Answer::Says("200 OK", "", versions))
    }

    /// One that answers this when it is asked for its versions.
    pub(crate) fn saying(versions: Answer) -> Self {
        let state = Arc::new(State {
            versions: Mutex::new(versions),
            inner: Mutex::default(),
            changed: Condvar::new(),
        });
        let address = listen(&state, State::serve);
        Self { address, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers the next call so, and those after it as before.
    pub(crate) fn next(&self, answer: Answer) {
        self.state.inner.lock().unwrap().next.push_back(answer);
    }

    /// Answers all calls so from now on; none is as a homeserver does.
    pub(crate) fn always(&self, answer: Option<Answer>) {
        self.state.inner.lock().unwrap().always = answer;
    }

    /// All calls so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state.inner.lock().unwrap().calls.clone()
    }

    /// The actions that were called for about one event so far, in order.
    pub(crate) fn actions(&self, id: &str) -> Vec<String> {
        let calls = self.calls().into_iter();
        let of_event = calls.filter(|call| call.id == id);
        of_event.map(|call| call.action).collect()
    }

    /// The `number`th call (from 1) for `action` about `id`, as soon as it is there.
    pub(crate) fn wait_for(&self, number: usize, action: &str, id: &str) -> Call {
        let find = |inner: &Inner| {
            let calls = inner.calls.iter();
            let mut such = calls.filter(|call| call.action == action && call.id == id);
            such.nth(number - 1).cloned()
        };
        let inner = self.state.inner.lock().unwrap();
        let (inner, _) = self
            .state
            .changed
            .wait_timeout_while(inner, PATIENCE, |inner| find(inner).is_none())
            .unwrap();
        find(&inner).unwrap_or_else(|| panic!("no {number}. {action} of {id}: {:?}", inner.calls))
    }
}

impl State {
    fn serve(&self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let mut stream = BufReader::new(stream);
        while let Some(request) = Request::read(&mut stream) {
            let answer = self.answer(&request);
            let written = match answer {
                Answer::Says(status, fields, body) => {
                    let body = body.to_string();
                    let length = body.len();
                    let head = format!(
                        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{fields}Content-Length: {length}\r\n\r\n"
                    );
                    stream.get_mut().write_all((head + &body).as_bytes())
                }
                Answer::Closes => return,
                Answer::Hangs => stream.read_to_end(&mut Vec::new()).map(drop),
            };
            if written.is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &Request) -> Answer {
        if request.path() == "/_matrix/client/versions" {
            return self.versions.lock().unwrap().clone();
        }
        let unknown = || Answer::Says("404 Not Found", "", json!({"errcode": "M_UNRECOGNIZED"}));
        let named = request.path().strip_prefix(EVENTS);
        let Some((id, action)) = named.and_then(|rest| rest.split_once('/')) else {
            return unknown();
        };
        if request.method != "POST" || !["restart", "send"].contains(&action) {
            return unknown();
        }
        let mut inner = self.inner.lock().unwrap();
        let scripted = inner.next.pop_front().or_else(|| inner.always.clone());
        let answer = scripted.unwrap_or_else(|| {
            if inner.sent.contains(id) {
                return Answer::Says("404 Not Found", "", json!({"errcode": "M_NOT_FOUND"}));
            }
            if action == "send" {
                inner.sent.insert(id.to_owned());
            }
            Answer::Says("200 OK", "", json!({}))
        });
        let status = match answer {
            Answer::Says(status, ..) => status,
            Answer::Closes | Answer::Hangs => "",
        };
        inner.calls.push(Call {
            action: action.to_owned(),
            id: id.to_owned(),
            at: Instant::now(),
            status,
        });
        drop(inner);
        self.changed.notify_all();
        answer
    }
}
