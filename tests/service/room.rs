//! Rooms on the SFU: created before the response for full access, not created for restricted access.

use std::thread;

use crate::homeserver::FakeHomeserver;
use crate::jwt;
use crate::process::Service;
use crate::settings::{KEY, SECRET, Settings};
use crate::setup::{LOOPBACK, TestSetup};
use crate::sfu::{CreateRoom, FakeSfu, SfuBehaviour};

/// Longest lifetime in seconds of the access token of one call to the SFU.
const MAX_LIFETIME: i64 = 600;

#[test]
fn full_access_creates_the_room_of_the_token() {
    let setup = TestSetup::full_access();
    let user = setup.homeserver.user("alice");
    let bodies = [
        ("/get_token", user.get_token()),
        ("/sfu/get", user.sfu_get()),
    ];
    for (number, (path, body)) in bodies.iter().enumerate() {
        let reply = setup.service.post(path, body);
        let claims = jwt::claims(&reply.jwt(), SECRET);
        let calls = setup.sfu.calls();
        assert_eq!(calls.len(), number + 1, "one call for each request");
        let call = &calls[number];
        assert_eq!(call.request.method, "POST");
        assert_eq!(call.request.target, "/twirp/livekit.RoomService/CreateRoom");
        assert_eq!(
            call.request.header("content-type"),
            Some("application/protobuf")
        );
        assert_eq!(
            call.create_room(),
            CreateRoom {
                name: claims["video"]["room"].as_str().unwrap().to_owned(),
                empty_timeout: 300,
                max_participants: 0,
                departure_timeout: 20,
            }
        );
        assert_ne!(claims["video"]["roomCreate"], true);
    }
}

#[test]
fn the_call_to_the_sfu_has_a_short_lived_token_that_creates_rooms_only() {
    let setup = TestSetup::full_access();
    setup.get_token(&setup.homeserver.user("alice")).jwt();
    let claims = &setup.sfu.calls()[0].claims;
    let now = jwt::now();
    assert_eq!(claims["iss"], KEY);
    assert_eq!(claims["video"]["roomCreate"], true);
    assert_ne!(claims["video"]["roomJoin"], true);
    let exp = claims["exp"].as_i64().unwrap();
    assert!((now..=now + MAX_LIFETIME).contains(&exp), "{claims}");
    let nbf = claims["nbf"].as_i64().unwrap();
    assert!((now - 10..=now).contains(&nbf), "{claims}");
}

#[test]
fn the_response_waits_for_the_room() {
    let setup = TestSetup::full_access_with(SfuBehaviour::Waits, |settings| settings);
    let user = setup.homeserver.user("alice");
    thread::scope(|scope| {
        let reply = scope.spawn(|| setup.get_token(&user));
        setup.sfu.wait_for_call();
        // another request is served in the meantime
        assert_eq!(setup.service.request("GET", "/healthz").status, 200);
        assert!(!reply.is_finished());
        setup.sfu.release();
        assert_eq!(reply.join().unwrap().status, 200);
    });
}

#[test]
fn restricted_access_creates_no_room() {
    let setup = TestSetup::restricted();
    let user = setup.homeserver.user("alice");
    setup.get_token(&user).jwt();
    setup.sfu_get(&user).jwt();
    assert_eq!(setup.sfu.connections(), 0);
}

#[test]
fn a_refused_user_creates_no_room() {
    let setup = TestSetup::full_access();
    let unknown = setup.homeserver.user_with_unknown_token("mallory");
    assert_eq!(setup.get_token(&unknown).status, 401);
    assert_eq!(setup.sfu.connections(), 0);
}

#[test]
fn full_access_compares_server_names_exactly_under_either_setting() {
    for variable in [
        "LIVEKIT_FULL_ACCESS_HOMESERVERS",
        "LIVEKIT_LOCAL_HOMESERVERS",
    ] {
        for (listed, full) in [
            ("NAME", true),
            ("other.example, NAME", true),
            ("other.example NAME", true),
            ("*", true),
            ("localhost", false),
            ("other.example", false),
        ] {
            let homeserver = FakeHomeserver::well_behaved();
            let listed = listed.replace("NAME", homeserver.name());
            let setup = TestSetup::with(homeserver, SfuBehaviour::Serves, |settings| {
                settings
                    .set(variable, &listed)
                    .set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
            });
            setup.get_token(&setup.homeserver.user("alice")).jwt();
            let calls = setup.sfu.calls().len();
            assert_eq!(calls, usize::from(full), "{variable}={listed}");
        }
    }
}

#[test]
fn the_sfu_is_called_below_the_path_of_the_api_url() {
    let homeserver = FakeHomeserver::well_behaved();
    let sfu = FakeSfu::start(SfuBehaviour::Serves);
    for (url, prefix) in [
        (format!("http://{}", sfu.address()), ""),
        (format!("ws://{}/", sfu.address()), ""),
        (
            format!("http://{}/livekit/sfu", sfu.address()),
            "/livekit/sfu",
        ),
        (
            format!("ws://{}/livekit/sfu/", sfu.address()),
            "/livekit/sfu",
        ),
    ] {
        for (public, api) in [
            ("wss://sfu.invalid/public", Some(&url)),
            (url.as_str(), None),
        ] {
            let mut settings = Settings::complete()
                .set("LIVEKIT_URL", public)
                .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", homeserver.name());
            if let Some(api) = api {
                settings = settings.set("LIVEKIT_API_URL", api);
            }
            let service = Service::start(&settings);
            let reply = service.post("/get_token", &homeserver.user("alice").get_token());
            assert_eq!(reply.status, 200, "{url} {reply:?}");
            assert_eq!(reply.json()["url"], public);
            let call = sfu.calls().pop().unwrap();
            let path = format!("{prefix}/twirp/livekit.RoomService/CreateRoom");
            assert_eq!(call.request.target, path, "{url}");
        }
    }
}
