use std::sync::atomic::{AtomicU16, Ordering};

use super::*;
use crate::net::address::AddressPolicy;
use crate::net::fake_server::FakeServer;
use crate::net::tls::{CertificateVerification, RootCertificates, client_config};

const YES: &[u8] = br#"{"versions":["v1.16"],"unstable_features":{"org.matrix.msc4140":true}}"#;

fn name(text: &str) -> ServerName {
    ServerName::parse(text).unwrap()
}

/// The API of `a.example`, at `fake`.
fn client_api(fake: &FakeServer) -> ClientApiDiscovery {
    let tls = client_config(
        &RootCertificates::built_in_and_system(),
        CertificateVerification::On,
    );
    let overrides = BTreeMap::from([(name("a.example"), fake.url("/base"))]);
    ClientApiDiscovery::new(
        Fetcher::new(tls, AddressPolicy::default(), 8),
        overrides,
        BTreeSet::from([name("listed.example")]),
    )
}

#[test]
fn versions_are_asked_once() {
    let fake = FakeServer::new(|_| Some(("200 OK", YES.to_vec())));
    let client_api = client_api(&fake);
    for _ in 0..3 {
        assert_eq!(
            client_api.delayed_event_support(&name("a.example")),
            Ok(DelayedEventSupport::Supported(DelayedEventPath::Unstable))
        );
    }
    assert_eq!(fake.request_lines(), ["GET /base/_matrix/client/versions"]);
}

#[test]
fn a_server_that_says_nothing_is_believed_to_have_delayed_events() {
    for (head, body) in [
        ("404 Not Found", ""),
        (
            "500 Oops",
            r#"{"unstable_features":{"org.matrix.msc4140":false}}"#,
        ),
        ("302 Found\r\nLocation: /elsewhere", ""),
        ("200 OK", "<html>"),
        ("200 OK", "{}"),
    ] {
        let fake = FakeServer::new(move |_| Some((head, body.into())));
        assert_eq!(
            client_api(&fake).delayed_event_support(&name("a.example")),
            Ok(DelayedEventSupport::Supported(DelayedEventPath::Unstable)),
            "{head} {body}"
        );
        assert_eq!(fake.request_lines().len(), 1);
    }
    let hangs_up = FakeServer::new(|_| None);
    assert_eq!(
        client_api(&hangs_up).delayed_event_support(&name("a.example")),
        Ok(DelayedEventSupport::Supported(DelayedEventPath::Unstable))
    );
    let endless = FakeServer::new(|_| Some(("200 OK", vec![b' '; VERSIONS_LIMITS.max_body + 1])));
    assert_eq!(
        client_api(&endless).delayed_event_support(&name("a.example")),
        Ok(DelayedEventSupport::Supported(DelayedEventPath::Unstable))
    );
}

#[test]
fn what_a_server_said_holds_while_it_does_not_answer() {
    static STATUS: AtomicU16 = AtomicU16::new(200);
    let fake = FakeServer::new(|_| match STATUS.load(Ordering::SeqCst) {
        200 => Some((
            "200 OK",
            br#"{"unstable_features":{"org.matrix.msc4140":false}}"#.to_vec(),
        )),
        _ => None,
    });
    let client_api = client_api(&fake);
    let server = name("a.example");
    assert_eq!(
        client_api.delayed_event_support(&server),
        Ok(DelayedEventSupport::Unsupported)
    );
    STATUS.store(0, Ordering::SeqCst);
    client_api.invalidate(&server, Instant::now() + LOOKUP_BUDGET);
    assert_eq!(
        client_api.delayed_event_support(&server),
        Ok(DelayedEventSupport::Unsupported)
    );
    assert!(fake.request_lines().len() > 1, "was not asked again");
}

#[test]
fn a_stranger_on_a_private_address_is_not_dialled_and_asked_for_once() {
    let fake = FakeServer::new(|_| None);
    let client_api = client_api(&fake);
    for _ in 0..2 {
        let Err(Error::Unreachable(why)) = client_api.delayed_event_support(&name("127.0.0.1"))
        else {
            panic!("it was dialled")
        };
        assert!(why.contains("may not be dialled"), "{why}");
    }
}

#[test]
fn a_no_is_remembered_for_a_while_and_told_from_silence() {
    let now = Instant::now();
    let mut known = ClientApiFacts::default();
    assert!(server_cache::CachedFact::is_stale(&known, now));
    known.well_known.record(
        WellKnownResult::Absent("status 404".into()),
        WELL_KNOWN_BACKOFF,
        now,
    );
    assert!(!server_cache::CachedFact::is_stale(&known, now));
    assert!(server_cache::CachedFact::is_stale(
        &known,
        now + WELL_KNOWN_BACKOFF.absent
    ));
    for _ in 0..100 {
        known.well_known.record(
            WellKnownResult::Unreachable("silence".into()),
            WELL_KNOWN_BACKOFF,
            now,
        );
    }
    assert!(server_cache::CachedFact::is_stale(
        &known,
        now + WELL_KNOWN_BACKOFF.max
    ));
}
