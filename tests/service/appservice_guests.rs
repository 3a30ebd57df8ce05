//! Nobody keeps others out by asking for more tokens than they use, and nobody stays in a call because a look failed.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::appservice_homeserver::{Beside, USER_PATH, bearer, of_user, says, wait_until};
use crate::call::post_webhook;
use crate::client::Reply;
use crate::jwt;
use crate::metrics::{metrics_of, scrape, value};
use crate::settings::SECRET;
use crate::sfu::{Conduct, Sfu};

/// The service keeps as many tokens of one user in mind.
const PER_USER: usize = 64;
/// Far longer than it takes to ask for more tokens than a user gets.
const PATIENCE: Duration = Duration::from_secs(120);
const CHECK: &str = "LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS";

fn ask_as(beside: &Beside, member: usize) -> Reply {
    let mut place = beside.place();
    place["member_id"] = format!("m{member}").into();
    beside.for_alice(&place)
}

/// Alice's LiveKit room and identity as one of her members, for which she gets a token.
pub(crate) fn named(beside: &Beside, member: usize) -> [String; 2] {
    let claims = jwt::claims(&ask_as(beside, member).jwt(), SECRET);
    let names = [&claims["video"]["room"], &claims["sub"]];
    names.map(|name| name.as_str().unwrap().to_owned())
}

/// Has somebody come into the call, and the SFU tell of it.
pub(crate) fn come(beside: &Beside, names: &[String; 2]) {
    beside.sfu.connect(&names[0], &names[1], Some("PA_1"));
    let joined = json!({
        "event": "participant_joined", "id": format!("EV_{}", names[1]), "createdAt": jwt::now().to_string(),
        "room": { "name": names[0], "sid": "RM_1" },
        "participant": { "sid": "PA_1", "identity": names[1], "state": "ACTIVE" },
    });
    let told = post_webhook(&beside.service, joined.to_string().as_bytes());
    assert_eq!(told.status, 200);
}

fn memberships_fail(beside: &Beside) {
    beside.memberships(says("500 Internal Server Error", &json!({})));
}

#[test]
fn a_token_that_was_never_used_takes_nobodys_place() {
    let beside = Beside::start_with(|s| s.set("LIVEKIT_TOKEN_LIFETIME_SECONDS", "86400"));
    for member in 0..PER_USER + 3 {
        assert_eq!(ask_as(&beside, member).status, 200, "member {member}");
    }
}

#[test]
fn a_user_who_asks_for_tokens_all_the_time_has_to_wait_and_nobody_else_has() {
    let beside = Beside::start();
    let begin = Instant::now();
    let refused = loop {
        assert!(begin.elapsed() < PATIENCE, "nobody counts");
        match ask_as(&beside, 0) {
            reply if reply.status == 200 => {}
            reply => break reply,
        }
    };
    assert_eq!(refused.verdict(), (429, "M_LIMIT_EXCEEDED".into()));
    assert_eq!(refused.header("Retry-After"), Some("1"));
    beside
        .service
        .wait_for_words(&["level=warn", "tokens a minute", "@alice:own.example"]);
    let fields = [bearer(), of_user("@bob:own.example")];
    assert_eq!(beside.post(USER_PATH, &fields, &beside.place()).status, 200);
}

#[test]
fn a_user_who_is_in_calls_too_often_is_told_when_to_come_again() {
    let beside = Beside::start_with(|s| s.set(CHECK, "77"));
    for member in 0..PER_USER {
        come(&beside, &named(&beside, member));
    }
    let refused = ask_as(&beside, PER_USER);
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("retry-after"), Some("77"));
    let line = beside
        .service
        .wait_for_log("participants of @alice:own.example are connected");
    assert!(line.contains("level=warn"), "{line}");
    for _ in 0..50 {
        assert_eq!(ask_as(&beside, PER_USER).status, 429);
    }
    let log = beside.service.log();
    let lines = log.lines().filter(|line| line.contains("are connected"));
    assert!(lines.count() < 40, "a line for each of them");
}

#[test]
fn whoever_gets_no_room_takes_no_place() {
    let broken = Sfu::start(Conduct::Says("503 Service Unavailable", "{}"));
    let beside = Beside::start_with(|s| {
        s.set("LIVEKIT_API_URL", broken.url().replace("ws:", "http:"))
            .set("LIVEKIT_METRICS_BIND", "127.0.0.1:0")
    });
    assert_eq!(ask_as(&beside, 0).status, 500);
    let text = scrape(&metrics_of(&beside.service));
    assert!(
        value(&text, "tracked_participants").abs() < f64::EPSILON,
        "{text}"
    );
}

#[test]
fn a_look_that_fails_when_somebody_comes_is_repeated_at_once() {
    let beside = Beside::start_with(|s| s.set(CHECK, "3600"));
    let alice = named(&beside, 1);
    memberships_fail(&beside);
    let before = beside.memberships_asked();
    come(&beside, &alice);
    wait_until(
        || beside.memberships_asked() >= before + 2,
        "nobody tries again",
    );
    beside.memberships(says("200 OK", &json!({ "joined": false })));
    assert_eq!(beside.sfu.wait_for_removals(1), [alice]);
    beside
        .service
        .wait_for_log("membership checks succeed again");
}

#[test]
fn a_homeserver_that_fails_is_told_of_once_and_counted() {
    let beside =
        Beside::start_with(|s| s.set(CHECK, "1").set("LIVEKIT_METRICS_BIND", "127.0.0.1:0"));
    let metrics = metrics_of(&beside.service);
    let mut names: Vec<_> = (0..10).map(|member| named(&beside, member)).collect();
    names.iter().for_each(|names| come(&beside, names));
    memberships_fail(&beside);
    let before = beside.memberships_asked();
    wait_until(|| beside.memberships_asked() > before + 30, "nobody looks");
    let log = beside.service.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("membership check failed"));
    assert!((1..4).contains(&lines.count()), "{log}");

    beside.memberships(says("200 OK", &json!({ "joined": false })));
    let mut removed = beside.sfu.wait_for_removals(names.len());
    removed.sort();
    names.sort();
    assert_eq!(removed, names);
    let counted = |text: &str| value(text, r#"participant_events_total{event="removed"}"#) > 9.5;
    wait_until(|| counted(&scrape(&metrics)), "removals are not counted");
    let text = scrape(&metrics);
    assert!(value(&text, r#"participant_events_total{event="check_failed"}"#) > 29.5);
    assert!(
        value(&text, "tracked_participants") > 9.5
            && value(&text, "participant_check_lag_seconds") < 30.0
    );
}
