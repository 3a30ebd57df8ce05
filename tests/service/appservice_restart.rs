//! Sealed attributes: after a restart, and in another replica, the service recognises participants by their access tokens.

use serde_json::Value;

use crate::appservice_setup::{AS_TOKEN, AppServiceSetup, ROOM, send_joined, wait_until};
use crate::jwt;
use crate::process::Service;
use crate::settings::SECRET;

const ALICE: &str = "@alice:own.example";

fn start_with_check_interval(seconds: &str) -> AppServiceSetup {
    AppServiceSetup::start_with(|settings| {
        settings.set("LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS", seconds)
    })
}

/// The claims of an access token for one of alice's member ids.
fn token_claims(setup: &AppServiceSetup, member: &str) -> Value {
    let mut body = setup.token_request();
    body["member_id"] = member.into();
    jwt::claims(&setup.request_as_alice(&body).jwt(), SECRET)
}

fn restart(setup: &mut AppServiceSetup) {
    setup.service.kill();
    setup.service = Service::start(&setup.settings);
}

/// Sends the webhook of a participant who has joined with a token of these claims.
fn send_joined_with(service: &Service, id: &str, claims: &Value) {
    let room = claims["video"]["room"].as_str().unwrap();
    let identity = claims["sub"].as_str().unwrap();
    send_joined(service, id, room, identity, &claims["attributes"]);
}

#[test]
fn a_user_banned_while_the_service_is_down_is_removed_after_the_restart() {
    let mut setup = start_with_check_interval("1");
    let alice = setup.sfu.connect_participant(&token_claims(&setup, "m"));
    setup.service.kill();
    setup.set_joined(false);
    setup.service = Service::start(&setup.settings);
    assert_eq!(setup.sfu.wait_for_removals(1), [alice]);
    setup
        .service
        .wait_for_line_with(&["participant removed", ALICE, ROOM]);
}

#[test]
fn a_user_banned_after_the_restart_is_removed_without_a_webhook() {
    let mut setup = start_with_check_interval("1");
    let alice = setup.sfu.connect_participant(&token_claims(&setup, "m"));
    restart(&mut setup);
    let before = setup.membership_calls();
    wait_until(|| setup.membership_calls() >= before + 2, "two checks");
    setup.set_joined(false);
    assert_eq!(setup.sfu.wait_for_removals(1)[0], alice);
}

#[test]
fn a_token_from_before_the_restart_is_checked_on_joining() {
    let mut setup = start_with_check_interval("3600");
    let claims = token_claims(&setup, "m");
    // without reconciliation
    setup.sfu.refuse_lists(true);
    restart(&mut setup);
    setup.set_joined(false);
    let alice = setup.sfu.connect_participant(&claims);
    send_joined_with(&setup.service, "EV_1", &claims);
    assert_eq!(setup.sfu.wait_for_removals(1), [alice]);
}

#[test]
fn another_replica_checks_a_participant_whose_token_it_has_not_issued() {
    let setup = start_with_check_interval("3600");
    setup.sfu.refuse_lists(true);
    let replica = Service::start(&setup.settings);
    let claims = token_claims(&setup, "m");
    let alice = setup.sfu.connect_participant(&claims);
    setup.set_joined(false);
    send_joined_with(&replica, "EV_1", &claims);
    assert_eq!(setup.sfu.wait_for_removals(1)[0], alice);
    // both replicas remove the participant, who is absent the second time
    send_joined_with(&setup.service, "EV_1", &claims);
    assert_eq!(setup.sfu.wait_for_removals(2)[1], alice);
    setup
        .service
        .wait_for_line_with(&["participant removed", ALICE]);
    assert!(!setup.service.log().contains("participant removal failed"));
}

#[test]
fn forged_and_copied_attributes_cause_no_removal() {
    let mut setup = start_with_check_interval("1");
    let (alice, other) = (token_claims(&setup, "m"), token_claims(&setup, "other"));
    setup.service.kill();
    setup.set_joined(false);
    let name = alice["attributes"]
        .as_object()
        .unwrap()
        .keys()
        .next()
        .unwrap();
    let sealed = alice["attributes"][name].as_str().unwrap();
    let changed = format!("{}{}", &sealed[1..], &sealed[..1]);
    let mut forged = Vec::new();
    let (long, too_long) = ("A".repeat(720), "A".repeat(8_000));
    let texts = [sealed, &changed, "A", "", &long, &too_long, "\u{e9}"];
    for (number, text) in texts.into_iter().enumerate() {
        // participants of other applications, or who may change their own attributes
        let mut claims = alice.clone();
        claims["sub"] = format!("unknown{number}").into();
        claims["attributes"][name] = text.into();
        forged.push(claims);
    }
    let mut other_room = alice.clone();
    other_room["video"]["room"] = jwt::hash(&["!other:own.example", "m.call#ROOM"]).into();
    forged.push(other_room);
    for claims in &forged {
        setup.sfu.connect_participant(claims);
    }
    let authentic = setup.sfu.connect_participant(&other);
    let before = setup.membership_calls();
    setup.service = Service::start(&setup.settings);
    assert_eq!(setup.sfu.wait_for_removals(1)[0], authentic);
    for (number, claims) in forged.iter().enumerate() {
        send_joined_with(&setup.service, &format!("EV_{number}"), claims);
    }
    // joining participants are checked in their order: a forged one would be removed before these
    for times in 2..=4 {
        setup.sfu.connect_participant(&other);
        send_joined_with(&setup.service, &format!("EV_authentic{times}"), &other);
        let removals = setup.sfu.wait_for_removals(times);
        assert!(
            removals.iter().all(|names| *names == authentic),
            "{removals:?}"
        );
    }
    assert!(setup.membership_calls() >= before + 4);
}

#[test]
fn reconciliation_is_repeated_until_the_sfu_responds() {
    let mut setup = start_with_check_interval("1");
    let alice = setup.sfu.connect_participant(&token_claims(&setup, "m"));
    setup.service.kill();
    setup.sfu.refuse_lists(true);
    setup.set_joined(false);
    setup.service = Service::start(&setup.settings);
    let event = "reconciliation with the SFU failed";
    setup.service.wait_for_log(event);
    setup.sfu.wait_for_lists(3);
    let log = setup.service.log();
    assert_eq!(log.matches(event).count(), 1, "{log}");
    setup.sfu.refuse_lists(false);
    assert_eq!(setup.sfu.wait_for_removals(1), [alice]);
}

#[test]
fn an_access_token_does_not_reveal_its_matrix_user() {
    let setup = start_with_check_interval("3600");
    let (first, second) = (token_claims(&setup, "m"), token_claims(&setup, "m"));
    assert_ne!(first["attributes"], second["attributes"]);
    for claims in [first, second] {
        let attributes = claims["attributes"].as_object().unwrap();
        let lengths = attributes
            .values()
            .map(|value| value.as_str().unwrap().len());
        assert!(lengths.eq([208]), "one attribute, of a padded length");
        assert_ne!(claims["video"]["canUpdateOwnMetadata"], true);
        let text = claims.to_string();
        for word in ["alice", "own.example", AS_TOKEN] {
            assert!(!text.contains(word), "{text}");
        }
    }
}
