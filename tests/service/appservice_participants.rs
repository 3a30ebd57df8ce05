//! Quotas and rate limits of participants, and what happens to them while the homeserver fails.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::appservice_setup::{
    AppServiceSetup, USER_PATH, hs_token_header, json_response, send_joined, user_header,
    wait_until,
};
use crate::client::Reply;
use crate::jwt;
use crate::metrics::{metrics_of, scrape, value};
use crate::settings::SECRET;
use crate::sfu::{FakeSfu, SfuBehaviour};

/// The service tracks at most this number of participants of one user.
const MAX_PER_USER: usize = 64;
/// Far longer than the requests that exceed a user's rate take.
const DEADLINE: Duration = Duration::from_secs(120);
const CHECK_INTERVAL: &str = "LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS";

fn request_token(setup: &AppServiceSetup, member: usize) -> Reply {
    let mut body = setup.token_request();
    body["member_id"] = format!("m{member}").into();
    setup.request_as_alice(&body)
}

/// Gets an access token for one of alice's member ids. Returns LiveKit room and identity.
pub(crate) fn get_token(setup: &AppServiceSetup, member: usize) -> [String; 2] {
    let claims = jwt::claims(&request_token(setup, member).jwt(), SECRET);
    let names = [&claims["video"]["room"], &claims["sub"]];
    names.map(|name| name.as_str().unwrap().to_owned())
}

/// Connects a participant to the SFU, which sends its webhook.
pub(crate) fn join(setup: &AppServiceSetup, [room, identity]: &[String; 2]) {
    setup.sfu.set_connection(room, identity, Some("PA_1"));
    let id = format!("EV_{identity}");
    send_joined(&setup.service, &id, room, identity, &Value::Null);
}

fn fail_memberships(setup: &AppServiceSetup) {
    setup.set_membership_response(json_response("500 Internal Server Error", &json!({})));
}

#[test]
fn unused_tokens_do_not_use_up_the_quota() {
    let setup = AppServiceSetup::start_with(|s| s.set("LIVEKIT_TOKEN_LIFETIME_SECONDS", "86400"));
    for member in 0..MAX_PER_USER + 3 {
        assert_eq!(request_token(&setup, member).status, 200, "member {member}");
    }
}

#[test]
fn the_token_rate_of_a_user_is_limited_and_other_users_are_not_affected() {
    let setup = AppServiceSetup::start();
    let start = Instant::now();
    let refused = loop {
        assert!(start.elapsed() < DEADLINE, "no request was refused");
        match request_token(&setup, 0) {
            reply if reply.status == 200 => {}
            reply => break reply,
        }
    };
    assert_eq!(
        refused.status_and_errcode(),
        (429, "M_LIMIT_EXCEEDED".into())
    );
    assert_eq!(refused.header("Retry-After"), Some("1"));
    setup
        .service
        .wait_for_line_with(&["level=warn", "tokens a minute", "@alice:own.example"]);
    let fields = [hs_token_header(), user_header("@bob:own.example")];
    let reply = setup.post(USER_PATH, &fields, &setup.token_request());
    assert_eq!(reply.status, 200);
}

#[test]
fn a_user_with_too_many_connected_participants_is_refused_until_the_next_check() {
    let setup = AppServiceSetup::start_with(|s| s.set(CHECK_INTERVAL, "77"));
    for member in 0..MAX_PER_USER {
        join(&setup, &get_token(&setup, member));
    }
    let refused = request_token(&setup, MAX_PER_USER);
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("retry-after"), Some("77"));
    let cause = "participants of @alice:own.example are connected";
    let line = setup.service.wait_for_log(cause);
    assert!(line.contains("level=warn"), "{line}");
    for _ in 0..50 {
        assert_eq!(request_token(&setup, MAX_PER_USER).status, 429);
    }
    let log = setup.service.log();
    let lines = log.lines().filter(|line| line.contains(cause));
    assert!(lines.count() < 40, "the lines are not throttled");
}

#[test]
fn a_participant_whose_room_is_not_created_is_not_tracked() {
    let broken = FakeSfu::start(SfuBehaviour::Responds("503 Service Unavailable", "{}"));
    let setup = AppServiceSetup::start_with(|s| {
        s.set("LIVEKIT_API_URL", broken.url().replace("ws:", "http:"))
            .set("LIVEKIT_METRICS_BIND", "127.0.0.1:0")
    });
    assert_eq!(request_token(&setup, 0).status, 500);
    let text = scrape(&metrics_of(&setup.service));
    assert!(
        value(&text, "tracked_participants").abs() < f64::EPSILON,
        "{text}"
    );
}

#[test]
fn a_failed_check_of_a_joining_participant_is_repeated_at_once() {
    let setup = AppServiceSetup::start_with(|s| s.set(CHECK_INTERVAL, "3600"));
    let alice = get_token(&setup, 1);
    fail_memberships(&setup);
    let before = setup.membership_calls();
    join(&setup, &alice);
    wait_until(|| setup.membership_calls() >= before + 2, "a second check");
    setup.set_joined(false);
    assert_eq!(setup.sfu.wait_for_removals(1), [alice]);
    setup
        .service
        .wait_for_log("membership checks succeed again");
}

#[test]
fn a_failing_homeserver_is_logged_once_and_counted() {
    let setup = AppServiceSetup::start_with(|s| {
        s.set(CHECK_INTERVAL, "1")
            .set("LIVEKIT_METRICS_BIND", "127.0.0.1:0")
    });
    let metrics = metrics_of(&setup.service);
    let mut participants: Vec<_> = (0..10).map(|member| get_token(&setup, member)).collect();
    participants.iter().for_each(|names| join(&setup, names));
    fail_memberships(&setup);
    let before = setup.membership_calls();
    wait_until(
        || setup.membership_calls() > before + 30,
        "thirty more checks",
    );
    let log = setup.service.log();
    let lines = log.matches("membership check failed").count();
    assert!((1..4).contains(&lines), "{log}");

    setup.set_joined(false);
    let mut removed = setup.sfu.wait_for_removals(participants.len());
    removed.sort();
    participants.sort();
    assert_eq!(removed, participants);
    let event = |name: &str| format!(r#"participant_events_total{{event="{name}"}}"#);
    wait_until(
        || value(&scrape(&metrics), &event("removed")) > 9.5,
        "the count of removals",
    );
    let text = scrape(&metrics);
    assert!(value(&text, &event("check_failed")) > 29.5);
    assert!(value(&text, "tracked_participants") > 9.5);
    assert!(value(&text, "participant_check_lag_seconds") < 30.0);
}
