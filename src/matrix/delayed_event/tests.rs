use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::net::address::AddressPolicy;
use crate::net::fake_server::FakeServer;
use crate::net::tls::{CertificateVerification, RootCertificates, client_config};

const OK: &str = "200 OK";
const UNRECOGNIZED: &[u8] = br#"{"errcode":"M_UNRECOGNIZED"}"#;

fn name(text: &str) -> ServerName {
    ServerName::parse(text).unwrap()
}

fn user() -> UserId {
    UserId::parse("@a:a.example").unwrap()
}

fn id(text: &str) -> DelayId {
    DelayId::parse(text).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn fetcher() -> Fetcher {
    let tls = client_config(
        &RootCertificates::built_in_and_system(),
        CertificateVerification::On,
    );
    Fetcher::new(tls, AddressPolicy::default(), 8)
}

/// Delayed events of `a.example`, at `fake`.
fn events(fake: &FakeServer) -> DelayedEventClient {
    let overrides = BTreeMap::from([(name("a.example"), fake.url("/base"))]);
    let client_api = ClientApiDiscovery::new(fetcher(), overrides, BTreeSet::new());
    DelayedEventClient::new(fetcher(), client_api)
}

fn restart(events: &DelayedEventClient, text: &str) -> DelayedEventOutcome {
    events.perform(DelayedEventAction::Restart, &user(), &id(text), soon())
}

#[test]
fn our_own_homeserver_is_told_who_asks_and_another_is_not() {
    let fake = FakeServer::new(|asked| match asked.request_line.contains("user_id=") {
        true if asked.request_line.contains("denied") => Some(("403 Forbidden", b"{}".to_vec())),
        _ => Some((OK, b"{}".to_vec())),
    });
    let token = AppServiceSecret::parse("as-token").unwrap();
    let own = events(&fake).with_appservice(Some((name("a.example"), token.clone(), fetcher())));
    assert_eq!(restart(&own, "x"), DelayedEventOutcome::Done);
    let asked = fake.requests();
    let last = asked.last().unwrap();
    assert!(
        last.request_line
            .ends_with("/x/restart?user_id=%40a%3Aa.example"),
        "{}",
        last.request_line
    );
    assert_eq!(last.authorization.as_deref(), Some("Bearer as-token"));
    // a registration without these users
    assert_eq!(restart(&own, "denied"), DelayedEventOutcome::Done);
    let other = events(&fake).with_appservice(Some((name("b.example"), token, fetcher())));
    assert_eq!(restart(&other, "y"), DelayedEventOutcome::Done);
    for asked in &fake.requests()[asked.len() + 1..] {
        assert_eq!(asked.authorization, None);
    }
}

#[test]
fn no_id_leaves_its_segment_of_the_path() {
    for (text, escaped) in [
        ("syd_AbC-1.~", "syd_AbC-1.~"),
        ("a/b", "a%2Fb"),
        ("..a", "..a"),
        ("%2e%2e%2f", "%252e%252e%252f"),
        ("a?b#c", "a%3Fb%23c"),
        ("a b;c=d&e+f\\", "a%20b%3Bc%3Dd%26e%2Bf%5C"),
        ("ü\u{202e}", "%C3%BC%E2%80%AE"),
    ] {
        let (target, body) = build_request(
            DelayedEventPath::Unstable,
            "",
            DelayedEventAction::Restart,
            &id(text),
        );
        let start = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/";
        assert_eq!(target, format!("{start}{escaped}/restart"));
        assert_eq!(body, "{}");
    }
}

#[test]
fn every_form_says_what_is_to_be_done() {
    let request = |form| build_request(form, "/base", DelayedEventAction::Send, &id("x"));
    assert_eq!(
        request(DelayedEventPath::Stable),
        (
            "/base/_matrix/client/v1/delayed_events/x/send".into(),
            "{}".into()
        )
    );
    assert_eq!(
        request(DelayedEventPath::UnstableActionInBody),
        (
            "/base/_matrix/client/unstable/org.matrix.msc4140/delayed_events/x".into(),
            r#"{"action":"send"}"#.into()
        )
    );
}

#[test]
fn a_call_is_made_where_the_api_is_and_means_what_the_answer_says() {
    let fake = FakeServer::new(|asked| match asked.request_line.starts_with("GET") {
        true => Some((OK, b"{}".to_vec())),
        false => Some(("429 Wait\r\nRetry-After: 3", b"{}".to_vec())),
    });
    let events = events(&fake);
    let slow = DelayedEventOutcome::RateLimited(Some(Duration::from_secs(3)));
    assert_eq!(restart(&events, "x"), slow);
    assert_eq!(restart(&events, "y"), slow);
    let path = "POST /base/_matrix/client/unstable/org.matrix.msc4140/delayed_events";
    assert_eq!(
        fake.request_lines(),
        [
            "GET /base/_matrix/client/versions".to_owned(),
            format!("{path}/x/restart"),
            format!("{path}/y/restart"),
        ]
    );
    assert_eq!(fake.requests()[1].body, b"{}");
    assert_eq!(fake.requests()[1].authorization, None);
}

#[test]
fn a_form_that_is_not_known_there_is_not_used_twice() {
    let fake = FakeServer::new(|asked| match asked.request_line.ends_with("/x") {
        true => Some((OK, b"{}".to_vec())),
        false => Some(("404 Not Found", UNRECOGNIZED.to_vec())),
    });
    let events = events(&fake);
    assert_eq!(restart(&events, "x"), DelayedEventOutcome::Done);
    assert_eq!(
        events
            .client_api()
            .delayed_event_support(&name("a.example")),
        Ok(DelayedEventSupport::Supported(
            DelayedEventPath::UnstableActionInBody
        ))
    );
    assert_eq!(restart(&events, "x"), DelayedEventOutcome::Done);
    // versions, the usual form, the one that is known there, and that alone
    assert_eq!(fake.request_lines().len(), 4);
    assert_eq!(fake.requests()[3].body, br#"{"action":"restart"}"#);
}

#[test]
fn where_no_form_is_known_there_is_no_event() {
    let fake = FakeServer::new(|_| Some(("404 Not Found", UNRECOGNIZED.to_vec())));
    assert_eq!(restart(&events(&fake), "x"), DelayedEventOutcome::NotFound);
    assert_eq!(fake.request_lines().len(), 4);
}

#[test]
fn a_server_that_hangs_up_is_left_alone_for_a_while() {
    let fake = FakeServer::new(|_| None);
    let events = events(&fake);
    for _ in 0..2 {
        let DelayedEventOutcome::Failed(why) = restart(&events, "x") else {
            panic!("it was answered")
        };
        assert!(why.starts_with(&fake.url("/base").to_string()), "{why}");
    }
    let calls = fake.request_lines().len();
    let DelayedEventOutcome::NotAttempted(left) = restart(&events, "x") else {
        panic!("it was called")
    };
    assert!(left <= BREAKER_OPEN);
    assert_eq!(fake.request_lines().len(), calls);
}

#[test]
fn an_answer_that_is_too_large_is_none() {
    let fake = FakeServer::new(|_| Some((OK, vec![b' '; LIMITS.max_body + 1])));
    assert!(matches!(
        restart(&events(&fake), "x"),
        DelayedEventOutcome::Failed(_)
    ));
    let fake = FakeServer::new(|_| Some((OK, vec![b' '; LIMITS.max_body])));
    assert_eq!(restart(&events(&fake), "x"), DelayedEventOutcome::Done);
}

#[test]
fn a_call_without_time_says_nothing_about_the_server() {
    let fake = FakeServer::new(|_| Some((OK, b"{}".to_vec())));
    let events = events(&fake);
    assert_eq!(restart(&events, "x"), DelayedEventOutcome::Done);
    for _ in 0..5 {
        let late = events.perform(DelayedEventAction::Send, &user(), &id("x"), Instant::now());
        assert!(matches!(late, DelayedEventOutcome::Failed(_)), "{late:?}");
    }
    assert_eq!(restart(&events, "x"), DelayedEventOutcome::Done);
}

#[test]
fn a_server_that_hangs_holds_few_of_those_who_call() {
    let (open, gate) = channel::<()>();
    let gate: Mutex<Receiver<()>> = Mutex::new(gate);
    let fake = FakeServer::new(move |asked| {
        if asked.request_line.starts_with("POST") {
            // until the test lets go of the other end
            let _ = gate.lock().unwrap().recv();
        }
        Some((OK, b"{}".to_vec()))
    });
    let events = events(&fake);
    events
        .client_api()
        .delayed_event_support(&name("a.example"))
        .unwrap();
    std::thread::scope(|scope| {
        let (done, outcomes) = channel();
        for _ in 0..16 {
            let (events, done) = (&events, done.clone());
            scope.spawn(move || done.send(restart(events, "x")).unwrap());
        }
        let first: Vec<_> = outcomes.iter().take(16 - MAX_CALLS_PER_SERVER).collect();
        assert_eq!(
            first,
            vec![DelayedEventOutcome::NotAttempted(BUSY_RETRY); 16 - MAX_CALLS_PER_SERVER]
        );
        drop(open);
        let rest: Vec<_> = outcomes.iter().take(MAX_CALLS_PER_SERVER).collect();
        assert_eq!(rest, vec![DelayedEventOutcome::Done; MAX_CALLS_PER_SERVER]);
    });
}
