//! Leaves outlive the service. Crashes at random moments, and Redis, are tried in `tests/e2e`.

use std::fs;

use crate::call::CallStage;
use crate::delayed::Delayed;
use crate::process::Service;
use crate::settings::Settings;

const LONG: u64 = 3_600_000;

/// Calls whose leaves are kept in a directory, and what a service needs to find them again.
fn kept() -> (CallStage, Settings) {
    let mut again = None;
    let calls = CallStage::start_with(Delayed::start(), |settings| {
        let directory = settings.path("state");
        fs::create_dir(&directory).unwrap();
        let settings = settings.set("LIVEKIT_STATE_DIR", directory.to_str().unwrap());
        again = Some(settings.clone());
        settings
    });
    (calls, again.unwrap())
}

/// Ends the service as a crash does, and starts another.
fn crash(calls: &mut CallStage, settings: &Settings) {
    calls.stage.service.kill();
    calls.stage.service = Service::start(settings);
}

#[test]
fn a_leave_goes_on_where_it_stood() {
    let (mut calls, settings) = kept();
    let (alice, bob) = (calls.new_member(), calls.new_member());
    for (caller, id) in [(&alice, "syd_a"), (&bob, "syd_b")] {
        calls.join(caller, id, 6_000);
        calls.send_webhook("participant_joined", caller, "PA_1");
        calls
            .sfu()
            .connect(&caller.room_name(), &caller.identity(), Some("PA_1"));
        calls.delayed.wait_for(1, "restart", id);
    }
    let before = calls.delayed.actions("syd_b").len();
    calls
        .sfu()
        .connect(&alice.room_name(), &alice.identity(), None);
    crash(&mut calls, &settings);
    // she has left meanwhile, and nobody told us
    calls.delayed.wait_for(1, "send", "syd_a");
    calls.delayed.wait_for(before + 1, "restart", "syd_b");
    calls.send_webhook("participant_left", &bob, "PA_1");
    calls.delayed.wait_for(1, "send", "syd_b");
    calls.service().wait_for_words(&["adopted", "leave="]);
}

#[test]
fn a_leave_that_was_sent_is_forgotten() {
    let (mut calls, settings) = kept();
    let alice = calls.new_member();
    calls.join(&alice, "syd_1", LONG);
    calls.send_webhook("participant_joined", &alice, "PA_1");
    calls.send_webhook("participant_left", &alice, "PA_1");
    calls.service().wait_for_log("leave sent");
    crash(&mut calls, &settings);
    let bob = calls.new_member();
    calls.join(&bob, "syd_2", 1_000);
    calls.delayed.wait_for(1, "send", "syd_2");
    let sent = calls.delayed.calls();
    let sent = sent
        .iter()
        .filter(|call| call.action == "send" && call.id == "syd_1");
    assert_eq!(
        sent.filter(|call| call.status.starts_with("200")).count(),
        1
    );
}

#[test]
fn a_leave_that_cannot_be_stored_is_not_taken_on() {
    let calls = CallStage::start_with(Delayed::start(), |settings| {
        let directory = settings.path("state");
        // where the file should be
        fs::create_dir_all(directory.join("leaves.redb")).unwrap();
        settings.set("LIVEKIT_STATE_DIR", directory.to_str().unwrap())
    });
    let service = calls.service();
    assert_eq!(service.request("GET", "/readyz").status, 503);
    assert_eq!(service.request("GET", "/healthz").status, 200);
    let alice = calls.new_member();
    let reply = calls.delegate(&alice, "syd_1", LONG);
    assert_eq!(reply.verdict(), (503, "M_UNKNOWN".to_owned()));
    assert!(reply.header("retry-after").is_some());
    let body = alice.body("syd_1", LONG.into());
    let reply = service.post("/get_token", &body);
    assert_eq!(reply.verdict(), (400, "M_BAD_JSON".to_owned()));
    let reply = service.post("/get_token", &alice.user.get_token());
    assert_eq!(reply.status, 200);
}

#[test]
fn who_has_a_place_for_leaves_is_ready() {
    let (calls, _) = kept();
    assert_eq!(calls.service().request("GET", "/readyz").status, 200);
    assert_eq!(calls.service().request("HEAD", "/readyz").status, 200);
}
