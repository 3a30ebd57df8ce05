//! Connections are kept, answers are remembered for a moment, and a connection that died meanwhile hurts nobody.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::homeserver::{Behaviour, Homeserver};
use crate::sfu::Conduct;
use crate::stage::{LOOPBACK, Stage};

/// Users who ask one after another.
const USERS: usize = 50;

#[test]
fn many_requests_need_few_connections() {
    let stage = Stage::full_access();
    for number in 0..USERS {
        let user = stage.homeserver.user(&format!("user{number}"));
        assert_eq!(stage.get_token(&user).status, 200);
    }
    assert_eq!(stage.homeserver.seen().len(), USERS);
    assert_eq!(stage.sfu.calls().len(), USERS);
    let connections = (stage.homeserver.connections(), stage.sfu.connections());
    assert!(connections.0 <= 2 && connections.1 <= 2, "{connections:?}");
}

#[test]
fn many_requests_at_once_need_no_more_connections_than_requests_at_a_time() {
    let stage = Stage::full_access();
    thread::scope(|scope| {
        for client in 0..4 {
            let stage = &stage;
            scope.spawn(move || {
                for number in 0..USERS / 4 {
                    let user = stage.homeserver.user(&format!("user{client}-{number}"));
                    assert_eq!(stage.get_token(&user).status, 200);
                }
            });
        }
    });
    let connections = (stage.homeserver.connections(), stage.sfu.connections());
    assert!(connections.0 <= 8 && connections.1 <= 8, "{connections:?}");
}

#[test]
fn a_stranger_s_homeserver_is_spared_new_connections_too() {
    let stage = Stage::restricted();
    for number in 0..10 {
        let user = stage.homeserver.user(&format!("user{number}"));
        assert_eq!(stage.get_token(&user).status, 200);
    }
    assert!(stage.homeserver.connections() <= 2);
}

#[test]
fn a_connection_that_the_other_side_closed_is_replaced_without_a_word() {
    let homeserver = Homeserver::start("localhost", Behaviour::ForgetsConnections);
    let name = homeserver.name().to_owned();
    let stage = Stage::with(homeserver, Conduct::ForgetsConnections, |settings| {
        settings.set("LIVEKIT_FULL_ACCESS_HOMESERVERS", name)
    });
    for number in 0..20 {
        let user = stage.homeserver.user(&format!("user{number}"));
        let reply = stage.get_token(&user);
        assert_eq!(reply.status, 200, "{number} {reply:?}");
    }
}

/// Clients ask `/get_token` and `/sfu/get` with one token in a row.
#[test]
fn a_verified_token_is_remembered_for_a_moment() {
    let stage = Stage::full_access();
    let user = stage.homeserver.user("alice");
    for _ in 0..3 {
        assert_eq!(stage.get_token(&user).status, 200);
        assert_eq!(stage.sfu_get(&user).status, 200);
    }
    assert_eq!(stage.homeserver.seen().len(), 1);
}

#[test]
fn what_is_remembered_is_the_answer_of_that_server_for_that_token() {
    let stage = Stage::restricted();
    let other = Homeserver::start("127.0.0.1", Behaviour::Honest);
    let user = stage.homeserver.user("alice");
    assert_eq!(stage.get_token(&user).status, 200);

    let mut mallory = user.clone();
    mallory.id = format!("@mallory:{}", user.server_name);
    assert_eq!(stage.get_token(&mallory).status, 401, "another user id");

    let mut elsewhere = other.stranger("alice");
    elsewhere.token.clone_from(&user.token);
    assert_eq!(stage.get_token(&elsewhere).status, 401, "another server");
    assert_eq!(other.seen().len(), 1);
}

#[test]
fn with_a_cache_of_no_seconds_every_token_is_verified_anew() {
    let stage = Stage::restricted_with(|settings| {
        settings
            .set("LIVEKIT_OPENID_CACHE_SECONDS", "0")
            .set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
    });
    let user = stage.homeserver.user("alice");
    for asked in 1..=3 {
        assert_eq!(stage.get_token(&user).status, 200);
        assert_eq!(stage.homeserver.seen().len(), asked);
    }
}

/// A container was replaced, or a router restarted: nobody closes the connections that were kept, and nobody answers there.
#[test]
fn connections_that_died_silently_are_replaced_and_blame_nobody() {
    let homeserver = Homeserver::start("localhost", Behaviour::Slow(Duration::from_millis(150)));
    let name = homeserver.name().to_owned();
    let stage = Stage::with(homeserver, Conduct::Serves, |settings| {
        settings.set("LIVEKIT_FULL_ACCESS_HOMESERVERS", name)
    });
    all_served(&stage);
    let kept = stage.homeserver.connections();
    assert!(kept > 4, "only {kept} connections were kept");
    stage.homeserver.freeze();
    stage.sfu.freeze();
    all_served(&stage);
    // the others that were kept are not tried any more
    let start = Instant::now();
    all_served(&stage);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    let log = stage.service.log();
    assert!(!log.contains("did not answer lately"), "{log}");
}

/// Ten users ask at once, and each gets a token.
fn all_served(stage: &Stage) {
    let together = Barrier::new(10);
    thread::scope(|scope| {
        for number in 0..10 {
            let (together, user) = (&together, stage.homeserver.user(&format!("user{number}")));
            scope.spawn(move || {
                together.wait();
                let reply = stage.get_token(&user);
                assert_eq!(reply.status, 200, "{reply:?}");
            });
        }
    });
}
