use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::matrix::server_directory::ServerDirectory;
use crate::net::address::AddressPolicy;
use crate::net::fake_server::FakeServer;
use crate::net::tls::{CertificateVerification, RootCertificates, client_config};

const OK: &str = "200 OK";
const SECOND: Duration = Duration::from_secs(1);
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

fn in_a_minute() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn fetcher() -> Fetcher {
    let tls = client_config(
        &RootCertificates::built_in_and_system(),
        CertificateVerification::On,
    );
    Fetcher::new(tls, AddressPolicy::default(), 8)
}

/// A client with `fake` as the API of `a.example`.
fn client(fake: &FakeServer, appservice: Option<AppServiceAccess>) -> DelayedEventClient {
    let overrides = BTreeMap::from([(name("a.example"), fake.url("/base"))]);
    let directory = ServerDirectory::new(overrides, []);
    let client_api = ClientApiDiscovery::new(fetcher(), directory);
    DelayedEventClient::new(fetcher(), client_api, appservice)
}

fn restart(client: &DelayedEventClient, text: &str) -> DelayedEventOutcome {
    client.perform(
        DelayedEventAction::Restart,
        &user(),
        &id(text),
        in_a_minute(),
    )
}

#[test]
fn only_the_homeserver_of_the_application_service_gets_the_as_token_and_the_user() {
    let fake = FakeServer::new(|request| {
        let line = &request.request_line;
        // a registration without these users
        if line.contains("user_id=") && line.contains("denied") {
            return Some(("403 Forbidden", b"{}".to_vec()));
        }
        Some((OK, b"{}".to_vec()))
    });
    let access = |server| AppServiceAccess {
        server: name(server),
        as_token: AppServiceSecret::parse("as-token").unwrap(),
        fetcher: fetcher(),
    };
    let own = client(&fake, Some(access("a.example")));
    assert_eq!(restart(&own, "x"), DelayedEventOutcome::Done);
    let requests = fake.requests();
    let last = requests.last().unwrap();
    assert!(
        last.request_line
            .ends_with("/x/restart?user_id=%40a%3Aa.example"),
        "{}",
        last.request_line
    );
    assert_eq!(last.authorization.as_deref(), Some("Bearer as-token"));
    assert_eq!(restart(&own, "denied"), DelayedEventOutcome::Done);
    let other = client(&fake, Some(access("b.example")));
    assert_eq!(restart(&other, "y"), DelayedEventOutcome::Done);
    for request in &fake.requests()[requests.len() + 1..] {
        assert_eq!(request.authorization, None);
    }
}

#[test]
fn ids_are_escaped_in_the_path() {
    for (text, expected) in [
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
        assert_eq!(target, format!("{start}{expected}/restart"));
        assert_eq!(body, "{}");
    }
}

#[test]
fn the_action_is_in_the_path_or_in_the_body() {
    let request = |path| build_request(path, "/base", DelayedEventAction::Send, &id("x"));
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
fn a_call_goes_to_the_base_url_without_authentication() {
    let fake = FakeServer::new(|request| match request.request_line.starts_with("GET") {
        true => Some((OK, b"{}".to_vec())),
        false => Some(("429 Wait\r\nRetry-After: 3", b"{}".to_vec())),
    });
    let client = client(&fake, None);
    let limited = DelayedEventOutcome::RateLimited(Some(Duration::from_secs(3)));
    assert_eq!(restart(&client, "x"), limited);
    assert_eq!(restart(&client, "y"), limited);
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
fn a_path_that_the_server_does_not_implement_is_tried_once() {
    let fake = FakeServer::new(|request| match request.request_line.ends_with("/x") {
        true => Some((OK, b"{}".to_vec())),
        false => Some(("404 Not Found", UNRECOGNIZED.to_vec())),
    });
    let client = client(&fake, None);
    assert_eq!(restart(&client, "x"), DelayedEventOutcome::Done);
    assert_eq!(
        client
            .client_api()
            .delayed_event_support(&name("a.example")),
        Ok(DelayedEventSupport::Supported(
            DelayedEventPath::UnstableActionInBody
        ))
    );
    assert_eq!(restart(&client, "x"), DelayedEventOutcome::Done);
    // versions, the default path, the implemented path; then the implemented path only
    assert_eq!(fake.request_lines().len(), 4);
    assert_eq!(fake.requests()[3].body, br#"{"action":"restart"}"#);
}

#[test]
fn an_event_of_a_server_without_the_endpoint_is_not_found() {
    let fake = FakeServer::new(|_| Some(("404 Not Found", UNRECOGNIZED.to_vec())));
    assert_eq!(
        restart(&client(&fake, None), "x"),
        DelayedEventOutcome::NotFound
    );
    assert_eq!(fake.request_lines().len(), 4);
}

#[test]
fn a_server_that_closes_connections_opens_the_circuit_breaker() {
    let fake = FakeServer::new(|_| None);
    let client = client(&fake, None);
    for _ in 0..2 {
        let DelayedEventOutcome::Failed(cause) = restart(&client, "x") else {
            panic!("not a failure")
        };
        assert!(cause.starts_with(&fake.url("/base").to_string()), "{cause}");
    }
    let calls = fake.request_lines().len();
    let DelayedEventOutcome::NotAttempted(left) = restart(&client, "x") else {
        panic!("the server was called")
    };
    assert!(left <= BREAKER_OPEN);
    assert_eq!(fake.request_lines().len(), calls);
}

#[test]
fn a_response_above_the_size_limit_is_a_failure() {
    let fake = FakeServer::new(|_| Some((OK, vec![b' '; LIMITS.max_body + 1])));
    assert!(matches!(
        restart(&client(&fake, None), "x"),
        DelayedEventOutcome::Failed(_)
    ));
    let fake = FakeServer::new(|_| Some((OK, vec![b' '; LIMITS.max_body])));
    assert_eq!(
        restart(&client(&fake, None), "x"),
        DelayedEventOutcome::Done
    );
}

#[test]
fn a_call_without_time_does_not_count_for_the_circuit_breaker() {
    let fake = FakeServer::new(|_| Some((OK, b"{}".to_vec())));
    let client = client(&fake, None);
    assert_eq!(restart(&client, "x"), DelayedEventOutcome::Done);
    for _ in 0..5 {
        let late = client.perform(DelayedEventAction::Send, &user(), &id("x"), Instant::now());
        assert!(matches!(late, DelayedEventOutcome::Failed(_)), "{late:?}");
    }
    assert_eq!(restart(&client, "x"), DelayedEventOutcome::Done);
}

#[test]
fn concurrent_calls_to_one_server_are_limited() {
    let (release, released) = channel::<()>();
    let released: Mutex<Receiver<()>> = Mutex::new(released);
    let fake = FakeServer::new(move |request| {
        if request.request_line.starts_with("POST") {
            // until the test drops the sender
            let _ = released.lock().unwrap().recv();
        }
        Some((OK, b"{}".to_vec()))
    });
    let client = client(&fake, None);
    client
        .client_api()
        .delayed_event_support(&name("a.example"))
        .unwrap();
    std::thread::scope(|scope| {
        let (done, outcomes) = channel();
        for _ in 0..16 {
            let (client, done) = (&client, done.clone());
            scope.spawn(move || done.send(restart(client, "x")).unwrap());
        }
        let first: Vec<_> = outcomes.iter().take(16 - MAX_CALLS_PER_SERVER).collect();
        assert_eq!(
            first,
            vec![DelayedEventOutcome::NotAttempted(BUSY_RETRY); 16 - MAX_CALLS_PER_SERVER]
        );
        drop(release);
        let rest: Vec<_> = outcomes.iter().take(MAX_CALLS_PER_SERVER).collect();
        assert_eq!(rest, vec![DelayedEventOutcome::Done; MAX_CALLS_PER_SERVER]);
    });
}

fn outcome(status: u16, retry_after: Option<&str>, body: &str) -> Option<DelayedEventOutcome> {
    let mut headers = HeaderMap::new();
    if let Some(value) = retry_after {
        headers.insert(header::RETRY_AFTER, value.parse().unwrap());
    }
    parse_response(&FetchResponse {
        status,
        headers,
        body: body.as_bytes().to_vec(),
    })
}

#[test]
fn every_status_has_an_outcome() {
    let failed = |status: u16| DelayedEventOutcome::Failed(format!("status {status}"));
    for (status, expected) in [
        (200, DelayedEventOutcome::Done),
        (204, DelayedEventOutcome::Done),
        (404, DelayedEventOutcome::NotFound),
        (410, DelayedEventOutcome::NotFound),
        (409, DelayedEventOutcome::Finalised),
        (400, DelayedEventOutcome::Rejected(400)),
        (401, DelayedEventOutcome::Rejected(401)),
        (403, DelayedEventOutcome::Rejected(403)),
        (405, DelayedEventOutcome::Rejected(405)),
        (413, DelayedEventOutcome::Rejected(413)),
        (429, DelayedEventOutcome::RateLimited(None)),
        (301, failed(301)),
        (408, failed(408)),
        (425, failed(425)),
        (500, failed(500)),
        (502, failed(502)),
        (503, failed(503)),
        (599, failed(599)),
        (100, failed(100)),
    ] {
        for body in ["", "{}", "<html>", r#"{"errcode":"M_NOT_FOUND"}"#] {
            assert_eq!(
                outcome(status, None, body),
                Some(expected.clone()),
                "{status} {body}"
            );
        }
    }
}

#[test]
fn an_unrecognized_path_is_not_an_unknown_event() {
    let unrecognized = r#"{"errcode":"M_UNRECOGNIZED","error":"Unrecognized request"}"#;
    for status in [404, 405] {
        assert_eq!(outcome(status, None, unrecognized), None);
    }
    assert_eq!(
        outcome(403, None, unrecognized),
        Some(DelayedEventOutcome::Rejected(403))
    );
}

#[test]
fn a_429_sets_the_retry_delay_up_to_five_minutes() {
    let year = (365 * 24 * 3600).to_string();
    for (header, body, seconds) in [
        (Some("7"), "", Some(7)),
        (Some(" 7 "), "", Some(7)),
        (Some("0"), "", Some(0)),
        (None, r#"{"retry_after_ms":1500}"#, Some(2)),
        (None, r#"{"retry_after_ms":1500.5}"#, Some(2)),
        (Some("1"), r#"{"retry_after_ms":4000}"#, Some(4)),
        (Some("9"), r#"{"retry_after_ms":4000}"#, Some(9)),
        (Some(&*year), "", Some(300)),
        (Some("99999999999999999999999999"), "", Some(300)),
        (None, r#"{"retry_after_ms":1e300}"#, Some(300)),
        (
            None,
            r#"{"retry_after_ms":18446744073709551615}"#,
            Some(300),
        ),
        (None, r#"{"retry_after_ms":-5}"#, None),
        (None, r#"{"retry_after_ms":"5000"}"#, None),
        (Some("-1"), "", None),
        (Some("soon"), "[]", None),
        (Some(""), "", None),
        (Some("Fri, 31 Dec 9999 23:59:59 GMT"), "", Some(300)),
        (Some("Thu, 01 Jan 1970 00:00:00 GMT"), "", Some(0)),
    ] {
        let Some(DelayedEventOutcome::RateLimited(delay)) = outcome(429, header, body) else {
            panic!("{header:?} {body}");
        };
        let rounded = delay.map(|delay| delay.as_secs_f64().ceil());
        assert_eq!(rounded, seconds.map(f64::from), "{header:?} {body}");
    }
}

#[test]
fn a_retry_after_date_is_relative_to_now() {
    let now = SystemTime::UNIX_EPOCH + 1_800_000_000 * SECOND;
    let date = httpdate::fmt_http_date(now + 42 * SECOND);
    assert_eq!(parse_retry_after(&date, now), Some(42 * SECOND));
    assert_eq!(
        parse_retry_after(&date, now + 50 * SECOND),
        Some(Duration::ZERO)
    );
}
