//! The homeserver whose application service the program is, as far as that goes: who is in a room, and other homeservers through it.
//!
//! A fake because it has to fail on command: a real one cannot be made to answer 10 MB, garbage or nothing. A real one is in
//! `tests/e2e`. Its threads end with the test process.

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Reply, raw};
use crate::listen::listen;
use crate::process::Service;
use crate::request::Request;
use crate::settings::Settings;
use crate::sfu::{Conduct, Sfu};

/// Longer than anything here may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// What it is called.
pub(crate) const NAME: &str = "own.example";
/// What it shows, and what it is shown.
pub(crate) const HS_TOKEN: &str = "never-logged-hs-token-of-the-black-box-suite";
pub(crate) const AS_TOKEN: &str = "never-logged-as-token-of-the-black-box-suite";
pub(crate) const ROOM: &str = "!room:own.example";
pub(crate) const USER_PATH: &str = "/_matrix/client/v1/rtc/livekit/get_token";
pub(crate) const EVENTS_PATH: &str = "/_matrix/app/v1/transactions/";
pub(crate) const SERVER_PATH: &str = "/_matrix/federation/v1/rtc/livekit/get_token";

/// How it answers.
#[derive(Clone)]
pub(crate) enum Answer {
    /// With this status and body.
    Says(&'static str, Vec<u8>),
    /// The same after this time.
    Late(Duration, Box<Answer>),
    /// With nothing, and the connection closes.
    Closes,
    /// With nothing, while the connection stands.
    Hangs,
}

/// It, the SFU and the service.
pub(crate) struct Beside {
    pub(crate) sfu: Sfu,
    pub(crate) service: Service,
    pub(crate) settings: Settings,
    state: Arc<State>,
}

struct State {
    /// By the end of the path.
    answers: Mutex<HashMap<&'static str, Answer>>,
    as_token: Mutex<&'static str>,
    seen: Mutex<Vec<Request>>,
}

impl Beside {
    /// Everybody is in the room, and other homeservers give tokens.
    pub(crate) fn start() -> Self {
        Self::start_with(|settings| settings)
    }

    pub(crate) fn start_with(change: impl FnOnce(Settings) -> Settings) -> Self {
        let state = Arc::new(State {
            answers: Mutex::new(HashMap::from([
                ("is_joined", says("200 OK", &json!({ "joined": true }))),
                ("fed_proxy", relayed(200, &json!({ "jwt": "a.b.c" }))),
            ])),
            as_token: Mutex::new(AS_TOKEN),
            seen: Mutex::default(),
        });
        let address = listen(&state, State::serve);
        let sfu = Sfu::start(Conduct::Serves);
        let settings = Settings::complete()
            .set("LIVEKIT_URL", sfu.url())
            .set("LIVEKIT_AS_TOKEN", AS_TOKEN)
            .set("LIVEKIT_HS_TOKEN", HS_TOKEN)
            .set("LIVEKIT_HS_SERVER_NAME", NAME)
            .set("LIVEKIT_HS_URL", format!("http://{address}"));
        let settings = change(settings);
        let service = Service::start(&settings);
        Self {
            sfu,
            service,
            settings,
            state,
        }
    }

    /// Answers so from now on, when it is asked who is in a room.
    pub(crate) fn memberships(&self, answer: Answer) {
        self.answers("is_joined", answer);
    }

    /// Answers so from now on, when it is to ask another homeserver.
    pub(crate) fn relays(&self, answer: Answer) {
        self.answers("fed_proxy", answer);
    }

    /// Answers so from now on where a path ends like this.
    pub(crate) fn answers(&self, end: &'static str, answer: Answer) {
        self.state.answers.lock().unwrap().insert(end, answer);
    }

    /// Knows the service by this token from now on.
    pub(crate) fn knows_us_by(&self, as_token: &'static str) {
        *self.state.as_token.lock().unwrap() = as_token;
    }

    /// All that it was asked.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.state.seen.lock().unwrap().clone()
    }

    /// How often it was asked about a membership.
    pub(crate) fn memberships_asked(&self) -> usize {
        let memberships = |request: &&Request| request.path().ends_with("/is_joined");
        self.seen().iter().filter(memberships).count()
    }

    /// How often it was to ask another homeserver.
    pub(crate) fn relayed(&self) -> usize {
        let relays = |request: &&Request| request.path().ends_with("/fed_proxy");
        self.seen().iter().filter(relays).count()
    }

    /// What a client asks for by default.
    pub(crate) fn place(&self) -> Value {
        json!({ "url": self.sfu.url(), "room_id": ROOM, "slot_id": "m.call#ROOM", "member_id": "m" })
    }

    /// A request with these fields, each a line.
    pub(crate) fn post(&self, path: &str, fields: &[String], body: &Value) -> Reply {
        self.ask("POST", path, fields, body)
    }

    /// A push of these events, with the homeserver's token.
    pub(crate) fn push(&self, events: &Value) -> Reply {
        let path = format!("{EVENTS_PATH}1");
        self.ask("PUT", &path, &[bearer()], &json!({ "events": events }))
    }

    pub(crate) fn ask(&self, method: &str, path: &str, fields: &[String], body: &Value) -> Reply {
        let (body, fields) = (body.to_string(), fields.join("\r\n"));
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        raw(self.service.address(), request.as_bytes())
    }

    /// The homeserver's own, for its user `alice`.
    pub(crate) fn for_alice(&self, body: &Value) -> Reply {
        self.post(USER_PATH, &[bearer(), of_user("@alice:own.example")], body)
    }

    /// The homeserver's own, for another homeserver.
    pub(crate) fn for_server(&self, origin: &str, user: &str) -> Reply {
        let mut body = self.place();
        body["user_id"] = user.into();
        self.post(SERVER_PATH, &[bearer(), of_server(origin)], &body)
    }
}

/// Waits for something to be seen from outside.
pub(crate) fn wait_until(condition: impl Fn() -> bool, what: &str) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn bearer() -> String {
    bearer_of(HS_TOKEN)
}

pub(crate) fn bearer_of(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

pub(crate) fn of_user(user: &str) -> String {
    format!("X-Matrix-User-Identifier: {user}")
}

pub(crate) fn of_server(server: &str) -> String {
    format!("X-Matrix-Origin: {server}")
}

/// An answer of JSON.
pub(crate) fn says(status: &'static str, body: &Value) -> Answer {
    Answer::Says(status, body.to_string().into_bytes())
}

/// What another homeserver has answered, as this one tells it.
pub(crate) fn relayed(status: u16, content: &Value) -> Answer {
    says("200 OK", &json!({ "status": status, "content": content }))
}

impl State {
    fn answer(&self, request: &Request) -> Answer {
        let unknown = says("404 Not Found", &json!({ "errcode": "M_UNRECOGNIZED" }));
        let answers = self.answers.lock().unwrap();
        let mut answers = answers.iter();
        let answer = answers.find(|(end, _)| request.path().ends_with(*end));
        let answer = answer.map_or(unknown, |(_, answer)| answer.clone());
        let token = format!("Bearer {}", self.as_token.lock().unwrap());
        match request.header("authorization") {
            Some(shown) => assert_eq!(shown, token, "{request:?}"),
            // what anybody may ask, and what is there behind a token
            None if request.path().ends_with("versions") => {}
            None if matches!(&answer, Answer::Says(status, _) if status.starts_with("404")) => {}
            None => return says("401 Unauthorized", &json!({ "errcode": "M_MISSING_TOKEN" })),
        }
        answer
    }

    fn serve(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        while let Some(request) = Request::read(&mut stream) {
            let mut answer = self.answer(&request);
            self.seen.lock().unwrap().push(request);
            while let Answer::Late(time, after) = answer {
                thread::sleep(time);
                answer = *after;
            }
            let written = match answer {
                Answer::Says(status, body) => {
                    let head = format!(
                        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
                        body.len()
                    );
                    let whole = [head.as_bytes(), &body].concat();
                    stream.get_mut().write_all(&whole)
                }
                Answer::Closes | Answer::Late(..) => return,
                Answer::Hangs => stream.read_to_end(&mut Vec::new()).map(drop),
            };
            if written.is_err() {
                return;
            }
        }
    }
}
