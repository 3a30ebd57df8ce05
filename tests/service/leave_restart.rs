//! Leaves survive a restart of the service. `tests/e2e` tests crashes at random moments, and Redis.

use std::fs;

use crate::call::CallSetup;
use crate::fake_delayed_events::FakeDelayedEvents;

/// A delay in milliseconds that does not end during a test.
const LONG: u64 = 3_600_000;

fn with_file_store() -> CallSetup {
    CallSetup::start_with(FakeDelayedEvents::start(), |settings| {
        let directory = settings.path("state");
        fs::create_dir(&directory).unwrap();
        settings.set("LIVEKIT_STATE_DIR", directory.to_str().unwrap())
    })
}

/// Kills the service, and starts another.
fn crash(setup: &mut CallSetup) {
    setup.setup.service.kill();
    setup.setup.service = setup.setup.service.restart();
}

#[test]
fn a_leave_continues_after_a_crash() {
    let mut setup = with_file_store();
    let (alice, bob) = (setup.new_member(), setup.new_member());
    for (member, id) in [(&alice, "syd_a"), (&bob, "syd_b")] {
        setup.join(member, id, 6_000);
        setup.send_webhook("participant_joined", member, "PA_1");
        setup
            .sfu()
            .set_connection(&member.room_name(), &member.identity(), Some("PA_1"));
        setup.delayed.wait_for(1, "restart", id);
    }
    let before = setup.delayed.actions("syd_b").len();
    setup
        .sfu()
        .set_connection(&alice.room_name(), &alice.identity(), None);
    crash(&mut setup);
    // alice left while no service was running
    setup.delayed.wait_for(1, "send", "syd_a");
    setup.delayed.wait_for(before + 1, "restart", "syd_b");
    setup.send_webhook("participant_left", &bob, "PA_1");
    setup.delayed.wait_for(1, "send", "syd_b");
    setup.service().wait_for_line_with(&["adopted", "leave="]);
}

#[test]
fn a_leave_is_not_sent_again_after_a_crash() {
    let mut setup = with_file_store();
    let alice = setup.new_member();
    setup.join(&alice, "syd_1", LONG);
    setup.send_webhook("participant_joined", &alice, "PA_1");
    setup.send_webhook("participant_left", &alice, "PA_1");
    setup.service().wait_for_log("leave sent");
    crash(&mut setup);
    let bob = setup.new_member();
    setup.join(&bob, "syd_2", 1_000);
    setup.delayed.wait_for(1, "send", "syd_2");
    assert_eq!(setup.delayed.times_sent("syd_1"), 1);
}

#[test]
fn a_leave_that_cannot_be_stored_is_refused() {
    let setup = CallSetup::start_with(FakeDelayedEvents::start(), |settings| {
        let directory = settings.path("state");
        // a directory instead of the file
        fs::create_dir_all(directory.join("leaves.redb")).unwrap();
        settings.set("LIVEKIT_STATE_DIR", directory.to_str().unwrap())
    });
    let service = setup.service();
    assert_eq!(service.request("GET", "/readyz").status, 503);
    assert_eq!(service.request("GET", "/healthz").status, 200);
    let alice = setup.new_member();
    let reply = setup.delegate(&alice, "syd_1", LONG);
    assert_eq!(reply.status_and_errcode(), (503, "M_UNKNOWN".to_owned()));
    assert!(reply.header("retry-after").is_some());
    let body = alice.body("syd_1", LONG.into());
    let reply = service.post("/get_token", &body);
    assert_eq!(reply.status_and_errcode(), (400, "M_BAD_JSON".to_owned()));
    let reply = service.post("/get_token", &alice.user.get_token());
    assert_eq!(reply.status, 200);
}

#[test]
fn a_service_with_a_file_store_is_ready() {
    let setup = with_file_store();
    assert_eq!(setup.service().request("GET", "/readyz").status, 200);
    assert_eq!(setup.service().request("HEAD", "/readyz").status, 200);
}
