//! A meeting begins: the users of one homeserver that nobody listed ask all at once.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use crate::client::Reply;
use crate::homeserver::{Behaviour, Homeserver};
use crate::sfu::SfuBehavior;
use crate::stage::{LOOPBACK, Stage};

/// What the homeserver takes for an answer: everybody is there before the first one is served.
const ANSWER: Duration = Duration::from_millis(150);
/// Users of one stranger's server that can be asked about at a time, once it has answered.
const TOGETHER: usize = 16;

#[test]
fn the_users_of_a_stranger_s_homeserver_join_together() {
    let stage = meeting("");
    assert!(stage.sfu.calls().is_empty());
}

/// Then the SFU is called for each of them, which takes a place as well.
#[test]
fn with_full_access_for_everyone_they_join_together_too() {
    let stage = meeting("*");
    assert!(stage.sfu.calls().len() > 2 * TOGETHER);
}

fn meeting(full_access: &str) -> Stage {
    let homeserver = Homeserver::start("127.0.0.1", Behaviour::Slow(ANSWER));
    let stage = Stage::with(homeserver, SfuBehavior::Serves, |settings| {
        settings
            .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", full_access)
            .set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
    });
    let first = stage.get_token(&stage.homeserver.user("first"));
    assert_eq!(first.status, 200, "{first:?}");
    for _ in 0..2 {
        let refused = refused(&stage, TOGETHER);
        assert!(
            refused.is_empty(),
            "{} of {TOGETHER}: {refused:?}",
            refused.len()
        );
    }
    let more = TOGETHER + 4;
    let refused = refused(&stage, more);
    assert!(
        refused.len() <= 4,
        "{} of {more}: {refused:?}",
        refused.len()
    );
    for reply in &refused {
        assert_eq!(reply.verdict(), (429, "M_LIMIT_EXCEEDED".to_owned()));
    }
    stage
}

/// The replies to those of so many users, all asking at once, who got no token.
fn refused(stage: &Stage, users: usize) -> Vec<Reply> {
    let together = Barrier::new(users);
    thread::scope(|scope| {
        let asking: Vec<_> = (0..users)
            .map(|number| {
                let user = stage.homeserver.user(&format!("user{number}"));
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    stage.get_token(&user)
                })
            })
            .collect();
        let replies = asking.into_iter().map(|user| user.join().unwrap());
        replies.filter(|reply| reply.status != 200).collect()
    })
}
