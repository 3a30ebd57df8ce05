//! Metrics: their values, and that only the metrics listener serves them.

use crate::client;
use crate::client::Address;
use crate::process::Service;
use crate::setup::TestSetup;

fn setup() -> TestSetup {
    TestSetup::restricted_with(|settings| settings.set("LIVEKIT_METRICS_BIND", "127.0.0.1:0"))
}

pub(crate) fn metrics_of(service: &Service) -> Address {
    let line = service.wait_for_log("serving metrics");
    let (_, rest) = line.split_once("address=").unwrap();
    Address::Tcp(rest.split_whitespace().next().unwrap().parse().unwrap())
}

pub(crate) fn scrape(address: &Address) -> String {
    let reply = client::request(address, "GET", "/metrics", b"");
    assert_eq!(reply.status, 200);
    String::from_utf8(reply.body).unwrap()
}

/// The samples, without comments.
fn samples(text: &str) -> Vec<(&str, f64)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect()
}

pub(crate) fn value(text: &str, name: &str) -> f64 {
    let name = format!("livekit_token_service_{name}");
    let sample = samples(text).into_iter().find(|(other, _)| *other == name);
    sample.unwrap_or_else(|| panic!("no {name} in\n{text}")).1
}

#[test]
fn requests_tokens_calls_and_look_ups_are_counted() {
    let setup = setup();
    let metrics = metrics_of(&setup.service);
    let user = setup.homeserver.user("alice");
    assert_eq!(setup.get_token(&user).status, 200);
    assert_eq!(setup.sfu_get(&user).status, 200);
    assert_eq!(
        setup
            .get_token(&setup.homeserver.user_with_unknown_token("mallory"))
            .status,
        401
    );
    let text = scrape(&metrics);
    for (name, expected) in [
        (r#"requests_total{endpoint="get_token",status="200"}"#, 1.0),
        (r#"requests_total{endpoint="sfu/get",status="200"}"#, 1.0),
        (r#"requests_total{endpoint="get_token",status="401"}"#, 1.0),
        (
            r#"request_duration_seconds_count{endpoint="get_token"}"#,
            2.0,
        ),
        (
            r#"tokens_issued_total{source="matrix",access="restricted"}"#,
            2.0,
        ),
        (r#"requests_refused_total{reason="unauthenticated"}"#, 1.0),
        (
            r#"upstream_requests_total{kind="openid",outcome="ok"}"#,
            1.0,
        ),
        (
            r#"upstream_requests_total{kind="openid",outcome="denied"}"#,
            1.0,
        ),
        (r#"cache_lookups_total{cache="openid",result="hit"}"#, 1.0),
    ] {
        assert_eq!(value(&text, name), expected, "{name} in\n{text}");
    }
    assert!(value(&text, "connections") >= 1.0);
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn each_listener_has_its_own_paths() {
    let setup = setup();
    let metrics = metrics_of(&setup.service);
    let user = setup.homeserver.user("alice");
    assert_eq!(setup.service.request("GET", "/metrics").status, 404);
    assert_eq!(
        client::post(&metrics, "/get_token", &user.get_token()).status,
        404
    );
    assert_eq!(
        client::request(&metrics, "GET", "/healthz", b"").status,
        200
    );
    assert_eq!(
        client::request(&metrics, "POST", "/metrics", b"").status,
        405
    );
    // the header field of the internal connection to tiny_http does not select the listener
    for (address, path) in [
        (setup.service.address(), "/metrics"),
        (&metrics, "/get_token"),
    ] {
        for request_id in ["0", "1", "2", ""] {
            let forged = format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nX-Internal-Request-Id: {request_id}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            assert_eq!(
                client::raw(address, forged.as_bytes()).status,
                404,
                "{path} {request_id}"
            );
        }
    }
}

#[test]
fn callers_cannot_create_series() {
    let setup = setup();
    let metrics = metrics_of(&setup.service);
    let send_requests = |round: usize| {
        let user = setup.homeserver.user(&format!("user{round}"));
        setup.get_token(&user);
        let unknown_path = format!("/p{round}/q?x={round}");
        for (method, path) in [
            ("GET", unknown_path.as_str()),
            ("PUT", "/get_token"),
            ("POST", "/sfu/get"),
        ] {
            setup.service.request(method, path);
        }
        setup.get_token(&crate::setup::User::new(
            "a",
            &format!("no-such-{round}.invalid"),
        ));
        samples(&scrape(&metrics)).len()
    };
    let first = send_requests(0);
    let max = (1..10).map(send_requests).max().unwrap();
    // the second round may hit caches that the first one missed
    assert!(max <= first + 8, "{first} series have become {max}");
}
