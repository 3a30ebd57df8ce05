//! Guests outlive the service: what their tokens carry tells another one, or the same after a restart, who they are.

use serde_json::{Value, json};

use crate::appservice_homeserver::{AS_TOKEN, Beside, ROOM, says, wait_until};
use crate::call::post_webhook;
use crate::jwt;
use crate::process::Service;
use crate::settings::SECRET;

const ALICE: &str = "@alice:own.example";
const CHECK: &str = "LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS";

/// With these seconds from one look to the next.
fn looking(every: &str) -> Beside {
    Beside::start_with(|settings| settings.set(CHECK, every))
}

/// The claims of a token of alice's, as member `member`.
fn token(beside: &Beside, member: &str) -> Value {
    let mut place = beside.place();
    place["member_id"] = member.into();
    jwt::claims(&beside.for_alice(&place).jwt(), SECRET)
}

fn restart(beside: &mut Beside) {
    beside.service.kill();
    beside.service = Service::start(&beside.settings);
}

fn are_in_the_room(beside: &Beside, joined: bool) {
    beside.memberships(says("200 OK", &json!({ "joined": joined })));
}

/// Has the SFU tell that whoever holds a token of these claims has joined.
fn tell_joined(service: &Service, id: &str, claims: &Value) {
    let joined = json!({
        "event": "participant_joined", "id": id, "createdAt": jwt::now().to_string(),
        "room": { "name": claims["video"]["room"], "sid": "RM_1" },
        "participant": { "sid": "PA_1", "identity": claims["sub"], "attributes": claims["attributes"], "state": "ACTIVE" },
    });
    let reply = post_webhook(service, joined.to_string().as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[test]
fn whoever_is_banned_while_nobody_looks_is_found_after_the_restart() {
    let mut beside = looking("1");
    let alice = beside.sfu.enter(&token(&beside, "m"));
    beside.service.kill();
    are_in_the_room(&beside, false);
    beside.service = Service::start(&beside.settings);
    assert_eq!(beside.sfu.wait_for_removals(1), [alice]);
    beside
        .service
        .wait_for_words(&["participant removed", ALICE, ROOM]);
}

#[test]
fn whoever_is_banned_after_the_restart_is_removed_though_no_webhook_came() {
    let mut beside = looking("1");
    let alice = beside.sfu.enter(&token(&beside, "m"));
    restart(&mut beside);
    let before = beside.memberships_asked();
    wait_until(|| beside.memberships_asked() >= before + 2, "nobody looks");
    are_in_the_room(&beside, false);
    assert_eq!(beside.sfu.wait_for_removals(1)[0], alice);
}

#[test]
fn whoever_comes_with_a_token_from_before_the_restart_is_looked_at_at_once() {
    let mut beside = looking("3600");
    let claims = token(&beside, "m");
    // nobody is found by the way
    beside.sfu.keep_lists(true);
    restart(&mut beside);
    are_in_the_room(&beside, false);
    let alice = beside.sfu.enter(&claims);
    tell_joined(&beside.service, "EV_1", &claims);
    assert_eq!(beside.sfu.wait_for_removals(1), [alice]);
}

#[test]
fn another_service_looks_at_whom_it_has_not_let_in() {
    let beside = looking("3600");
    beside.sfu.keep_lists(true);
    let other = Service::start(&beside.settings);
    let claims = token(&beside, "m");
    let alice = beside.sfu.enter(&claims);
    are_in_the_room(&beside, false);
    tell_joined(&other, "EV_1", &claims);
    assert_eq!(beside.sfu.wait_for_removals(1)[0], alice);
    // both may find that out, and the second one finds nobody there
    tell_joined(&beside.service, "EV_1", &claims);
    assert_eq!(beside.sfu.wait_for_removals(2)[1], alice);
    beside
        .service
        .wait_for_words(&["participant removed", ALICE]);
    assert!(!beside.service.log().contains("participant removal failed"));
}

#[test]
fn nothing_is_made_of_what_somebody_else_has_written_there() {
    let mut beside = looking("1");
    let (alice, other) = (token(&beside, "m"), token(&beside, "other"));
    beside.service.kill();
    are_in_the_room(&beside, false);
    let name = alice["attributes"]
        .as_object()
        .unwrap()
        .keys()
        .next()
        .unwrap();
    let seal = alice["attributes"][name].as_str().unwrap();
    let changed = format!("{}{}", &seal[1..], &seal[..1]);
    let mut forged = Vec::new();
    let (long, longest) = ("A".repeat(720), "A".repeat(8_000));
    let texts = [seal, &changed, "A", "", &long, &longest, "\u{e9}"];
    for (number, text) in texts.into_iter().enumerate() {
        // of others: those of a standalone service, of other rooms, of whoever may write attributes
        let mut claims = alice.clone();
        claims["sub"] = format!("stranger{number}").into();
        claims["attributes"][name] = text.into();
        forged.push(claims);
    }
    let mut elsewhere = alice.clone();
    elsewhere["video"]["room"] = jwt::hash(&["!other:own.example", "m.call#ROOM"]).into();
    forged.push(elsewhere);
    for claims in &forged {
        beside.sfu.enter(claims);
    }
    let known = beside.sfu.enter(&other);
    let before = beside.memberships_asked();
    beside.service = Service::start(&beside.settings);
    assert_eq!(beside.sfu.wait_for_removals(1)[0], known);
    for (number, claims) in forged.iter().enumerate() {
        tell_joined(&beside.service, &format!("EV_{number}"), claims);
    }
    // whoever came before her is looked at before her
    for times in 2..=4 {
        beside.sfu.enter(&other);
        tell_joined(&beside.service, &format!("EV_known{times}"), &other);
        let removals = beside.sfu.wait_for_removals(times);
        assert!(removals.iter().all(|who| *who == known), "{removals:?}");
    }
    assert!(beside.memberships_asked() >= before + 4);
}

#[test]
fn an_sfu_that_is_not_there_yet_is_asked_again() {
    let mut beside = looking("1");
    let alice = beside.sfu.enter(&token(&beside, "m"));
    beside.service.kill();
    beside.sfu.keep_lists(true);
    are_in_the_room(&beside, false);
    beside.service = Service::start(&beside.settings);
    beside
        .service
        .wait_for_log("reconciliation with the SFU failed");
    beside.sfu.wait_for_lists(3);
    let log = beside.service.log();
    assert_eq!(
        log.matches("reconciliation with the SFU failed").count(),
        1,
        "{log}"
    );
    beside.sfu.keep_lists(false);
    assert_eq!(beside.sfu.wait_for_removals(1), [alice]);
}

#[test]
fn nobody_reads_in_a_token_whose_it_is() {
    let beside = looking("3600");
    let (first, second) = (token(&beside, "m"), token(&beside, "m"));
    assert_ne!(first["attributes"], second["attributes"]);
    for claims in [first, second] {
        let carried = claims["attributes"].as_object().unwrap();
        let lengths = carried.values().map(|value| value.as_str().unwrap().len());
        assert!(lengths.eq([208]), "one, whoever it is");
        assert_ne!(claims["video"]["canUpdateOwnMetadata"], true);
        let shown = claims.to_string();
        for word in ["alice", "own.example", AS_TOKEN] {
            assert!(!shown.contains(word), "{shown}");
        }
    }
}
