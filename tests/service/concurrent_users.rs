//! Many users of one unlisted homeserver request tokens at once, as at the start of a call.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use crate::client::Reply;
use crate::homeserver::{Behaviour, FakeHomeserver};
use crate::setup::{LOOPBACK, TestSetup};
use crate::sfu::SfuBehaviour;

/// Response time of the homeserver: all requests arrive before the first response.
const RESPONSE_TIME: Duration = Duration::from_millis(150);
/// Concurrent calls to an unlisted homeserver that has answered lately.
const MAX_CALLS: usize = 16;

#[test]
fn the_users_of_an_unlisted_homeserver_join_together() {
    let setup = request_concurrently("");
    assert!(setup.sfu.calls().is_empty());
}

/// The calls to the SFU, one for each user, need permits as well.
#[test]
fn users_with_full_access_join_together() {
    let setup = request_concurrently("*");
    assert!(setup.sfu.calls().len() > 2 * MAX_CALLS);
}

fn request_concurrently(full_access: &str) -> TestSetup {
    let homeserver = FakeHomeserver::start("127.0.0.1", Behaviour::Slow(RESPONSE_TIME));
    let setup = TestSetup::with(homeserver, SfuBehaviour::Serves, |settings| {
        settings
            .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", full_access)
            .set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
    });
    let first = setup.get_token(&setup.homeserver.user("first"));
    assert_eq!(first.status, 200, "{first:?}");
    for _ in 0..2 {
        let refused = refused(&setup, MAX_CALLS);
        assert!(
            refused.is_empty(),
            "{} of {MAX_CALLS}: {refused:?}",
            refused.len()
        );
    }
    let more = MAX_CALLS + 4;
    let refused = refused(&setup, more);
    assert!(
        refused.len() <= 4,
        "{} of {more}: {refused:?}",
        refused.len()
    );
    for reply in &refused {
        assert_eq!(
            reply.status_and_errcode(),
            (429, "M_LIMIT_EXCEEDED".to_owned())
        );
    }
    setup
}

/// The replies other than 200 to this number of concurrent requests.
fn refused(setup: &TestSetup, users: usize) -> Vec<Reply> {
    let barrier = Barrier::new(users);
    thread::scope(|scope| {
        let requests: Vec<_> = (0..users)
            .map(|number| {
                let user = setup.homeserver.user(&format!("user{number}"));
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    setup.get_token(&user)
                })
            })
            .collect();
        let replies = requests.into_iter().map(|request| request.join().unwrap());
        replies.filter(|reply| reply.status != 200).collect()
    })
}
