use std::sync::atomic::{AtomicU16, Ordering};

use super::*;
use crate::net::address::AddressPolicy;
use crate::net::fake::Fake;
use crate::net::tls::{Roots, Verification, client_config};

const YES: &[u8] = br#"{"versions":["v1.16"],"unstable_features":{"org.matrix.msc4140":true}}"#;

fn name(text: &str) -> ServerName {
    ServerName::parse(text).unwrap()
}

/// The API of `a.example`, at `fake`.
fn client_api(fake: &Fake) -> ClientApi {
    let tls = client_config(&Roots::common(), Verification::On);
    let overrides = BTreeMap::from([(name("a.example"), fake.url("/base"))]);
    ClientApi::new(
        Fetcher::new(tls, AddressPolicy::default(), 8),
        overrides,
        BTreeSet::from([name("listed.example")]),
    )
}

#[test]
fn an_api_is_at_an_https_url_of_a_named_host() {
    let read =
        |url: &str| read_base(format!(r#"{{"m.homeserver":{{"base_url":"{url}"}}}}"#).as_bytes());
    for (url, shown) in [
        ("https://m.a.org", "https://m.a.org"),
        ("https://m.a.org/", "https://m.a.org"),
        ("HTTPS://m.a.org:8448/x/", "https://m.a.org:8448/x"),
        ("https://[2001:db8::1]:1", "https://[2001:db8::1]:1"),
        ("https://192.0.2.1", "https://192.0.2.1"),
    ] {
        assert_eq!(read(url).map(|base| base.to_string()), Ok(shown.into()));
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
        assert!(read(url).is_err(), "{url}");
    }
}

#[test]
fn a_document_without_a_base_url_is_no_answer() {
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
        assert!(read_base(body.as_bytes()).is_err(), "{body}");
    }
}

#[test]
fn only_a_clear_no_is_one() {
    use PathForm::{Stable, Unstable};
    for (features, said) in [
        (
            r#"{"org.matrix.msc4140":true}"#,
            Some(Support::Yes(Unstable)),
        ),
        (r#"{"org.matrix.msc4140":false}"#, Some(Support::No)),
        (
            r#"{"org.matrix.msc4140":false,"org.matrix.msc4140.stable":true}"#,
            Some(Support::Yes(Stable)),
        ),
        (
            r#"{"org.matrix.msc4140":true,"org.matrix.msc4140.stable":false}"#,
            Some(Support::Yes(Unstable)),
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
        assert_eq!(read_support(body.as_bytes()), said, "{features}");
    }
    for body in ["", "{}", "[]", "<html>", r#"{"org.matrix.msc4140":false}"#] {
        assert_eq!(read_support(body.as_bytes()), None, "{body}");
    }
}

#[test]
fn versions_are_asked_once() {
    let fake = Fake::new(|_| Some(("200 OK", YES.to_vec())));
    let client_api = client_api(&fake);
    for _ in 0..3 {
        assert_eq!(
            client_api.delayed_events(&name("a.example")),
            Ok(Support::Yes(PathForm::Unstable))
        );
    }
    assert_eq!(fake.lines(), ["GET /base/_matrix/client/versions"]);
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
        let fake = Fake::new(move |_| Some((head, body.into())));
        assert_eq!(
            client_api(&fake).delayed_events(&name("a.example")),
            Ok(Support::Yes(PathForm::Unstable)),
            "{head} {body}"
        );
        assert_eq!(fake.lines().len(), 1);
    }
    let hangs_up = Fake::new(|_| None);
    assert_eq!(
        client_api(&hangs_up).delayed_events(&name("a.example")),
        Ok(Support::Yes(PathForm::Unstable))
    );
    let endless = Fake::new(|_| Some(("200 OK", vec![b' '; VERSIONS_LIMITS.max_body + 1])));
    assert_eq!(
        client_api(&endless).delayed_events(&name("a.example")),
        Ok(Support::Yes(PathForm::Unstable))
    );
}

#[test]
fn what_a_server_said_holds_while_it_does_not_answer() {
    static STATUS: AtomicU16 = AtomicU16::new(200);
    let fake = Fake::new(|_| match STATUS.load(Ordering::SeqCst) {
        200 => Some((
            "200 OK",
            br#"{"unstable_features":{"org.matrix.msc4140":false}}"#.to_vec(),
        )),
        _ => None,
    });
    let client_api = client_api(&fake);
    let server = name("a.example");
    assert_eq!(client_api.delayed_events(&server), Ok(Support::No));
    STATUS.store(0, Ordering::SeqCst);
    client_api.doubt(&server, Instant::now() + BUDGET);
    assert_eq!(client_api.delayed_events(&server), Ok(Support::No));
    assert!(fake.lines().len() > 1, "was not asked again");
}

#[test]
fn a_stranger_on_a_private_address_is_not_dialled_and_asked_for_once() {
    let fake = Fake::new(|_| None);
    let client_api = client_api(&fake);
    for _ in 0..2 {
        let Err(Error::Unreachable(why)) = client_api.delayed_events(&name("127.0.0.1")) else {
            panic!("it was dialled")
        };
        assert!(why.contains("may not be dialled"), "{why}");
    }
}

#[test]
fn a_no_is_remembered_for_a_while_and_told_from_silence() {
    let now = Instant::now();
    let mut known = Known::default();
    assert!(cache::Known::is_stale(&known, now));
    known
        .base
        .learn(Asked::Absent("status 404".into()), PAUSES, now);
    assert!(!cache::Known::is_stale(&known, now));
    assert!(cache::Known::is_stale(&known, now + PAUSES.absent));
    for _ in 0..100 {
        known
            .base
            .learn(Asked::Unreachable("silence".into()), PAUSES, now);
    }
    assert!(cache::Known::is_stale(&known, now + PAUSES.longest));
}
