//! Users and homeservers who mean ill with their delayed events: what they send stays where it belongs, and the leaves of others
//! are kept meanwhile.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::call::{CallMember, CallStage, webhook_authorization, webhook_body};
use crate::client::Reply;
use crate::delayed::{Answer, Delayed};
use crate::homeserver::Homeserver;
use crate::process::Service;
use crate::settings::Settings;
use crate::sfu::{Conduct, Sfu};
use crate::trap::Trap;
use crate::webhook_signature::post;

const HOUR: u64 = 3_600_000;
/// For one leave from its webhook to the homeserver, on a busy machine: less than a hostile server could hold anything for.
const IN_TIME: Duration = Duration::from_secs(15);
/// Leaves of one user.
const PER_USER: usize = 100;
/// What hostile answers may cost, of 10 MB each.
const MEMORY_KB: u64 = 20 * 1024;

#[test]
fn a_delay_id_stays_in_its_segment_of_the_path() {
    let calls = CallStage::start();
    for (id, escaped) in [
        ("syd_AbC-1.~", "syd_AbC-1.~"),
        ("a/send", "a%2Fsend"),
        ("..;/x", "..%3B%2Fx"),
        ("%2e%2e%2fx", "%252e%252e%252fx"),
        ("a?x=1#y", "a%3Fx%3D1%23y"),
        ("a b\\c\"", "a%20b%5Cc%22"),
        ("\u{fc}\u{202e}\u{1f642}", "%C3%BC%E2%80%AE%F0%9F%99%82"),
        ("//", "%2F%2F"),
    ] {
        let alice = calls.new_member();
        calls.join(&alice, id, HOUR);
        calls.send_webhook("participant_joined", &alice, "PA_1");
        calls.delayed.wait_for(1, "restart", escaped);
    }
}

#[test]
fn what_no_homeserver_would_call_a_delay_is_refused_before_anything_is_done() {
    let calls = CallStage::start();
    let alice = calls.new_member();
    let long = "x".repeat(256);
    let ids = [
        json!(""),
        json!("."),
        json!(".."),
        json!("../../v3/logout"),
        json!("x/../../y"),
        json!("..\\y"),
        json!("a\0b"),
        json!("a\r\nX-Evil: 1"),
        json!("\u{7f}"),
        json!(long),
        json!(7),
        json!(true),
        json!(["syd_1"]),
        json!({"$ne": ""}),
    ];
    let timeouts = [
        json!(0),
        json!(-1),
        json!(0.5),
        json!(1e308),
        json!("1e9"),
        json!("0x10"),
        json!(" 5"),
        json!("+5"),
        json!("\u{0661}"),
        json!("99999999999999999999999999999999999"),
        json!(true),
        json!([1000]),
    ];
    let bodies = ids.into_iter().map(|id| (id, json!(HOUR)));
    let bodies = bodies.chain(
        timeouts
            .into_iter()
            .map(|timeout| (json!("syd_1"), timeout)),
    );
    for (id, timeout) in bodies {
        let mut body = alice.body("", timeout.clone());
        body["delay_id"] = id.clone();
        for path in ["/get_token", "/delegate_delayed_leave"] {
            let reply = calls.service().post(path, &body);
            let bad = (400, "M_BAD_JSON".to_owned());
            // too large a number is a long delay, and one as long as is believed is kept
            let believed = timeout.is_string() && timeout.as_str().unwrap().starts_with("99999");
            if believed || timeout == json!(1e308) {
                assert!([200, 400].contains(&reply.status), "{reply:?}");
            } else {
                assert_eq!(reply.verdict(), bad, "{path} {id} {timeout}: {reply:?}");
            }
        }
    }
    assert_eq!(calls.delayed.calls().len(), 0);
}

#[test]
fn a_user_with_thousands_of_leaves_takes_their_own_share() {
    let calls = CallStage::start();
    let refused = (0..PER_USER + 50).filter(|number| {
        let member = format!("flood{number}");
        let mallory = CallMember {
            user: calls.stage.homeserver.user("mallory"),
            member_id: member,
        };
        let reply = calls.delegate(&mallory, &format!("syd_{number}"), HOUR);
        match reply.verdict() {
            (200, _) => assert!(*number < PER_USER, "{number}"),
            (429, errcode) => assert_eq!(errcode, "M_LIMIT_EXCEEDED"),
            _ => panic!("{number}: {reply:?}"),
        }
        reply.status == 429
    });
    assert_eq!(refused.count(), 50);
    let rooms = calls.sfu().calls().len();
    let one_more = calls.member_of("mallory", "one more");
    let body = one_more.body("syd_x", json!(HOUR));
    let reply = calls.service().post("/get_token", &body);
    assert_eq!(reply.verdict(), (400, "M_BAD_JSON".into()));
    // without the leave there is a token, as their client will find out
    let reply = calls.stage.get_token(&one_more.user);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(calls.sfu().calls().len() <= rooms + 2);
    let alice = calls.new_member();
    calls.join(&alice, "syd_alice", HOUR);
    calls.send_webhook("participant_joined", &alice, "PA_1");
    calls.delayed.wait_for(1, "restart", "syd_alice");
}

/// Homeservers, the delayed events of each, and the service that has leaves on all of them.
struct Many {
    servers: Vec<(Homeserver, Delayed)>,
    service: Service,
    _sfu: Sfu,
}

impl Many {
    fn with(delayed: Vec<Delayed>) -> Self {
        let servers = delayed.into_iter().map(|d| (Homeserver::honest(), d));
        let servers: Vec<_> = servers.collect();
        let names = servers.iter().map(|(hs, _)| hs.name().to_owned());
        let urls = servers
            .iter()
            .map(|(hs, delayed)| format!("{}={}", hs.name(), delayed.url()));
        let sfu = Sfu::start(Conduct::Serves);
        let settings = Settings::complete()
            .set("LIVEKIT_URL", sfu.url())
            .set(
                "LIVEKIT_FULL_ACCESS_HOMESERVERS",
                names.collect::<Vec<_>>().join(","),
            )
            .set(
                "LIVEKIT_CS_API_URL_OVERRIDES",
                urls.collect::<Vec<_>>().join(","),
            );
        let service = Service::start(&settings);
        Self {
            servers,
            service,
            _sfu: sfu,
        }
    }

    /// Someone of the `server`th homeserver, whose leave is delegated.
    fn delegated(&self, server: usize, id: &str) -> (CallMember, Reply) {
        let caller = CallMember {
            user: self.servers[server].0.user(&format!("u{id}")),
            member_id: format!("m{id}"),
        };
        let body = caller.body(id, json!(HOUR));
        let reply = self.service.post("/delegate_delayed_leave", &body);
        (caller, reply)
    }

    fn tell(&self, event: &str, caller: &CallMember) {
        let body = webhook_body(event, caller, "PA_1").to_string();
        let fields = format!(
            "Authorization: {}\r\n",
            webhook_authorization(body.as_bytes())
        );
        let reply = post(&self.service, &fields, body.as_bytes());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

fn hostile_answers(trap: &Trap) -> Vec<Answer> {
    let away: &'static str = format!("Location: http://127.0.0.1:{}/\r\n", trap.port()).leak();
    vec![
        Answer::Hangs,
        Answer::Closes,
        Answer::Says("200 OK", "", json!("x".repeat(10_000_000))),
        Answer::Says("302 Found", away, json!({})),
        Answer::Says("307 Temporary Redirect", away, json!({})),
        Answer::Says("429 Wait", "Retry-After: 31536000\r\n", json!({})),
        Answer::Says("429 Wait", "", json!({"retry_after_ms": 1e300})),
        Answer::Says("503 Sorry", "Retry-After: 31536000\r\n", json!({})),
        Answer::Says("999 What", "", json!([])),
        Answer::Says("404 Not Found", "", json!({"errcode": "M_UNRECOGNIZED"})),
    ]
}

#[test]
fn homeservers_that_answer_rubbish_keep_no_other_from_its_leaves() {
    let trap = Trap::on("127.0.0.1");
    let hostile = hostile_answers(&trap);
    let count = hostile.len();
    let mut delayed = vec![Delayed::start()];
    for answer in hostile {
        let bad = Delayed::start();
        bad.always(Some(answer));
        delayed.push(bad);
    }
    // most of them hang: far more than there are places for
    for _ in 0..15 {
        let bad = Delayed::start();
        bad.always(Some(Answer::Hangs));
        delayed.push(bad);
    }
    let many = Many::with(delayed);
    let before = many.service.peak_memory();
    let mut victims = Vec::new();
    for server in 1..many.servers.len() {
        for number in 0..4 {
            let id = format!("syd_{server}_{number}");
            let (caller, reply) = many.delegated(server, &id);
            assert_eq!(reply.status, 200, "{reply:?}");
            many.tell("participant_joined", &caller);
            victims.push(caller);
        }
    }
    for round in 0..10 {
        // in the first half they are restarted, in the second sent
        if round == 5 {
            for caller in &victims {
                many.tell("participant_left", caller);
            }
        }
        let start = Instant::now();
        let id = format!("syd_good_{round}");
        let (alice, reply) = many.delegated(0, &id);
        assert_eq!(reply.status, 200, "{reply:?}");
        let good = &many.servers[0].1;
        many.tell("participant_joined", &alice);
        good.wait_for(1, "restart", &id);
        many.tell("participant_left", &alice);
        good.wait_for(1, "send", &id);
        assert!(start.elapsed() < IN_TIME, "{round}: {:?}", start.elapsed());
    }
    assert_eq!(trap.connections(), 0, "a redirect was followed");
    let cost = many.service.peak_memory() - before;
    assert!(cost < MEMORY_KB, "{cost} kB for {count} kinds of rubbish");
}

#[test]
fn versions_that_are_rubbish_refuse_no_leave_and_a_clear_no_does() {
    let trap = Trap::on("127.0.0.1");
    let mut versions = hostile_answers(&trap);
    versions.push(Answer::Says(
        "200 OK",
        "",
        json!({"unstable_features": null}),
    ));
    versions.push(Answer::Says("200 OK", "", Value::Null));
    let no = json!({"versions": [], "unstable_features": {"org.matrix.msc4140": false}});
    let clear = Answer::Says("200 OK", "", no);
    let delayed = versions.iter().chain([&clear]);
    let many = Many::with(delayed.cloned().map(Delayed::saying).collect());
    std::thread::scope(|scope| {
        for server in 0..many.servers.len() {
            let (many, last) = (&many, server == many.servers.len() - 1);
            scope.spawn(move || {
                let start = Instant::now();
                let (caller, reply) = many.delegated(server, &format!("syd_{server}"));
                assert!(start.elapsed() < 2 * IN_TIME, "{server}");
                if last {
                    assert_eq!(reply.verdict(), (400, "M_BAD_JSON".into()));
                    return;
                }
                assert_eq!(reply.status, 200, "{server}: {reply:?}");
                many.tell("participant_joined", &caller);
                let delayed = &many.servers[server].1;
                delayed.wait_for(1, "restart", &format!("syd_{server}"));
            });
        }
    });
    assert_eq!(trap.connections(), 0, "a redirect was followed");
}
