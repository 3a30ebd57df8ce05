use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::matrix::well_known::WellKnownFailure;
use crate::net::address::AddressPolicy;
use crate::net::fake_server::FakeServer;
use crate::net::tls::{CertificateVerification, RootCertificates, client_config};

const SUPPORTED: &[u8] =
    br#"{"versions":["v1.16"],"unstable_features":{"org.matrix.msc4140":true}}"#;

fn name(text: &str) -> ServerName {
    ServerName::parse(text).unwrap()
}

/// Discovery with `fake` as the API of `a.example`.
fn client_api(fake: &FakeServer) -> ClientApiDiscovery {
    let tls = client_config(
        &RootCertificates::built_in_and_system(),
        CertificateVerification::On,
    );
    let overrides = BTreeMap::from([(name("a.example"), fake.url("/base"))]);
    ClientApiDiscovery::new(
        Fetcher::new(tls, AddressPolicy::default(), 8),
        ServerDirectory::new(overrides, []),
    )
}

#[test]
fn versions_are_fetched_once() {
    let fake = FakeServer::new(|_| Some(("200 OK", SUPPORTED.to_vec())));
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
fn a_server_that_does_not_say_counts_as_supporting_delayed_events() {
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
    let closing = FakeServer::new(|_| None);
    assert_eq!(
        client_api(&closing).delayed_event_support(&name("a.example")),
        Ok(DelayedEventSupport::Supported(DelayedEventPath::Unstable))
    );
    let endless = FakeServer::new(|_| Some(("200 OK", vec![b' '; VERSIONS_LIMITS.max_body + 1])));
    assert_eq!(
        client_api(&endless).delayed_event_support(&name("a.example")),
        Ok(DelayedEventSupport::Supported(DelayedEventPath::Unstable))
    );
}

#[test]
fn the_previous_answer_holds_while_the_server_does_not_respond() {
    static RESPONDS: AtomicBool = AtomicBool::new(true);
    let fake = FakeServer::new(|_| {
        let body = br#"{"unstable_features":{"org.matrix.msc4140":false}}"#;
        RESPONDS
            .load(Ordering::SeqCst)
            .then(|| ("200 OK", body.to_vec()))
    });
    let client_api = client_api(&fake);
    let server = name("a.example");
    let support = || client_api.delayed_event_support(&server);
    assert_eq!(support(), Ok(DelayedEventSupport::Unsupported));
    RESPONDS.store(false, Ordering::SeqCst);
    let since = Instant::now() + LOOKUP_BUDGET;
    client_api.invalidate(&server, Trust::Administrator, since);
    assert_eq!(support(), Ok(DelayedEventSupport::Unsupported));
    assert!(fake.request_lines().len() > 1, "no second request");
}

#[test]
fn an_unlisted_server_on_a_private_address_is_not_found() {
    let fake = FakeServer::new(|_| None);
    let client_api = client_api(&fake);
    for _ in 0..2 {
        let result = client_api.delayed_event_support(&name("127.0.0.1"));
        let Err(Error::NotFound(cause)) = result else {
            panic!("{result:?}")
        };
        assert!(cause.contains("LIVEKIT_ALLOWED_NETWORKS"), "{cause}");
    }
}

#[test]
fn failures_are_cached_until_the_retry_delay_ends() {
    let now = Instant::now();
    let mut facts = ClientApiFacts::default();
    assert!(facts.is_stale(now));
    let absent = WellKnownFailure::Absent("for the test".into());
    facts.well_known.record(Err(absent), WELL_KNOWN.retry, now);
    assert!(!facts.is_stale(now));
    assert!(facts.is_stale(now + WELL_KNOWN.retry.absent.delay(1)));
}

#[test]
fn a_base_url_is_an_https_url_of_a_server_name() {
    let parse = |url: &str| {
        parse_client_well_known(format!(r#"{{"m.homeserver":{{"base_url":"{url}"}}}}"#).as_bytes())
    };
    for (url, expected) in [
        ("https://m.a.org", "https://m.a.org"),
        ("https://m.a.org/", "https://m.a.org"),
        ("HTTPS://m.a.org:8448/x/", "https://m.a.org:8448/x"),
        ("https://[2001:db8::1]:1", "https://[2001:db8::1]:1"),
        ("https://192.0.2.1", "https://192.0.2.1"),
    ] {
        assert_eq!(parse(url).map(|base| base.to_string()), Ok(expected.into()));
    }
    for url in [
        "",
        "m.a.org",
        "http://m.a.org",
        "ws://m.a.org",
        "wss://m.a.org",
        "ftp://m.a.org",
        "file:///etc/passwd",
        "https://",
        "https://u:p@m.a.org",
        "https://m.a.org?q",
        "https://m.a.org#f",
        "https://127.1",
        "https://0x7f000001",
        "https://2130706433",
        "https://m.a.org:0",
        "https://m a.org",
        "https://m.a.org\\r\\nX: y",
        &format!("https://m.a.org/{}", "a".repeat(3000)),
    ] {
        assert!(parse(url).is_err(), "{url}");
    }
}

#[test]
fn a_well_known_document_needs_a_base_url() {
    for body in [
        "",
        "{}",
        "[]",
        "null",
        "<html>",
        r#"{"m.homeserver":"https://a.org"}"#,
        r#"{"m.homeserver":["https://a.org"]}"#,
        r#"{"m.homeserver":{}}"#,
        r#"{"m.homeserver":{"base_url":1}}"#,
        r#"{"m.homeserver":{"base_url":null}}"#,
        r#"{"base_url":"https://a.org"}"#,
    ] {
        assert!(parse_client_well_known(body.as_bytes()).is_err(), "{body}");
    }
}

#[test]
fn only_false_means_unsupported() {
    use DelayedEventPath::{Stable, Unstable};
    for (features, expected) in [
        (
            r#"{"org.matrix.msc4140":true}"#,
            Some(DelayedEventSupport::Supported(Unstable)),
        ),
        (
            r#"{"org.matrix.msc4140":false}"#,
            Some(DelayedEventSupport::Unsupported),
        ),
        (
            r#"{"org.matrix.msc4140":false,"org.matrix.msc4140.stable":true}"#,
            Some(DelayedEventSupport::Supported(Stable)),
        ),
        (
            r#"{"org.matrix.msc4140":true,"org.matrix.msc4140.stable":false}"#,
            Some(DelayedEventSupport::Supported(Unstable)),
        ),
        (r#"{"org.matrix.msc4140":"false"}"#, None),
        (r#"{"org.matrix.msc4140":0}"#, None),
        (r#"{"org.matrix.msc4140":null}"#, None),
        (r#"{"org.matrix.msc4143":false}"#, None),
        ("{}", None),
        ("[]", None),
        ("null", None),
    ] {
        let body = format!(r#"{{"versions":[],"unstable_features":{features}}}"#);
        assert_eq!(parse_versions(body.as_bytes()), expected, "{features}");
    }
    for body in ["", "{}", "[]", "<html>", r#"{"org.matrix.msc4140":false}"#] {
        assert_eq!(parse_versions(body.as_bytes()), None, "{body}");
    }
}
