//! People in calls who have handed their leave to the service: their requests, and what the SFU tells of them.

use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::client::Reply;
use crate::delayed::Delayed;
use crate::homeserver::Homeserver;
use crate::jwt;
use crate::process::Service;
use crate::settings::{KEY, SECRET, Settings};
use crate::sfu::{Conduct, Sfu};
use crate::stage::{Stage, User};

/// The usual cast, and the homeserver's client-server side.
pub(crate) struct Calls {
    pub(crate) stage: Stage,
    pub(crate) delayed: Delayed,
}

impl Calls {
    pub(crate) fn begin() -> Self {
        Self::with(Delayed::start(), |settings| settings)
    }

    pub(crate) fn with(delayed: Delayed, change: impl FnOnce(Settings) -> Settings) -> Self {
        let homeserver = Homeserver::honest();
        let name = homeserver.name().to_owned();
        let overrides = format!("{name}={}", delayed.url());
        let stage = Stage::with(homeserver, Conduct::Serves, |settings| {
            change(
                settings
                    .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", name)
                    .set("LIVEKIT_CS_API_URL_OVERRIDES", overrides),
            )
        });
        Self { stage, delayed }
    }

    pub(crate) fn service(&self) -> &Service {
        &self.stage.service
    }

    pub(crate) fn sfu(&self) -> &Sfu {
        &self.stage.sfu
    }

    /// Someone new, in a call of their own.
    pub(crate) fn caller(&self) -> Caller {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.caller_of(&format!("caller{number}"), &format!("member{number}"))
    }

    /// A user as one member.
    pub(crate) fn caller_of(&self, localpart: &str, member: &str) -> Caller {
        Caller {
            user: self.stage.homeserver.user(localpart),
            member: member.to_owned(),
        }
    }

    /// Has a caller get a token and hand over their leave with it.
    pub(crate) fn joins(&self, caller: &Caller, id: &str, timeout: u64) {
        let reply = self
            .service()
            .post("/get_token", &caller.body(id, json!(timeout)));
        assert_eq!(reply.status, 200, "{reply:?}");
    }

    /// Has a caller hand over their leave alone.
    pub(crate) fn delegates(&self, caller: &Caller, id: &str, timeout: u64) -> Reply {
        self.service()
            .post("/delegate_delayed_leave", &caller.body(id, json!(timeout)))
    }

    /// The SFU tells of an event, and is heard.
    pub(crate) fn told(&self, event: &str, caller: &Caller, sid: &str) {
        self.tells(&webhook(event, caller, sid));
    }

    /// As [`Calls::told`], with a reason.
    pub(crate) fn told_why(&self, event: &str, caller: &Caller, sid: &str, reason: &str) {
        let mut body = webhook(event, caller, sid);
        body["participant"]["disconnectReason"] = json!(reason);
        self.tells(&body);
    }

    fn tells(&self, body: &Value) {
        let reply = tell(self.service(), body.to_string().as_bytes());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

/// Someone in a call.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) user: User,
    pub(crate) member: String,
}

impl Caller {
    /// The body of `/get_token` and of `/delegate_delayed_leave`.
    pub(crate) fn body(&self, delay_id: &str, timeout: Value) -> Value {
        let mut body = self.user.get_token();
        body["member"]["id"] = json!(self.member);
        body["delay_id"] = json!(delay_id);
        body["delay_timeout"] = timeout;
        body
    }

    /// The LiveKit room that they are in.
    pub(crate) fn room(&self) -> String {
        jwt::hash(&["!roomid:example.com", "slot1234"])
    }

    /// Who they are in it.
    pub(crate) fn identity(&self) -> String {
        jwt::hash(&[&self.user.id, "DEVICE123", &self.member])
    }
}

/// What the SFU writes of a participant, with an id that it has not used before.
pub(crate) fn webhook(event: &str, caller: &Caller, sid: &str) -> Value {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    json!({
        "event": event,
        "id": format!("EV_{number}"),
        "createdAt": jwt::now().to_string(),
        "room": {"name": caller.room(), "sid": "RM_1"},
        "participant": {"sid": sid, "identity": caller.identity(), "state": "ACTIVE"},
    })
}

/// Posts a webhook, signed as the SFU does.
pub(crate) fn tell(service: &Service, body: &[u8]) -> Reply {
    let token = signed(body);
    let mut request = format!(
        "POST /sfu_webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/webhook+json\r\n\
         Authorization: {token}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    service.raw(&request)
}

/// The SFU's token for a webhook.
pub(crate) fn signed(body: &[u8]) -> String {
    let now = jwt::now();
    let claims = json!({
        "iss": KEY, "nbf": now, "exp": now + 300,
        "sha256": STANDARD.encode(Sha256::digest(body)),
    });
    jwt::signed(&claims, SECRET)
}
