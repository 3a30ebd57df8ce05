//! A homeserver, an SFU and the service between them, and users with OpenID tokens.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::client::Reply;
use crate::homeserver::FakeHomeserver;
use crate::process::Service;
use crate::settings::{NEVER_LOGGED, Settings};
use crate::sfu::{FakeSfu, SfuBehaviour};

/// `LIVEKIT_ALLOWED_NETWORKS` for homeservers on loopback that are not listed.
pub(crate) const LOOPBACK: &str = "127.0.0.0/8,::1/128";

/// A homeserver, an SFU and a service that uses both.
pub(crate) struct TestSetup {
    pub(crate) homeserver: FakeHomeserver,
    pub(crate) sfu: FakeSfu,
    pub(crate) service: Service,
}

impl TestSetup {
    /// The homeserver's users have full access.
    pub(crate) fn full_access() -> Self {
        Self::full_access_with(SfuBehaviour::Serves, |settings| settings)
    }

    pub(crate) fn full_access_with(
        sfu: SfuBehaviour,
        change: impl FnOnce(Settings) -> Settings,
    ) -> Self {
        let homeserver = FakeHomeserver::well_behaved();
        let name = homeserver.name().to_owned();
        Self::with(homeserver, sfu, |settings| {
            change(settings.set("LIVEKIT_FULL_ACCESS_HOMESERVERS", name))
        })
    }

    /// The homeserver's users have restricted access.
    pub(crate) fn restricted() -> Self {
        Self::restricted_with(|settings| settings)
    }

    pub(crate) fn restricted_with(change: impl FnOnce(Settings) -> Settings) -> Self {
        Self::with(
            FakeHomeserver::well_behaved(),
            SfuBehaviour::Serves,
            |settings| change(settings.set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)),
        )
    }

    pub(crate) fn with(
        homeserver: FakeHomeserver,
        sfu: SfuBehaviour,
        change: impl FnOnce(Settings) -> Settings,
    ) -> Self {
        let sfu = FakeSfu::start(sfu);
        let settings = change(Settings::complete().set("LIVEKIT_URL", sfu.url()));
        let service = Service::start(&settings);
        Self {
            homeserver,
            sfu,
            service,
        }
    }

    pub(crate) fn get_token(&self, user: &User) -> Reply {
        self.service.post("/get_token", &user.get_token())
    }

    pub(crate) fn sfu_get(&self, user: &User) -> Reply {
        self.service.post("/sfu/get", &user.sfu_get())
    }
}

/// A user with an OpenID token, and the bodies of their client's requests.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) id: String,
    pub(crate) server_name: String,
    pub(crate) token: String,
}

impl User {
    /// A user of `server_name` with a unique OpenID token.
    pub(crate) fn new(localpart: &str, server_name: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            id: format!("@{localpart}:{server_name}"),
            server_name: server_name.to_owned(),
            token: format!("{NEVER_LOGGED}-openid-{number}"),
        }
    }

    /// The body of `/get_token`.
    pub(crate) fn get_token(&self) -> Value {
        json!({
            "room_id": "!roomid:example.com",
            "slot_id": "slot1234",
            "openid_token": self.openid_token(),
            "member": {
                "id": "memberABC",
                "claimed_user_id": self.id,
                "claimed_device_id": "DEVICE123",
            },
        })
    }

    /// The body of `/sfu/get`.
    pub(crate) fn sfu_get(&self) -> Value {
        json!({
            "room": "!roomid:example.com",
            "openid_token": self.openid_token(),
            "device_id": "DEVICE123",
        })
    }

    fn openid_token(&self) -> Value {
        json!({
            "access_token": self.token,
            "token_type": "Bearer",
            "matrix_server_name": self.server_name,
            "expires_in": 3600,
        })
    }
}
