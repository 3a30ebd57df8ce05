//! Hostile users and homeservers: their delay ids and responses are harmless, and the leaves of others are not delayed.

use serde_json::{Value, json};

use crate::call::{CallMember, CallSetup, webhook_authorization, webhook_body};
use crate::client::Reply;
use crate::fake_delayed_events::{DelayedReply, FakeDelayedEvents};
use crate::homeserver::FakeHomeserver;
use crate::process::Service;
use crate::settings::Settings;
use crate::sfu::{FakeSfu, SfuBehaviour};
use crate::silent_listener::SilentListener;
use crate::webhook_signature::post_with_fields;

/// A delay in milliseconds that does not end during a test.
const HOUR: u64 = 3_600_000;
/// Quota of one user.
const PER_USER: usize = 100;
/// Memory that hostile responses of 10 MB each may cost.
const MEMORY_KB: u64 = 20 * 1024;

#[test]
fn a_delay_id_is_escaped_in_the_path() {
    let setup = CallSetup::start();
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
        let alice = setup.new_member();
        setup.join(&alice, id, HOUR);
        setup.send_webhook("participant_joined", &alice, "PA_1");
        setup.delayed.wait_for(1, "restart", escaped);
    }
}

#[test]
fn invalid_delays_are_refused_before_any_call() {
    let setup = CallSetup::start();
    let alice = setup.new_member();
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
            let reply = setup.service().post(path, &body);
            let bad = (400, "M_BAD_JSON".to_owned());
            // an enormous number is either refused or a long delay
            let is_enormous = timeout.is_string() && timeout.as_str().unwrap().starts_with("99999");
            if is_enormous || timeout == json!(1e308) {
                assert!([200, 400].contains(&reply.status), "{reply:?}");
            } else {
                assert_eq!(
                    reply.status_and_errcode(),
                    bad,
                    "{path} {id} {timeout}: {reply:?}"
                );
            }
        }
    }
    assert_eq!(setup.delayed.calls().len(), 0);
}

#[test]
fn a_user_with_many_leaves_exhausts_only_their_own_quota() {
    let setup = CallSetup::start();
    let refused = (0..PER_USER + 50).filter(|number| {
        let member = format!("flood{number}");
        let mallory = CallMember {
            user: setup.setup.homeserver.user("mallory"),
            member_id: member,
        };
        let reply = setup.delegate(&mallory, &format!("syd_{number}"), HOUR);
        match reply.status_and_errcode() {
            (200, _) => assert!(*number < PER_USER, "{number}"),
            (429, errcode) => assert_eq!(errcode, "M_LIMIT_EXCEEDED"),
            _ => panic!("{number}: {reply:?}"),
        }
        reply.status == 429
    });
    assert_eq!(refused.count(), 50);
    let rooms = setup.sfu().calls().len();
    let one_more = setup.member_of("mallory", "one more");
    let body = one_more.body("syd_x", json!(HOUR));
    let reply = setup.service().post("/get_token", &body);
    assert_eq!(reply.status_and_errcode(), (400, "M_BAD_JSON".into()));
    // without the leave there is a token
    let reply = setup.setup.get_token(&one_more.user);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(setup.sfu().calls().len() <= rooms + 2);
    let alice = setup.new_member();
    setup.join(&alice, "syd_alice", HOUR);
    setup.send_webhook("participant_joined", &alice, "PA_1");
    setup.delayed.wait_for(1, "restart", "syd_alice");
}

/// Homeservers, the delayed events of each, and the service that has leaves on all of them.
struct HomeserverSetup {
    servers: Vec<(FakeHomeserver, FakeDelayedEvents)>,
    service: Service,
    _sfu: FakeSfu,
}

impl HomeserverSetup {
    fn with(delayed: Vec<FakeDelayedEvents>) -> Self {
        let servers = delayed
            .into_iter()
            .map(|d| (FakeHomeserver::well_behaved(), d));
        let servers: Vec<_> = servers.collect();
        let names = servers.iter().map(|(hs, _)| hs.name().to_owned());
        let urls = servers
            .iter()
            .map(|(hs, delayed)| format!("{}={}", hs.name(), delayed.url()));
        let sfu = FakeSfu::start(SfuBehaviour::Serves);
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

    /// Delegates the leave of a user of the `server`th homeserver.
    fn delegate(&self, server: usize, id: &str) -> (CallMember, Reply) {
        let caller = CallMember {
            user: self.servers[server].0.user(&format!("u{id}")),
            member_id: format!("m{id}"),
        };
        let body = caller.body(id, json!(HOUR));
        let reply = self.service.post("/delegate_delayed_leave", &body);
        (caller, reply)
    }

    fn send_webhook(&self, event: &str, caller: &CallMember) {
        let body = webhook_body(event, caller, "PA_1").to_string();
        let fields = format!(
            "Authorization: {}\r\n",
            webhook_authorization(body.as_bytes())
        );
        let reply = post_with_fields(&self.service, &fields, body.as_bytes());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

fn hostile_replies(listener: &SilentListener) -> Vec<DelayedReply> {
    let location: &'static str =
        format!("Location: http://127.0.0.1:{}/\r\n", listener.port()).leak();
    vec![
        DelayedReply::Hang,
        DelayedReply::Close,
        DelayedReply::Send("200 OK", "", json!("x".repeat(10_000_000))),
        DelayedReply::Send("302 Found", location, json!({})),
        DelayedReply::Send("307 Temporary Redirect", location, json!({})),
        DelayedReply::Send("429 Wait", "Retry-After: 31536000\r\n", json!({})),
        DelayedReply::Send("429 Wait", "", json!({"retry_after_ms": 1e300})),
        DelayedReply::Send("503 Sorry", "Retry-After: 31536000\r\n", json!({})),
        DelayedReply::Send("999 What", "", json!([])),
        DelayedReply::Send("404 Not Found", "", json!({"errcode": "M_UNRECOGNIZED"})),
    ]
}

#[test]
fn hostile_homeservers_do_not_delay_leaves_of_others() {
    let listener = SilentListener::on("127.0.0.1");
    let hostile = hostile_replies(&listener);
    let count = hostile.len();
    let mut delayed = vec![FakeDelayedEvents::start()];
    for answer in hostile {
        let bad = FakeDelayedEvents::start();
        bad.reply_always(Some(answer));
        delayed.push(bad);
    }
    // far more servers that hang than calls run at once
    for _ in 0..25 {
        let bad = FakeDelayedEvents::start();
        bad.reply_always(Some(DelayedReply::Hang));
        delayed.push(bad);
    }
    let setup = HomeserverSetup::with(delayed);
    let before = setup.service.peak_memory();
    let mut hostile_members = Vec::new();
    for server in 1..setup.servers.len() {
        for number in 0..6 {
            let id = format!("syd_{server}_{number}");
            let (caller, reply) = setup.delegate(server, &id);
            assert_eq!(reply.status, 200, "{reply:?}");
            setup.send_webhook("participant_joined", &caller);
            hostile_members.push(caller);
        }
    }
    for round in 0..10 {
        // restarts of the hostile servers' leaves in the first half, sends in the second
        if round == 5 {
            for caller in &hostile_members {
                setup.send_webhook("participant_left", caller);
            }
        }
        let id = format!("syd_good_{round}");
        let (alice, reply) = setup.delegate(0, &id);
        assert_eq!(reply.status, 200, "{reply:?}");
        let good = &setup.servers[0].1;
        setup.send_webhook("participant_joined", &alice);
        good.wait_for(1, "restart", &id);
        setup.send_webhook("participant_left", &alice);
        good.wait_for(1, "send", &id);
    }
    assert_eq!(listener.connections(), 0, "a redirect was followed");
    let cost = setup.service.peak_memory() - before;
    assert!(cost < MEMORY_KB, "{cost} kB for {count} kinds of response");
}

#[test]
fn only_a_clear_no_in_the_versions_refuses_a_leave() {
    let listener = SilentListener::on("127.0.0.1");
    let mut versions = hostile_replies(&listener);
    versions.push(DelayedReply::Send(
        "200 OK",
        "",
        json!({"unstable_features": null}),
    ));
    versions.push(DelayedReply::Send("200 OK", "", Value::Null));
    let no = json!({"versions": [], "unstable_features": {"org.matrix.msc4140": false}});
    let clear = DelayedReply::Send("200 OK", "", no);
    let delayed = versions.iter().chain([&clear]);
    let setup = HomeserverSetup::with(
        delayed
            .cloned()
            .map(FakeDelayedEvents::with_versions)
            .collect(),
    );
    std::thread::scope(|scope| {
        for server in 0..setup.servers.len() {
            let (setup, last) = (&setup, server == setup.servers.len() - 1);
            scope.spawn(move || {
                let (caller, reply) = setup.delegate(server, &format!("syd_{server}"));
                if last {
                    assert_eq!(reply.status_and_errcode(), (400, "M_BAD_JSON".into()));
                    return;
                }
                assert_eq!(reply.status, 200, "{server}: {reply:?}");
                setup.send_webhook("participant_joined", &caller);
                let delayed = &setup.servers[server].1;
                delayed.wait_for(1, "restart", &format!("syd_{server}"));
            });
        }
    });
    assert_eq!(listener.connections(), 0, "a redirect was followed");
}
