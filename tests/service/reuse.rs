//! Reuse of connections and of OpenID responses, and the replacement of dead connections.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use crate::homeserver::{Behaviour, FakeHomeserver};
use crate::setup::{LOOPBACK, TestSetup};
use crate::sfu::SfuBehaviour;

/// Users who log in one after another.
const USERS: usize = 50;

#[test]
fn sequential_requests_share_connections() {
    let setup = TestSetup::full_access();
    for number in 0..USERS {
        let user = setup.homeserver.user(&format!("user{number}"));
        assert_eq!(setup.get_token(&user).status, 200);
    }
    assert_eq!(setup.homeserver.requests().len(), USERS);
    assert_eq!(setup.sfu.calls().len(), USERS);
    let connections = (setup.homeserver.connections(), setup.sfu.connections());
    assert!(connections.0 <= 2 && connections.1 <= 2, "{connections:?}");
}

#[test]
fn concurrent_requests_need_at_most_one_connection_each() {
    let setup = TestSetup::full_access();
    thread::scope(|scope| {
        for client in 0..4 {
            let setup = &setup;
            scope.spawn(move || {
                for number in 0..USERS / 4 {
                    let user = setup.homeserver.user(&format!("user{client}-{number}"));
                    assert_eq!(setup.get_token(&user).status, 200);
                }
            });
        }
    });
    let connections = (setup.homeserver.connections(), setup.sfu.connections());
    assert!(connections.0 <= 8 && connections.1 <= 8, "{connections:?}");
}

#[test]
fn connections_to_an_unlisted_homeserver_are_reused() {
    let setup = TestSetup::restricted();
    for number in 0..10 {
        let user = setup.homeserver.user(&format!("user{number}"));
        assert_eq!(setup.get_token(&user).status, 200);
    }
    assert!(setup.homeserver.connections() <= 2);
}

#[test]
fn a_connection_closed_by_the_peer_is_replaced_silently() {
    let homeserver = FakeHomeserver::start("localhost", Behaviour::ClosesAfterResponse);
    let name = homeserver.name().to_owned();
    let setup = TestSetup::with(homeserver, SfuBehaviour::ClosesConnections, |settings| {
        settings.set("LIVEKIT_FULL_ACCESS_HOMESERVERS", name)
    });
    for number in 0..20 {
        let user = setup.homeserver.user(&format!("user{number}"));
        let reply = setup.get_token(&user);
        assert_eq!(reply.status, 200, "{number} {reply:?}");
    }
}

/// Clients send one OpenID token to `/get_token` and then to `/sfu/get`.
#[test]
fn the_response_about_an_openid_token_is_cached() {
    let setup = TestSetup::full_access();
    let user = setup.homeserver.user("alice");
    for _ in 0..3 {
        assert_eq!(setup.get_token(&user).status, 200);
        assert_eq!(setup.sfu_get(&user).status, 200);
    }
    assert_eq!(setup.homeserver.requests().len(), 1);
}

#[test]
fn the_openid_cache_is_keyed_by_server_and_token() {
    let setup = TestSetup::restricted();
    let other = FakeHomeserver::start("127.0.0.1", Behaviour::Correct);
    let user = setup.homeserver.user("alice");
    assert_eq!(setup.get_token(&user).status, 200);

    let mut mallory = user.clone();
    mallory.id = format!("@mallory:{}", user.server_name);
    assert_eq!(setup.get_token(&mallory).status, 401, "another user id");

    let mut same_token = other.user_with_unknown_token("alice");
    same_token.token.clone_from(&user.token);
    assert_eq!(setup.get_token(&same_token).status, 401, "another server");
    assert_eq!(other.requests().len(), 1);
}

#[test]
fn with_a_cache_of_0_seconds_every_openid_token_is_verified() {
    let setup = TestSetup::restricted_with(|settings| {
        settings
            .set("LIVEKIT_OPENID_CACHE_SECONDS", "0")
            .set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
    });
    let user = setup.homeserver.user("alice");
    for count in 1..=3 {
        assert_eq!(setup.get_token(&user).status, 200);
        assert_eq!(setup.homeserver.requests().len(), count);
    }
}

/// As after the replacement of a container or the restart of a router: idle connections are neither closed nor served.
#[test]
fn silently_dead_connections_are_replaced_and_open_no_circuit_breaker() {
    let homeserver =
        FakeHomeserver::start("localhost", Behaviour::Slow(Duration::from_millis(150)));
    let name = homeserver.name().to_owned();
    let setup = TestSetup::with(homeserver, SfuBehaviour::Serves, |settings| {
        settings.set("LIVEKIT_FULL_ACCESS_HOMESERVERS", name)
    });
    serve_ten_users(&setup);
    let idle = setup.homeserver.connections();
    assert!(idle > 4, "only {idle} connections are idle");
    setup.homeserver.freeze_connections();
    setup.sfu.freeze();
    serve_ten_users(&setup);
    // no dead connection is left in the pool: each login is one request to either server
    let requests = || (setup.homeserver.requests().len(), setup.sfu.calls().len());
    let before = requests();
    serve_ten_users(&setup);
    assert_eq!(requests(), (before.0 + 10, before.1 + 10));
    let log = setup.service.log();
    assert!(!log.contains("circuit breaker open"), "{log}");
}

/// Asserts that ten users who log in at once get a token each.
fn serve_ten_users(setup: &TestSetup) {
    let start = Barrier::new(10);
    thread::scope(|scope| {
        for number in 0..10 {
            let (start, user) = (&start, setup.homeserver.user(&format!("user{number}")));
            scope.spawn(move || {
                start.wait();
                let reply = setup.get_token(&user);
                assert_eq!(reply.status, 200, "{reply:?}");
            });
        }
    });
}
