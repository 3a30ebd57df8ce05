//! The service in application-service mode with a fake homeserver and a fake SFU.
//!
//! The homeserver is a fake because it has to fail on command: a real one cannot be made to send 10 MB, garbage or nothing. A real one
//! is in `tests/e2e`. Its threads end with the test process.

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::call::post_webhook;
use crate::client::{Reply, raw};
use crate::jwt;
use crate::listen::listen;
use crate::process::Service;
use crate::request::Request;
use crate::settings::Settings;
use crate::sfu::{FakeSfu, SfuBehaviour};

/// Longer than anything here takes on a slow machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// The homeserver's server name.
pub(crate) const NAME: &str = "own.example";
pub(crate) const HS_TOKEN: &str = "never-logged-hs-token-of-the-black-box-suite";
pub(crate) const AS_TOKEN: &str = "never-logged-as-token-of-the-black-box-suite";
pub(crate) const ROOM: &str = "!room:own.example";
pub(crate) const USER_PATH: &str = "/_matrix/client/v1/rtc/livekit/get_token";
pub(crate) const EVENTS_PATH: &str = "/_matrix/app/v1/transactions/";
pub(crate) const SERVER_PATH: &str = "/_matrix/federation/v1/rtc/livekit/get_token";
pub(crate) const DELEGATE_PATH: &str = "/_matrix/client/v1/rtc/livekit/delegate_delayed_leave";

/// A response of the homeserver.
#[derive(Clone)]
pub(crate) enum FakeResponse {
    /// Status and body.
    Body(&'static str, Vec<u8>),
    /// Another response after this time.
    Delayed(Duration, Box<FakeResponse>),
    /// The connection is closed without a response.
    Close,
    /// The connection stays open without a response.
    Hang,
    /// A response that depends on the request.
    Computed(fn(&Request) -> FakeResponse),
}

/// The homeserver, the SFU and the service.
pub(crate) struct AppServiceSetup {
    pub(crate) sfu: FakeSfu,
    pub(crate) service: Service,
    pub(crate) settings: Settings,
    homeserver: Arc<FakeHomeserver>,
}

struct FakeHomeserver {
    /// By the end of the path.
    responses: Mutex<HashMap<&'static str, FakeResponse>>,
    as_token: Mutex<&'static str>,
    requests: Mutex<Vec<Request>>,
}

impl AppServiceSetup {
    /// Every user is joined to every room, and other homeservers issue the token `a.b.c`.
    pub(crate) fn start() -> Self {
        Self::start_with(|settings| settings)
    }

    pub(crate) fn start_with(change: impl FnOnce(Settings) -> Settings) -> Self {
        let homeserver = Arc::new(FakeHomeserver {
            responses: Mutex::new(HashMap::from([
                (
                    "is_joined",
                    json_response("200 OK", &json!({ "joined": true })),
                ),
                ("fed_proxy", relay_response(200, &json!({ "jwt": "a.b.c" }))),
            ])),
            as_token: Mutex::new(AS_TOKEN),
            requests: Mutex::default(),
        });
        let address = listen(&homeserver, FakeHomeserver::serve);
        let sfu = FakeSfu::start(SfuBehaviour::Serves);
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
            homeserver,
        }
    }

    /// Sets the homeserver's response to membership lookups.
    pub(crate) fn set_membership_response(&self, response: FakeResponse) {
        self.set_response("is_joined", response);
    }

    /// Sets whether every user is joined to every room.
    pub(crate) fn set_joined(&self, joined: bool) {
        self.set_membership_response(json_response("200 OK", &json!({ "joined": joined })));
    }

    /// Sets the homeserver's response to requests for other homeservers.
    pub(crate) fn set_relay_response(&self, response: FakeResponse) {
        self.set_response("fed_proxy", response);
    }

    /// Sets the homeserver's response to requests whose path has this end.
    pub(crate) fn set_response(&self, path_end: &'static str, response: FakeResponse) {
        let mut responses = self.homeserver.responses.lock().unwrap();
        responses.insert(path_end, response);
    }

    /// Sets the `as_token` that the homeserver accepts.
    pub(crate) fn set_as_token(&self, as_token: &'static str) {
        *self.homeserver.as_token.lock().unwrap() = as_token;
    }

    /// All requests to the homeserver.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.homeserver.requests.lock().unwrap().clone()
    }

    /// The number of membership lookups.
    pub(crate) fn membership_calls(&self) -> usize {
        self.count_requests("/is_joined")
    }

    /// The number of requests for other homeservers.
    pub(crate) fn relay_calls(&self) -> usize {
        self.count_requests("/fed_proxy")
    }

    /// The number of requests whose path has this end.
    pub(crate) fn count_requests(&self, path_end: &str) -> usize {
        let requests = self.requests();
        let matching = requests.iter().filter(|r| r.path().ends_with(path_end));
        matching.count()
    }

    /// A valid body of a token request.
    pub(crate) fn token_request(&self) -> Value {
        json!({ "url": self.sfu.url(), "room_id": ROOM, "slot_id": "m.call#ROOM", "member_id": "m" })
    }

    /// Posts a body with these header lines.
    pub(crate) fn post(&self, path: &str, fields: &[String], body: &Value) -> Reply {
        self.request("POST", path, fields, body)
    }

    /// Pushes a transaction with these events, as the homeserver.
    pub(crate) fn push_events(&self, events: &Value) -> Reply {
        let path = format!("{EVENTS_PATH}1");
        let body = json!({ "events": events });
        self.request("PUT", &path, &[hs_token_header()], &body)
    }

    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        fields: &[String],
        body: &Value,
    ) -> Reply {
        let (body, fields) = (body.to_string(), fields.join("\r\n"));
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        raw(self.service.address(), request.as_bytes())
    }

    /// A token request of the local user `alice`, forwarded by the homeserver.
    pub(crate) fn request_as_alice(&self, body: &Value) -> Reply {
        let fields = [hs_token_header(), user_header("@alice:own.example")];
        self.post(USER_PATH, &fields, body)
    }

    /// A token request of another homeserver for its user, forwarded by the homeserver.
    pub(crate) fn request_from_server(&self, origin: &str, user: &str) -> Reply {
        let mut body = self.token_request();
        body["user_id"] = user.into();
        self.post(
            SERVER_PATH,
            &[hs_token_header(), origin_header(origin)],
            &body,
        )
    }
}

/// Sends the webhook `participant_joined`, which the service must accept. `attributes` are those of the participant.
pub(crate) fn send_joined(
    service: &Service,
    id: &str,
    room: &str,
    identity: &str,
    attributes: &Value,
) {
    let event = json!({
        "event": "participant_joined", "id": id, "createdAt": jwt::now().to_string(),
        "room": { "name": room, "sid": "RM_1" },
        "participant": { "sid": "PA_1", "identity": identity, "attributes": attributes, "state": "ACTIVE" },
    });
    let reply = post_webhook(service, event.to_string().as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
}

/// Waits for something that is visible from outside only.
pub(crate) fn wait_until(condition: impl Fn() -> bool, what: &str) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "not yet: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn hs_token_header() -> String {
    bearer_header(HS_TOKEN)
}

pub(crate) fn bearer_header(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

pub(crate) fn user_header(user: &str) -> String {
    format!("X-Matrix-User-Identifier: {user}")
}

pub(crate) fn origin_header(server: &str) -> String {
    format!("X-Matrix-Origin: {server}")
}

pub(crate) fn json_response(status: &'static str, body: &Value) -> FakeResponse {
    FakeResponse::Body(status, body.to_string().into_bytes())
}

/// The homeserver's response with that of another homeserver.
pub(crate) fn relay_response(status: u16, content: &Value) -> FakeResponse {
    json_response("200 OK", &json!({ "status": status, "content": content }))
}

impl FakeHomeserver {
    fn respond(&self, request: &Request) -> FakeResponse {
        let unknown = json_response("404 Not Found", &json!({ "errcode": "M_UNRECOGNIZED" }));
        let responses = self.responses.lock().unwrap();
        let mut responses = responses.iter();
        let response = responses.find(|(end, _)| request.path().ends_with(*end));
        let mut response = response.map_or(unknown, |(_, response)| response.clone());
        if let FakeResponse::Computed(compute) = response {
            response = compute(request);
        }
        let authorization = format!("Bearer {}", self.as_token.lock().unwrap());
        match request.header("authorization") {
            Some(sent) => assert_eq!(sent, authorization, "{request:?}"),
            // paths that need no token, and the probe whether a path exists
            None if request.path().ends_with("versions") => {}
            None if matches!(&response, FakeResponse::Body(status, _) if status.starts_with("404")) =>
                {}
            None => {
                return json_response("401 Unauthorized", &json!({ "errcode": "M_MISSING_TOKEN" }));
            }
        }
        response
    }

    fn serve(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        while let Some(request) = Request::read(&mut stream) {
            let mut response = self.respond(&request);
            self.requests.lock().unwrap().push(request);
            while let FakeResponse::Delayed(time, then) = response {
                thread::sleep(time);
                response = *then;
            }
            let written = match response {
                FakeResponse::Body(status, body) => {
                    let head = format!(
                        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
                        body.len()
                    );
                    stream
                        .get_mut()
                        .write_all(&[head.as_bytes(), &body].concat())
                }
                FakeResponse::Close | FakeResponse::Delayed(..) | FakeResponse::Computed(_) => {
                    return;
                }
                FakeResponse::Hang => stream.read_to_end(&mut Vec::new()).map(drop),
            };
            if written.is_err() {
                return;
            }
        }
    }
}
