//! Members of calls who delegate their leave to the service: their requests, and the SFU's webhooks about them.

use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::client::Reply;
use crate::fake_delayed_events::FakeDelayedEvents;
use crate::homeserver::FakeHomeserver;
use crate::jwt;
use crate::process::Service;
use crate::settings::{KEY, SECRET, Settings};
use crate::setup::{TestSetup, User};
use crate::sfu::{FakeSfu, SfuBehaviour};

/// A [`TestSetup`] whose homeserver also has a client-server API with delayed events.
pub(crate) struct CallSetup {
    pub(crate) setup: TestSetup,
    pub(crate) delayed: FakeDelayedEvents,
}

impl CallSetup {
    pub(crate) fn start() -> Self {
        Self::start_with(FakeDelayedEvents::start(), |settings| settings)
    }

    pub(crate) fn start_with(
        delayed: FakeDelayedEvents,
        change: impl FnOnce(Settings) -> Settings,
    ) -> Self {
        let homeserver = FakeHomeserver::well_behaved();
        let name = homeserver.name().to_owned();
        let overrides = format!("{name}={}", delayed.url());
        let setup = TestSetup::with(homeserver, SfuBehaviour::Serves, |settings| {
            change(
                settings
                    .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", name)
                    .set("LIVEKIT_CS_API_URL_OVERRIDES", overrides),
            )
        });
        Self { setup, delayed }
    }

    pub(crate) fn service(&self) -> &Service {
        &self.setup.service
    }

    pub(crate) fn sfu(&self) -> &FakeSfu {
        &self.setup.sfu
    }

    /// A new user with a new member id.
    pub(crate) fn new_member(&self) -> CallMember {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.member_of(&format!("user{number}"), &format!("member{number}"))
    }

    /// One member id of a user.
    pub(crate) fn member_of(&self, localpart: &str, member: &str) -> CallMember {
        CallMember {
            user: self.setup.homeserver.user(localpart),
            member_id: member.to_owned(),
        }
    }

    /// Gets an access token and delegates the leave with the same request, which must succeed.
    pub(crate) fn join(&self, member: &CallMember, id: &str, timeout: u64) {
        let reply = self
            .service()
            .post("/get_token", &member.body(id, json!(timeout)));
        assert_eq!(reply.status, 200, "{reply:?}");
    }

    /// Delegates the leave alone.
    pub(crate) fn delegate(&self, member: &CallMember, id: &str, timeout: u64) -> Reply {
        self.service()
            .post("/delegate_delayed_leave", &member.body(id, json!(timeout)))
    }

    /// Sends a webhook about the member's connection `sid`, which the service must accept.
    pub(crate) fn send_webhook(&self, event: &str, member: &CallMember, sid: &str) {
        self.post_accepted_webhook(&webhook_body(event, member, sid));
    }

    /// As [`CallSetup::send_webhook`], with a disconnect reason.
    pub(crate) fn send_webhook_with_reason(
        &self,
        event: &str,
        member: &CallMember,
        sid: &str,
        reason: &str,
    ) {
        let mut body = webhook_body(event, member, sid);
        body["participant"]["disconnectReason"] = json!(reason);
        self.post_accepted_webhook(&body);
    }

    fn post_accepted_webhook(&self, body: &Value) {
        let reply = post_webhook(self.service(), body.to_string().as_bytes());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

/// A member of a call.
#[derive(Clone, Debug)]
pub(crate) struct CallMember {
    pub(crate) user: User,
    pub(crate) member_id: String,
}

impl CallMember {
    /// The body of `/get_token` and of `/delegate_delayed_leave`.
    pub(crate) fn body(&self, delay_id: &str, timeout: Value) -> Value {
        let mut body = self.user.get_token();
        body["member"]["id"] = json!(self.member_id);
        body["delay_id"] = json!(delay_id);
        body["delay_timeout"] = timeout;
        body
    }

    /// The LiveKit room of the call.
    pub(crate) fn room_name(&self) -> String {
        jwt::hash(&["!roomid:example.com", "slot1234"])
    }

    /// The member's identity in the LiveKit room.
    pub(crate) fn identity(&self) -> String {
        jwt::hash(&[&self.user.id, "DEVICE123", &self.member_id])
    }
}

/// The body of a webhook about a participant, with an unused id.
pub(crate) fn webhook_body(event: &str, member: &CallMember, sid: &str) -> Value {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    json!({
        "event": event,
        "id": format!("EV_{number}"),
        "createdAt": jwt::now().to_string(),
        "room": {"name": member.room_name(), "sid": "RM_1"},
        "participant": {"sid": sid, "identity": member.identity(), "state": "ACTIVE"},
    })
}

/// Posts a webhook with the SFU's signature.
pub(crate) fn post_webhook(service: &Service, body: &[u8]) -> Reply {
    let token = webhook_authorization(body);
    let mut request = format!(
        "POST /sfu_webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/webhook+json\r\n\
         Authorization: {token}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    service.raw(&request)
}

/// The token that the SFU signs for a webhook.
pub(crate) fn webhook_authorization(body: &[u8]) -> String {
    let now = jwt::now();
    let claims = json!({
        "iss": KEY, "nbf": now, "exp": now + 300,
        "sha256": STANDARD.encode(Sha256::digest(body)),
    });
    jwt::signed(&claims, SECRET)
}
